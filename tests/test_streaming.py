"""Logits that are never held: values, gradients, training, search."""

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
from keras_pedcc import PEDCCDense, PEDCCLoss, PEDCCModel, losses
from keras_pedcc.scores.blockwise import BlockwiseScores
from keras_pedcc.scores.search import nearest_classes
from keras_pedcc.training.label_checks import check_number

BATCH, CLASSES, DIM = 16, 37, 6
BACKEND = keras.backend.backend()
BLOCKS = keras_pedcc.Blockwise(8)
LOSSES = {
    "pedcc": (
        lambda y, z: losses.pedcc_loss(y, z, scale=15),
        lambda y, c: (
            reference.am_softmax(y, c, 15, 0.5) + 10 * reference.distance(y, c)
        ),
    ),
    "am_softmax": (
        lambda y, z: losses.am_softmax_loss(y, z, scale=64, margin=0.35),
        lambda y, c: reference.am_softmax(y, c, 64, 0.35),
    ),
    "arcface": (
        lambda y, z: losses.arcface_loss(y, z, scale=30, margin=0.5),
        lambda y, c: reference.arcface(y, c, 30, 0.5),
    ),
    "distance": (losses.centroid_distance, reference.distance),
}


def unit(rows):
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


@pytest.fixture
def case(rng):
    """Features, centroids of any length, and labels."""
    features = unit(rng.standard_normal((BATCH, DIM)))
    centroids = rng.standard_normal((CLASSES, DIM))
    labels = rng.integers(0, CLASSES, BATCH)
    features[0] = unit(centroids[labels[0]])  # one on its centroid, one opposite
    features[1] = -unit(centroids[labels[1]])
    return features.astype("float32"), centroids.astype("float32"), labels


def streamed(features, centroids, size, trained=True):
    features, centroids = map(ops.convert_to_tensor, (features, centroids))
    return BlockwiseScores(features, centroids, trained=trained, block_size=size)


def true_cosines(features, centroids):
    return unit(np.asarray(features, "float64")) @ unit(centroids.astype("float64")).T


@pytest.mark.parametrize(
    ("name", "size"),
    [("pedcc", 36), ("pedcc", 100), *((name, 8) for name in LOSSES)],
)
def test_value_is_that_of_the_formula(case, name, size):
    features, centroids, labels = case
    loss, twin = LOSSES[name]
    if name == "arcface":  # where the angle is 0 or pi its cosine rounds it off
        features, labels = features[2:], labels[2:]
    found = loss(labels, streamed(features, centroids, size))
    expected = twin(labels, true_cosines(features, centroids))
    assert_allclose(found, expected, rtol=3e-5, atol=3e-7)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("trained", [False, True])
def test_gradient_over_features_is_the_slope(case, name, trained):
    features, centroids, labels = case
    loss, twin = LOSSES[name]
    features, labels = features[2:], labels[2:]  # not where the loss has a corner
    found = gradient_of(
        lambda x: loss(labels, streamed(x, centroids, 8, trained)), features
    )

    def cosines(x):
        return x @ unit(centroids.astype("float64")).T

    expected = slope_of(lambda x: twin(labels, cosines(x)).sum(), features)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize(
    ("name", "size"), [*((name, 8) for name in LOSSES), ("pedcc", 37)]
)
def test_gradient_over_centroids_is_the_slope(case, name, size):
    features, centroids, labels = case
    loss, twin = LOSSES[name]
    features, labels = features[2:], labels[2:]
    weights = np.arange(len(labels)) + 1.0  # another upstream for each sample
    found = gradient_of(
        lambda c: (
            loss(labels, streamed(features, c, size))
            * ops.convert_to_tensor(weights.astype("float32"))
        ),
        centroids,
    )
    expected = slope_of(
        lambda c: (twin(labels, true_cosines(features, c)) * weights).sum(), centroids
    )
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=2e-3)


def test_frozen_centroids_have_no_gradient(case):
    features, centroids, labels = case

    def loss(c):
        z = streamed(features, c, 8, trained=False)
        # Something beside that has one, so that backends have a graph.
        return losses.pedcc_loss(labels, z) + 0.0 * ops.sum(c)

    np.testing.assert_array_equal(gradient_of(loss, centroids), 0)


def test_loss_far_from_others_keeps_its_digits():
    centroids = np.array([[1, 0], [-1, 0], [-1, 1e-3]], "float32")
    z = streamed(centroids[:1], centroids, 2)
    loss = losses.am_softmax_loss([0], z, scale=30, margin=0.5)
    cosines = true_cosines(centroids[:1], centroids)
    assert_allclose(loss, reference.am_softmax([0], cosines, 30, 0.5))
    assert 0 < float(loss[0]) < 1e-18


