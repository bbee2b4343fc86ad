"""Kerdock's vectors without their array, beside the array."""

import keras
import numpy as np
import pytest
import reference
from keras import ops
from tensors import (
    FEW_STEPS,
    assert_allclose,
    deep,
    draw_alike,
    gradient_of,
    numpy_of,
    slope_of,
)

import keras_pedcc
from keras_pedcc import KerdockDense, PEDCCDense, PEDCCLoss, PEDCCModel, losses
from keras_pedcc.centroids.kerdock import KerdockCentroids
from keras_pedcc.scores.kerdock import KerdockScores

BATCH = 12
# Even m, cut within a pair; odd m with dimensions to spare; whole bases; two sets.
SIZES = deep([(1235, 64), (501, 35), (512, 16), (2080, 16), (23, 4)], 2)
LOSSES = {
    "pedcc": (
        lambda y, z: losses.pedcc_loss(y, z, scale=15),
        lambda y, c: (
            reference.am_softmax(y, c, 15, 0.5) + 10 * reference.distance(y, c)
        ),
    ),
    "large scale": (
        lambda y, z: losses.am_softmax_loss(y, z, scale=150, margin=0.35),
        lambda y, c: reference.am_softmax(y, c, 150, 0.35),
    ),
    "arcface": (
        lambda y, z: losses.arcface_loss(y, z, scale=30, margin=0.5),
        lambda y, c: reference.arcface(y, c, 30, 0.5),
    ),
    "distance": (losses.centroid_distance, reference.distance),
}


def array_of(num_classes, dim, seed=0):
    made = keras_pedcc.generate_pedcc(num_classes, dim, method="kerdock", seed=seed)
    return numpy_of(made)


def head_of(num_classes, dim, **kwargs):
    head = KerdockDense(num_classes, **kwargs)
    head.build((None, dim))
    return head


def draw(rng, num_classes, dim):
    """Unit features, and labels of which some are first, last, and opposite."""
    x = rng.standard_normal((BATCH, dim))
    y = rng.integers(0, num_classes, BATCH)
    y[:4] = num_classes - 1, num_classes - 2, 0, 1
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype("float32"), y


def streamed(head, features, block_size, **kwargs):
    arguments = {"training": True, "ranked": True, "block_size": block_size} | kwargs
    return KerdockScores(ops.convert_to_tensor(features), head.centroids, **arguments)


@pytest.mark.parametrize(("num_classes", "dim"), SIZES)
def test_centroids_are_those_that_are_generated(num_classes, dim):
    head = head_of(num_classes, dim, seed=3)
    np.testing.assert_array_equal(
        np.asarray(head.centroids), array_of(num_classes, dim, seed=3)
    )
    other = np.asarray(head_of(num_classes, dim, seed=4).centroids)
    assert np.abs(other - np.asarray(head.centroids)).max() > 0.1


def test_only_signs_are_held():
    head = head_of(100_000, 512)
    held = sum(np.asarray(numpy_of(weight)).nbytes for weight in head.weights)
    assert held < 100_000  # the array would be 204,800,000


@pytest.mark.parametrize(("num_classes", "dim"), SIZES)
def test_logits_are_cosines(num_classes, dim, rng):
    features, _ = draw(rng, num_classes, dim)
    outputs = KerdockDense(num_classes, scores="dense")(3 * features)
    expected = features.astype("float64") @ array_of(num_classes, dim).T
    assert_allclose(outputs["logits"], expected, atol=3e-7)
    assert_allclose(outputs["features"], features, atol=1e-6)


# Every size with one loss, and every loss with one size: they share one log-sum-exp.
@pytest.mark.parametrize(
    ("num_classes", "dim", "block_size", "name"),
    [(*size, block, "pedcc") for size in SIZES for block in (1, 10_000)]
    + [(501, 35, 1, name) for name in LOSSES if name != "pedcc"],
)
def test_value_is_that_of_the_formula(num_classes, dim, block_size, name, rng):
    features, labels = draw(rng, num_classes, dim)
    loss, twin = LOSSES[name]
    found = loss(labels, streamed(head_of(num_classes, dim), features, block_size))
    expected = twin(labels, features.astype("float64") @ array_of(num_classes, dim).T)
    assert_allclose(found, expected, rtol=3e-5, atol=3e-7)


