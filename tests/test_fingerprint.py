"""Fingerprints of centroids."""

import json

import keras
import numpy as np
import pytest
from keras import ops
from tensors import numpy_of

import keras_pedcc
from keras_pedcc import (
    KerdockDense,
    PEDCCDense,
    centroid_fingerprint,
    check_same_centroids,
    compare_fingerprints,
    embedder,
    generate_pedcc,
)
from keras_pedcc.centroids import fingerprint


@pytest.fixture
def centroids(rng):
    return rng.standard_normal((300, 24))


def distance(first, second):
    found = compare_fingerprints(*map(centroid_fingerprint, (first, second)))
    return found["distance"]


def test_numbers_are_those_of_the_formula(centroids, monkeypatch):
    monkeypatch.setattr(fingerprint, "BLOCK_ROWS", 64)
    signs = np.random.RandomState(1)
    b = 2 * signs.randint(0, 2, (24, 256)) - 1
    a = 2 * signs.randint(0, 2, (300, 256)) - 1
    units = centroids / np.linalg.norm(centroids, axis=1, keepdims=True)
    expected = [sum(a[:, k] * (units @ b[:, k])) / 300**0.5 for k in range(256)]
    found = centroid_fingerprint(5 * centroids)
    np.testing.assert_allclose(found["numbers"], expected, atol=1e-7)
    assert json.loads(json.dumps(found)) == found


def test_fingerprint_of_known_centroids_never_changes():
    # Of an array that no backend and no generator has a part in.
    angles = np.arange(12) * 2 * np.pi / 12
    found = centroid_fingerprint(np.stack([np.cos(angles), np.sin(angles)], 1))
    first = [-0.7886751, 1.5773503, 1.9433757]
    np.testing.assert_allclose(found["numbers"][:3], first, atol=2e-7)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_rounding_leaves_them_the_same(centroids, dtype):
    rounded = ops.cast(ops.convert_to_tensor(centroids.astype("float32")), dtype)
    found = compare_fingerprints(*map(centroid_fingerprint, (centroids, rounded)))
    assert found["same"]
    assert found["distance"] < 0.003


@pytest.mark.parametrize("size", [0.02, 0.2, 1.0])
def test_distance_is_estimated(centroids, rng, size):
    units = centroids / np.linalg.norm(centroids, axis=1, keepdims=True)
    moved = units + size * rng.standard_normal(units.shape) / 24**0.5
    moved /= np.linalg.norm(moved, axis=1, keepdims=True)
    true = np.sqrt(np.mean(np.sum((units - moved) ** 2, axis=1)))
    assert distance(units, moved) == pytest.approx(true, rel=0.3)


def test_others_are_told_apart(centroids):
    for other in (
        generate_pedcc(300, 24, method="random"),
        np.roll(centroids, 1, axis=0),  # other classes
        np.roll(centroids, 1, axis=1),  # other features
        -centroids,
    ):
        assert distance(centroids, other) > 1
        with pytest.raises(ValueError, match=r"at most 0.6 degrees apart. Received: "):
            check_same_centroids(*map(centroid_fingerprint, (centroids, other)))


def test_heads_have_the_fingerprint_of_their_centroids(tmp_path):
    kerdock = KerdockDense(600)
    kerdock.build((None, 19))
    plain = generate_pedcc(600, 19, method="kerdock")
    assert distance(kerdock, plain) < 1e-6
    inputs = keras.Input((8,))
    model = keras.Model(inputs, PEDCCDense(5, name="head")(inputs))
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert distance(loaded.get_layer("head"), model.get_layer("head")) == 0


def functional(head, name="model"):
    inputs = keras.Input((8,))
    outputs = head(keras.layers.Dense(6)(inputs))
    return keras.Model(inputs, outputs, name=name)


def nested(head):
    inputs = keras.Input((8,))
    return keras.Model(inputs, functional(head)(inputs * 2.0))


class Subclassed(keras.Model):
    def __init__(self, head):
        super().__init__()
        self.parts = {"dense": keras.layers.Dense(6), "head": head}

    def call(self, inputs):
        return self.parts["head"](self.parts["dense"](inputs))


def called(head):
    inputs = keras.Input((8,))
    return keras.Model(inputs, Subclassed(head)(inputs))


def preprocessed(model):
    return keras.Sequential([keras.Input((8,)), keras.layers.Rescaling(2.0), model])


