"""Weights, restored or copied to a clone, know nothing of `MarginWarmup`."""

import keras
import numpy as np

import keras_pedcc

BACKENDS = ("tensorflow", "jax", "torch")


class Quality(keras.callbacks.Callback):
    """Logs a quality that is best in epoch 2, and keeps the share of the margin."""

    def __init__(self, warmup):
        super().__init__()
        self.warmup, self.shares = warmup, []

    def on_epoch_end(self, epoch, logs=None):
        self.shares.append(self.warmup.share)
        logs["quality"] = -abs(epoch - 2)


def check():
    """Restores the weights of epoch 2, in which the margin was not full."""
    data = np.random.default_rng(0).normal(size=(32, 8)), np.arange(32) % 4
    inputs = keras.Input((8,))
    head = keras_pedcc.PEDCCDense(4)
    model = keras_pedcc.PEDCCModel(inputs, head(keras.layers.Dense(8)(inputs)))
    model.compile("sgd", keras_pedcc.PEDCCLoss())
    warmup = keras_pedcc.MarginWarmup(4)
    quality = Quality(warmup)
    stop = keras.callbacks.EarlyStopping(
        "quality", mode="max", patience=9, restore_best_weights=True
    )
    callbacks = [warmup, quality, stop]
    model.fit(*data, epochs=6, batch_size=32, callbacks=callbacks, verbose=0)
    assert quality.shares == [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]
    expected = float(
        keras_pedcc.PEDCCLoss()(data[1], model.predict(data[0], verbose=0))
    )
    found = model.evaluate(*data, batch_size=32, verbose=0)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    keras.models.clone_model(model).set_weights(model.get_weights())
