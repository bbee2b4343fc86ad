"""Losses against those of pytorch-metric-learning and scikit-learn."""

import numpy as np
import pytest
from keras import ops
from tensors import assert_allclose, gradient_of, numpy_of

from keras_pedcc import CosineDense, HingeLoss, ProductDense, SubCenterDense
from keras_pedcc.losses import (
    a_softmax_loss,
    am_softmax_loss,
    arcface_loss,
    l_softmax_loss,
)

# pytorch-metric-learning reads PyTorch tensors through an older protocol of NumPy.
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array_wrap__ must accept:DeprecationWarning"
)
DEGREES = np.arange(181)
LABELS = DEGREES % 10
# At 0 and 180 degrees their arccos has no gradient.
BETWEEN = slice(1, 180)


@pytest.fixture
def weights(rng):
    return rng.standard_normal((10, 16))


@pytest.fixture
def features(rng, weights):
    """Features of any length, each whole degree from the own class once."""
    own = weights[LABELS] / np.linalg.norm(weights[LABELS], axis=1, keepdims=True)
    across = rng.standard_normal(own.shape)
    across -= np.sum(across * own, axis=1, keepdims=True) * own
    across /= np.linalg.norm(across, axis=1, keepdims=True)
    angle = np.radians(DEGREES)[:, None]
    features = np.cos(angle) * own + np.sin(angle) * across
    return features * rng.uniform(0.5, 8, (181, 1))


def theirs(name, features, weights, **arguments):
    """Loss of each sample and its gradient over the features, in float64."""
    losses = pytest.importorskip("pytorch_metric_learning.losses")
    import torch
    from pytorch_metric_learning.reducers import DoNothingReducer

    arguments |= {"num_classes": 10, "embedding_size": 16}
    loss = getattr(losses, name)(reducer=DoNothingReducer(), **arguments)
    loss.W.data = torch.tensor(weights.T)
    tensor = torch.tensor(features, requires_grad=True)
    values = loss(tensor, torch.tensor(LABELS))["loss"]["losses"]
    values.sum().backward()
    return values.detach().numpy(), tensor.grad.numpy()


def ours(loss, head, features, weights, **arguments):
    head.build((None, 16))
    head.centroids.assign(weights)

    def of_features(x):
        return loss(LABELS, head(x), **arguments)

    features = features.astype("float32")
    values = of_features(ops.convert_to_tensor(features))
    return numpy_of(values), gradient_of(of_features, features)


def test_am_softmax_agrees_with_cosface(features, weights):
    expected, slope = theirs("CosFaceLoss", features, weights, margin=0.35, scale=15)
    head = CosineDense(10)
    found, gradient = ours(am_softmax_loss, head, features, weights, margin=0.35)
    assert_allclose(found, expected)
    assert_allclose(gradient, slope, rtol=1e-4, atol=1e-5)


def test_arcface_agrees(features, weights):
    degrees = np.degrees(0.5)
    expected, slope = theirs("ArcFaceLoss", features, weights, margin=degrees, scale=15)
    found, gradient = ours(arcface_loss, CosineDense(10), features, weights, margin=0.5)
    inside = (DEGREES > 0) & (DEGREES + degrees <= 180)
    # A rounded cosine is an angle 60 times as wrong at 1 degree, and more at 0.
    assert_allclose(found[inside], expected[inside], rtol=1e-4)
    # Beyond, theirs goes on with cos(theta) - m sin(m), which jumps; ours with
    # cos(theta) + cos(m) - 1. In z of L = log(1 + exp(z)) that is a constant.
    z, their_z = np.log(np.expm1(np.float64([found, expected])))
    jump = 15 * (0.5 * np.sin(0.5) + np.cos(0.5) - 1)
    shift = np.where(inside, 0, jump)
    assert_allclose((their_z - z)[BETWEEN], shift[BETWEEN], rtol=0, atol=1e-4)
    rates, their_rates = -np.expm1(-np.float64([found, expected]))  # dL / dz
    gradient, slope = gradient / rates[:, None], slope / their_rates[:, None]
    assert_allclose(gradient[BETWEEN], slope[BETWEEN], rtol=1e-3, atol=1e-3)


def test_sub_center_arcface_agrees(rng, features):
    weights = rng.standard_normal((30, 16))  # three rows for each class
    given = {"margin": np.degrees(0.5), "scale": 15, "sub_centers": 3}
    expected, slope = theirs("SubCenterArcFaceLoss", features, weights, **given)
    head = SubCenterDense(10, sub_centers=3)
    found, gradient = ours(arcface_loss, head, features, weights, margin=0.5)
    assert_allclose(found, expected, rtol=1e-4)
    assert_allclose(gradient, slope, rtol=1e-3, atol=1e-4)


# Scores of 30, rounded, and the polynomial of degree 4 cost digits of small losses.
@pytest.mark.parametrize("multiple", [2, 3, 4])
def test_a_softmax_agrees_with_sphereface(features, weights, multiple):
    expected, slope = theirs("SphereFaceLoss", features, weights, margin=multiple)
    head = CosineDense(10, return_norm=True)
    found, gradient = ours(a_softmax_loss, head, features, weights, margin=multiple)
    assert_allclose(found, expected, rtol=1e-4)
    assert_allclose(gradient[BETWEEN], slope[BETWEEN], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("multiple", [2, 3, 4])
def test_l_softmax_agrees(features, weights, multiple):
    name = "LargeMarginSoftmaxLoss"
    expected, slope = theirs(name, features, weights, margin=multiple)
    head = ProductDense(10)
    found, gradient = ours(l_softmax_loss, head, features, weights, margin=multiple)
    assert_allclose(found, expected, rtol=1e-4)
    assert_allclose(gradient[BETWEEN], slope[BETWEEN], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("margin", [0.1, 1.0, 3.0])
@pytest.mark.parametrize("num_classes", [3, 47])
def test_hinge_agrees_with_scikit_learn(rng, num_classes, margin):
    metrics = pytest.importorskip("sklearn.metrics")
    logits = rng.standard_normal((200, num_classes)).astype("float32")
    labels = rng.integers(0, num_classes, 200)
    # Theirs has margin 1.
    expected = margin * metrics.hinge_loss(
        labels, logits.astype("float64") / margin, labels=np.arange(num_classes)
    )
    assert_allclose(HingeLoss(margin)(labels, logits), expected)
