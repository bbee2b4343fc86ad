"""A random part of the classes: which are drawn, values, gradients, training."""

import itertools

import keras
import numpy as np
import pytest
import reference
from keras import ops
from tensors import (
    FEW_STEPS,
    assert_allclose,
    draw_alike,
    gradient_of,
    numpy_of,
    only_once,
    slope_of,
)

import keras_pedcc
from keras_pedcc import CosineDense, PEDCCDense, PEDCCLoss, PEDCCModel, losses
from keras_pedcc.scores import sampled as sampling
from keras_pedcc.scores.sampled import SampledScores

BATCH, CLASSES, DIM = 12, 37, 6
BACKEND = keras.backend.backend()
LOSSES = {
    "pedcc": lambda y, z: losses.pedcc_loss(y, z, scale=15),
    "am_softmax": lambda y, z: losses.am_softmax_loss(y, z, scale=64, margin=0.35),
    "arcface": lambda y, z: losses.arcface_loss(y, z, scale=30, margin=0.5),
}


def unit(rows):
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


@pytest.fixture
def case(rng):
    """Features, centroids of any length, and labels, one of them three times."""
    features = unit(rng.standard_normal((BATCH, DIM))).astype("float32")
    centroids = rng.standard_normal((CLASSES, DIM)).astype("float32")
    labels = rng.integers(0, CLASSES, BATCH)
    labels[4:7] = labels[3]
    return features, centroids, labels


def sampled(features, centroids, number, *, trained=True, seed=5):
    features, centroids = map(ops.convert_to_tensor, (features, centroids))
    seeds = keras.random.SeedGenerator(seed)
    return SampledScores(
        features, centroids, trained=trained, number=number, seed=seeds
    )


def drawn(labels, number, num_classes=CLASSES, seed=5):
    """The classes of a step and their weights, as NumPy arrays."""
    index = ops.convert_to_tensor(np.asarray(labels, "int32"))
    seeds = keras.random.SeedGenerator(seed)
    found = sampling.drawn_classes(index, num_classes, number, seeds)
    return numpy_of(found[0]), np.exp(numpy_of(found[1]).astype("float64"))


def twin(name, features, centroids, labels, classes, weights):
    """The loss in float64, class by class, given what was drawn."""
    features, centroids = np.asarray(features, "float64"), unit(centroids)
    values = []
    for x, label in zip(features, labels, strict=True):
        own = centroids[label] @ x
        scale, lowered = {
            "pedcc": (15, own - 0.5),
            "am_softmax": (64, own - 0.35),
            "arcface": (30, reference.turned(own, 0.5)),
        }[name]
        total = 1.0
        for j, weight in zip(classes, weights, strict=True):
            if j != label:
                total += weight * np.exp(scale * (centroids[j] @ x - lowered))
        values.append(np.log(total) + (10 * (1 - own) if name == "pedcc" else 0))
    return np.array(values)


@pytest.mark.parametrize(
    ("labels", "num_classes", "number", "found"),
    [
        ([5, 0, 5, 9, 5], 40, 7, 7),  # repeated
        ([0, 1, 2, 3], 8, 4, 4),  # as many as are left
        ([0, 1, 2, 3, 3], 8, 7, 4),  # more than are left
        ([2, 0, 1], 3, 2, 0),  # a batch with all classes
        ([1], 2, 1, 1),
        ([0, 1, 0], 2, 1, 0),
        ([99] * 3, 100, 33, 33),
        ([], 5, 2, 2),  # what a replica may get
    ],
)
def test_classes_of_a_step_are_those_of_the_batch_and_others(
    labels, num_classes, number, found
):
    for seed in range(5):
        classes, weights = drawn(labels, number, num_classes, seed)
        assert len(classes) == len(labels) + number
        assert classes.min() >= 0
        assert classes.max() < num_classes
        own, own_weights = classes[: len(labels)], weights[: len(labels)]
        assert own.tolist() == sorted(labels)
        assert own[own_weights > 0].tolist() == sorted(set(labels))
        others, other_weights = classes[len(labels) :], weights[len(labels) :]
        kept = others[other_weights > 0]
        assert len(set(kept)) == len(kept) == found
        assert not set(kept) & set(labels)
        # Together they stand for every class once.
        np.testing.assert_allclose(weights.sum(), num_classes, rtol=1e-6)


