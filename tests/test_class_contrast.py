"""NTCE and NONL, whose sums run over the samples of the batch."""

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

from keras_pedcc import CosineDense, KerdockDense, NONLLoss, NTCELoss, PEDCCModel
from keras_pedcc.losses import nonl_loss, ntce_loss

LOSSES = {ntce_loss: (NTCELoss, False), nonl_loss: (NONLLoss, True)}
both = pytest.mark.parametrize("loss", LOSSES)


@both
@pytest.mark.parametrize("kind", ["random", "signs", "saturated"])
@pytest.mark.parametrize("num_classes", [2, 47])
def test_loss_agrees_with_float64(rng, loss, kind, num_classes):
    cosines, labels = make_cosines(rng, num_classes, kind)
    for scale in (1.0, 10.0, 40.0):
        targets = np.eye(num_classes)[labels]
        expected = reference.class_contrast(targets, cosines, scale, LOSSES[loss][1])
        found = loss(labels, cosines, scale=scale)
        # A rounded cosine, times the scale.
        assert_allclose(found, expected, atol=2e-7 * (1 + 2 * scale))


@both
@pytest.mark.parametrize("soft", [False, True])
def test_gradient_agrees_with_finite_differences(rng, loss, soft):
    cosines = rng.uniform(-0.9, 0.9, (8, 5)).astype("float32")
    targets = rng.dirichlet(np.ones(5), 8).astype("float32")
    labels = targets if soft else targets.argmax(axis=1)
    targets = targets if soft else np.eye(5)[labels]

    def twin(cosines):
        return reference.class_contrast(targets, cosines, 10, LOSSES[loss][1])

    assert_allclose(loss(labels, cosines), twin(cosines), atol=1e-5)
    found = gradient_of(lambda c: loss(labels, c), cosines)
    assert_allclose(found, slope_of(twin, cosines), rtol=1e-4, atol=1e-4)


def test_loss_of_samples_is_cross_entropy_of_the_transpose(rng):
    """One sample of each class: classes and samples change places."""
    cosines = rng.uniform(-1, 1, (6, 6)).astype("float32")
    entropy = keras.losses.sparse_categorical_crossentropy(
        np.arange(6), 10 * cosines.T, from_logits=True
    )
    assert_allclose(ntce_loss(np.arange(6), cosines), numpy_of(entropy), rtol=1e-4)


def test_batch_of_one_class_has_nothing_to_push(rng):
    cosines = rng.uniform(-1, 1, (4, 3)).astype("float32")
    labels = np.ones(4, int)
    expected = 10 * (1 - cosines[:, 1])
    assert_allclose(nonl_loss(labels, cosines), expected, rtol=1e-4)
    found = gradient_of(lambda c: nonl_loss(labels, c), cosines)
    assert_allclose(found, -10.0 * np.eye(3)[labels])


@both
@pytest.mark.parametrize("dtype", ["uint8", "int64", "float32"])
def test_labels_of_every_shape_and_dtype_agree(rng, loss, dtype):
    cosines, labels = make_cosines(rng, 47, "random")
    expected = numpy_of(loss(labels, cosines))
    assert_allclose(loss(labels[:, None].astype(dtype), cosines), expected)
    assert_allclose(loss(np.eye(47, dtype=dtype)[labels], cosines), expected)
    kind = LOSSES[loss][0]
    assert_allclose(kind()(labels.astype(dtype), cosines), expected.mean())


@both
@pytest.mark.parametrize("label", [-1, 10, 3.7, float("nan")])
def test_label_that_is_no_class_gives_nan_and_is_left_out(rng, loss, label):
    cosines, labels = make_cosines(rng, 10, "random", batch=6)
    found = numpy_of(loss(np.append(labels[:5], label), cosines))
    assert_allclose(found[:5], numpy_of(loss(labels[:5], cosines[:5])))
    assert np.isnan(found[5])


@both
def test_class_is_its_function_with_weights_dict_and_short_logits(rng, loss):
    cosines, labels = make_cosines(rng, 10, "random")
    short, weight = cosines.astype("float16"), rng.uniform(0, 3, 32).astype("float32")
    outputs = {"features": np.zeros((32, 4), "float32"), "logits": short}
    expected = weight * numpy_of(loss(labels, short.astype("float32"), scale=8.0))
    found = LOSSES[loss][0](8.0)(labels, outputs, weight)
    assert_allclose(found, expected.mean())


@both
def test_loss_refuses(loss):
    for scale in (0, -1.0, 41, "auto"):
        with pytest.raises(ValueError, match=r"`scale` must be .* \(0, 40\]: beyond"):
            LOSSES[loss][0](scale)
    inputs = keras.Input((4,))
    model = PEDCCModel(inputs, CosineDense(3, scores="blockwise")(inputs))
    with pytest.raises(ValueError, match='make the head with scores="dense"'):
        model.compile("sgd", LOSSES[loss][0]())


@pytest.mark.parametrize(
    ("head", "loss"), [(CosineDense(10), ntce_loss), (KerdockDense(10), nonl_loss)]
)
def test_model_trains_saves_and_loads(tmp_path, rng, loss, head):
    inputs = keras.Input((4,))
    model = PEDCCModel(inputs, head(keras.layers.Dense(4)(inputs)))
    sgd = keras.optimizers.SGD(0.05)
    model.compile(sgd, LOSSES[loss][0](), metrics=["accuracy"], **FEW_STEPS)
    x, y = rng.standard_normal((20, 4)).astype("float32"), np.arange(20) % 10
    history = model.fit(x, y, epochs=4, batch_size=20, verbose=0)
    assert history.history["loss"][-1] < history.history["loss"][0]
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    expected = model.evaluate(x, y, verbose=0)
    np.testing.assert_allclose(loaded.evaluate(x, y, verbose=0), expected, rtol=1e-6)
