"""Classes cut over four devices. `test_sharding.py` runs this where there are four."""

import re

import jax
import keras
import numpy as np
import pytest
from distribute_page import small_program
from keras import ops

import keras_pedcc
from benchmarks import class_parallel
from keras_pedcc import (
    Blockwise,
    PEDCCDense,
    PEDCCLoss,
    PEDCCModel,
    Sampled,
    grow_classes,
    losses,
)
from keras_pedcc.evaluation.prediction import predict_all
from keras_pedcc.scores.blockwise import BlockwiseScores
from keras_pedcc.scores.search import nearest_classes
from keras_pedcc.scores.sharding import class_layout

BATCH, CLASSES, DIM, INPUTS = 16, 120, 6, 5
LOSSES = {
    "pedcc": lambda y, z: losses.pedcc_loss(y, z, scale=15),
    "am_softmax": lambda y, z: losses.am_softmax_loss(y, z, scale=64, margin=0.35),
    "arcface": lambda y, z: losses.arcface_loss(y, z, scale=30, margin=0.5),
    "distance": losses.centroid_distance,
    "priors": lambda y, z: losses.pedcc_loss(
        y, z, scale=15, priors=np.geomspace(1e-4, 1, CLASSES)
    ),
}


@pytest.fixture(autouse=True)
def _one_device():
    """Every test sets its own distribution, and leaves none."""
    assert len(keras.distribution.list_devices()) == 4
    yield
    keras.distribution.set_distribution(None)


ALONE = 0


def distribute(rows):
    """Sets four devices in so many rows, on one axis (`None`), or one, `ALONE`."""
    distribution = keras_pedcc.class_parallel(rows) if rows != ALONE else None
    keras.distribution.set_distribution(distribution)


def share_of(rows, classes=CLASSES):
    """Classes of each device."""
    return (rows or 1) * classes // 4


@pytest.fixture
def samples(rng):
    labels = rng.integers(0, CLASSES, 4 * BATCH).astype("int32")
    return rng.standard_normal((4 * BATCH, INPUTS)).astype("float32"), labels


def make_model(rows, *args, **kwargs):
    distribute(rows)
    return make_here(*args, **kwargs)


def make_here(num_classes=CLASSES, *, dim=DIM, metrics=("accuracy",), **kwargs):
    """A model under the distribution of the moment."""
    keras.utils.set_random_seed(3)
    inputs = keras.Input((INPUTS,))
    defaults = {"scores": Blockwise(8), "centroids": "random", "name": "head"}
    head = PEDCCDense(num_classes, **(defaults | kwargs))
    model = PEDCCModel(inputs, head(keras.layers.Dense(dim)(inputs)))
    optimizer = keras.optimizers.SGD(0.1, momentum=0.9)
    model.compile(optimizer, PEDCCLoss("auto"), metrics=list(metrics) or None)
    return model


def fit(model, samples, epochs=2, **kwargs):
    arguments = {"batch_size": BATCH, "shuffle": False, "verbose": 0}
    return model.fit(*samples, epochs=epochs, **arguments, **kwargs).history


def assert_same(model, other):
    for ours, theirs in zip(model.weights, other.weights, strict=True):
        np.testing.assert_allclose(ours.numpy(), theirs.numpy(), rtol=1e-4, atol=1e-5)


# Values and gradients


@pytest.mark.parametrize(
    ("name", "trained", "rows", "size"),
    [
        *((name, True, None, 7) for name in LOSSES),
        ("pedcc", False, None, 100),
        ("pedcc", True, 1, 7),
        ("pedcc", True, 2, 8),
        ("pedcc", False, 4, 7),
    ],
)
def test_loss_and_gradient_are_those_of_one_device(name, trained, rows, size, rng):
    features = rng.standard_normal((BATCH, DIM)).astype("float32")
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    centroids = rng.standard_normal((CLASSES, DIM)).astype("float32")
    labels = rng.integers(0, CLASSES, BATCH)
    weights = np.arange(BATCH, dtype="float32") + 1  # another upstream for each sample

    def loss(features, centroids, layout):
        z = BlockwiseScores(
            features, centroids, trained=trained, block_size=size, layout=layout
        )
        values = LOSSES[name](labels, z)
        return ops.sum(weights * values), values

    step = jax.jit(jax.grad(loss, (0, 1), has_aux=True), static_argnums=2)
    expected = step(features, centroids, None)
    distribute(rows)
    layout = class_layout("head/centroids")
    placed = layout.spread(centroids)
    assert placed.addressable_shards[3].data.shape == (share_of(rows), DIM)
    found = step(layout.spread(features, ("batch", None)), placed, layout)
    for ours, one in zip(
        jax.tree.leaves(found), jax.tree.leaves(expected), strict=True
    ):
        np.testing.assert_allclose(ours, one, rtol=1e-4, atol=1e-4)