def test_loss_of_wrong_labels_is_nan(case):
    features, centroids, labels = case
    labels = labels.astype("float32")
    labels[[2, 5, 7]] = -1, CLASSES, 3.5
    loss = numpy_of(losses.pedcc_loss(labels, streamed(features, centroids, 8)))
    assert np.flatnonzero(np.isnan(loss)).tolist() == [2, 5, 7]


def test_soft_labels_are_refused(case):
    features, centroids, labels = case
    with pytest.raises(ValueError, match="class indices"):
        losses.pedcc_loss(np.eye(CLASSES)[labels], streamed(features, centroids, 8))


def make_model(
    scores=BLOCKS, *, loss=None, metrics=("accuracy",), how=FEW_STEPS, **kwargs
):
    draw_alike(3)
    inputs = keras.Input((5,))
    head = PEDCCDense(CLASSES, scores=scores, name="head", **kwargs)
    model = PEDCCModel(inputs, head(keras.layers.Dense(DIM)(inputs)))
    model.compile(
        keras.optimizers.SGD(0.1), loss or PEDCCLoss(), metrics=list(metrics), **how
    )
    return model


@pytest.fixture
def samples(rng):
    labels = rng.integers(0, CLASSES, 64)
    return rng.standard_normal((64, 5)).astype("float32"), labels


def fit(model, samples, epochs=2, **kwargs):
    return model.fit(
        *samples, batch_size=16, epochs=epochs, shuffle=False, verbose=0, **kwargs
    ).history


@pytest.mark.parametrize(
    "loss",
    [
        PEDCCLoss(mse_root=2),
        keras_pedcc.AMSoftmaxLoss(reduction="sum", margin=[0.2] * CLASSES),
    ],
    ids=["root", "per_class_sum"],
)
def test_training_is_that_of_the_plain_head(samples, loss):
    weights = np.arange(64) % 3 + 0.5
    plain, model = make_model(scores="dense", loss=loss), make_model(loss=loss)
    histories = [
        fit(each, samples, sample_weight=weights, validation_data=samples)
        for each in (plain, model)
    ]
    assert histories[0].keys() == histories[1].keys()
    for name, values in histories[0].items():
        np.testing.assert_allclose(histories[1][name], values, rtol=1e-4, err_msg=name)
    for ours, theirs in zip(model.weights, plain.weights, strict=True):
        assert_allclose(ours.value, numpy_of(theirs.value), rtol=1e-4, atol=1e-5)


def test_compiled_finetuning_is_that_of_the_plain_head(samples):
    plain, model = make_model(scores="dense"), make_model(how={})
    for each in (plain, model):
        start = numpy_of(each.get_layer("head").centroids)
        fit(each, samples, 3, callbacks=[keras_pedcc.FinetuneCallback(1, 0.1)])
        assert abs(numpy_of(each.get_layer("head").centroids) - start).max() > 1e-3
    for ours, theirs in zip(model.weights, plain.weights, strict=True):
        assert_allclose(ours.value, numpy_of(theirs.value), rtol=1e-4, atol=1e-5)


def test_model_survives_a_round_trip(samples, tmp_path):
    model = make_model(metrics=[], dtype="bfloat16")
    model.compile("sgd", PEDCCLoss(), metrics={"logits": ["accuracy"]})
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    head = loaded.get_layer("head")
    assert head.streams
    assert (head.scores, head.variable_dtype) == (BLOCKS, "bfloat16")
    assert keras.backend.standardize_dtype(head.centroids.dtype) == "bfloat16"
    found, expected = (
        each.evaluate(*samples, verbose=0, return_dict=True) for each in (loaded, model)
    )
    assert found == pytest.approx(expected)
    assert set(found) == {"loss", "accuracy"}


def test_prediction_gives_features_to_search_with(samples):
    plain, model = make_model(scores="dense"), make_model()
    features = model.predict(samples[0], verbose=0)
    assert set(features) == {"features"}
    logits = plain.predict(samples[0], verbose=0)["logits"]
    centroids = model.get_layer("head").centroids
    cosines, classes = nearest_classes(features["features"], centroids, 3, block_size=5)
    order = np.argsort(-logits, axis=1)[:, :3]
    np.testing.assert_array_equal(numpy_of(classes), order)
    expected = np.take_along_axis(logits, order, axis=1)
    assert_allclose(cosines, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("k", "size"), [(1, 1), (4, 3), (37, 10), (5, 36), (37, 100)])