@pytest.mark.parametrize(("others", "number"), [(7, 3), (6, 2), (5, 4), (4, 4), (3, 5)])
def test_every_class_has_the_same_chance(others, number):
    length, longer = divmod(others, number)
    parts = [range(length + (i < longer) or 1) for i in range(number)]
    counts = np.zeros(others)
    draws = list(itertools.product(range(others), *parts))
    for bits in draws:
        bits = ops.convert_to_tensor(np.array(bits, "int32"))
        found = sampling._places(ops.convert_to_tensor(np.int32(others)), bits)
        places, there = map(numpy_of, found)
        counts[places[there]] += 1
    assert (counts == len(draws) * min(number, others) / others).all()


@pytest.mark.parametrize(
    ("num_classes", "rate", "number"),
    [(1000, 0.1, 100), (10, 0.01, 1), (10, 1, 9), (2, 0.5, 1), (37, 0.5, 18)],
)
def test_rate_is_a_part_of_all_classes(num_classes, rate, number):
    assert sampling.number_of_samples(num_classes, rate) == number


def compiled(function):
    import tensorflow as tf

    return tf.function(function)


@pytest.fixture(scope="module")
def many_draws():
    """Of 8 samples among 60 classes: exact sums, and the losses of 1500 draws."""
    rng, number = np.random.default_rng(1), 12
    features = unit(rng.standard_normal((8, DIM))).astype("float64")
    centroids = unit(rng.standard_normal((60, DIM))).astype("float64")
    labels = np.array([3, 3, 17, 20, 20, 33, 48, 59], "int32")
    z = sampled(features, centroids, number, trained=False)
    step = compiled(lambda: losses.am_softmax_loss(labels, z, scale=2, margin=0))
    found = [numpy_of(step()) for _ in range(1500)]
    terms = np.exp(2 * features.astype("float64") @ centroids.T.astype("float64"))
    own = np.take_along_axis(terms, labels[:, None], axis=1)
    return np.array(found, "float64"), terms, own, np.unique(labels), number


@only_once
def test_sum_over_other_classes_has_no_bias(many_draws):
    found, terms, own, _, _ = many_draws
    sums = np.expm1(found)  # over the own term, as the exact ones
    exact = (terms.sum(axis=1) - own[:, 0]) / own[:, 0]
    error = sums.std(axis=0, ddof=1) / np.sqrt(len(sums))
    assert (error < 0.01 * exact).all()
    assert (abs(sums.mean(axis=0) - exact) < 4 * error).all()


@only_once
def test_loss_is_low_by_what_the_docstring_says(many_draws):
    found, terms, own, present, number = many_draws
    bias = found.mean(axis=0) - np.log(terms.sum(axis=1) / own[:, 0])
    others = np.delete(terms, present, axis=1)
    variation = others.std(axis=1) / others.mean(axis=1)
    share = others.sum(axis=1) / terms.sum(axis=1)
    rest = 1 / number - 1 / others.shape[1]
    expected = -((share * variation) ** 2) * rest / 2
    assert (bias < 0).all()
    # Beyond the first order, and by chance; the classes are in a random order.
    np.testing.assert_allclose(bias.mean(), expected.mean(), rtol=0.15)
    np.testing.assert_allclose(bias, expected, rtol=0.5)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("number", [1, 9])
def test_value_is_that_of_the_formula(case, name, number):
    features, centroids, labels = case
    found = LOSSES[name](labels, sampled(features, centroids, number))
    expected = twin(name, features, centroids, labels, *drawn(labels, number))
    assert_allclose(found, expected, rtol=3e-5, atol=3e-7)


