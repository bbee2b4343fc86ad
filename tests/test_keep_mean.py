"""Trained centroids whose mean stays where it is."""

import keras
import numpy as np
import pytest
from keras import ops
from tensors import FEW_STEPS, assert_allclose, draw_alike, gradient_of, numpy_of

import keras_pedcc
from keras_pedcc import FinetuneCallback, PEDCCDense, PEDCCLoss, PEDCCModel
from keras_pedcc.common.vectors import with_fixed_mean

CLASSES, DIM = 7, 10
BLOCKS = {"scores": keras_pedcc.Blockwise(3)}


@pytest.fixture
def images(rng):
    return rng.standard_normal((64, 5)).astype("float32")


@pytest.fixture
def labels(rng):
    return rng.integers(0, CLASSES, 64)


def trained(images, labels, *, epochs=1, callbacks=(), momentum=0.9, **arguments):
    """The centroids of a head before and after training."""
    draw_alike(1)
    inputs = keras.Input(images.shape[1:])
    head = PEDCCDense(CLASSES, **arguments)
    model = PEDCCModel(inputs, head(keras.layers.Dense(DIM)(inputs)))
    before = numpy_of(head.centroids).astype("float64")
    how = FEW_STEPS if epochs < 4 else {}
    model.compile(keras.optimizers.SGD(0.05, momentum), PEDCCLoss(), **how)
    model.fit(
        images, labels, 16, epochs, shuffle=False, verbose=0, callbacks=list(callbacks)
    )
    return before, numpy_of(head.centroids).astype("float64")


def mean_cosine(centroids):
    """Mean of the cosines between different centroids."""
    unit = centroids / np.linalg.norm(centroids, axis=1, keepdims=True)
    return ((unit @ unit.T).sum() - len(unit)) / (len(unit) * (len(unit) - 1))


def test_values_are_unit_vectors_and_gradients_have_no_mean(rng):
    rows = rng.standard_normal((6, 4)).astype("float32") * 10
    weights = rng.standard_normal((6, 4)).astype("float32")
    units = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    assert_allclose(with_fixed_mean(ops.convert_to_tensor(rows)), units, atol=1e-6)
    scale = ops.convert_to_tensor(weights)
    slopes = gradient_of(lambda rows: scale * with_fixed_mean(rows), rows)
    along = weights.astype("float64") - weights.mean(axis=0)
    along -= units * (units * along).sum(axis=1, keepdims=True)
    expected = along / np.linalg.norm(rows, axis=1, keepdims=True)
    assert_allclose(slopes, expected - expected.mean(axis=0), atol=1e-7, rtol=1e-4)


def test_streaming_takes_the_same_steps(images, labels):
    start, whole = trained(images, labels, trainable=True)
    arguments = {"trainable": True, "keep_mean": True, **BLOCKS}
    _, blocks = trained(images, labels, **arguments)
    assert np.abs(whole - start).max() > 0.01
    np.testing.assert_allclose(blocks, whole, atol=1e-6)


def test_mean_stays_while_momentum_builds_up(images, labels, rng):
    given = rng.standard_normal((CLASSES, DIM)) + 1  # whose mean is not 0
    arguments = {"centroids": given, "trainable": True, "epochs": 20}
    before, after = trained(images, labels, **arguments)
    assert np.abs(after - before).max() > 0.1
    np.testing.assert_allclose(after.mean(axis=0), before.mean(axis=0), atol=1e-5)


def test_labels_that_cannot_be_learned_do_not_pull_the_centroids_together(rng):
    # Where the mean is not kept eq. 9 does: the loss falls, all classes are the same.
    images = rng.standard_normal((112, 5)).astype("float32") + 3
    labels = rng.permutation(112) % CLASSES  # as many of each
    _, free = trained(images, labels, epochs=8, trainable=True, keep_mean=False)
    _, kept = trained(images, labels, epochs=8, trainable=True)
    assert mean_cosine(free) > 0.9
    assert mean_cosine(kept) < 0


def test_late_training_is_that_of_the_paper_unless_asked(images, labels):
    late = {"epochs": 3, "callbacks": [FinetuneCallback(1, 0.1)]}
    before, after = trained(images, labels, **late)
    assert np.abs((after - before).mean(axis=0)).max() > 1e-3
    before, after = trained(images, labels, keep_mean=True, **late)
    assert np.abs(after - before).max() > 1e-2
    np.testing.assert_allclose(after.mean(axis=0), before.mean(axis=0), atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "kept"),
    [
        ({}, False),
        ({"keep_mean": True}, True),
        ({"trainable": True}, True),
        ({"trainable": True, "keep_mean": False}, False),
        ({"trainable": True, "scores": keras_pedcc.Sampled(0.5)}, False),
        ({"trainable": True, "scores": "blockwise"}, False),
        ({"trainable": True, "scores": "blockwise", "keep_mean": True}, True),
    ],
)
def test_config_holds_what_was_decided(arguments, kept):
    head = PEDCCDense(CLASSES, **arguments)
    assert head.keep_mean is kept
    head.frozen = False  # as FinetuneCallback does
    assert PEDCCDense.from_config(head.get_config()).keep_mean is kept


def test_pull_that_is_common_to_all_hardly_moves_them(rng):
    # Not to the last bit: the head takes the part along each centroid away before.
    inputs = keras.Input((64,))
    image = rng.standard_normal((1, 64)).astype("float32")

    def moved(keep_mean):
        head = PEDCCDense(
            47, trainable=True, keep_mean=keep_mean, return_features=False
        )
        model = keras.Model(inputs, head(inputs))
        before = numpy_of(head.centroids)
        sgd = keras.optimizers.SGD(1.0)
        model.compile(sgd, lambda y, cosines: ops.sum(cosines), **FEW_STEPS)
        model.fit(image, np.zeros((1, 1)), verbose=0)
        return np.linalg.norm(numpy_of(head.centroids) - before)

    assert moved(True) < 0.01 * moved(False)


def test_cosines_of_training_are_those_of_evaluation(images):
    head = PEDCCDense(CLASSES, trainable=True, return_features=False)
    features = ops.convert_to_tensor(np.tile(images, 2))
    assert_allclose(head(features, training=True), numpy_of(head(features)), atol=1e-6)


def test_sampled_classes_cannot_keep_the_mean():
    with pytest.raises(ValueError, match="Leave one out"):
        PEDCCDense(CLASSES, keep_mean=True, scores=keras_pedcc.Sampled(0.5))
