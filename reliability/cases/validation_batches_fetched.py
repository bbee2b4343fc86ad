"""Five validations of three batches fetch fifteen, as those of a stock model do."""

import keras
import numpy as np

import keras_pedcc

BACKENDS = ("jax", "torch")


class Batches(keras.utils.PyDataset):
    """Three batches, which counts how often one is fetched."""

    fetched = 0

    def __len__(self):
        return 3

    def __getitem__(self, index):
        self.fetched += 1
        return np.ones((4, 8), "float32"), np.arange(4)


def check():
    """Validates a model five times."""
    inputs = keras.Input((8,))
    head = keras_pedcc.PEDCCDense(4)
    model = keras_pedcc.PEDCCModel(inputs, head(keras.layers.Dense(8)(inputs)))
    model.compile("sgd", keras_pedcc.PEDCCLoss())
    batches = Batches()
    images, labels = batches[0]
    batches.fetched = 0
    model.fit(images, labels, validation_data=batches, epochs=5, verbose=0)
    assert batches.fetched == 15
