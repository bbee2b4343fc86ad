"""Losses have gradients under `jax.checkpoint` and `jax.lax.scan`."""

import numpy as np

import keras_pedcc

BACKENDS = ("jax",)
LOSSES = (
    keras_pedcc.PEDCCLoss,
    keras_pedcc.AMSoftmaxLoss,
    keras_pedcc.ArcFaceLoss,
    keras_pedcc.HingeLoss,
)


def check():
    import jax

    cosines = jax.random.uniform(jax.random.key(0), (8, 4))
    labels = jax.numpy.arange(8) % 4
    for make in LOSSES:
        loss = make()

        def value(cosines, labels, loss=loss):
            return loss(labels, cosines)

        def accumulated(cosines, value=value):
            halves = cosines.reshape(2, 4, 4), labels.reshape(2, 4)
            add = lambda total, half: (total + value(*half) / 2, None)  # noqa: E731
            return jax.lax.scan(add, 0.0, halves)[0]

        plain = jax.grad(value)(cosines, labels)
        for found in (
            jax.grad(jax.checkpoint(value))(cosines, labels),
            jax.grad(accumulated)(cosines),
        ):
            np.testing.assert_allclose(found, plain, rtol=1e-5, atol=1e-6)