# Training


@pytest.mark.parametrize("trainable", [False, True])
@pytest.mark.parametrize("rows", [None, 2])
def test_sampled_classes_are_those_of_one_device(samples, rows, trainable):
    models, histories = [], []
    options = {"scores": Sampled(0.3), "trainable": trainable}
    for each in (ALONE, rows):
        models.append(make_model(each, **options))
        histories.append(fit(models[-1], samples))
    np.testing.assert_allclose(histories[1]["loss"], histories[0]["loss"], rtol=1e-4)
    assert_same(*models)


@pytest.mark.parametrize("rows", [None, 2])
def test_kerdock_head_needs_no_cutting(samples, rows):
    models = []
    for each in (ALONE, rows):
        distribute(each)
        keras.utils.set_random_seed(3)
        inputs = keras.Input((INPUTS,))
        head = keras_pedcc.KerdockDense(CLASSES + 1, scores=keras_pedcc.Blockwise(32))
        models.append(PEDCCModel(inputs, head(keras.layers.Dense(16)(inputs))))
        models[-1].compile("sgd", PEDCCLoss("auto"), metrics=["accuracy"])
        fit(models[-1], samples)
    assert_same(*models)


@pytest.mark.parametrize("rows", [None, 1, 2, 4])
@pytest.mark.parametrize("scores", ["dense", Blockwise(8)])
def test_training_is_that_of_one_device(samples, rows, scores):
    histories, models = [], []
    for each in (ALONE, rows):
        model = make_model(each, scores=scores)
        adam = keras.optimizers.Adam(0.1)
        callback = keras_pedcc.FinetuneCallback(1, optimizer=adam)
        histories.append(
            fit(model, samples, callbacks=[callback], validation_data=samples)
        )
        models.append(model)
    for name, values in histories[0].items():
        np.testing.assert_allclose(histories[1][name], values, rtol=1e-4, err_msg=name)
    assert_same(*models)


def shares(variable):
    """Rows of a variable on each device."""
    return [part.data.shape[0] for part in variable.value.addressable_shards]


@pytest.mark.parametrize("rows", [None, 1, 2])
def test_device_holds_its_share_of_centroids_and_slots(samples, rows):
    model = make_model(rows)
    adam = keras.optimizers.Adam(0.1)
    fit(model, samples, callbacks=[keras_pedcc.FinetuneCallback(0, optimizer=adam)])
    slots = [v for v in model.optimizer.variables if v.shape == (CLASSES, DIM)]
    assert len(slots) == 2
    for variable in (model.get_layer("head").centroids, *slots):
        assert shares(variable) == [share_of(rows)] * 4


def test_slots_are_cut_in_a_loaded_model_too(samples, tmp_path):
    model = make_model(None)
    adam = keras.optimizers.Adam(0.1)
    fit(model, samples, callbacks=[keras_pedcc.FinetuneCallback(1, optimizer=adam)])
    model.get_layer("head").frozen = True  # a stand-in takes the centroids' place
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert not loaded.get_layer("head").trained
    slots = [v for v in loaded.optimizer.variables if v.shape == (CLASSES, DIM)]
    assert [shares(slot) for slot in slots] == 2 * [[share_of(None)] * 4]


def sent(program):
    """`(operation, shape, whether in a loop)` of all that devices send each other."""
    kinds = "all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter"
    found, looped = [], True
    for line in program.as_text().splitlines():
        if not line.startswith(" "):
            looped = not line.startswith("ENTRY")
        for shapes, kind in re.findall(rf"= (.*?) ({kinds})(?:-start)?\(", line):
            for shape in re.findall(r"\w\[([\d,]*)\]", shapes):
                sizes = tuple(int(size) for size in shape.split(",") if size)
                found.append((kind, sizes, looped))
    return found


