"""`experiments/feature_space.py`: gradients of samples, and pictures of features."""

import csv
import json
import os
import pathlib
import re
import subprocess
import sys

import feature_space
import keras
import numpy as np
import pytest
import reference
from comparison_flags import DIGITS
from image_experiment import feature_figures, settings, training
from image_experiment.feature_figures import Cloud
from image_experiment.gradients import GradientProbe, score_gradients
from tensors import NO_JIT, only_once

pytestmark = pytest.mark.slow
ROOT = pathlib.Path(__file__).parents[2]
SAMPLES, DIM, CLASSES = 7, 3, 4
LABELS = np.arange(SAMPLES) % CLASSES
NARROW = ["--width", "0.2", "--batch-size", "64", "--learning-rate", "0.01", *NO_JIT]


def settings_of(*flags):
    return settings.parse(DIGITS, [*flags, "--weight-decay", "0.5", *NO_JIT])


def cosines(features, centroids):
    products = features @ centroids.T / np.linalg.norm(centroids, axis=1)
    return products / np.linalg.norm(features, axis=1, keepdims=True)


def entropy(features, kernel, bias):
    return reference.am_softmax(LABELS, features @ kernel + bias, 1.0, 0.0)


def center(features, kernel, bias, centers):
    distance = ((features - centers[LABELS]) ** 2).sum(axis=1)
    return entropy(features, kernel, bias) + distance / 2


def am(features, centroids):
    return reference.am_softmax(LABELS, cosines(features, centroids), 15, 0.5)


def pedcc(features, centroids):
    distance = reference.distance(LABELS, cosines(features, centroids))
    return am(features, centroids) + 10 * distance


FORMULAS = {
    "cross_entropy": entropy,
    "center": center,
    "am_softmax": am,
    "pedcc_am": am,
    "pedcc": pedcc,
}


def slopes(function, features, step=1e-5):
    """Central differences in float64, shape of the features."""
    found = np.empty(features.shape)
    for column in range(features.shape[1]):
        move = step * np.eye(features.shape[1])[column]
        found[:, column] = function(features + move) - function(features - move)
    return found / (2 * step)


@pytest.fixture
def probe_of(rng):
    def make(loss):
        args = settings_of("--loss", loss, "--center-weight", "1")
        probe = GradientProbe(args, SAMPLES, DIM, CLASSES)
        weights = [rng.normal(size=w.shape) for w in probe.head.get_weights()]
        return probe, [w.astype("float32") for w in weights]

    return make


@pytest.mark.parametrize("loss", FORMULAS)
def test_gradient_of_each_sample_is_that_of_the_formula(probe_of, rng, loss):
    probe, weights = probe_of(loss)
    features = rng.normal(size=(SAMPLES, DIM)).astype("float32")
    wide = [w.astype("float64") for w in weights]
    expected = slopes(lambda x: FORMULAS[loss](x, *wide), features.astype("float64"))
    for _ in range(2):  # a second measurement starts at no offset, too
        found = probe.gradients(weights, features, LABELS)
        np.testing.assert_allclose(found, expected, rtol=2e-4, atol=2e-5)
    for ours, given in zip(probe.head.get_weights(), weights, strict=True):
        np.testing.assert_array_equal(ours, given)


def test_score_gradient_is_that_of_cross_entropy(rng):
    scores = rng.normal(size=(SAMPLES, CLASSES))
    expected = slopes(lambda s: reference.am_softmax(LABELS, s, 1.0, 0.0), scores)
    found = score_gradients(scores, np.eye(CLASSES)[LABELS])
    np.testing.assert_allclose(found, expected, atol=1e-8)


def test_turning_of_a_cosine_loss_is_the_same_for_any_length(probe_of, rng):
    probe, weights = probe_of("pedcc")
    features = rng.normal(size=(SAMPLES, DIM)).astype("float32")
    one, other = (probe.lengths(weights, s * features, LABELS) for s in (1, 8))
    np.testing.assert_allclose(other["turning"], one["turning"], rtol=1e-4)
    np.testing.assert_allclose(8 * other["gradient"], one["gradient"], rtol=1e-4)


