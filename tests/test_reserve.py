"""Room in a head for classes that come later."""

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
    slope_of,
)

import keras_pedcc
from keras_pedcc import (
    Blockwise,
    CosineDense,
    FinetuneCallback,
    KerdockDense,
    PEDCCDense,
    PEDCCLoss,
    PEDCCModel,
    ProductDense,
    Sampled,
    centroid_fingerprint,
    grow_classes,
    losses,
    nearest_classes,
)
from keras_pedcc.scores.blockwise import BlockwiseScores
from keras_pedcc.scores.sampled import SampledScores

BACKEND = keras.backend.backend()
USED, MORE, ROOM, DIM, INPUTS = 6, 8, 10, 12, 5
TRAINED = {"trainable": True, "keep_mean": True}
LATE = FinetuneCallback(0, 0.1)


def unit(rows):
    rows = np.asarray(rows, "float64")
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def rows_of(head):
    """All that there is room for, in float64."""
    return np.asarray(
        numpy_of(head.centroids)
        if not isinstance(head, KerdockDense)
        else head.all_centroids,
        "float64",
    )


def data(number=USED, samples=32):
    rng = np.random.default_rng(0)
    images = rng.standard_normal((samples, INPUTS)).astype("float32")
    return images, rng.integers(0, number, samples)


def model_of(used=USED, optimizer=None, loss=None, how=FEW_STEPS, **arguments):
    draw_alike(1)
    inputs = keras.Input((INPUTS,))
    head = PEDCCDense(used, **{"capacity": ROOM, "name": "head", **arguments})
    features = keras.layers.Dense(DIM, name="dense")(inputs)
    model = PEDCCModel(inputs, head(features), name="small")
    schedule = keras.optimizers.schedules.ExponentialDecay(0.05, 1, 0.9)
    model.compile(
        optimizer or keras.optimizers.Adam(schedule),
        loss or PEDCCLoss(),
        metrics=["accuracy"],
        **how,
    )
    return model, head


def fit(model, images, labels, **arguments):
    arguments = {"batch_size": 16, "shuffle": False, "verbose": 0, **arguments}
    history = model.fit(images, labels, **arguments).history
    return {name: values[-1] for name, values in history.items()}


def weights_of(model):
    return [numpy_of(variable) for variable in model.variables]


def state_of(model):
    return [numpy_of(variable) for variable in model.optimizer.variables]


def assert_same(found, expected):
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("kind", "used", "room"),
    [
        (CosineDense, 6, 10),
        (PEDCCDense, 6, 10),
        (ProductDense, 6, 10),
        (KerdockDense, 30, 80),
        (KerdockDense, 33, 80),
        (KerdockDense, 77, 80),
    ],
)
def test_outputs_are_the_cosines_to_the_first_rows(rng, kind, used, room):
    head = kind(used, capacity=room)
    images = rng.standard_normal((7, DIM)).astype("float32")
    for number in (used, used + 2, room):
        head.grow(number)
        found = numpy_of(head(images)["logits"])
        rows = rows_of(head)
        assert rows.shape == (room, DIM)
        expected = unit(images) @ unit(rows[:number]).T
        if kind is ProductDense:
            expected = images.astype("float64") @ rows[:number].T
        np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("centroids", ["random", "kerdock"])
def test_rows_are_made_for_all_there_is_room_for(centroids):
    head = PEDCCDense(17, capacity=40, centroids=centroids, seed=3)
    head.build((None, 8))
    made = keras_pedcc.generate_pedcc(40, 8, method=centroids, seed=3)
    np.testing.assert_array_equal(numpy_of(head.centroids), numpy_of(made))


def test_given_rows_are_for_the_capacity(rng):
    given = rng.standard_normal((ROOM, DIM))
    head = PEDCCDense(USED, capacity=ROOM, centroids=given)
    head.build((None, DIM))
    assert_allclose(head.centroids, unit(given), rtol=1e-6)
    with pytest.raises(ValueError, match=r"for 6 classes.*or pass capacity=10 to keep"):
        PEDCCDense(USED, centroids=given)
    with pytest.raises(ValueError, match=r"centroids.shape=\(10, 12\), for 12 classes"):
        PEDCCDense(USED, capacity=12, centroids=given)