@pytest.mark.parametrize("scores", ["dense", Blockwise(8)])
@pytest.mark.parametrize("trainable", [False, True])
@pytest.mark.parametrize("rows", [None, 1, 2])
def test_devices_send_no_cosines_and_no_centroids(samples, scores, trainable, rows):
    classes, block, batch = 4096, 8, len(samples[1])
    # More samples than rows of a block: XLA would rather send the rows.
    assert 4 * block < batch
    # On one axis XLA sends indices of classes about for the argmax of the accuracy.
    metrics = ["accuracy"] if scores != "dense" or rows else []
    kwargs = {"scores": scores, "trainable": trainable}
    model = make_model(rows, classes, metrics=metrics, **kwargs)
    arrays = sent(class_parallel.compiled_step(model, *samples))
    share = share_of(rows, classes)
    added = {(share, DIM), (share,), (1, block, DIM)} if trainable and rows == 2 else ()
    rest = [each for each in arrays if each[1] not in added]
    assert ("all-reduce", (batch // (rows or 1), DIM), False) in rest
    largest = batch * DIM
    assert [each for each in rest if np.prod(each[1]) > largest] == []
    assert [each for each in rest if each[2]] == []  # else each block would send some


@pytest.mark.parametrize("rows", [None, 2])
def test_kerdock_head_sends_the_gradients_alone(samples, rows):
    distribute(rows)
    inputs = keras.Input((INPUTS,))
    head = keras_pedcc.KerdockDense(CLASSES + 1, scores=keras_pedcc.Blockwise(32))
    model = PEDCCModel(inputs, head(keras.layers.Dense(16)(inputs)))
    model.compile("sgd", PEDCCLoss("auto"))
    arrays = sent(class_parallel.compiled_step(model, *samples))
    assert [each for each in arrays if each[2]] == []
    assert {kind for kind, *_ in arrays} == {"all-reduce"}


@pytest.mark.parametrize("rows", [None, 1, 2])
def test_memory_of_the_step_is_that_of_the_share(samples, rows):
    classes, block, dim = 2**16, 256, 32
    model = make_model(rows, classes, dim=dim, scores=Blockwise(block))
    samples = [array[:BATCH] for array in samples]
    memory = class_parallel.compiled_step(model, *samples).memory_analysis()
    centroids = 4 * dim * share_of(rows, classes)
    assert memory.argument_size_in_bytes == pytest.approx(centroids, rel=0.01)
    blocks = 4 * block * (2 * BATCH // (rows or 1) + 4 * dim)
    assert memory.temp_size_in_bytes < blocks + 50_000
    assert blocks < centroids / 4


@pytest.mark.parametrize("trained", [False, True])
def test_memory_on_paper_is_that_measured(trained):
    args = class_parallel.parse_args(["--classes", "65536", "--block-size", "1024"])
    found = class_parallel.measure(args, "float32", trained)
    assert found["centroids_mib"] == found["centroids_on_paper_mib"] == 8
    paper = found["temporary_on_paper_mib"]
    # The compiler holds the cosines of a block two or three times.
    assert 0.7 * paper < found["temporary_mib"] < 1.05 * paper


def test_large_centroids_are_made_and_cut(rng):
    # So many that Keras would compile the initializer, with them as a constant.
    assert 4 * 4 * 2**17 * 128 > 250 * 2**20
    given = rng.standard_normal((2**17, 128), "float32")
    distribute(None)
    head = PEDCCDense(2**17, centroids=given)
    head.build((None, 128))
    assert shares(head.centroids) == [2**15] * 4
    given /= np.linalg.norm(given, axis=1, keepdims=True)
    np.testing.assert_allclose(head.centroids.numpy(), given, atol=1e-6)


@pytest.mark.parametrize("method", ["auto", "max_angle", "energy"])
def test_centroids_are_those_of_one_device(method):
    weights = []
    for rows in (ALONE, None, 2):
        distribute(rows)
        head = PEDCCDense(64, centroids=method)
        head.build((None, 16))
        weights.append(head.centroids.numpy())
    np.testing.assert_array_equal(weights[1], weights[0])
    np.testing.assert_array_equal(weights[2], weights[0])


# Saving, and search


@pytest.mark.parametrize("epoch", [None, 0], ids=["frozen", "unfrozen"])
def test_model_moves_between_four_devices_and_one(samples, epoch, tmp_path):
    model = make_model(None)
    callback = keras_pedcc.FinetuneCallback(epoch, 0.1)
    fit(model, samples, callbacks=[callback])
    model.save(tmp_path / "four.keras")
    expected = model.predict(samples[0], verbose=0)["features"]
    loss = model.evaluate(*samples, verbose=0)
    for rows in (ALONE, 2):
        distribute(rows)
        loaded = keras.saving.load_model(tmp_path / "four.keras")
        features = loaded.predict(samples[0], verbose=0)["features"]
        np.testing.assert_allclose(features, expected, rtol=1e-5, atol=1e-6)
        assert loaded.evaluate(*samples, verbose=0) == pytest.approx(loss, rel=1e-5)
        assert_same(loaded, model)
        fit(loaded, samples, 3, initial_epoch=2, callbacks=[callback])
    distribute(None)
    fit(model, samples, 3, initial_epoch=2, callbacks=[callback])
    assert_same(loaded, model)


@pytest.mark.parametrize(
    ("rows", "k", "size"), [(None, 1, 8), (None, 31, 8), (2, 120, 100), (4, 5, 50)]
)
def test_search_on_four_devices_is_that_on_one(samples, rng, rows, k, size):
    features = rng.standard_normal((7, DIM)).astype("float32")
    centroids = make_model(rows).get_layer("head").centroids
    found = nearest_classes(features, centroids, k, block_size=size)
    expected = nearest_classes(features, centroids.numpy(), k, block_size=size)
    np.testing.assert_allclose(found[0], expected[0], atol=1e-6)
    np.testing.assert_array_equal(found[1], expected[1])


def test_program_of_the_page_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scope = {}
    exec(small_program(), scope)
    assert shares(scope["head"].centroids) == [16] * 4
    assert np.isfinite(scope["model"].evaluate(scope["Images"](), verbose=0)).all()
    assert (tmp_path / "many_0.keras").exists()


# Bad input


@pytest.mark.parametrize("scores", ["dense", Blockwise(8)])
def test_classes_that_do_not_divide_are_refused(scores):
    with pytest.raises(ValueError, match=r"devices that.*num_classes=10, with 4 dev"):
        make_model(None, 10, scores=scores)
    make_model(2, 10, scores=scores)


@pytest.mark.parametrize(
    ("built", "trained", "method"),
    [(ALONE, False, "fit"), (ALONE, True, "fit"), (2, True, "evaluate")],
)
def test_distribution_set_too_late_is_refused(samples, built, trained, method):
    model = make_model(built, scores=Blockwise(8) if trained else "dense")
    if trained:
        fit(model, samples)
        model.evaluate(*samples, verbose=0)
    distribute(None)
    # Keras 3.12 puts what happens in the building of a model into a RuntimeError.
    errors = (ValueError, RuntimeError)
    with pytest.raises(errors, match="must be set before the model is built"):
        getattr(model, method)(*samples, verbose=0)


def test_equal_distribution_is_the_same(samples):
    model = make_model(2)
    distribute(2)
    fit(model, samples)


def test_data_parallel_is_one_device(samples):
    one = make_model(ALONE)
    expected = fit(one, samples)
    with keras.distribution.DataParallel().scope():
        model = make_here()
        found = fit(model, samples)
    np.testing.assert_allclose(found["loss"], expected["loss"], rtol=1e-5)
    assert_same(model, one)


@pytest.mark.parametrize("number", [0, 17])
@pytest.mark.parametrize("batched", [False, True])
def test_data_parallel_gives_a_row_for_each_image(rng, number, batched):
    images = rng.standard_normal((number, 3)).astype("float32")
    batches = [images[i : i + 5] for i in range(0, max(number, 1), 5)]
    with keras.distribution.DataParallel().scope():
        model = keras.Sequential([keras.Input((3,)), keras.layers.Rescaling(2.0)])
        given = iter(batches) if batched else images
        found = predict_all(model, given, batch_size=5)
    np.testing.assert_array_equal(found, 2 * images)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"replicas": 3}, ValueError, "must divide the number of devices"),
        ({"replicas": 0}, ValueError, "`replicas` must be at least 1"),
        ({"replicas": 1.5}, TypeError, "`replicas` must be a whole number"),
        ({"replicas": 2, "devices": ["cpu:0"]}, ValueError, "with 1 devices"),
    ],
)
def test_class_parallel_refuses_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        keras_pedcc.class_parallel(**arguments)


def test_class_parallel_takes_some_of_the_devices():
    distribution = keras_pedcc.class_parallel(2, devices=["cpu:1", "cpu:3"])
    mesh = distribution.device_mesh
    assert (mesh.shape, mesh.devices.tolist()) == ((2, 1), [["cpu:1"], ["cpu:3"]])
    assert distribution.batch_dim_name == "batch"


# Room for later classes


def test_classes_that_are_cut_must_all_be_in_use():
    text = r"have all of them in use.*num_classes=120, capacity=128, with 4 devices"
    with pytest.raises(ValueError, match=text):
        make_model(None, capacity=128)


@pytest.mark.parametrize("scores", ["dense", Blockwise(8)])
def test_heads_grow_where_the_batch_alone_is_cut(samples, scores):
    models = []
    for rows in (4, ALONE):
        model = make_model(rows, capacity=128, trainable=True, scores=scores)
        fit(model, samples, 1)
        grow_classes(model, 128)
        fit(model, samples, 1)
        models.append(model)
    assert_same(*models)
