"""The studies of other losses, strangers and later classes, on made characters."""

import argparse
import copy
import json

import feature_heads
import field_losses
import frozen_priors
import incremental_characters
import incremental_game
import keras
import numpy as np
import priors
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
    """They are what the studies load, each time anew."""
    monkeypatch.setattr("image_experiment.data.load", lambda *_: copy.copy(images))
    return images


@only_once
def test_held_out_images_are_other_training_images(loaded):
    x, y = loaded.x_train / np.float32(255), loaded.y_train
    args = argparse.Namespace(most=15, imbalance=1, data_dir=None)
    trial = priors.load(args, held_out=5)
    assert np.bincount(trial.y_train).tolist() == [15] * 12
    assert np.bincount(trial.y_test).tolist() == [5] * 12
    every = np.concatenate([trial.x_train, trial.x_test])
    labels = np.concatenate([trial.y_train, trial.y_test])
    for k in range(12):
        found, expected = every[labels == k], x[y == k]
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
    methods = [METHODS[0], METHODS[-3]]
    monkeypatch.setattr("incremental.METHODS", methods)
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
    assert [(row["kind"], row["way"]) for row in rows] == methods
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


@only_once
def test_constants_are_chosen_one_after_the_other():
    best = {"scale": 15.0, "margin": 0.0, "mse_weight": 1.0, "rate": 0.5}
    tried = []

    def score(constants):
        tried.append(constants)
        return sum(best[name] == value for name, value in constants.items())

    assert frozen_priors.choose("frozen", score) == best
    assert len(tried) == sum(map(len, frozen_priors.AXES.values()))
    assert frozen_priors.choose("cross entropy", score) == {"rate": 0.5}


@pytest.mark.slow
def test_study_of_frozen_centroids_with_priors_runs(loaded, monkeypatch, tmp_path):
    axes = {"scale": ("auto",), "margin": (0.2, 0.0), "mse_weight": (3.0,)}
    monkeypatch.setattr(frozen_priors, "AXES", {**axes, "rate": (0.05,)})
    monkeypatch.setattr(frozen_priors, "HELD_OUT", 5)
    path = tmp_path / "priors.json"
    flags = ["--steps", "2", "--batch-size", "8", "--most", "8", "--imbalance", "4"]
    frozen_priors.main([*flags, "--seeds", "0", "--result", str(path)])
    content = json.loads(path.read_text())
    assert [row["kind"] for row in content["rows"]] == list(priors.KINDS)
    assert [row["rate"] for row in content["rows"]] == [0.05] * 3
    margins = {run.get("margin") for run in content["runs"]}
    assert margins == {None, 0.2, 0.0}
