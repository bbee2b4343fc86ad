import keras
import numpy as np
import pytest
from tensors import assert_allclose, numpy_of

import keras_pedcc
from keras_pedcc import CosineDense, KerdockDense, PEDCCDense, place_classes

CLASSES, DIM = 4, 6


def model_of(head, nested=False):
    model = keras.Sequential([keras.Input((DIM,)), head])
    return keras.Sequential([keras.Input((DIM,)), model]) if nested else model


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("kind", [PEDCCDense, CosineDense])
def test_rows_are_unit_vectors_of_the_directions_and_others_stay(rng, kind, nested):
    head = kind(CLASSES, capacity=6, return_features=False)
    model = model_of(head, nested)
    before = numpy_of(head.centroids)
    directions = 1e3 * rng.standard_normal((2, DIM))
    place_classes(model, [3, 0], directions)
    expected = before.copy()
    expected[[3, 0]] = directions / np.linalg.norm(directions, axis=1, keepdims=True)
    assert_allclose(numpy_of(head.centroids), expected)
    others = [1, 2, 4, 5]
    np.testing.assert_array_equal(numpy_of(head.centroids)[others], before[others])
    found = model.predict(directions, verbose=0).argmax(axis=1)
    assert found.tolist() == [3, 0]


def test_head_stays_frozen_and_its_fingerprint_changes(rng):
    head = PEDCCDense(CLASSES, return_features=False)
    model = model_of(head)
    before = keras_pedcc.centroid_fingerprint(head)
    place_classes(model, np.array([1]), rng.standard_normal((1, DIM)))
    assert head.frozen
    assert not model.trainable_variables
    assert keras_pedcc.centroid_fingerprint(head) != before


@pytest.mark.parametrize(
    ("classes", "shape", "message"),
    [
        ([CLASSES], (1, DIM), "from 0 to 3, the classes in use"),
        ([-1], (1, DIM), "from 0 to 3"),
        ([1, 1], (2, DIM), "different whole numbers"),
        ([1.0], (1, DIM), "whole numbers"),
        ([], (1, DIM), "whole numbers"),
        ([1], (2, DIM), "a row for each class"),
        ([1], (1, DIM + 1), "a column for each feature"),
    ],
)
def test_classes_and_directions_must_fit(classes, shape, message):
    head = PEDCCDense(CLASSES, capacity=6, return_features=False)
    model = model_of(head)
    before = numpy_of(head.centroids)
    with pytest.raises(ValueError, match=message):
        place_classes(model, classes, np.ones(shape))
    np.testing.assert_array_equal(numpy_of(head.centroids), before)


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
def test_directions_must_have_a_direction(value):
    model = model_of(PEDCCDense(CLASSES, return_features=False))
    with pytest.raises(ValueError, match="`directions` must be finite"):
        place_classes(model, [0], np.full((1, DIM), value))


def test_model_must_have_one_head_with_rows():
    kerdock = KerdockDense(40, return_features=False)
    inputs = keras.Input((8,))
    two = keras.Model(
        inputs, [PEDCCDense(3)(inputs)["logits"], PEDCCDense(3)(inputs)["logits"]]
    )
    for model in (keras.Sequential([keras.Input((8,)), kerdock]), two):
        with pytest.raises(ValueError, match="one `PEDCCDense` or `CosineDense`"):
            place_classes(model, [0], np.ones((1, 8)))
