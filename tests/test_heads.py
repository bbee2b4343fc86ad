import keras
import numpy as np
import pytest
from tensors import assert_allclose, gradient_of, numpy_of

import keras_pedcc
from keras_pedcc import (
    AdaFaceLoss,
    AMSoftmaxLoss,
    ArcFaceLoss,
    ASoftmaxLoss,
    CenterDense,
    CenterLoss,
    CosineDense,
    HingeLoss,
    LSoftmaxLoss,
    PEDCCDense,
    ProductDense,
)

NORMED = {"return_norm": True}
HEADS = [(CosineDense, NORMED), (PEDCCDense, NORMED), (ProductDense, {})]
ALL = [*HEADS, (CenterDense, {})]


@pytest.mark.parametrize(("head", "arguments"), HEADS)
def test_norm_is_the_factor_between_cosine_and_score(rng, head, arguments):
    features = rng.standard_normal((5, 8)).astype("float32")
    layer = head(6, **arguments)
    outputs = {name: numpy_of(value) for name, value in layer(features).items()}
    weights = numpy_of(layer.centroids)
    lengths = np.linalg.norm(weights, axis=1)
    norms = np.linalg.norm(features, axis=1)
    scores = features @ weights.T
    if head is ProductDense:
        assert_allclose(outputs["norm"], norms[:, None] * lengths)
        assert_allclose(outputs["logits"], scores, atol=1e-6)
    else:
        assert_allclose(outputs["norm"], norms)
        found = outputs["norm"][:, None] * outputs["logits"] * lengths
        assert_allclose(found, scores, atol=1e-6)
    assert_allclose(np.linalg.norm(outputs["features"], axis=1), np.ones(5))


def test_center_head_is_dense_with_its_centers_for_the_loss(rng):
    features = rng.standard_normal((5, 8)).astype("float32")
    head = CenterDense(6, center_initializer="random_normal")
    outputs = head.for_loss(head(features))
    outputs = {key: numpy_of(value) for key, value in outputs.items()}
    logits = features @ numpy_of(head.kernel) + numpy_of(head.bias)
    assert_allclose(outputs["logits"], logits, atol=1e-6)
    assert_allclose(outputs["features"] * outputs["norm"][:, None], features, atol=1e-6)
    assert_allclose(outputs["centers"], numpy_of(head.centers))


@pytest.mark.parametrize(("head", "arguments"), HEADS)
def test_steps_are_counted_in_training_only(rng, head, arguments):
    features = rng.standard_normal((5, 8)).astype("float32")
    layer = head(6, **arguments)
    for training, expected in [(False, 0), (True, 1), (True, 2), (None, 2)]:
        steps = numpy_of(layer(features, training=training)["iterations"])
        np.testing.assert_array_equal(steps, np.full(5, expected))


@pytest.mark.parametrize(("head", "arguments"), ALL)
@pytest.mark.parametrize("policy", ["mixed_float16", "float16"])
def test_head_computes_in_float32_under_every_policy(head, arguments, policy):
    keras.mixed_precision.set_global_policy(policy)
    outputs = head(3, **arguments)(np.full((1, 512), 3000, "float16"))
    assert_allclose(outputs["features"], np.full((1, 512), 512**-0.5))
    assert np.isfinite(numpy_of(outputs["norm"])).all()
    assert np.isfinite(numpy_of(outputs["logits"])).all()


@pytest.mark.parametrize(
    ("head", "loss"),
    [
        (PEDCCDense(3), AMSoftmaxLoss()),
        (PEDCCDense(3), ArcFaceLoss()),
        (CosineDense(3, return_norm=True), AdaFaceLoss()),
        (PEDCCDense(3, return_norm=True), ASoftmaxLoss(annealing_base=0)),
        (CosineDense(3, return_norm=True), ASoftmaxLoss(annealing_base=0)),
        (ProductDense(3), LSoftmaxLoss(annealing_base=0)),
        (CenterDense(3), CenterLoss()),
        (PEDCCDense(3), HingeLoss()),
    ],
    ids=lambda value: type(value).__name__,
)
def test_gradient_is_finite_at_zero_features_and_on_centroids(head, loss):
    head.build((None, 4))
    weights = head.kernel if isinstance(head, CenterDense) else head.centroids
    rows = numpy_of(weights).reshape(3, 4)
    features = np.concatenate([np.zeros((3, 4)), rows, -rows]).astype("float32")
    labels = np.tile(np.arange(3), 3)

    def value(x):
        outputs = head(x)
        if isinstance(head, CenterDense):
            outputs = head.for_loss(outputs)
        return loss(labels, outputs)

    gradient = gradient_of(value, features)
    assert np.isfinite(gradient).all()
    assert np.abs(gradient).max() > 0


@pytest.mark.parametrize(("head", "arguments"), ALL)
def test_config_survives_a_round_trip(head, arguments):
    layer = head(3, name="mine", **arguments)
    config = keras.saving.serialize_keras_object(layer)
    restored = keras.saving.deserialize_keras_object(config)
    assert isinstance(restored, head)
    assert restored.get_config() == layer.get_config()
    outputs = restored(np.ones((2, 4), "float32"))
    assert set(outputs) == set(layer(np.ones((2, 4), "float32")))


@pytest.mark.parametrize("head", [CosineDense, PEDCCDense])
def test_norm_needs_the_features(head):
    with pytest.raises(ValueError, match="`return_norm` needs the features"):
        head(3, return_norm=True, return_features=False)


@pytest.mark.parametrize("head", [ProductDense, CenterDense])
def test_head_refuses(head):
    with pytest.raises(ValueError, match="`num_classes` must be at least 2"):
        head(1)
    with pytest.raises(TypeError, match="`num_classes` must be a whole number"):
        head(3.5)
    with pytest.raises(ValueError, match="fixed dim of at least 2"):
        head(3).build((None, 1))


def test_every_head_is_public():
    assert {"CenterDense", "ProductDense"} <= set(keras_pedcc.__all__)
