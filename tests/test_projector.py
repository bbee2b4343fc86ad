import json

import keras
import numpy as np
import pytest
from tensors import FEW_STEPS, only_once

from keras_pedcc import (
    PEDCCDense,
    PEDCCLoss,
    PEDCCModel,
    ProjectorCallback,
    SubCenterDense,
    embed,
    embedder,
)

Image = pytest.importorskip("PIL.Image")
LABELS = np.arange(7) % 3
NAMES = ["ant", "bee\tbuzz", "cat"]


@pytest.fixture
def written(tmp_path, rng):
    """A model, images, and the folder that the callback has written."""
    images = rng.uniform(0, 1, (7, 6, 4, 3)).astype("float32")
    images[2] = images.max()
    inputs = keras.Input((6, 4, 3))
    inner = keras.Model(inputs, keras.layers.Flatten()(inputs))
    dense = keras.layers.Dense(5)(inner(inputs))
    model = PEDCCModel(inputs, PEDCCDense(3)(dense))
    model.compile("sgd", PEDCCLoss(), **FEW_STEPS)
    folder = tmp_path / "logs" / "run"
    projector = ProjectorCallback(
        folder, images, LABELS, class_names=NAMES, thumbnail=8
    )
    model.fit(images, LABELS, verbose=0, callbacks=[projector])
    return model, images, folder


def test_files_hold_features_centroids_and_classes(written):
    model, images, folder = written
    rows = np.loadtxt(folder / "tensors.tsv", delimiter="\t")
    features = embed(embedder(model), images)
    np.testing.assert_allclose(rows[:7], features, atol=1e-5)
    centroids = keras.ops.convert_to_numpy(model.layers[-1].centroids)
    np.testing.assert_allclose(rows[7:], centroids, atol=1e-5)
    names = ["ant", "bee buzz", "cat"]
    lines = [f"{names[label]}\timage" for label in LABELS]
    lines += [f"{name}\tcentroid" for name in names]
    text = (folder / "metadata.tsv").read_text()
    assert text.splitlines() == ["class\tkind", *lines]


def test_sprite_holds_the_images_in_rows(written):
    sprite = np.asarray(Image.open(written[2] / "sprite.png"), "float64")
    assert sprite.shape == (4 * 8, 4 * 8, 3)
    assert (sprite[:8, 16:24] == 255).all()  # the third, all as bright as can be
    assert (sprite[8:16, 24:] == 255).all()  # after the last image
    assert (sprite[16:] == 255).all()
    images = written[1]
    pixels = (images[3] - images.min()) / np.ptp(images) * 255
    thumbnail = sprite[:8, 24:]
    np.testing.assert_allclose(thumbnail.mean(), pixels.mean(), atol=8)


@only_once
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_tensorboard_loads_the_files(written):
    plugin = pytest.importorskip("tensorboard.plugins.projector.projector_plugin")
    from tensorboard.plugins import base_plugin
    from werkzeug.test import Client

    folder = written[2]
    context = base_plugin.TBContext(logdir=str(folder))
    apps = plugin.ProjectorPlugin(context).get_plugin_apps()

    def get(path, **arguments):
        response = Client(apps[path]).get(path, query_string=arguments)
        assert response.status_code == 200, response.get_data()
        return response.get_data()

    assert json.loads(get("/runs")) == ["."]
    [info] = json.loads(get("/info", run="."))["embeddings"]
    assert info["tensorPath"] == "tensors.tsv"
    assert info["sprite"]["singleImageDim"] == [8, 8]
    values = np.frombuffer(get("/tensor", run=".", name="features"), "float32")
    expected = np.loadtxt(folder / "tensors.tsv", delimiter="\t")
    np.testing.assert_allclose(values.reshape(10, 5), expected, atol=1e-6)
    assert get("/metadata", run=".", name="features").startswith(b"class\tkind\nant")
    sprite = (folder / "sprite.png").read_bytes()
    assert get("/sprite_image", run=".", name="features") == sprite


def test_callback_refuses_arguments(tmp_path):
    images = np.ones((7, 6, 4, 3))
    with pytest.raises(ValueError, match=r"images.shape=\(7, 6, 4\)\. Add an axis"):
        ProjectorCallback(tmp_path, images[..., 0], LABELS)
    with pytest.raises(ValueError, match=r"one label for each of `images`.*\(3,\)"):
        ProjectorCallback(tmp_path, images, [0, 1, 2])
    with pytest.raises(ValueError, match="7 images, thumbnail=5000"):
        ProjectorCallback(tmp_path, images, LABELS, thumbnail=5000)
    with pytest.raises(TypeError, match="`thumbnail` must be a whole number"):
        ProjectorCallback(tmp_path, images, LABELS, thumbnail=8.5)


def test_centroids_are_those_in_use(tmp_path, rng):
    images = rng.uniform(0, 1, (4, 4, 4, 1)).astype("float32")
    for head, kinds in (
        (PEDCCDense(2, capacity=5), ["a\tcentroid", "b\tcentroid"]),
        (SubCenterDense(2, 2), ["a\tcentroid"] * 2 + ["b\tcentroid"] * 2),
    ):
        inputs = keras.Input((4, 4, 1))
        dense = keras.layers.Dense(6)(keras.layers.Flatten()(inputs))
        model = PEDCCModel(inputs, head(dense))
        projector = ProjectorCallback(tmp_path, images, [0, 1] * 2, class_names="ab")
        projector.set_model(model)
        projector.on_epoch_end(0)
        assert (tmp_path / "metadata.tsv").read_text().splitlines()[5:] == kinds