def test_search_agrees_with_sorting(case, k, size):
    features, centroids, _ = case
    cosines, classes = nearest_classes(3 * features, centroids, k, block_size=size)
    expected = true_cosines(features, centroids)
    order = np.argsort(-expected, axis=1)[:, :k]
    np.testing.assert_array_equal(numpy_of(classes), order)
    expected = np.take_along_axis(expected, order, axis=1)
    assert_allclose(cosines, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"k": 0}, ValueError, "`k` must be at least 1"),
        ({"k": 38}, ValueError, "at most the number of classes"),
        ({"block_size": 0}, ValueError, "`block_size` must be at least 1"),
        ({"block_size": 2.5}, TypeError, "whole number"),
        ({"features": np.ones((2, 5))}, ValueError, "rows of one length"),
    ],
)
def test_search_refuses_arguments(case, change, error, message):
    features, centroids, _ = case
    arguments = {"features": features, "centroids": centroids, "k": 1, **change}
    with pytest.raises(error, match=message):
        nearest_classes(**arguments)


@only_once
def test_bfloat16_centroids_are_those_that_are_multiplied(samples):
    model = make_model(dtype="bfloat16")
    head = model.get_layer("head")
    rounded = numpy_of(ops.cast(head.centroids, "float32"))
    features = numpy_of(model(samples[0])["features"])
    expected = reference.pedcc(
        samples[1], true_cosines(features, rounded), 15, 0.5, 10, 1
    )
    found = model.evaluate(*samples, batch_size=64, verbose=0, return_dict=True)
    assert found["loss"] == pytest.approx(expected, rel=1e-5)


@only_once
def test_plain_head_takes_bfloat16_centroids(samples):
    plain, model = (make_model(s, dtype="bfloat16") for s in ("dense", BLOCKS))
    found, expected = (
        each.evaluate(*samples, verbose=0, return_dict=True) for each in (model, plain)
    )
    assert found == pytest.approx(expected, rel=1e-5)


def test_head_streams_by_itself_from_many_classes_on():
    many = 100_000
    assert not PEDCCDense(many - 1).streams
    assert PEDCCDense(many).streams
    assert not keras_pedcc.CosineDense(many).streams
    assert not PEDCCDense(many, scores="dense").streams
    assert not PEDCCDense(many, return_features=False).streams
    assert not PEDCCDense(many, return_norm=True).streams


def test_accuracy_is_counted_only_when_asked_for(samples):
    model = make_model()
    fit(model, samples, 1)
    model.compile("sgd", PEDCCLoss(), **FEW_STEPS)
    assert list(fit(model, samples, 1)) == ["loss"]
    for _ in range(2):
        model.compile("sgd", PEDCCLoss(), metrics="accuracy", **FEW_STEPS)
    assert len(model.metrics) == 2
    assert sorted(fit(model, samples, 1)) == ["accuracy", "loss"]


TOP = keras.metrics.SparseTopKCategoricalAccuracy


@pytest.mark.parametrize("trainable", [False, True])
def test_top_k_accuracy_is_that_of_the_plain_head(samples, trainable):
    logs = []
    for scores in ("dense", BLOCKS):
        draw_alike(0)
        metrics = ["accuracy", TOP(3, name="top_3"), TOP(CLASSES, name="all")]
        options = {"trainable": trainable, "keep_mean": trainable}
        model = make_model(scores, metrics=metrics, **options)
        found = fit(model, samples, 1)
        logs.append({name: values[-1] for name, values in found.items()})
        logs.append(model.evaluate(*samples, verbose=0, return_dict=True))
    for plain, streamed in zip(logs[:2], logs[2:], strict=True):
        assert streamed == pytest.approx(plain, rel=1e-4)
    assert logs[3]["accuracy"] < logs[3]["top_3"] < logs[3]["all"] == 1


@pytest.mark.parametrize(
    ("metric", "name"),
    [
        ("sparse_top_k_categorical_accuracy", "sparse_top_k_categorical_accuracy"),
        ("sparse_categorical_accuracy", "sparse_categorical_accuracy"),
        (keras.metrics.SparseCategoricalAccuracy("hits"), "hits"),
    ],
)
def test_metrics_have_the_names_of_keras(samples, metric, name):
    logs = []
    for scores in ("dense", BLOCKS):
        draw_alike(0)
        how = FEW_STEPS if scores == "dense" else {}
        model = make_model(scores, metrics=[metric], how=how)
        logs.append(model.evaluate(*samples, verbose=0, return_dict=True)[name])
    assert logs[0] == pytest.approx(logs[1])


