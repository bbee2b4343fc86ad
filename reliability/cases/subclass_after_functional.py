"""Functional models and subclasses with a `call` of their own live side by side."""

import pathlib
import tempfile

import keras
import numpy as np

import keras_pedcc

BACKENDS = ("tensorflow", "jax", "torch")


class Subclass(keras_pedcc.PEDCCModel):
    """A model with a `call` of its own."""

    def __init__(self):
        super().__init__()
        self.dense, self.head = keras.layers.Dense(5), keras_pedcc.PEDCCDense(4)

    def call(self, x):
        return self.head(self.dense(x))


def check():
    """Trains and saves a subclass after a functional model was made."""
    images, labels = np.ones((8, 6)), np.arange(8) % 4
    model = Subclass()
    model.compile("sgd", keras_pedcc.PEDCCLoss())
    model.fit(images, labels, verbose=0)
    inputs = keras.Input((6,))
    head = keras_pedcc.PEDCCDense(4)
    keras_pedcc.PEDCCModel(inputs, head(keras.layers.Dense(5)(inputs)))
    assert keras_pedcc.PEDCCModel.__bases__ == (keras.Model,)
    assert np.isfinite(model.fit(images, labels, verbose=0).history["loss"]).all()
    with tempfile.TemporaryDirectory() as folder:
        model.save(pathlib.Path(folder) / "model.keras")
    Subclass()