@pytest.mark.parametrize("kind", [functional, nested, called])
def test_models_and_embedders_have_the_fingerprint_of_their_head(kind, tmp_path):
    head = PEDCCDense(5, seed=3)
    model = kind(head)
    expected = centroid_fingerprint(generate_pedcc(5, 6, seed=3))
    assert expected != centroid_fingerprint(generate_pedcc(5, 6, seed=4))
    made = embedder(model)
    if kind is not called:  # a class of the test, which no file restores
        made.save(tmp_path / "embedder.keras")
        loaded = keras.saving.load_model(tmp_path / "embedder.keras")
        assert not [each for each in loaded.weights if "centroids" in each.path]
        assert centroid_fingerprint(loaded) == expected
        assert centroid_fingerprint(preprocessed(loaded)) == expected
        assert json.loads(json.dumps(loaded.centroid_fingerprint)) == expected
        check_same_centroids(loaded, model)
    for each in (head, model, made):
        assert centroid_fingerprint(each) == expected


def test_embedder_follows_its_head_and_copies_keep_what_it_was():
    head = PEDCCDense(5)
    made = embedder(functional(head))
    copy = type(made).from_config(made.get_config())
    check_same_centroids(made, copy)
    head.centroids.assign(numpy_of(head.centroids)[::-1])
    check_same_centroids(made, head)
    with pytest.raises(ValueError, match=r"at most 0.6 degrees apart. Received: "):
        check_same_centroids(made, copy)


def test_embedder_without_its_fingerprint_is_plain_keras(rng):
    made = embedder(functional(PEDCCDense(5)))
    plain = keras.Model(made.input, made.output)
    again = keras.Model.from_config(json.loads(json.dumps(plain.get_config())))
    assert not [each for each in again.layers if "pedcc" in type(each).__module__]
    with pytest.raises(ValueError, match=r"one head. Received: .* with those of 0\."):
        centroid_fingerprint(again)


@pytest.mark.parametrize("dtype", ["bfloat16", "mixed_bfloat16"])
def test_networks_of_another_dtype_belong_together(dtype):
    made = [functional(PEDCCDense(5, dtype=each)) for each in ("float32", dtype)]
    check_same_centroids(made[0], embedder(made[1]))


def test_models_without_one_head_are_refused():
    inputs = keras.Input((8,))
    heads = [PEDCCDense(5, seed=seed)(inputs) for seed in range(2)]
    both = {"features": heads[0]["features"], "logits": heads[1]["logits"]}
    two = keras.Model(inputs, both, name="two")
    with pytest.raises(ValueError, match=r"'two' \(type Functional\), with those of 2"):
        centroid_fingerprint(two)
    expected = centroid_fingerprint(generate_pedcc(5, 8, seed=0))
    assert centroid_fingerprint(embedder(two)) == expected
    with pytest.raises(ValueError, match=r"with those of 0.*head .* that is built"):
        centroid_fingerprint(PEDCCDense(5))
    stacked = {"a": heads[0]["logits"], "b": heads[1]["logits"]}
    shared = embedder(keras.Model(inputs, stacked))
    assert shared.centroid_fingerprint is None  # of which of the two?


def test_fine_tuned_centroids_may_have_moved(centroids):
    head = PEDCCDense(300, centroids=centroids)
    head.build((None, 24))
    before = centroid_fingerprint(head)
    moved = numpy_of(head.centroids) + 0.05 * np.roll(numpy_of(head.centroids), 1, 0)
    head.centroids.assign(moved)
    after = centroid_fingerprint(head)
    with pytest.raises(ValueError, match=r"must be at most 0.6 degrees apart"):
        check_same_centroids(before, after)
    check_same_centroids(before, after, degrees=10)
    assert 1 < compare_fingerprints(before, after)["degrees"] < 5


def test_what_is_no_fingerprint_is_refused(centroids):
    found = centroid_fingerprint(centroids)
    with pytest.raises(ValueError, match=r"what `centroid_fingerprint`.*NoneType"):
        compare_fingerprints(found, None)
    with pytest.raises(ValueError, match=r"list. Keep .* without one cannot be"):
        check_same_centroids(centroids, found["numbers"])
    with pytest.raises(ValueError, match=r"of one dim. Received: 24 and 23"):
        compare_fingerprints(found, centroid_fingerprint(centroids[:, 1:]))
    with pytest.raises(ValueError, match=r"of one num_classes. Received: 300 and 299"):
        compare_fingerprints(found, centroid_fingerprint(centroids[1:]))
    with pytest.raises(ValueError, match=r"It is damaged"):
        compare_fingerprints(found, {**found, "numbers": [1.0]})
    with pytest.raises(ValueError, match="without a row of zeros"):
        keras_pedcc.centroid_fingerprint(np.zeros((3, 4)))