@pytest.mark.parametrize("size", [4, 100])
def test_scores_by_blocks_are_those_of_the_first_rows(rng, size):
    features = unit(rng.standard_normal((8, 4))).astype("float32")
    rows = rng.standard_normal((ROOM, 4)).astype("float32")
    rows[USED:] = features[:4]  # the nearest, were they in use
    labels = rng.integers(0, USED, 8)

    def loss(features, rows):
        features, rows = map(ops.convert_to_tensor, (features, rows))
        scores = BlockwiseScores(
            features,
            rows,
            trained=True,
            block_size=size,
            num_classes=USED,
            ranked=True,
        )
        value = losses.am_softmax_loss(labels, scores, scale=9, margin=0.3)
        return value, scores.rank

    def twin(features, rows):
        cosines = np.asarray(features, "float64") @ unit(rows[:USED]).T
        return reference.am_softmax(labels, cosines, 9, 0.3), cosines

    value, rank = loss(features, rows)
    expected, cosines = twin(features, rows)
    assert_allclose(value, expected, rtol=1e-5)
    own = np.take_along_axis(cosines, labels[:, None], 1)
    np.testing.assert_array_equal(numpy_of(rank), (cosines > own).sum(axis=1))
    slopes = gradient_of(lambda rows: loss(features, rows)[0], rows)
    np.testing.assert_array_equal(slopes[USED:], 0)
    np.testing.assert_allclose(
        slopes, slope_of(lambda rows: twin(features, rows)[0], rows), atol=2e-4
    )


def test_sample_of_all_others_is_of_the_classes_in_use(rng):
    features = unit(rng.standard_normal((8, 4))).astype("float32")
    rows = rng.standard_normal((ROOM, 4)).astype("float32")
    labels = rng.integers(0, USED, 8)
    scores = SampledScores(
        *map(ops.convert_to_tensor, (features, rows)),
        trained=True,
        number=USED - 1,
        seed=keras.random.SeedGenerator(0),
        num_classes=USED,
    )
    cosines = features.astype("float64") @ unit(rows[:USED]).T
    value = losses.am_softmax_loss(labels, scores, scale=9, margin=0.3)
    assert_allclose(value, reference.am_softmax(labels, cosines, 9, 0.3), rtol=1e-5)


