"""Files of models: damaged ones are refused, and none runs code."""

import json
import os
import zipfile

import keras
import numpy as np
import pytest
from tensors import FEW_STEPS, numpy_of

from keras_pedcc import (
    AtomicBackup,
    CenterDense,
    CosineDense,
    FinetuneOptimizer,
    KerdockDense,
    PEDCCDense,
    PEDCCLoss,
    PEDCCModel,
    ProductDense,
    generate_pedcc,
    load_centroids,
    load_model,
)
from keras_pedcc.centroids import files as storage

LOADERS = {"package": load_model, "keras": keras.saving.load_model}


def make_model(*layers, head=None):
    head = PEDCCDense(3) if head is None else head
    inputs = keras.Input((4,))
    x = keras.layers.Dense(4)(inputs)
    for layer in layers:
        x = layer(x)
    model = PEDCCModel(inputs, head(x))
    sgd = keras.optimizers.SGD
    optimizer = FinetuneOptimizer(sgd(0.1), sgd(0.01))
    model.compile(optimizer, PEDCCLoss(scale=20.0), **FEW_STEPS)
    return model


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "model.keras"
    make_model().save(path)
    return path


def with_other_weights(path):
    """Flips a bit in the middle of the last array of the weights."""
    with zipfile.ZipFile(path) as archive:
        start = archive.getinfo("model.weights.h5").header_offset
    data = bytearray(path.read_bytes())
    weights = numpy_of(make_model().layers[-1].centroids).tobytes()
    data[data.index(weights[:8], start)] ^= 1
    path.write_bytes(bytes(data))


def test_whole_file_gives_the_model(path):
    model, x = make_model(), np.ones((2, 4), "float32")
    model.save(path)
    loaded = load_model(path)
    expected = numpy_of(model(x)["logits"])
    np.testing.assert_array_equal(numpy_of(loaded(x)["logits"]), expected)
    assert isinstance(loaded.loss, PEDCCLoss)


def test_damaged_weights_are_refused(path):
    with_other_weights(path)
    with pytest.raises(ValueError, match=r"damaged .*model.weights.h5.* Take a copy"):
        load_model(path)


def test_arguments_are_those_of_keras(path):
    class Mine(keras.losses.Loss):
        def call(self, y_true, y_pred):
            return 0.0 * y_pred["logits"][:, 0]

    model = make_model()
    model.compile("sgd", Mine())
    model.save(path)
    assert isinstance(load_model(str(path), {"Mine": Mine}).loss, Mine)
    assert isinstance(
        load_model(filepath=path, custom_objects={"Mine": Mine}).loss, Mine
    )
    assert not load_model(path, None, False).compiled
    assert not load_model(path, compile=False, safe_mode=False).compiled


def test_open_file_is_refused(path):
    with path.open("rb") as file, pytest.raises(TypeError, match="the name of a file"):
        load_model(file)


def test_file_that_may_not_be_read_is_not_called_damaged(path, monkeypatch):
    def refuse(*args):
        raise PermissionError

    monkeypatch.setattr(zipfile, "ZipFile", refuse)
    with pytest.raises(PermissionError):
        load_model(path)


GIVEN = np.random.default_rng(1).normal(size=(12, 4))
HEADS = {
    "pedcc": lambda: PEDCCDense(3),
    "streaming": lambda: PEDCCDense(3, scores="blockwise"),
    "given": lambda: PEDCCDense(12, centroids=GIVEN),
    "kerdock": lambda: KerdockDense(12),
    "cosine": lambda: CosineDense(3, return_norm=True),
    "product": lambda: ProductDense(3),
    "center": lambda: CenterDense(3),
}


@pytest.fixture(params=HEADS)
def head(request):
    return request.param


def uncompiled(head):
    inputs = keras.Input((4,))
    return PEDCCModel(inputs, HEADS[head]()(keras.layers.Dense(4)(inputs)))


def assert_same_weights(model, other):
    for ours, theirs in zip(model.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_weight_files_hold_every_head(tmp_path, head):
    model, other = uncompiled(head), uncompiled(head)
    model.save_weights(tmp_path / "model.weights.h5")
    other.load_weights(tmp_path / "model.weights.h5")
    assert_same_weights(other, model)


def test_legacy_files_load_with_the_class_of_the_model(tmp_path, head):
    """Given centroids are refused, as `docs/guides/resume.md` says."""
    model, path = uncompiled(head), tmp_path / "model.h5"
    model.save(path)
    objects = {"PEDCCModel": PEDCCModel}
    if head == "given":
        with pytest.raises(ValueError, match="save and load it"):
            keras.saving.load_model(path, objects, compile=False)
    else:
        loaded = keras.saving.load_model(path, objects, compile=False)
        assert_same_weights(loaded, model)


def test_what_is_no_file_of_a_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"`filepath` must end in .keras. Received"):
        load_model(tmp_path / "model.h5")
    with pytest.raises(FileNotFoundError):
        load_model(tmp_path / "missing.keras")
    (tmp_path / "half.keras").write_bytes(b"half a file")
    with pytest.raises(ValueError, match="must be a whole file of"):
        load_model(tmp_path / "half.keras")