@pytest.mark.parametrize("name", LOSSES)
def test_all_classes_give_the_exact_loss(case, name):
    features, centroids, labels = case
    cosines = features @ unit(centroids).T
    for number in (CLASSES - len(set(labels)), CLASSES - 1):
        found = LOSSES[name](labels, sampled(features, centroids, number))
        expected = numpy_of(LOSSES[name](labels, cosines))
        assert_allclose(found, expected, rtol=3e-5, atol=3e-7)


def test_two_classes_give_the_exact_loss(rng):
    features, centroids = (unit(rng.standard_normal((2, DIM))) for _ in range(2))
    features, centroids = features.astype("float32"), centroids.astype("float32")
    for labels in ([0, 1], [1, 1]):
        found = losses.pedcc_loss(labels, sampled(features, centroids, 1))
        expected = numpy_of(losses.pedcc_loss(labels, features @ centroids.T))
        assert_allclose(found, expected, rtol=3e-5)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("trained", [False, True])
def test_gradient_over_features_is_the_slope(case, name, trained):
    features, centroids, labels = case
    step = drawn(labels, 9)
    found = gradient_of(
        lambda x: LOSSES[name](labels, sampled(x, centroids, 9, trained=trained)),
        features,
    )
    expected = slope_of(lambda x: twin(name, x, centroids, labels, *step), features)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize("name", LOSSES)
def test_gradient_over_centroids_is_the_slope_and_reaches_the_drawn(case, name):
    features, centroids, labels = case
    step = drawn(labels, 9)
    found = gradient_of(
        lambda c: LOSSES[name](labels, sampled(features, c, 9)), centroids
    )
    expected = slope_of(lambda c: twin(name, features, c, labels, *step), centroids)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=2e-3)
    outside = np.setdiff1d(np.arange(CLASSES), step[0])
    assert len(outside) > 9
    np.testing.assert_array_equal(found[outside], 0)
    assert (abs(expected[np.unique(labels)]).max(axis=1) > 1e-3).all()


def test_frozen_centroids_have_no_gradient(case):
    features, centroids, labels = case

    def loss(c):
        z = sampled(features, c, 9, trained=False)
        # Something beside that has one, so that backends have a graph.
        return losses.pedcc_loss(labels, z) + 0.0 * ops.sum(c)

    np.testing.assert_array_equal(gradient_of(loss, centroids), 0)


def test_loss_far_from_others_keeps_its_digits():
    centroids = np.array([[1, 0], [-1, 0], [-1, 1e-3]], "float32")
    z = sampled(centroids[:1], centroids, 2)
    loss = losses.am_softmax_loss([0], z, scale=30, margin=0.5)
    cosines = unit(centroids[:1].astype("float64")) @ unit(centroids).T
    assert_allclose(loss, reference.am_softmax([0], cosines, 30, 0.5))
    assert 0 < float(loss[0]) < 1e-18


def test_loss_of_wrong_labels_is_nan(case):
    features, centroids, labels = case
    labels = labels.astype("float32")
    labels[[2, 5, 7]] = -1, CLASSES, 3.5
    loss = numpy_of(losses.pedcc_loss(labels, sampled(features, centroids, 9)))
    assert np.flatnonzero(np.isnan(loss)).tolist() == [2, 5, 7]


def test_hits_are_counted_among_the_classes_of_the_step(case):
    features, centroids, labels = case
    classes, weights = drawn(labels, 1)
    classes = classes[weights > 0]
    absent = np.setdiff1d(np.arange(CLASSES), classes)[:BATCH]
    features = unit(unit(centroids)[labels] + 1.1 * unit(centroids)[absent])
    features = features.astype("float32")
    z = sampled(features, centroids, 1)
    losses.pedcc_loss(labels, z)
    cosines = features @ unit(centroids)[classes].T
    hits = classes[cosines.argmax(axis=1)] == labels
    assert (numpy_of(z.rank) == 0).tolist() == hits.tolist()
    own = np.sum(features * unit(centroids)[labels], axis=1, keepdims=True)
    assert numpy_of(z.rank).tolist() == (cosines > own + 1e-6).sum(axis=1).tolist()
    nearest = (features @ unit(centroids).T).argmax(axis=1)
    assert hits.sum() > (nearest == labels).sum()  # the others were not there


