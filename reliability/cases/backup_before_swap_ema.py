"""A resumed run ends as a whole one, with its backup before or after the averaging."""

import tempfile

import keras
import numpy as np

import keras_pedcc

BACKENDS = ("tensorflow", "jax", "torch")


class Interrupt(keras.callbacks.Callback):
    """Ends training before the third epoch."""

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 2:
            raise KeyboardInterrupt


def check():
    whole = train([])
    for first in (True, False):
        with tempfile.TemporaryDirectory() as folder:
            backup = keras_pedcc.AtomicBackup(folder)
            try:
                train([backup, Interrupt()], first)
            except KeyboardInterrupt:
                resumed = train([backup], first)
        for ours, expected in zip(resumed, whole, strict=True):
            np.testing.assert_array_equal(ours, expected)


def train(callbacks, first=True):
    keras.utils.set_random_seed(1)
    inputs = keras.Input((6,))
    head = keras_pedcc.PEDCCDense(3, return_features=False)
    model = keras.Model(inputs, head(keras.layers.Dense(5)(inputs)))
    adam = keras.optimizers.Adam(0.1, use_ema=True, ema_momentum=0.8)
    model.compile(adam, keras_pedcc.PEDCCLoss())
    swap = [keras.callbacks.SwapEMAWeights(swap_on_epoch=True)]
    x, y = np.random.default_rng(0).normal(size=(24, 6)), np.arange(24) % 3
    order = [*callbacks, *swap] if first else [*swap, *callbacks]
    arguments = {"epochs": 4, "batch_size": 8, "shuffle": False, "verbose": 0}
    model.fit(x, y, callbacks=order, **arguments)
    return model.get_weights()
