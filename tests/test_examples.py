"""The image examples, on a few random images."""

import functools
import importlib.util
import pathlib
import types

import keras
import numpy as np
import pytest
from tensors import only_once

import keras_pedcc

EXAMPLES = pathlib.Path(__file__).parents[1] / "examples"
SHAPES = {"emnist": ((28, 28), 47), "cifar100": ((32, 32, 3), 100)}
not_on_jax = pytest.mark.skipif(
    keras.backend.backend() == "jax", reason="JAX compiles each for long"
)


@pytest.fixture
def quick(monkeypatch):
    """Models that run eagerly: compiling takes longer than a few steps, but on JAX."""
    if keras.backend.backend() == "jax":
        return
    for model in (keras.Model, keras_pedcc.PEDCCModel):
        compile_eager = functools.partialmethod(model.compile, run_eagerly=True)
        monkeypatch.setattr(model, "compile", compile_eager)


def load(name):
    """The example as a module; `examples` may be a package of another project."""
    path = EXAMPLES / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"{name}_example", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def images(tmp_path, rng):
    """Path of an `.npz` file by the name of an example; all images differ."""

    def write(name):
        shape, num_classes = SHAPES[name]
        arrays = {}
        for part, number in (("train", 20), ("test", 8)):
            arrays[f"x_{part}"] = rng.integers(0, 256, (number, *shape), dtype="uint8")
            arrays[f"y_{part}"] = rng.integers(0, num_classes, number, dtype="uint8")
        np.savez(tmp_path / "images.npz", **arrays)
        return str(tmp_path / "images.npz")

    return write


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("emnist", "trained"),
        pytest.param("emnist", "dense", marks=[not_on_jax, pytest.mark.slow]),
        pytest.param("cifar100", "frozen", marks=[not_on_jax, pytest.mark.slow]),
    ],
)
def test_example_runs(name, head, images, quick, capsys):
    flags = ["--data", images(name), "--epochs", "2", "--verbose", "0"]
    load(name).main([*flags, "--head", head, "--seed", "3"])
    *_, result, following = capsys.readouterr().out.splitlines()
    assert result.startswith(f"Head {head}, seed 3: ")
    assert result.endswith(" % of 8 test images are recognised.")
    assert following.startswith("Next: ")


@pytest.mark.parametrize("name", SHAPES)
def test_parts_of_the_images_share_none(name, images):
    path = images(name)
    args = types.SimpleNamespace(data=path, seed=1, limit=None)
    parts = [x for x, _ in load(name).load_parts(args)]
    assert [len(x) for x in parts] == [18, 2, 8]
    together = np.concatenate(parts).reshape(28, -1)
    assert len(np.unique(together, axis=0)) == 28
    np.testing.assert_array_equal(
        parts[2].reshape(8, -1), np.load(path)["x_test"].reshape(8, -1)
    )


@pytest.mark.parametrize("name", SHAPES)
def test_limit_is_of_training_images(name, images):
    args = types.SimpleNamespace(data=images(name), seed=1, limit=10)
    parts = load(name).load_parts(args)
    assert [len(y) for _, y in parts] == [9, 1, 8]


@pytest.mark.parametrize("name", SHAPES)
def test_labels_stay_with_their_images(name, images):
    path = images(name)
    args = types.SimpleNamespace(data=path, seed=1, limit=None)
    (x, y), *_ = load(name).load_parts(args)
    with np.load(path) as file:
        pairs = zip(file["x_train"], file["y_train"], strict=True)
        known = {image.tobytes(): label for image, label in pairs}
    assert [known[image.tobytes()] for image in x] == y.tolist()


@pytest.mark.slow
@only_once
def test_example_for_keras_io_finds_new_classes():
    example = load("keras_io")
    for recalls in (example.arcface_recalls, example.pedcc_recalls):
        assert len(recalls) == 6
        assert recalls[-1] > 0.9  # chance: 1/3
    assert example.embeddings.shape == (len(example.y_new), 64)


@pytest.mark.slow
@not_on_jax
def test_gallery_outlives_its_network(tmp_path, rng, quick, capsys, monkeypatch):
    pytest.importorskip("lancedb", reason="pip install lancedb")
    monkeypatch.syspath_prepend(EXAMPLES)
    labels = np.repeat(np.arange(10), 8)
    images = rng.uniform(0, 60, (80, 8, 8)) + 255 * np.eye(10, 64)[labels].reshape(
        80, 8, 8
    )
    np.savez(tmp_path / "images.npz", images=images, labels=labels)
    gallery = load("gallery")
    flags = ["--data", str(tmp_path / "images.npz"), "--output-dir", str(tmp_path)]
    flags += ["--epochs", "1", "--verbose", "0"]
    gallery.main([*flags, "--heads", "frozen"])
    gallery.main(["remove", *flags, "--network", "new", "--classes", "3"])
    told = capsys.readouterr().out
    for line in (
        "trained on 6 of the classes",
        "The old network has enrolled 16 images.",
        "The old network never saw 6, 7: enrolled anew.",
        "The new network has enrolled 4 images.",
        "14 images are left in the gallery.",
    ):
        assert line in told
    assert told.count("strangers let in: ") == 3
    old, new = (
        keras_pedcc.load_model(tmp_path / f"{name}.keras") for name in ("old", "new")
    )
    assert new.count_params() > 2 * old.count_params()
    keras_pedcc.check_same_centroids(old, new)