@pytest.mark.parametrize(
    ("num_classes", "dim", "name"),
    deep([(*size, "pedcc") for size in SIZES[:3]], 1)
    + [(501, 35, name) for name in LOSSES if name != "pedcc"],
)
def test_gradient_is_the_slope(num_classes, dim, name, rng):
    features, labels = (part[:6] for part in draw(rng, num_classes, dim))
    loss, twin = LOSSES[name]
    head, array = head_of(num_classes, dim), array_of(num_classes, dim)
    found = gradient_of(lambda x: loss(labels, streamed(head, x, 100)), features)
    expected = slope_of(
        lambda x: twin(labels, x @ array.T.astype("float64")).sum(), features
    )
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)


def test_gradient_is_the_slope_for_a_last_class_without_its_negative(rng):
    features, _ = draw(rng, 11, 6)
    labels, array = np.full(BATCH, 10), array_of(11, 6)
    found = gradient_of(
        lambda x: losses.am_softmax_loss(
            labels, streamed(head_of(11, 6), x, 100), scale=1
        ),
        features,
    )
    expected = slope_of(
        lambda x: reference.am_softmax(labels, x @ array.T.astype("float64"), 1, 0.5),
        features,
    )
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scale", deep([150.0, 15.0], 1))
def test_value_is_exact_where_the_own_class_is_reached(scale, rng):
    array, head = array_of(1235, 64), head_of(1235, 64)
    labels = np.arange(0, 1235, 77)
    z = streamed(head, array[labels], 300)
    found = losses.am_softmax_loss(labels, z, scale=scale, margin=0.0)
    cosines = array[labels].astype("float64") @ array.T
    expected = reference.am_softmax(labels, cosines, scale, 0.0)
    assert expected.max() < 1  # of the order of exp(-scale)
    assert_allclose(found, expected, rtol=1e-4, atol=1e-35)


@pytest.mark.parametrize(
    ("label", "scale"),
    deep([(1234, 300.0), (1233, 300.0), (0, 300.0), (1234, 30.0), (1234, 150.0)], 2),
)
def test_value_and_gradient_hold_where_the_own_class_is_opposite(label, scale):
    array, head = array_of(1235, 64), head_of(1235, 64)
    features = -array[[label]]

    def loss(x):
        z = streamed(head, x, 300)
        return losses.am_softmax_loss([label], z, scale=scale, margin=0.35)

    cosines = features.astype("float64") @ array.T
    expected = reference.am_softmax(np.array([label]), cosines, scale, 0.35)
    assert_allclose(loss(ops.convert_to_tensor(features)), expected, rtol=1e-5)
    slope = gradient_of(loss, features)
    twin = slope_of(
        lambda x: reference.am_softmax(
            np.array([label]), x @ array.T.astype("float64"), scale, 0.35
        ),
        features,
    )
    np.testing.assert_allclose(slope, twin, rtol=1e-3, atol=1e-3 * scale)


@pytest.mark.parametrize(("block_size", "bases"), [(1, 1), (129, 2), (256, 2)])
def test_blocks_are_whole_bases(monkeypatch, block_size, bases, rng):
    features, labels = draw(rng, 1235, 64)
    head, seen = head_of(1235, 64), []
    products = KerdockCentroids.products

    def watched(self, signs, x):
        seen.append(signs.shape[0])
        return products(self, signs, x)

    monkeypatch.setattr(KerdockCentroids, "products", watched)
    losses.pedcc_loss(labels, streamed(head, features, block_size))
    assert seen[0] == bases


