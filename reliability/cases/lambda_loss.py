"""A lambda function as loss trains, as it does in a stock model."""

import keras
import numpy as np
from keras import ops

import keras_pedcc

BACKENDS = ("tensorflow", "jax", "torch")


def check():
    """Compares the loss of a model with that of its outputs."""
    inputs = keras.Input((8,))
    model = keras_pedcc.PEDCCModel(inputs, keras_pedcc.PEDCCDense(5)(inputs))
    model.compile("sgd", lambda y, outputs: ops.mean(outputs["logits"] ** 2, axis=1))
    images = np.eye(4, 8)
    expected = np.mean(model.predict(images, verbose=0)["logits"] ** 2)
    history = model.fit(images, np.zeros(4), verbose=0).history
    np.testing.assert_allclose(history["loss"], expected, rtol=1e-5)
