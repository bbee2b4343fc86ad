"""A label beyond int32, which JAX would wrap around to a class, is refused."""

import keras
import numpy as np

import keras_pedcc

BACKENDS = ("tensorflow", "jax", "torch")


class Batches(keras.utils.PyDataset):
    """One batch."""

    def __init__(self, *batch):
        super().__init__()
        self.batch = batch

    def __len__(self):
        return 1

    def __getitem__(self, index):
        return self.batch


def check():
    """Passes 2^32 + 3 for class 3, which differ by their upper bits alone."""
    images, labels = np.eye(4, 6, dtype="float32"), np.array([2**32 + 3, 0, 1, 2])
    inputs = keras.Input((6,))
    head = keras_pedcc.PEDCCDense(4)
    model = keras_pedcc.PEDCCModel(inputs, head(keras.layers.Dense(5)(inputs)))
    model.compile("sgd", keras_pedcc.PEDCCLoss())
    _refused(lambda: model.fit(images, labels, verbose=0))
    _refused(lambda: model.train_on_batch(images, labels))
    _refused(lambda: model.test_on_batch(images, labels))
    _refused(lambda: model.fit(Batches(images, labels), verbose=0))
    loss = keras_pedcc.PEDCCLoss()(labels, model.predict(images, verbose=0))
    assert np.isnan(float(loss))


def _refused(call):
    message = ""
    try:
        call()
    except ValueError as error:
        message = str(error)
    assert "whole numbers from 0 to 3" in message