@pytest.mark.parametrize(("num_classes", "dim"), SIZES)
@pytest.mark.parametrize("block_size", [1, 10_000])
def test_rank_counts_the_nearer_classes(num_classes, dim, block_size, rng):
    features, labels = draw(rng, num_classes, dim)
    z = streamed(head_of(num_classes, dim), features, block_size)
    losses.pedcc_loss(labels, z)
    cosines = features @ array_of(num_classes, dim).T
    own = np.take_along_axis(cosines, labels[:, None], axis=1)
    np.testing.assert_array_equal(numpy_of(z.rank), (cosines > own).sum(axis=1))


@pytest.mark.parametrize("label", [6, 1234])
def test_features_outside_the_span_and_nan_are_as_with_the_array(label):
    head = head_of(1235, 70)
    columns = np.asarray(head.centroids).any(axis=0)
    features = np.zeros((2, 70), "float32")
    features[0, np.flatnonzero(~columns)[0]] = 1.0
    features[1] = np.nan
    found = numpy_of(losses.pedcc_loss([label] * 2, streamed(head, features, 300)))
    labels, cosines = np.array([label]), np.zeros((1, 1235))
    expected = reference.am_softmax(labels, cosines, 15, 0.5) + 10
    np.testing.assert_allclose(found[:1], expected, rtol=1e-6)
    assert np.isnan(found[1])


@pytest.mark.parametrize(
    ("num_classes", "dim", "k"),
    [(*size, 7) for size in SIZES]
    + deep([(1235, 64, 400), (1235, 64, 1), (23, 4, 400)], 1),
)
def test_nearest_classes_are_those_of_the_array(num_classes, dim, k, rng):
    features, _ = draw(rng, num_classes, dim)
    head, k = head_of(num_classes, dim), min(k, num_classes)
    cosines, classes = keras_pedcc.nearest_classes(
        features, head.centroids, k, block_size=100
    )
    expected, _ = keras_pedcc.nearest_classes(features, array_of(num_classes, dim), k)
    assert_allclose(cosines, numpy_of(expected), atol=5e-7)
    every = features @ array_of(num_classes, dim).T
    there = np.take_along_axis(every, numpy_of(classes), axis=1)
    assert_allclose(cosines, there, atol=5e-7)
    assert all(len(set(row)) == k for row in numpy_of(classes).tolist())


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="its replicas")
def test_replicas_train_as_one_device(two_replicas, rng):
    x, y = rng.standard_normal((8, 5)).astype("float32"), rng.integers(0, 1235, 8)
    alone = make_model(KerdockDense(1235, scores="blockwise"))
    with two_replicas.scope():
        model = make_model(KerdockDense(1235, scores="blockwise"), {})
    for each in alone, model:
        each.fit(x, y, batch_size=8, epochs=2, shuffle=False, verbose=0)
    kernels = [numpy_of(each.layers[1].kernel) for each in (alone, model)]
    np.testing.assert_allclose(*kernels, rtol=1e-4, atol=2e-6)


def make_model(head, how=FEW_STEPS):
    draw_alike(0)
    inputs = keras.Input((5,))
    model = PEDCCModel(inputs, head(keras.layers.Dense(64)(inputs)))
    metrics = ["accuracy", keras.metrics.SparseTopKCategoricalAccuracy(50, name="top")]
    sgd = keras.optimizers.SGD(0.1, momentum=0.9)
    model.compile(sgd, PEDCCLoss(), metrics=metrics, **how)
    model.optimizer.build(model.trainable_variables)
    return model


