"""Frozen centroids, features of any length, and plain cross entropy."""

import keras
import numpy as np
import pytest
from tensors import FEW_STEPS, assert_allclose, gradient_of, numpy_of

from keras_pedcc import PEDCCDense, PEDCCModel, PEDCCProductDense, generate_pedcc


@pytest.mark.parametrize("policy", ["float32", "mixed_float16"])
def test_logits_are_products_with_centroids_of_that_length(rng, policy):
    keras.mixed_precision.set_global_policy(policy)
    features = (100 * rng.standard_normal((5, 8))).astype("float16")
    outputs = PEDCCProductDense(6, radius=0.3, seed=3)(features)
    centroids = numpy_of(generate_pedcc(6, 8, seed=3)).astype("float64")
    expected = 0.3 * features.astype("float64") @ centroids.T
    assert_allclose(outputs["logits"], expected, atol=1e-4)
    plain = PEDCCDense(6)(features)
    assert_allclose(outputs["features"], numpy_of(plain["features"]))


def test_gradient_is_that_of_the_product_also_at_zero(rng):
    head = PEDCCProductDense(6, radius=0.3, return_features=False)
    head.build((None, 8))
    features = np.stack([np.zeros(8), rng.standard_normal(8)]).astype("float32")
    found = gradient_of(lambda x: head(x)[:, 2], features)
    assert_allclose(
        found, np.tile(0.3 * numpy_of(head.centroids)[2], (2, 1)), rtol=1e-4
    )


def test_model_trains_frozen_saves_and_loads(tmp_path, rng):
    inputs = keras.Input((8,))
    head = PEDCCProductDense(3, radius=0.5)
    model = PEDCCModel(inputs, head(keras.layers.Dense(16)(inputs)))
    entropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    sgd = keras.optimizers.SGD(0.05)
    model.compile(sgd, entropy, metrics=["accuracy"], **FEW_STEPS)
    before = numpy_of(head.centroids).copy()
    x, y = rng.standard_normal((24, 8)).astype("float32"), np.arange(24) % 3
    history = model.fit(x, y, epochs=4, verbose=0)
    assert history.history["loss"][-1] < history.history["loss"][0]
    np.testing.assert_array_equal(numpy_of(head.centroids), before)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.layers[-1].radius == 0.5
    expected = model.evaluate(x, y, verbose=0)
    np.testing.assert_allclose(loaded.evaluate(x, y, verbose=0), expected, rtol=1e-6)


@pytest.mark.parametrize("radius", [0, -1.0, float("inf"), "1"])
def test_head_refuses_a_radius(radius):
    with pytest.raises(ValueError, match="`radius` must be a positive number"):
        PEDCCProductDense(3, radius=radius)


@pytest.mark.parametrize("other", [{"scores": "blockwise"}, {"return_norm": True}])
def test_head_refuses_what_it_does_not_compute(other):
    with pytest.raises(ValueError, match=r"computes all logits at once.*Received: "):
        PEDCCProductDense(3, **other)