def test_top_k_accuracy_survives_saving(samples, tmp_path):
    model = make_model(metrics=["accuracy", TOP(3, name="top_3")])
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    results = [
        m.evaluate(*samples, verbose=0, return_dict=True) for m in (model, loaded)
    ]
    assert results[0] == pytest.approx(results[1])
    assert "top_3" in results[0]


@pytest.mark.parametrize("fill", [0.0, np.nan])
def test_dead_network_hits_nothing(samples, fill):
    model = make_model(metrics=["accuracy", TOP(CLASSES - 1, name="nearly_all")])
    for weight in model.layers[1].weights:
        weight.assign(np.full(weight.shape, fill))
    found = model.evaluate(*samples, verbose=0, return_dict=True)
    assert found["accuracy"] == found["nearly_all"] == 0


def test_gradient_without_training_is_refused(case):
    features, centroids, labels = case

    def loss(x):
        x, c = map(ops.convert_to_tensor, (x, centroids))
        z = BlockwiseScores(x, c, trained=False, block_size=8, training=False)
        return losses.pedcc_loss(labels, z)

    with pytest.raises(ValueError, match="a gradient in training only"):
        gradient_of(loss, features)


class WithoutOutputs(PEDCCModel):
    """A model with a `call` of its own, which has no outputs before it is called."""

    def __init__(self):
        super().__init__()
        self.head = keras_pedcc.CosineDense(CLASSES, scores="blockwise")

    def call(self, x):
        return self.head(x)


def test_model_without_its_head_is_told_why(samples):
    model = WithoutOutputs()
    model.compile("sgd", PEDCCLoss(), metrics=["accuracy"])
    with pytest.raises(ValueError, match="needs a functional model"):
        model.fit(*samples, verbose=0)


@only_once
def test_trained_head_streams_too(samples):
    def made(scores):
        draw_alike(3)
        inputs = keras.Input((5,))
        head = keras_pedcc.CosineDense(CLASSES, scores=scores)
        model = PEDCCModel(inputs, head(keras.layers.Dense(DIM)(inputs)))
        model.compile(
            keras.optimizers.SGD(0.1), keras_pedcc.AMSoftmaxLoss(), **FEW_STEPS
        )
        return model

    plain, model = made("dense"), made(BLOCKS)
    for each in (plain, model):
        fit(each, samples)
    for ours, theirs in zip(model.weights, plain.weights, strict=True):
        assert_allclose(ours.value, numpy_of(theirs.value), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"scores": "blockwise", "return_features": False}, ValueError, "alone"),
        ({"scores": BLOCKS, "return_norm": True}, ValueError, "return_norm=True"),
        ({"scores": "auto"}, ValueError, '`scores` must be "dense", "blockwise"'),
        ({"scores": 8}, ValueError, "Received: scores=8. Leave it out"),
        ({"dtype": "int32"}, ValueError, "must be a float dtype"),
    ],
)
def test_head_refuses_arguments(kwargs, error, message):
    with pytest.raises(error, match=message):
        PEDCCDense(10, **kwargs)


def test_block_size_must_be_a_positive_whole_number():
    with pytest.raises(ValueError, match="`block_size` must be at least 1"):
        keras_pedcc.Blockwise(0)
    with pytest.raises(TypeError, match="whole number"):
        keras_pedcc.Sampled(0.5, block_size=1.5)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"loss": "sparse_categorical_crossentropy"}, "must be PEDCCLoss"),
        ({"loss": keras_pedcc.HingeLoss()}, "must be PEDCCLoss"),
        (
            {"metrics": ["top_k_categorical_accuracy"]},
            'metrics of the logits are "accuracy"',
        ),
    ],
)
def test_model_refuses_what_needs_logits(kwargs, message):
    with pytest.raises(ValueError, match=message):
        make_model(**kwargs)


def test_model_refuses_features_of_another_layer():
    inputs = keras.Input((5,))
    with pytest.raises(ValueError, match="from a head that returns them alone"):
        PEDCCModel(inputs, {"features": keras.layers.Dense(DIM)(inputs)})


