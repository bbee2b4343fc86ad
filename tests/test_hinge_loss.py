import keras
import numpy as np
import pytest
import reference
from tensors import (
    FEW_STEPS,
    assert_allclose,
    gradient_of,
    make_cosines,
    numpy_of,
    slope_of,
)

import keras_pedcc
from keras_pedcc.losses import HingeLoss, am_softmax_loss, hinge_loss


@pytest.mark.parametrize("num_classes", [2, 47])
@pytest.mark.parametrize("margin", [0.1, 1.0, 3.0])
def test_loss_agrees_with_float64(rng, num_classes, margin):
    logits = rng.standard_normal((32, num_classes)).astype("float32")
    labels = rng.integers(0, num_classes, 32)
    expected = reference.hinge(labels, logits, margin)
    assert_allclose(hinge_loss(labels, logits, margin=margin), expected, atol=1e-6)
    assert_allclose(HingeLoss(margin)(labels, logits), expected.mean())


def test_soft_labels_are_the_limit_of_am_softmax(rng):
    cosines = rng.uniform(-1, 1, (16, 10)).astype("float32")
    targets = rng.dirichlet(np.ones(10), 16).astype("float32")
    limit = am_softmax_loss(targets, cosines, scale=1e5, margin=0.5) / 1e5
    found = hinge_loss(targets, cosines, margin=0.5)
    # Within log(10) / scale of its limit.
    assert_allclose(found, numpy_of(limit), rtol=0, atol=3e-5)


def test_adding_to_all_logits_changes_nothing(rng):
    cosines, labels = make_cosines(rng, 10, "random")
    moved = numpy_of(hinge_loss(labels, cosines - 5))
    assert_allclose(moved, numpy_of(hinge_loss(labels, cosines)), atol=1e-6)


@pytest.mark.parametrize("dtype", ["uint8", "int64", "float32"])
def test_labels_of_every_shape_and_dtype_agree(rng, dtype):
    cosines, labels = make_cosines(rng, 47, "random")
    expected = numpy_of(hinge_loss(labels, cosines))
    assert_allclose(hinge_loss(labels[:, None].astype(dtype), cosines), expected)
    assert_allclose(hinge_loss(np.eye(47, dtype=dtype)[labels], cosines), expected)
    none = hinge_loss(np.array([1, 47]), cosines[:2])
    np.testing.assert_array_equal(np.isnan(numpy_of(none)), [False, True])


def test_gradient_agrees_with_finite_differences(rng):
    logits, labels = rng.standard_normal((8, 5)).astype("float32"), np.arange(8) % 5
    found = gradient_of(lambda x: hinge_loss(labels, x), logits)
    expected = slope_of(lambda x: reference.hinge(labels, x, 1.0), logits)
    assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("margin", [0, -1.0, float("inf"), "1"])
def test_loss_refuses_margins(margin):
    with pytest.raises(ValueError, match=r"`margin` must be a number in \(0, inf\)"):
        HingeLoss(margin)


def test_model_trains_saves_and_loads(tmp_path, rng):
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(3)])
    sgd = keras.optimizers.SGD(0.05)
    model.compile(sgd, HingeLoss(0.5), metrics=["accuracy"], **FEW_STEPS)
    x, y = rng.standard_normal((24, 8)).astype("float32"), np.arange(24) % 3
    history = model.fit(x, y, epochs=4, verbose=0)
    assert history.history["loss"][-1] < history.history["loss"][0]
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert isinstance(loaded.loss, keras_pedcc.HingeLoss)
    assert loaded.loss.get_config() == model.loss.get_config()
