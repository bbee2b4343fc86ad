"""The studies of other losses, strangers and later classes, on made characters."""

import argparse
import json

import feature_heads
import field_losses
import incremental_characters
import incremental_game
import keras
import numpy as np
import pytest
import strangers
from image_experiment.data import Images
from incremental import METHODS
from tensors import only_once


@pytest.fixture
def images(rng):
    """Twelve classes, twenty training and five test images each, told by brightness."""
    y_train, y_test = np.tile(np.arange(12), 20), np.tile(np.arange(12), 5)
    x = [
        rng.integers(0, 10, (len(y), 28, 28, 1)) + 20 * y[:, None, None, None]
        for y in (y_train, y_test)
    ]
    x = [each.astype("uint8") for each in x]
    return Images(x[0], y_train, x[1], y_test, "made", num_classes=12)


@pytest.fixture
def loaded(images, monkeypatch):
    monkeypatch.setattr("image_experiment.data.load", lambda *_: images)
    return images


@only_once
def test_held_out_images_are_no_test_and_no_training_images(loaded, monkeypatch):
    monkeypatch.setattr(field_losses, "HELD_OUT", 5)
    x, y = loaded.x_train.copy(), loaded.y_train.copy()
    x_test = loaded.x_test / np.float32(255)
    images, trial = field_losses.load(argparse.Namespace(most=15, data_dir=None))
    assert np.bincount(images.y_train).tolist() == [15] * 12
    assert np.bincount(trial.y_test).tolist() == [5] * 12
    np.testing.assert_array_equal(images.x_test, x_test)
    assert trial.x_train is images.x_train
    every = np.concatenate([images.x_train, trial.x_test])
    labels = np.concatenate([images.y_train, trial.y_test])
    for k in range(12):
        found, expected = every[labels == k], x[y == k] / np.float32(255)
        order = [np.lexsort(each.reshape(20, -1).T) for each in (found, expected)]
        np.testing.assert_array_equal(found[order[0]], expected[order[1]])


@pytest.mark.slow
def test_losses_are_trained_at_the_rate_of_the_held_out_images(
    loaded, monkeypatch, tmp_path, capsys
):
    monkeypatch.setattr(field_losses, "HELD_OUT", 5)
    path = tmp_path / "losses.json"
    flags = ["--steps", "20", "--batch-size", "24", "--most", "15", "--seeds", "0"]
    flags += ["--kinds", "AdaFace", "--result", str(path)]
    field_losses.main(flags)
    *held, tested = json.loads(path.read_text())["runs"]
    scores = {run["rate"]: run["accuracy"] for run in held}
    assert {run["scored"] for run in held} == {"held out"}
    assert min(scores.values()) < scores[tested["rate"]] == max(scores.values())
    assert "| AdaFace | " in capsys.readouterr().out


@only_once
def test_digits_and_letters_are_told_by_their_class(loaded):
    parts = strangers.load(None)
    letters, digits = parts["letters"], parts["digits"]
    assert np.unique(letters.y_train).tolist() == [0, 1]
    assert np.unique(letters.x_test // 20).tolist() == [10, 11]
    task = strangers.make_task(letters, digits, seed=0)
    assert (task.num_classes, task.num_known) == (3, 2)
    assert np.unique(task.x[task.for_old] // 20).tolist() == [10, 11]
    assert np.bincount(task.y_test).tolist() == [5, 5, 50]
    np.testing.assert_array_equal(task.x_test[10:], digits.x_test)
    other = strangers.make_task(letters, digits, seed=1)
    assert not np.array_equal(other.first_half, task.first_half)


@pytest.mark.slow
def test_study_of_strangers_reports_every_score(loaded, tmp_path, capsys):
    path = tmp_path / "strangers.json"
    flags = ["--data-dir", str(tmp_path), "--result", str(path), "--steps", "2"]
    flags += ["--batch-size", "8", "--dim", "16", "--seeds", "0"]
    flags += ["--pairs", "letters, not digits", "--heads", "frozen", "cross entropy"]
    strangers.main(flags)
    content = json.loads(path.read_text())
    assert [row["name"] for row in content["rows"]] == ["frozen", "cross entropy"]
    [run, _] = content["runs"]
    auc = run["scores"]["energy"]["auc"]
    assert content["rows"][0]["energy"]["auc"]["mean"] == 100 * auc
    assert "| frozen: energy | " in capsys.readouterr().out


@pytest.mark.slow
def test_later_characters_are_those_that_the_network_never_saw(
    loaded, monkeypatch, tmp_path
):
    monkeypatch.setattr("incremental.HELD_OUT", 5)
    monkeypatch.setattr(incremental_characters, "HELD_OUT", 5)
    seen = []
    train = incremental_characters.training.train

    def watched(task, head, rows, part, *args):
        seen.append((len(rows), np.unique(task.y[part]).tolist()))
        return train(task, head, rows, part, *args)

    monkeypatch.setattr(incremental_characters.training, "train", watched)
    path = tmp_path / "later.json"
    flags = ["--result", str(path), "--base", "9", "--base-images", "12", "--classes"]
    flags += ["3", "--images", "4", "--epochs", "1", "--batch-size", "9"]
    flags += ["--later-steps", "1", "--later-batch", "8", "--hidden", "8", "--dim", "8"]
    incremental_characters.main([*flags, "--seeds", "0", "--backbone-steps", "2"])
    assert seen == [(6, list(range(6))), (9, list(range(9)))]
    rows = json.loads(path.read_text())["rows"]
    assert len(rows) == len(METHODS)
    assert 0 <= rows[-1]["last_new"]["mean"] <= 100


def test_rows_of_later_classes_move_to_their_means(rng):
    shape = feature_heads.Shape(6, 8, 4, 3)
    model = feature_heads.Network("frozen mild", shape).model
    centroids = model.layers[-1].centroids
    before = keras.ops.convert_to_numpy(centroids)
    x, y = rng.normal(size=(10, 6)).astype("float32"), np.repeat([1, 2], 5)
    features = model.predict(x, verbose=0)["features"].astype("float64")
    incremental_game.Game(None, None)._move_rows(model, x, y)
    after = keras.ops.convert_to_numpy(centroids)
    np.testing.assert_array_equal(after[0], before[0])
    for k in (1, 2):
        mean = features[y == k].sum(axis=0)
        np.testing.assert_allclose(after[k], mean / np.linalg.norm(mean), atol=1e-6)