def test_kerdock_scores_by_blocks_are_those_of_the_first_rows(rng):
    head = KerdockDense(35, capacity=80, scores=Blockwise(16))  # 16 in a basis
    images = rng.standard_normal((8, DIM)).astype("float32")
    labels = rng.integers(0, 35, 8)
    value = losses.am_softmax_loss(
        labels, head.for_loss(head(images)), scale=9, margin=0.3
    )
    cosines = unit(images) @ rows_of(head)[:35].T
    assert_allclose(value, reference.am_softmax(labels, cosines, 9, 0.3), rtol=1e-5)
    # The transform goes over the bases in use alone; the first has no signs.
    assert [x.signs.shape[0] for x in (head.centroids, head.all_centroids)] == [2, 4]


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        TRAINED,
        {"scores": Blockwise(3), **TRAINED},
        {"scores": Sampled(0.9), "trainable": True},
    ],
    ids=str,
)
def test_growing_keeps_all_that_is_trained(arguments):
    how = {} if arguments == TRAINED else FEW_STEPS
    model, head = model_of(how=how, **arguments)
    start = numpy_of(head.centroids)
    fit(model, *data())
    np.testing.assert_array_equal(numpy_of(head.centroids)[USED:], start[USED:])
    moved = np.abs(numpy_of(head.centroids) - start)[:USED].max()
    assert (moved > 0) == bool(arguments)
    weights, state, optimizer = weights_of(model), state_of(model), model.optimizer
    grow_classes(model, MORE)
    assert model.optimizer is optimizer
    assert_same(weights_of(model), weights)
    assert_same(state_of(model), state)
    # From here on as a model that was made with so many.
    twin, _ = model_of(MORE, **arguments)
    twin.optimizer.build(twin.trainable_variables)
    for old, new in zip(model.variables, twin.variables, strict=True):
        new.assign(numpy_of(old))
    for old, new in zip(optimizer.variables, twin.optimizer.variables, strict=True):
        new.assign(numpy_of(old))
    logs, expected = (fit(each, *data(MORE)) for each in (model, twin))
    assert logs == pytest.approx(expected, rel=1e-5)
    for found, wanted in zip(weights_of(model), weights_of(twin), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(numpy_of(head.centroids)[MORE:], start[MORE:])


def test_weight_decay_turns_no_reserved_row():
    model, head = model_of(optimizer=keras.optimizers.AdamW(0.05, 0.5), **TRAINED)
    start = rows_of(head)
    fit(model, *data(), epochs=5)
    after = rows_of(head)[USED:]
    assert np.linalg.norm(after, axis=1).max() < 0.9
    np.testing.assert_allclose(unit(after), start[USED:], atol=1e-6)


def test_fine_tuning_goes_on_with_the_new_classes():
    model, head = model_of(optimizer=keras.optimizers.SGD(0.05, 0.9))
    start = rows_of(head)
    fit(model, *data(), callbacks=[LATE])
    moved = np.abs(rows_of(head) - start).max(axis=1)
    assert (moved[:USED] > 0).all()
    assert (moved[USED:] == 0).all()
    state, optimizer = state_of(model), model.optimizer
    grow_classes(model, MORE)
    assert head.fine_tuned
    assert_same(state_of(model), state)
    fit(model, *data(MORE), epochs=2, initial_epoch=1, callbacks=[LATE])
    assert model.optimizer is optimizer
    moved = np.abs(rows_of(head) - start).max(axis=1)
    assert (moved[:MORE] > 0).all()
    assert (moved[MORE:] == 0).all()


def test_saved_models_know_how_many_are_in_use(tmp_path):
    images, labels = data(MORE)
    model, head = model_of()
    fit(model, *data())
    model.save(tmp_path / "before.keras")
    model.save_weights(tmp_path / "before.weights.h5")
    early = keras.saving.load_model(tmp_path / "before.keras")
    assert early.predict(images, verbose=0)["logits"].shape == (32, USED)
    grow_classes(early, MORE)
    grow_classes(model, MORE)
    model.save(tmp_path / "after.keras")
    late = keras.saving.load_model(tmp_path / "after.keras")
    assert (late.get_layer("head").num_classes, head.capacity) == (MORE, ROOM)
    grown, _ = model_of(MORE, seed=9)  # in the place of growing: more, and the weights
    grown.optimizer.build(grown.trainable_variables)
    grown.load_weights(tmp_path / "before.weights.h5")
    expected = model.predict(images, verbose=0)["logits"]
    assert expected.shape == (32, MORE)
    for each in (early, late, grown):
        np.testing.assert_array_equal(
            each.predict(images, verbose=0)["logits"], expected
        )
    # Compiled, with the state of the optimizer: all go on alike.
    logs = [fit(each, images, labels) for each in (model, early, late, grown)]
    for each in logs[1:]:
        assert each == pytest.approx(logs[0], rel=1e-5)


class Subclass(keras.Model):
    def __init__(self):
        super().__init__()
        self.parts = [
            keras.layers.Dense(DIM),
            PEDCCDense(USED, capacity=ROOM, return_features=False),
        ]

    def call(self, inputs):
        return self.parts[1](self.parts[0](inputs))


def plain(kind):
    """A model that returns logits, of another kind each."""
    if kind == "subclass":
        return Subclass()
    head = PEDCCDense(USED, capacity=ROOM, return_features=False)
    inputs = keras.Input((INPUTS,))
    inner = keras.Sequential([inputs, keras.layers.Dense(DIM), head])
    if kind == "sequential":
        return inner
    return keras.Model(inputs, keras.layers.Rescaling(0.5)(inner(inputs)))


@pytest.mark.parametrize("kind", ["subclass", "sequential", "nested"])
def test_every_kind_of_model_grows(kind):
    images, labels = data(MORE)
    model = plain(kind)
    how = {} if kind == "subclass" else FEW_STEPS
    model.compile("sgd", PEDCCLoss(), metrics=["accuracy"], **how)
    fit(model, *data())
    assert model.predict(images, verbose=0).shape == (32, USED)
    # A number that growing would make wrong is nowhere recorded.
    assert kind == "subclass" or model.output_shape == (None, None)
    before = weights_of(model)
    grow_classes(model, MORE)
    assert model.predict(images, verbose=0).shape == (32, MORE)
    assert_same(weights_of(model), before)
    fit(model, images, labels)
    assert np.isfinite(model.evaluate(images, labels, verbose=0)).all()


def test_a_layer_for_a_fixed_number_of_classes_is_refused():
    model = plain("nested")
    with pytest.raises(ValueError, match="defined"):  # of Keras
        keras.layers.Dense(3)(model.output)


def test_copies_grow_on_their_own():
    model, head = model_of()
    copy = keras.models.clone_model(model)
    grow_classes(copy, ROOM)
    images, _ = data()
    assert copy.predict(images, verbose=0)["logits"].shape == (32, ROOM)
    assert head.num_classes == USED
    assert keras.models.clone_model(copy).get_layer("head").num_classes == ROOM


@pytest.mark.parametrize("scores", ["dense", Blockwise(3)])
def test_labels_beyond_the_classes_in_use_are_refused(scores):
    model, _ = model_of(scores=scores)
    images, labels = data(MORE)
    with pytest.raises(
        ValueError, match=r"from 0 to 5.*call `keras_pedcc.grow_classes`"
    ):
        fit(model, images, labels)
    grow_classes(model, MORE)
    fit(model, images, labels)
    with pytest.raises(ValueError, match="from 0 to 7"):
        model.evaluate(images, labels + 1)


def test_labels_are_those_of_the_head_whose_outputs_the_model_has():
    inputs = keras.Input((DIM,))
    outputs = PEDCCDense(USED, capacity=ROOM)(inputs)
    outputs["other"] = CosineDense(3)(inputs)["logits"]
    model = PEDCCModel(inputs, outputs)
    model.compile("sgd", PEDCCLoss())
    with pytest.raises(ValueError, match="from 0 to 5"):
        model.evaluate(np.ones((1, DIM)), np.array([USED]))


def test_reserved_classes_are_never_predicted(rng):
    model, head = model_of(scores=Blockwise(3), centroids="random")
    metric = keras.metrics.SparseTopKCategoricalAccuracy(1)
    model.compile("sgd", PEDCCLoss(), metrics=[metric], **FEW_STEPS)
    dense = model.get_layer("dense")
    # Features that lie on the centroids, of classes that are not in use and are.
    dense.set_weights([np.zeros((INPUTS, DIM), "float32"), rows_of(head)[MORE - 1]])
    features = model.predict(data()[0], verbose=0)["features"]
    _, classes = nearest_classes(features, head, USED, block_size=4)
    assert numpy_of(classes).max() == USED - 1
    with pytest.raises(ValueError, match=r"k=7, .* of which 6 are in use"):
        nearest_classes(features, head, 7)
    labels = np.full(32, numpy_of(classes)[0, 0])
    assert model.evaluate(data()[0], labels, verbose=0)[1] == 1
    grow_classes(model, MORE)
    _, classes = nearest_classes(features, head)
    assert (numpy_of(classes) == MORE - 1).all()
    assert model.evaluate(data()[0], labels, verbose=0)[1] == 0
    # The rows themselves, without a head, are all searched.
    assert numpy_of(nearest_classes(features, rows_of(head), ROOM)[1]).max() == ROOM - 1


def test_reserved_rows_keep_out_of_the_mean_of_the_others():
    model, head = model_of(optimizer=keras.optimizers.SGD(0.1), **TRAINED)
    start = rows_of(head)
    fit(model, *data(), epochs=4)
    after = rows_of(head)
    assert np.abs(after - start).max() > 0.01
    np.testing.assert_allclose(after[:USED].mean(0), start[:USED].mean(0), atol=1e-6)


def test_what_is_made_for_the_old_number_is_refused():
    images, labels = data(MORE)
    model, _ = model_of(loss=PEDCCLoss(margin=[0.2] * USED))
    fit(model, *data())
    grow_classes(model, MORE)
    with pytest.raises(
        ValueError, match=r"`margin` must be.*shape \(6,\), num_classes=8"
    ):
        fit(model, images, labels)
    priors = np.ones(USED)
    model.compile(model.optimizer, PEDCCLoss(priors=priors), **FEW_STEPS)
    with pytest.raises(ValueError, match=r"`priors` must.* 6, num_classes=8"):
        fit(model, images, labels)
    state = state_of(model)
    model.compile(model.optimizer, PEDCCLoss(priors=np.ones(MORE)), **FEW_STEPS)
    assert_same(state_of(model), state)
    fit(model, images, labels)


def test_metrics_of_the_old_number_are_told_before_anything_changes():
    model, head = model_of()
    distance = keras_pedcc.IntraClassDistance(USED, DIM)
    model.compile("sgd", PEDCCLoss(), metrics={"features": [distance]})
    model.evaluate(*data(), verbose=0)
    text = r"not hold a number for each class.*\['intra_class_distance'\], with 6"
    with pytest.raises(ValueError, match=text):
        grow_classes(model, MORE)
    assert head.num_classes == USED
    grow_classes(model, USED)
    distance = keras_pedcc.IntraClassDistance(MORE, DIM)
    head.grow(MORE)
    model.compile(model.optimizer, PEDCCLoss(), metrics={"features": [distance]})
    assert np.isfinite(model.evaluate(*data(MORE), verbose=0)).all()


def test_margin_for_each_class_can_be_replaced_before():
    model, _ = model_of(loss=PEDCCLoss(margin=[0.2] * USED))
    fit(model, *data())
    model.loss.margin = np.linspace(0.1, 0.4, MORE)
    grow_classes(model, MORE)
    images, labels = data(MORE)
    found = model.evaluate(images, labels, 32, verbose=0)[0]
    cosines = model.predict(images, verbose=0)["logits"]
    expected = PEDCCLoss(margin=np.linspace(0.1, 0.4, MORE))(labels, cosines)
    assert found == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize(
    "head",
    [PEDCCDense(40, capacity=100, centroids="random"), KerdockDense(40, capacity=100)],
    ids=lambda head: type(head).__name__,
)
def test_fingerprint_stays_the_same_when_a_head_grows(head):
    head.build((None, DIM))
    before = centroid_fingerprint(head)
    assert before["num_classes"] == 100
    head.grow(90)
    assert centroid_fingerprint(head) == before


def test_blocks_are_chosen_by_the_room():
    assert PEDCCDense(10, capacity=100_000).scores == Blockwise()
    assert KerdockDense(10, capacity=100_000).scores == Blockwise()
    assert PEDCCDense(10, capacity=99_999).scores == "dense"


def test_capacity_is_checked():
    with pytest.raises(ValueError, match=r"`capacity` must be at least .*=5, "):
        PEDCCDense(6, capacity=5)
    with pytest.raises(TypeError, match="`capacity` must be a whole number"):
        CosineDense(6, capacity=6.5)
    with pytest.raises(ValueError, match=r"`capacity` must be more .*capacity=9999, "):
        KerdockDense(30, capacity=9999).build((None, DIM))


@pytest.mark.parametrize(
    ("number", "error", "text"),
    [
        (11, ValueError, "up to its capacity.*num_classes=11.*=6, capacity=10"),
        (5, ValueError, "can only grow.*num_classes=5.*num_classes=6"),
        (1, ValueError, "`num_classes` must be at least 2"),
        (7.0, TypeError, "`num_classes` must be a whole number"),
    ],
)
def test_growing_checks_the_number(number, error, text):
    model, head = model_of()
    for grow in (head.grow, lambda number: grow_classes(model, number)):
        with pytest.raises(error, match=text):
            grow(number)
    assert head.num_classes == USED


def test_growing_needs_heads_that_are_alike():
    inputs = keras.Input((DIM,))
    with pytest.raises(ValueError, match="needs a model whose head can have room"):
        grow_classes(keras.Model(inputs, keras.layers.Dense(3)(inputs)), 4)
    center = keras_pedcc.CenterDense(3)
    with pytest.raises(ValueError, match="needs a model whose head can have room"):
        grow_classes(keras.Model(inputs, center(inputs)), 4)

    def two(used, room):
        heads = [PEDCCDense(6, capacity=10), CosineDense(used, capacity=room)]
        return keras.Model(inputs, [head(inputs)["logits"] for head in heads]), heads

    model, heads = two(6, 8)
    with pytest.raises(ValueError, match="up to its capacity"):
        grow_classes(model, 9)  # for which the first alone has room
    assert [head.num_classes for head in heads] == [6, 6]
    grow_classes(model, 8)
    assert [head.num_classes for head in heads] == [8, 8]
    grow_classes(model, 8)  # again, as a script that is resumed does
    model, _ = two(5, 10)
    with pytest.raises(ValueError, match="needs heads of the same classes"):
        grow_classes(model, 8)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="MirroredStrategy")