def make_model(
    rate=0.2,
    *,
    head=PEDCCDense,
    loss=None,
    optimizer=None,
    seed=3,
    how=FEW_STEPS,
    **kwargs,
):
    draw_alike(seed)
    inputs = keras.Input((5,))
    x = keras.layers.Dense(
        DIM, kernel_initializer=keras.initializers.GlorotUniform(seed=3)
    )(inputs)
    scores = keras_pedcc.Sampled(rate) if rate else "dense"
    head = head(CLASSES, scores=scores, name="head", **kwargs)
    model = PEDCCModel(inputs, head(x))
    optimizer = optimizer or keras.optimizers.SGD(0.1)
    model.compile(optimizer, loss or PEDCCLoss(), metrics=["accuracy"], **how)
    model.optimizer.build(model.trainable_variables)
    return model


@pytest.fixture
def samples(rng):
    labels = rng.integers(0, CLASSES, 64)
    return rng.standard_normal((64, 5)).astype("float32"), labels


def fit(model, samples, epochs=2, **kwargs):
    return model.fit(
        *samples, batch_size=16, epochs=epochs, shuffle=False, verbose=0, **kwargs
    ).history


@pytest.mark.slow
@pytest.mark.parametrize(
    "loss",
    [
        PEDCCLoss(mse_root=2),
        keras_pedcc.AMSoftmaxLoss("auto", reduction="sum", margin=[0.2] * CLASSES),
    ],
    ids=["root", "per_class_sum"],
)
def test_training_with_all_classes_is_that_of_the_plain_head(samples, loss):
    weights = np.arange(64) % 3 + 0.5
    plain, model = (make_model(rate, loss=loss) for rate in (None, 1))
    histories = [
        fit(each, samples, sample_weight=weights, validation_data=samples)
        for each in (plain, model)
    ]
    assert histories[0].keys() == histories[1].keys()
    for name, values in histories[0].items():
        np.testing.assert_allclose(histories[1][name], values, rtol=1e-4, err_msg=name)
    for ours, theirs in zip(model.weights, plain.weights, strict=True):
        assert_allclose(ours.value, numpy_of(theirs.value), rtol=1e-4, atol=1e-5)


def test_each_step_draws_anew_and_evaluation_takes_all_classes(samples):
    model = make_model(optimizer=keras.optimizers.SGD(0.0), how={})
    samples = [part[:16] for part in samples]
    history = fit(model, samples, 6, validation_data=samples)
    assert len({round(loss, 4) for loss in history["loss"]}) == 6
    np.testing.assert_allclose(history["val_loss"], history["val_loss"][0], rtol=1e-6)
    plain = make_model(None)
    expected = plain.evaluate(*samples, verbose=0, return_dict=True)
    assert history["val_loss"][0] == pytest.approx(expected["loss"], rel=1e-5)
    assert history["val_accuracy"][0] == expected["accuracy"]


@pytest.mark.slow
def test_draws_follow_the_random_seed(samples):
    first, same, other = (
        fit(make_model(seed=seed), samples)["loss"] for seed in (3, 3, 4)
    )
    assert first == same
    assert first != other


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["float32", "mixed_float16"])
def test_finetuning_moves_the_centroids(samples, policy):
    keras.mixed_precision.set_global_policy(policy)
    model = make_model(optimizer=keras.optimizers.Adam(0.01, clipnorm=1.0), how={})
    start = numpy_of(model.get_layer("head").centroids)
    finetune = keras_pedcc.FinetuneCallback(1, 0.1)
    history = fit(model, samples, 3, callbacks=[finetune])
    assert np.isfinite(history["loss"]).all()
    assert abs(numpy_of(model.get_layer("head").centroids) - start).max() > 1e-3


