"""Files that released versions have written, see `saved/make.py`."""

import pathlib

import keras
import numpy as np
import pytest
from saved import make
from tensors import FEW_STEPS

import keras_pedcc

FOLDER = pathlib.Path(make.__file__).parent
MODELS = sorted(FOLDER.glob("*.keras"))


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_model_of_a_released_version_answers_as_it_did(path):
    model = keras.saving.load_model(path)
    model.run_eagerly = FEW_STEPS["run_eagerly"]
    images, labels = make.samples()
    found = model.predict(images, verbose=0)
    with np.load(path.with_suffix(".npz")) as answers:
        for name, value in found.items():
            np.testing.assert_allclose(value, answers[name], atol=1e-5, err_msg=name)
        for i, weight in enumerate(model.get_weights()):
            np.testing.assert_array_equal(weight, answers[f"weight_{i}"])
    history = model.fit(images, labels, verbose=0).history
    assert set(history) == {"accuracy", "loss"}
    assert np.isfinite(history["loss"]).all()


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*_centroids.npz")))
def test_centroids_of_a_released_version_load(path):
    assert keras_pedcc.load_centroids(path).shape == (7, 4)


def test_there_are_files_of_every_head():
    heads = {path.stem.partition("_")[2] for path in MODELS}
    assert heads == set(make.HEADS)
