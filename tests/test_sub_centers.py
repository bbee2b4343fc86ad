"""Several centroids for each class."""

import keras
import numpy as np
import pytest
from tensors import FEW_STEPS, assert_allclose, gradient_of, numpy_of

from keras_pedcc import (
    AMSoftmaxLoss,
    CosineDense,
    PEDCCModel,
    Sampled,
    SubCenterDense,
    dominant_sub_centers,
    nearest_classes,
)


def unit(rows):
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def test_logit_is_the_largest_cosine_of_the_class(rng):
    features = rng.standard_normal((5, 8)).astype("float32")
    head = SubCenterDense(4, sub_centers=3, return_features=False)
    found = head(features)
    weights = unit(numpy_of(head.centroids)).reshape(4, 3, 8)
    expected = np.einsum("nd,jkd->njk", unit(features), weights).max(axis=2)
    assert_allclose(found, expected, atol=1e-6)


def test_gradient_is_that_of_the_nearest_sub_center(rng):
    features = rng.standard_normal((5, 8)).astype("float32")
    head = SubCenterDense(4, sub_centers=3, return_features=False)
    plain = CosineDense(12, return_features=False)
    values = plain(features)
    head.build((None, 8))
    head.centroids.assign(plain.centroids)
    nearest = numpy_of(values).reshape(5, 4, 3).argmax(axis=2) + 3 * np.arange(4)
    picked = np.zeros((5, 12), "float32")
    np.put_along_axis(picked, nearest, 1.0, axis=1)
    picked = keras.ops.convert_to_tensor(picked)
    expected = gradient_of(lambda x: plain(x) * picked, features)
    assert_allclose(gradient_of(head, features), expected, atol=1e-6)


def test_model_trains_saves_and_loads(tmp_path, rng):
    inputs = keras.Input((8,))
    outputs = SubCenterDense(3, sub_centers=2)(keras.layers.Dense(16)(inputs))
    model = PEDCCModel(inputs, outputs)
    sgd = keras.optimizers.SGD(0.05)
    model.compile(sgd, AMSoftmaxLoss(), metrics=["accuracy"], **FEW_STEPS)
    x, y = rng.standard_normal((24, 8)).astype("float32"), np.arange(24) % 3
    history = model.fit(x, y, epochs=4, verbose=0)
    assert history.history["loss"][-1] < history.history["loss"][0]
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    expected = model.evaluate(x, y, verbose=0)
    np.testing.assert_allclose(loaded.evaluate(x, y, verbose=0), expected, rtol=1e-6)


def test_dominant_sub_center_is_where_most_samples_are(rng):
    head = SubCenterDense(4, sub_centers=3)
    head.build((None, 8))
    centers = unit(rng.standard_normal((4, 3, 8)))
    head.centroids.assign(2 * centers.reshape(12, 8))
    labels = np.repeat([0, 1, 2], 5)
    at = np.tile([2, 1, 2, 0, 2], 3)  # sub-centre 2, of three samples in five
    features = 3 * centers[labels, at] + 0.01 * rng.standard_normal((15, 8))
    found = dominant_sub_centers(head, features, labels[:, None])
    expected = np.append(centers[:3, 2], centers[3:, 0], axis=0)
    assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("label", [-1, 4, 0.5])
def test_dominant_sub_centers_refuse_labels(label):
    head = SubCenterDense(4, sub_centers=3)
    head.build((None, 8))
    with pytest.raises(
        ValueError, match=rf"in \[0, 4\). Received: labels\[1\]={label}"
    ):
        dominant_sub_centers(head, np.ones((2, 8)), np.array([0, label]))


@pytest.mark.parametrize("number", [0, -2])
def test_number_of_sub_centers_is_at_least_one(number):
    with pytest.raises(ValueError, match="`sub_centers` must be at least 1"):
        SubCenterDense(3, sub_centers=number)


@pytest.mark.parametrize(
    "arguments", [{"scores": "blockwise"}, {"scores": Sampled(0.5)}, {"capacity": 9}]
)
def test_cosines_to_all_sub_centers_are_computed_at_once(arguments):
    with pytest.raises(ValueError, match="at once, of all classes"):
        SubCenterDense(3, **arguments)


def test_search_needs_one_centroid_for_each_class():
    head = SubCenterDense(4)
    head.build((None, 8))
    with pytest.raises(ValueError, match="one centroid for each class, or rows"):
        nearest_classes(np.ones((2, 8), "float32"), head)