@pytest.mark.parametrize(
    "optimizer",
    [
        keras.optimizers.SGD(0.1),
        keras.optimizers.SGD(0.1, momentum=0.9, global_clipnorm=1.0),
        keras.optimizers.AdamW(0.01),
    ],
    ids=["sgd", "momentum", "adamw"],
)
def test_trained_centroids_move_in_the_drawn_rows(samples, optimizer):
    model = make_model(
        head=CosineDense, loss=keras_pedcc.AMSoftmaxLoss(), optimizer=optimizer
    )
    start = numpy_of(model.get_layer("head").centroids)
    x, labels = (part[:16] for part in samples)
    model.train_on_batch(x, labels)
    moved = (numpy_of(model.get_layer("head").centroids) != start).any(axis=1)
    number = len(set(labels)) + round(0.2 * CLASSES)
    assert moved[labels].all()
    if not isinstance(optimizer, keras.optimizers.AdamW):  # which decays all rows
        assert moved.sum() == number < CLASSES


def test_model_survives_a_round_trip(samples, tmp_path):
    model = make_model()
    fit(model, samples)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    head = loaded.get_layer("head")
    assert head.streams
    assert head.scores == keras_pedcc.Sampled(0.2)
    assert head.get_config() == model.get_layer("head").get_config()
    found, expected = (
        each.evaluate(*samples, verbose=0, return_dict=True) for each in (loaded, model)
    )
    assert found == pytest.approx(expected)
    assert np.isfinite(fit(loaded, samples)["loss"]).all()


def test_sampled_head_has_a_seed_and_others_have_none():
    for head in (PEDCCDense, CosineDense):
        assert hasattr(head(10, scores=keras_pedcc.Sampled(0.5)), "seed_generator")
        assert not hasattr(head(10, scores="blockwise"), "seed_generator")
        assert not hasattr(head(10), "seed_generator")


@pytest.mark.parametrize("rate", [0, -0.5, 1.5, float("nan"), "0.1", True])
def test_rate_must_be_a_part(rate):
    told = f"`sample_rate` must be a positive number of at most 1.*sample_rate={rate!r}"
    with pytest.raises(ValueError, match=told):
        keras_pedcc.Sampled(rate)


@pytest.mark.parametrize("name", ["return_norm", "return_features"])
@pytest.mark.parametrize("head", [PEDCCDense, CosineDense])
def test_sampled_head_returns_features_alone(head, name):
    with pytest.raises(ValueError, match=f"Sampled.sample_rate=0.1.*{name}"):
        head(10, scores=keras_pedcc.Sampled(0.1), **{name: name == "return_norm"})


@pytest.mark.skipif(BACKEND != "tensorflow", reason="replicas of TensorFlow")
@pytest.mark.parametrize("rate", [0.2, pytest.param(1, marks=pytest.mark.slow)])
def test_replicas_train_and_draw(samples, rate, two_replicas):
    with two_replicas.scope():
        model = make_model(rate, how={})
    head = model.get_layer("head")
    state = numpy_of(head.seed_generator.state)
    samples = [part[:49] for part in samples]  # the last batch leaves one replica empty
    found = fit(model, samples)
    assert (numpy_of(head.seed_generator.state) != state).any()
    assert np.isfinite(found["loss"]).all()
    if rate == 1:
        samples = [part[:48] for part in samples]
        with two_replicas.scope():
            model = make_model(rate, how={})
        expected = fit(make_model(None), samples)["loss"]
        np.testing.assert_allclose(fit(model, samples)["loss"], expected, rtol=1e-5)


@only_once
@pytest.mark.slow
def test_training_compiled_by_xla_draws_anew(samples):
    model = make_model()
    model.compile(keras.optimizers.SGD(0.0), PEDCCLoss(), jit_compile=True)
    samples = [part[:16] for part in samples]
    assert len({round(loss, 4) for loss in fit(model, samples, 4)["loss"]}) == 4


@pytest.mark.skipif(BACKEND != "jax", reason="reads JAX's program")
def test_no_array_of_the_program_is_as_large_as_the_logits(case):
    import jax

    features, centroids, labels = case

    def loss(x):
        z = sampled(x, centroids, 9, trained=False)
        return ops.sum(losses.pedcc_loss(labels, z))

    program = str(jax.make_jaxpr(jax.grad(loss))(features))
    assert f"[{BATCH},{BATCH + 9}]" in program
    assert f"[{BATCH},{CLASSES}]" not in program