@pytest.mark.parametrize("loader", LOADERS)
def test_code_of_a_lambda_layer_is_not_run(tmp_path, monkeypatch, loader):
    monkeypatch.chdir(tmp_path)
    code = keras.layers.Lambda(lambda x: (open("trace", "w").close(), x)[1], (4,))
    make_model(code).save("model.keras")
    with pytest.raises(ValueError, match=r"[Ll]ambda"):
        LOADERS[loader]("model.keras")
    assert not os.path.exists("trace")
    LOADERS[loader]("model.keras", safe_mode=False)(np.ones((2, 4)))
    assert os.path.exists("trace")  # which the code makes when it is run


def hostile_objects(trace):
    """Configs that would make a file or folder, were what they name called."""
    return {
        "function": {
            "module": "os",
            "class_name": "function",
            "config": "mkdir",
            "registered_name": "mkdir",
        },
        "class": {
            "module": "pathlib",
            "class_name": "Path.touch",
            "config": {"self": trace},
            "registered_name": None,
        },
        "call": {
            "module": "os",
            "class_name": "mkdir",
            "config": {"path": trace},
            "registered_name": "keras_pedcc>mkdir",
        },
        "module": {
            "module": "hostile_module",
            "class_name": "Layer",
            "config": {},
            "registered_name": "keras_pedcc>Layer",
        },
    }


def put_into(config, place, hostile):
    """A config of a model with the hostile object in the place of one of its own."""
    layers = config["config"]["layers"]
    if place == "layer":
        hostile = hostile | {"name": layers[-1]["name"]}
        layers[-1] = {**layers[-1], **hostile}
    elif place == "initializer":
        layers[-1]["config"]["kernel_initializer"] = hostile
    elif place == "optimizer":
        inner = config["compile_config"]["optimizer"]["config"]
        name = next(key for key, value in inner.items() if isinstance(value, dict))
        inner[name] = hostile
    else:
        config["compile_config"][place] = hostile


def rewrite(path, change):
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    config = json.loads(parts["config.json"])
    change(config)
    parts["config.json"] = json.dumps(config).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in parts.items():
            archive.writestr(name, data)


@pytest.mark.parametrize(
    "place", ["layer", "initializer", "optimizer", "loss", "metrics"]
)
@pytest.mark.parametrize("kind", hostile_objects(""))
def test_what_a_config_names_is_not_run(tmp_path, monkeypatch, kind, place):
    path, trace = tmp_path / "model.keras", tmp_path / "trace"
    make_model(head=CosineDense(3)).save(path)
    (tmp_path / "hostile_module.py").write_text(f"open({str(trace)!r}, 'w').close()")
    monkeypatch.syspath_prepend(tmp_path)
    hostile = hostile_objects(str(trace))[kind]
    rewrite(path, lambda config: put_into(config, place, hostile))
    for load in LOADERS.values():
        with pytest.raises((TypeError, ValueError)):
            load(path)
    assert not trace.exists()


class Payload:
    """Makes a folder when it is unpickled."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (self.trace,)


@pytest.fixture
def hostile(tmp_path):
    """Path of an `.npz` whose arrays hold a payload, and what it would make."""
    path, trace = tmp_path / "hostile.npz", tmp_path / "trace"
    array = np.array([[Payload(str(trace))]], dtype=object)
    names = ("centroids", "sha256", "key", "state", "arr_0")
    np.savez(path, **dict.fromkeys(names, array))
    yield path
    assert not trace.exists()
    np.load(path, allow_pickle=True)["centroids"]
    assert trace.exists()  # it would have been made


def test_centroids_are_not_unpickled(hostile):
    with pytest.raises(ValueError, match=r"cannot be read .*allow_pickle=False"):
        load_centroids(hostile)


def test_cached_centroids_are_not_unpickled(hostile, tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_PEDCC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(storage, "WORTH_KEEPING", 0.0)
    made = numpy_of(generate_pedcc(30, 8, steps=5))
    (kept,) = (tmp_path / "cache").iterdir()
    kept.write_bytes(hostile.read_bytes())
    with pytest.warns(UserWarning, match="made again .*allow_pickle=False"):
        again = numpy_of(generate_pedcc(30, 8, steps=5))
    np.testing.assert_array_equal(again, made)


def test_backup_is_not_unpickled(hostile, tmp_path):
    (tmp_path / "backup.npz").write_bytes(hostile.read_bytes())
    with pytest.raises(ValueError, match=r"cannot be read .*allow_pickle=False"):
        make_model().fit(
            np.ones((4, 4)), np.zeros(4), callbacks=[AtomicBackup(tmp_path)], verbose=0
        )


@pytest.mark.parametrize("how", ["method", "flag", "not_json", "no_dict"])
def test_backup_that_python_cannot_read_is_refused(tmp_path, how):
    make_model().fit(
        np.ones((4, 4)),
        np.zeros(4),
        callbacks=[AtomicBackup(tmp_path, delete_checkpoint=False)],
        verbose=0,
    )
    path = tmp_path / "backup.npz"
    damage(path, how)
    with pytest.raises(ValueError, match=r"must be a file of .* Delete it to start"):
        make_model().fit(
            np.ones((4, 4)), np.zeros(4), callbacks=[AtomicBackup(tmp_path)], verbose=0
        )


def damage(path, how):
    """Makes Python raise something else than a `ValueError`, in each way another."""
    if how in ("method", "flag"):  # of compression, of encryption, in the directory
        data = bytearray(path.read_bytes())
        entry = data.rindex(b"PK\1\2")
        data[entry + (10 if how == "method" else 8)] ^= 1
        path.write_bytes(bytes(data))
        return
    arrays = dict(np.load(path))
    arrays["state"] = np.array("{" if how == "not_json" else "[]")
    np.savez(path, **arrays)
