"""A trained head that streams trains eagerly on TensorFlow, in `fit` and by hand."""

import keras
import numpy as np

import keras_pedcc

BACKENDS = ("tensorflow",)


def check():
    import tensorflow as tf

    inputs = keras.Input((6,))
    for make in (keras_pedcc.PEDCCDense, keras_pedcc.CosineDense):
        head = make(10, scores=keras_pedcc.Blockwise(4), trainable=True)
        outputs = head(keras.layers.Dense(6)(inputs))
        model = keras_pedcc.PEDCCModel(inputs, outputs)
        model.compile("sgd", keras_pedcc.PEDCCLoss("auto"), run_eagerly=True)
        x, y = np.random.default_rng(0).normal(size=(8, 6)), np.arange(8)
        before = np.array(head.centroids)
        model.fit(x, y, verbose=0)
        assert np.abs(np.array(head.centroids) - before).max() > 0
        with tf.GradientTape() as tape:
            loss = model.compute_loss(y=y, y_pred=model(x, training=True))
        slopes = tape.gradient(loss, model.trainable_variables)
        assert all(slope is not None for slope in slopes)