def test_soft_labels_are_taken_where_the_run_has_them(rng):
    args = settings_of("--loss", "cross_entropy", "--label-smoothing", "0.2")
    probe = GradientProbe(args, SAMPLES, DIM, CLASSES)
    kernel, bias = probe.head.get_weights()
    features = rng.normal(size=(SAMPLES, DIM)).astype("float32")
    targets = 0.8 * np.eye(CLASSES)[LABELS] + 0.2 / CLASSES
    soft = score_gradients(features @ kernel + bias, targets)
    found = probe.gradients([kernel, bias], features, LABELS)
    np.testing.assert_allclose(found, soft @ kernel.T, rtol=1e-4, atol=1e-6)


def train_digits(folder, watch):
    flags = ["--loss", "pedcc", "--epochs", "2", "--limit", "128", "--dim", "3"]
    flags += ["--output-dir", str(folder), "--verbose", "0", "--no-figures", "--fixed"]
    training.train(DIGITS, settings.parse(DIGITS, [*NARROW, *flags]), watch)
    return keras.saving.load_model(folder / "model.keras").get_weights()


def test_measuring_leaves_the_training_as_it_is(tmp_path):
    alone = train_digits(tmp_path / "alone", None)
    watched = train_digits(tmp_path / "watched", feature_space.watch)
    for ours, expected in zip(watched, alone, strict=True):
        np.testing.assert_array_equal(ours, expected)
    with (tmp_path / "watched" / "gradients.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["0", "1", "2"]
    assert all(float(row["gradient"]) > 0 for row in rows)


# Figures


def test_classes_that_would_cover_each_other_share_a_label():
    places = np.array([[1, 0], [0, 1], [1, 0.01], [0, -1]])
    assert feature_figures.neighbours(places) == [[0, 2], [1], [3]]


def clouds(rng, dim, placed=False):
    labels = np.arange(200) % 10
    classes = rng.normal(size=(10, dim))
    features = 5 * classes[labels] + rng.normal(size=(200, dim))
    return [Cloud("a", features, labels, classes, placed) for _ in range(2)]


def test_features_in_two_and_three_dimensions_are_drawn(rng, tmp_path):
    rows = [clouds(rng, 2, placed=True), clouds(rng, 3)]
    feature_figures.draw_features(rows, tmp_path / "features.png")
    assert (tmp_path / "features.png").stat().st_size > 50_000


def test_page_is_seen_from_the_front(rng):
    """The view is a rotation, and what is near lies on this side of the page."""
    points = rng.normal(size=(20, 3))
    places, depth = feature_figures.on_page(points)
    rotated = np.column_stack([places, depth])
    np.testing.assert_allclose(rotated @ rotated.T, points @ points.T, atol=1e-12)
    axes = np.column_stack(feature_figures.on_page(np.eye(3)))
    assert np.linalg.det(axes) == pytest.approx(1)  # no mirror image
    assert axes[2, 1] > 0.9  # the third axis points up


def test_gradients_are_drawn(tmp_path):
    curve = {"epoch": [0, 1], "gradient": [1.0, 2.0], "turning": [3.0, 4.0]}
    curves = {"Softmax": {**curve, "scores": [0.9, 0.5]}, "Center loss": curve}
    feature_figures.draw_gradients(curves, tmp_path / "gradients.png")
    assert (tmp_path / "gradients.png").stat().st_size > 20_000


# The script


def test_order_is_told_by_epoch():
    lengths = {
        "PEDCC-AM-MSE": [3, 3, 1],
        "PEDCC-AM": [2, 2, 2],
        "Softmax": [1, 2, 0],
    }
    results = {
        name: {"lengths": {"epoch": [0, 1, 2], "gradient": values}}
        for name, values in lengths.items()
    }
    assert feature_space.in_order(results, "gradient") == [0]
    assert feature_space.verdict([0, 1, 2], [0]).endswith("holds after epoch 0.")
    assert feature_space.verdict([0, 1], [0, 1]).endswith("holds throughout.")
    assert feature_space.verdict([0, 1], []).endswith("holds nowhere.")


BAD = {
    "classes": (["--dataset", "cifar100"], r"cifar100 has 100\. Pass --draw gradients"),
    "data": (
        ["--dataset", "mnist", "--data-dir", "nowhere"],
        "no mnist.npz in now",
    ),
    "epochs": (["--epochs", "0"], "--epochs must be at least 1"),
    "nan": (["--learning-rate", "1e9"], "2-D Softmax: the loss is NaN after epoch 1"),
}


def test_faces_are_no_choice(capsys):
    with pytest.raises(SystemExit):
        feature_space.main(["--dataset", "faces"])
    assert "invalid choice: 'faces'" in capsys.readouterr().err


@pytest.mark.parametrize(("flags", "message"), BAD.values(), ids=BAD)
def test_bad_input_is_told(capsys, tmp_path, flags, message):
    code = feature_space.main([*NARROW, *flags, "--output-dir", str(tmp_path)])
    error = capsys.readouterr().err
    assert code == 2
    assert re.match(f"feature_space: error: .*{message}", error)
    assert len(error.splitlines()) == 1


def diverging(monkeypatch, name, *flags):
    monkeypatch.setitem(feature_space.PULLED, name, [*feature_space.CENTER, *flags])
    return [*NARROW, "--draw", "gradients", "--epochs", "1", "--limit", "320"]


def test_center_loss_may_diverge(monkeypatch, capsys, tmp_path):
    flags = diverging(monkeypatch, "Center loss", "--center-weight", "1e9")
    assert feature_space.main([*flags, "--output-dir", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "result.json").read_text())["gradients"]
    diverged = [name for name, result in found.items() if result["diverged"]]
    assert diverged == ["Center loss"]
    assert found["Center loss"]["lengths"]["epoch"] == [0]
    assert found["Softmax"]["lengths"]["epoch"] == [0, 1]
    lines = capsys.readouterr().out.splitlines()
    assert "gradient Center loss: diverged" in lines
    told = [line for line in lines if line.startswith("Center loss ")]
    assert [line.endswith("  diverged") for line in told] == [True, True]
    assert (tmp_path / "gradients.png").stat().st_size > 20_000


def test_loss_of_the_paper_s_order_may_not_diverge(monkeypatch, capsys, tmp_path):
    flags = diverging(monkeypatch, "Softmax", "--center-weight", "1e9")
    assert feature_space.main([*flags, "--output-dir", str(tmp_path)]) == 2
    assert "gradient Softmax: the loss is NaN after epoch 1" in capsys.readouterr().err


@only_once
def test_script_runs_and_goes_on(tmp_path):
    command = [sys.executable, str(ROOT / "experiments/feature_space.py"), *NARROW]
    command += ["--epochs", "1", "--limit", "128", "--output-dir", str(tmp_path)]
    options = {"capture_output": True, "text": True, "check": True, "env": os.environ}
    first = subprocess.run(command, **options).stdout
    result = json.loads((tmp_path / "result.json").read_text())
    assert len(result["features"]) == 8
    lengths = result["gradients"]["Softmax"]["lengths"]
    assert lengths["epoch"] == [0, 1]
    assert len(lengths["scores"]) == 2
    for name in ("features", "gradients"):
        assert (tmp_path / f"{name}.png").stat().st_size > 20_000
    kept = (tmp_path / "2-d_softmax" / "result.json").stat().st_mtime_ns
    assert subprocess.run(command, **options).stdout == first
    assert (tmp_path / "2-d_softmax" / "result.json").stat().st_mtime_ns == kept