@pytest.mark.parametrize("scores", ["dense", "blockwise"])
def test_training_is_that_of_the_plain_head(scores, rng):
    x = rng.standard_normal((3 * BATCH, 5)).astype("float32")
    y = rng.integers(0, 1235, 3 * BATCH)
    heads = KerdockDense(1235, scores=scores), PEDCCDense(1235, centroids="kerdock")
    results = []
    for head in heads:
        model = make_model(head, {} if head is heads[0] else FEW_STEPS)
        model.fit(x, y, batch_size=BATCH, epochs=2, shuffle=False, verbose=0)
        results.append(model.evaluate(x, y, verbose=0, return_dict=True))
        results.append(numpy_of(model.layers[1].kernel))
    for name, value in results[0].items():
        assert results[2][name] == pytest.approx(value, rel=1e-5), name
    np.testing.assert_allclose(results[1], results[3], rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("scores", ["dense", "blockwise"])
def test_model_survives_a_round_trip(scores, tmp_path, rng):
    model = make_model(KerdockDense(1235, seed=2, scores=scores, name="head"))
    x, y = rng.standard_normal((8, 5)).astype("float32"), rng.integers(0, 1235, 8)
    model.fit(x, y, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.evaluate(x, y, verbose=0) == pytest.approx(
        model.evaluate(x, y, verbose=0), rel=1e-6
    )
    head = loaded.get_layer("head")
    assert head.get_config() == model.get_layer("head").get_config()
    assert not head.trainable_variables
    copied = keras.models.clone_model(model).get_layer("head")
    np.testing.assert_array_equal(np.asarray(copied.centroids), array_of(1235, 64, 2))


def test_head_streams_from_as_many_classes_on_as_the_plain_one(monkeypatch):
    monkeypatch.setattr("keras_pedcc.KerdockDense._blockwise_from", 200)
    assert KerdockDense(200).streams
    assert not KerdockDense(199).streams
    assert not KerdockDense(200, return_norm=True).streams
    assert not KerdockDense(200, scores="dense").streams


def test_lengths_are_returned_when_asked_for():
    outputs = KerdockDense(600, return_norm=True)(np.full((2, 16), 0.5, "float32"))
    assert_allclose(outputs["norm"], [2.0, 2.0])
    assert numpy_of(outputs["iterations"]).tolist() == [0, 0]


@pytest.mark.parametrize(("num_classes", "dim"), [(32, 16), (2081, 16), (9, 3)])
def test_number_of_classes_out_of_range_is_refused(num_classes, dim):
    told = "dimensions or more" if dim < 4 else f"num_classes={num_classes}, with an"
    with pytest.raises(ValueError, match=told):
        KerdockDense(num_classes)(np.ones((2, dim), "float32"))


@pytest.mark.parametrize(
    "given",
    [{"scores": keras_pedcc.Sampled(0.1)}, {"centroids": "kerdock"}],
)
def test_arguments_of_other_heads_are_refused(given):
    [name] = given
    with pytest.raises(ValueError, match=f"Received: {name}="):
        KerdockDense(1000, **given)


def test_centroids_are_there_once_the_layer_is_built():
    head = KerdockDense(1000, name="mine")
    with pytest.raises(ValueError, match=r"once the layer is built.* 'mine'"):
        _ = head.centroids
    head.build((None, 64))
    assert "shape=(1000, 64)" in repr(head.centroids)
    with pytest.raises(ValueError, match="never shared"):
        head.centroids.__array__(copy=False)


def test_float64_is_kept(rng):
    if keras.backend.backend() != "tensorflow":
        pytest.skip("others compute in float32 here")
    features = rng.standard_normal((4, 35))
    logits = KerdockDense(501, dtype="float64", return_features=False)(features)
    plain = PEDCCDense(501, centroids="kerdock", dtype="float64", return_features=False)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    array = array_of(501, 35).astype("float64")
    array /= np.linalg.norm(array, axis=1, keepdims=True)
    np.testing.assert_allclose(logits, unit @ array.T, atol=1e-14)
    assert_allclose(plain(features), numpy_of(logits), atol=1e-14)


def test_finetuning_says_what_to_do_instead():
    model = make_model(KerdockDense(1235))
    with pytest.raises(ValueError, match=r"centroids=np\.asarray"):
        model.fit(
            np.ones((4, 5)),
            np.zeros(4),
            verbose=0,
            callbacks=[keras_pedcc.FinetuneCallback(0)],
        )
