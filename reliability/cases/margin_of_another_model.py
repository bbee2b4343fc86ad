"""`MarginWarmup` of one model leaves the margin of another with the same loss full."""

import keras
import numpy as np

import keras_pedcc

BACKENDS = ("tensorflow", "jax", "torch")


def check():
    """Evaluates a second model, and the first after its training."""
    rng = np.random.default_rng(0)
    data = rng.normal(size=(24, 6)).astype("float32"), np.arange(24) % 4
    loss = keras_pedcc.PEDCCLoss()
    first, second = _model(loss), _model(loss)
    warmup = keras_pedcc.MarginWarmup(4)
    first.fit(*data, callbacks=[warmup], batch_size=24, verbose=0)
    for model in (second, first):
        outputs = model.predict(data[0], verbose=0)
        expected = float(keras_pedcc.PEDCCLoss()(data[1], outputs))
        found = model.evaluate(*data, batch_size=24, verbose=0)
        np.testing.assert_allclose(found, expected, rtol=1e-5)


def _model(loss):
    inputs = keras.Input((6,))
    head = keras_pedcc.PEDCCDense(4)
    model = keras_pedcc.PEDCCModel(inputs, head(keras.layers.Dense(5)(inputs)))
    model.compile("sgd", loss)
    return model