@pytest.mark.skipif(BACKEND != "tensorflow", reason="reads TensorFlow's graph")
def test_no_tensor_of_the_step_is_as_large_as_the_logits(case):
    import tensorflow as tf

    features, centroids, labels = case

    @tf.function
    def step(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            z = streamed(x, centroids, 8, trained=False)
            loss = tf.reduce_sum(losses.pedcc_loss(labels, z))
        return tape.gradient(loss, x)

    graph = step.get_concrete_function(tf.constant(features)).graph
    graphs = [graph, *(f.graph for f in graph._functions.values())]
    shapes = [
        out.shape for g in graphs for op in g.get_operations() for out in op.outputs
    ]
    sizes = [shape.num_elements() for shape in shapes if shape.is_fully_defined()]
    assert BATCH * 8 in sizes
    assert BATCH * CLASSES not in sizes
    assert not any(list(shape)[-1:] == [CLASSES] for shape in shapes if shape.rank)


@pytest.mark.skipif(BACKEND != "jax", reason="reads JAX's program")
def test_no_array_of_the_program_is_as_large_as_the_logits(case):
    import jax

    features, centroids, labels = case

    def loss(x, trained):
        z = streamed(x, centroids, 8, trained=trained)
        return ops.sum(losses.pedcc_loss(labels, z))

    for trained in (False, True):
        program = str(
            jax.make_jaxpr(jax.grad(loss), static_argnums=1)(features, trained)
        )
        assert f"[{BATCH},8]" in program
        assert f"[{BATCH},{CLASSES}]" not in program


@pytest.mark.skipif(BACKEND != "jax", reason="asks JAX's compiler")
def test_compiler_casts_blocks_of_short_centroids_not_all_of_them(rng):
    import jax

    features = rng.standard_normal((4, 64)).astype("float32")
    centroids = ops.cast(rng.standard_normal((4096, 64)), "bfloat16")

    def loss(x, centroids):
        z = streamed(x, centroids, 32, trained=False)
        return ops.sum(losses.pedcc_loss(np.arange(4), z))

    program = jax.jit(jax.grad(loss)).lower(features, centroids).compile()
    assert program.memory_analysis().temp_size_in_bytes < centroids.size


def test_metrics_count_after_compiling_again(samples):
    model = make_model(metrics=[TOP(5, name="top")])
    first = model.evaluate(*samples, verbose=0, return_dict=True)
    assert 0 < first["top"] < 1
    for metrics in (TOP(5, name="top"), [TOP(5, name="top")]):
        model.compile("sgd", PEDCCLoss(), metrics=metrics, **FEW_STEPS)
        assert model.evaluate(*samples, verbose=0, return_dict=True) == first
        assert len(model.metrics) == 2
    model.compile("sgd", PEDCCLoss(), **FEW_STEPS)
    assert list(model.evaluate(*samples, verbose=0, return_dict=True)) == ["loss"]


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        ([TOP(1), TOP(2)], "must have different names"),
        (["accuracy", ["accuracy"]], "metrics of the logits are"),
    ],
)
def test_metrics_that_are_refused(metrics, message):
    with pytest.raises(ValueError, match=message):
        make_model(metrics=metrics)


def test_loss_leaves_the_outputs_as_they_are(samples):
    model = make_model()
    outputs = model(samples[0])
    model.compute_loss(*samples, outputs)
    assert set(outputs) == {"features"}


def test_more_classes_than_labels_can_name_are_refused():
    with pytest.raises(ValueError, match="at most 16,777,216"):
        check_number(2**24 + 1)


@pytest.mark.parametrize("many", [False, True])
def test_config_says_whether_the_head_streams(many, monkeypatch):
    monkeypatch.setattr("keras_pedcc.PEDCCDense._blockwise_from", 10 if many else 99)
    config = PEDCCDense(CLASSES).get_config()
    monkeypatch.undo()
    assert PEDCCDense.from_config(config).streams == many


def test_losses_of_all_logits_tell_what_scores_they_need(case):
    features, centroids, labels = case
    z = streamed(features, centroids, 8)
    norm = {"features": features, "logits": z, "norm": np.ones(BATCH, "float32")}
    for function, outputs in (
        (losses.hinge_loss, z),
        (keras_pedcc.HingeLoss(), z),
        (keras_pedcc.ASoftmaxLoss(), norm),
        (keras_pedcc.LSoftmaxLoss(), norm),
        (keras_pedcc.CenterLoss(), norm),
        (losses.a_softmax_loss, norm),
    ):
        with pytest.raises(
            ValueError, match=r'Received: BlockwiseScores.*scores="dense"'
        ):
            function(labels, outputs)


def test_class_form_of_a_loss_takes_scores_in_a_loop_of_ones_own(case):
    features, centroids, labels = case
    head = PEDCCDense(CLASSES, centroids=centroids, scores=BLOCKS)
    outputs = head.for_loss(head(features, training=True))
    found = PEDCCLoss(mse_root=2)(labels, outputs, np.ones(BATCH))
    expected = reference.pedcc(
        labels, true_cosines(features, centroids), 15, 0.5, 10, 2
    )
    assert float(found) == pytest.approx(np.mean(expected), rel=1e-5)
