"""`FinetuneCallback` goes on under a loss that gives the centroids no gradient."""

import warnings

import keras
import numpy as np
from keras import ops

import keras_pedcc

BACKENDS = ("tensorflow", "jax", "torch")


def of_features_alone(y_true, outputs):
    return ops.sum(outputs["features"] ** 4, axis=1)


def check():
    inputs = keras.Input((4,))
    dense = keras.layers.Dense(4)
    model = keras_pedcc.PEDCCModel(inputs, keras_pedcc.PEDCCDense(3)(dense(inputs)))
    model.compile("sgd", of_features_alone)
    kernel, _, centroids = model.get_weights()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Gradients do not exist")
        callbacks = [keras_pedcc.FinetuneCallback(0)]
        images = np.random.default_rng(0).standard_normal((6, 4))
        model.fit(images, np.zeros(6), verbose=0, callbacks=callbacks)
    assert np.abs(model.get_weights()[0] - kernel).max() > 1e-6
    np.testing.assert_array_equal(model.get_weights()[2], centroids)
