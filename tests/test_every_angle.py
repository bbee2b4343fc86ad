"""Values and gradients of the losses with the own class at 0, 1, ..., 180 degrees."""

import numpy as np
import pytest
import reference
from tensors import assert_allclose, gradient_of

from keras_pedcc.losses import (
    a_softmax_loss,
    am_softmax_loss,
    arcface_loss,
    l_softmax_loss,
    pedcc_loss,
)

DEGREES = np.arange(181)
LABELS = DEGREES % 10
# A polynomial of degree 8, near 0 at the kinks, multiplies rounding by up to 64.
ROUNDING = {"rtol": 5e-5, "atol": 1e-4}
OWN = np.eye(10, dtype=bool)[LABELS]


@pytest.fixture
def cosines(rng):
    """Shape (181, 10), each whole degree once; those of other classes are random."""
    cosines = rng.uniform(-1, 1, (181, 10)).astype("float32")
    cosines[OWN] = np.cos(np.radians(DEGREES))
    return cosines


def assert_agrees(loss, array, value, gradient, rtol=2e-5, atol=1e-6):
    """Of the loss with indices and with one-hot labels."""
    for labels in (LABELS, OWN.astype("float32")):
        assert_allclose(loss(labels, array), value, rtol, 1e-30)
        found = gradient_of(lambda x, y=labels: loss(y, x), array)
        assert_allclose(found, gradient, rtol, atol)


@pytest.mark.parametrize("scale", [15, 64])
def test_am_softmax_and_its_gradient_agree_with_float64(cosines, scale):
    value = reference.am_softmax(LABELS, cosines, scale, 0.5)
    gradient = reference.margin_gradient(
        LABELS, cosines, lambda cosine: cosine - 0.5, np.ones_like, scale
    )
    assert_agrees(
        lambda y, x: am_softmax_loss(y, x, scale=scale), cosines, value, gradient
    )


@pytest.mark.parametrize("root", [1, 2, 3])
def test_pedcc_and_its_gradient_agree_with_float64(cosines, root):
    distance = reference.distance(LABELS, cosines)
    common = distance if root == 1 else distance.mean() ** (1 / root)
    value = reference.am_softmax(LABELS, cosines, 15, 0.5) + 10 * common
    gradient = reference.margin_gradient(
        LABELS, cosines, lambda cosine: cosine - 0.5, np.ones_like, 15
    )
    gradient[OWN] -= 10 / root * distance.mean() ** (1 / root - 1)
    assert_agrees(
        lambda y, x: pedcc_loss(y, x, mse_root=root), cosines, value, gradient
    )


@pytest.mark.parametrize("margin", [0.0, 0.5, 1.2, 3.0])
@pytest.mark.parametrize("scale", [15, 64])
def test_arcface_and_its_gradient_agree_with_float64(cosines, scale, margin):
    value = reference.arcface(LABELS, cosines, scale, margin)
    gradient = reference.margin_gradient(
        LABELS,
        cosines,
        lambda cosine: reference.turned(cosine, margin),
        lambda cosine: reference.turned_slope(cosine, margin),
        scale,
    )

    def loss(labels, cosines):
        return arcface_loss(labels, cosines, scale=scale, margin=margin)

    # Where the angle comes near 180 degrees the slope is a difference near 0.
    assert_agrees(loss, cosines, value, gradient, atol=1e-6 * scale)


@pytest.mark.parametrize("degrees", [30, 60, 135])
def test_arcface_has_a_slope_of_one_side_at_its_kink(cosines, degrees):
    margin, kink = np.radians(degrees), 180 - degrees
    value = reference.arcface(LABELS, cosines, 15, margin)
    assert_allclose(arcface_loss(LABELS, cosines, margin=margin), value, rtol=2e-5)
    found = gradient_of(lambda x: arcface_loss(LABELS, x, margin=margin), cosines)
    others = found[kink][~OWN[kink]].sum()
    slope = -found[kink][OWN[kink]] / others  # from 0 at the nearer side to 1
    assert np.isclose(slope, [0, 1], atol=1e-6).any()


@pytest.mark.parametrize("multiple", [1, 2, 3, 4, 8])
def test_a_softmax_and_its_gradient_agree_with_float64(rng, cosines, multiple):
    norm = rng.uniform(0.5, 20, (181, 1)).astype("float32")

    def loss(labels, cosines):
        outputs = {"features": cosines, "logits": cosines, "norm": norm[:, 0]}
        return a_softmax_loss(labels, outputs, margin=multiple)

    value = reference.multiple_angle(LABELS, cosines, norm, multiple, 0.0)
    gradient = gradient_of_multiple_angle(cosines, norm, multiple)
    assert_agrees(loss, cosines, value, gradient, **ROUNDING)


@pytest.mark.parametrize("multiple", [2, 4])
def test_l_softmax_and_its_gradient_agree_with_float64(rng, cosines, multiple):
    norm = rng.uniform(0.5, 20, (181, 10)).astype("float32")

    def loss(labels, products):
        outputs = {"features": products, "logits": products, "norm": norm}
        return l_softmax_loss(labels, outputs, margin=multiple)

    value = reference.multiple_angle(LABELS, cosines, norm, multiple, 0.0)
    gradient = gradient_of_multiple_angle(cosines, norm, multiple) / norm
    assert_agrees(loss, cosines * norm, value, gradient, **ROUNDING)


def gradient_of_multiple_angle(cosines, norm, multiple):
    return reference.margin_gradient(
        LABELS,
        cosines,
        lambda cosine: reference.multiplied(cosine, multiple),
        lambda cosine: reference.multiplied_slope(cosine, multiple),
        norm,
    )