def test_replicas_grow_together(two_replicas):
    with two_replicas.scope():
        model, head = model_of(how={}, **TRAINED)
        model.optimizer.build(model.trainable_variables)
    fit(model, *data())
    weights, state = weights_of(model), state_of(model)
    grow_classes(model, MORE)
    assert_same(weights_of(model), weights)
    assert_same(state_of(model), state)
    alone, _ = model_of(MORE, **TRAINED)
    alone.optimizer.build(alone.trainable_variables)
    for new, old in zip(alone.variables, weights, strict=True):
        new.assign(old)
    for new, old in zip(alone.optimizer.variables, state, strict=True):
        new.assign(old)
    logs, expected = (fit(each, *data(MORE)) for each in (model, alone))
    assert logs == pytest.approx(expected, rel=1e-4)
    np.testing.assert_allclose(
        rows_of(head), rows_of(alone.get_layer("head")), atol=1e-5
    )


@pytest.mark.skipif(BACKEND != "tensorflow", reason="SavedModel")
def test_exported_models_have_the_classes_in_use(tmp_path):
    import tensorflow as tf

    model = plain("nested")
    images, _ = data()
    for number in (USED, MORE):
        grow_classes(model, number)
        model.export(tmp_path / str(number), verbose=False)
        loaded = tf.saved_model.load(tmp_path / str(number))
        served = loaded.serve(images)
        assert_allclose(served, model.predict(images, verbose=0), rtol=1e-5, atol=1e-6)
        assert served.shape == (32, number)
