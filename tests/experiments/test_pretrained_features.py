"""The studies on features of a pretrained network, on random features."""

import json
import types

import feature_heads
import few_images
import incremental
import incremental_game
import new_network
import numpy as np
import pretrained_features
import pytest
import unseen_classes
from tensors import only_once

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def features(tmp_path_factory):
    """A file of features: eight classes, far apart, and their stages."""
    rng = np.random.default_rng(0)
    arrays = {}
    for part, number in (("train", 480), ("test", 80)):
        labels = np.arange(number) % 8
        arrays[f"y_{part}"] = labels.astype("uint8")
        for kind, size in (("x", 12), ("stages", 9)):
            centres = np.random.default_rng(size).normal(size=(8, size))
            noise = rng.normal(size=(number, size)) / 3
            arrays[f"{kind}_{part}"] = (centres[labels] + noise).astype("float16")
    path = tmp_path_factory.mktemp("features") / "features.npz"
    np.savez(path, **arrays)
    return path


def flags(features, folder, name, *more):
    sizes = ["--hidden", "16", "--dim", "8", "--batch-size", "40"]
    files = ["--features", str(features), "--result", str(folder / f"{name}.json")]
    return [*files, *sizes, *more]


@only_once
def test_features_are_standardized_over_the_training_images_that_count(features):
    data = feature_heads.load(features, first=100)
    assert data.x_train.shape == (100, 12)
    assert len(data.y_train) == 100
    np.testing.assert_allclose(data.x_train.mean(axis=0), 0, atol=1e-3)
    np.testing.assert_allclose(data.x_train.std(axis=0), 1, atol=1e-2)


@only_once
def test_pick_takes_as_many_of_each_class_and_skips_others():
    labels = np.arange(60) % 3
    first = feature_heads.pick(labels, 5, seed=1, classes=[0, 2])
    assert np.bincount(labels[first]).tolist() == [5, 0, 5]
    rest = feature_heads.pick(labels, 15, seed=1, classes=[0, 2], skip=5)
    assert sorted([*first, *rest]) == np.flatnonzero(labels != 1).tolist()


@only_once
def test_pick_refuses_more_images_than_there_are():
    with pytest.raises(ValueError, match="Received: a class with 20"):
        feature_heads.pick(np.arange(60) % 3, 21, seed=0)


@only_once
def test_best_rate_goes_on_while_the_best_is_at_an_end():
    asked = []

    def score(rate):
        asked.append(rate)
        return -abs(rate - 1.0)

    assert few_images.best_rate(score) == 1.0
    assert sorted(asked) == [0.03, 0.1, 0.3, 1.0, 3.0]
    assert few_images.best_rate(lambda rate: -rate) == few_images.LADDER[0]


@only_once
def test_paired_is_the_t_test_of_the_common_seeds():
    found = feature_heads.paired({0: 3.0, 1: 5.0, 2: 1.0}, {0: 2.0, 1: 2.0, 7: 0.0})
    # Differences 1 and 3: t = 2 / (sqrt(2) / sqrt(2)) = 2 with one degree of freedom.
    assert found["mean"] == 2.0
    assert found["p"] == pytest.approx(1 - 2 * np.arctan(2.0) / np.pi)
    assert feature_heads.paired({0: 1.0}, {0: 2.0}) is None


@only_once
def test_table_marks_the_best_and_what_is_not_significant():
    accuracies = {
        "cross entropy": (60.0, 61.0, 62.0),
        "frozen mild": (65.0, 66.1, 66.9),
        "trained": (65.2, 65.7, 66.8),
        "paper": (60.5, 60.4, 62.5),
    }
    runs = [
        {"scored": "test", "per_class": 5, "kind": kind, "seed": seed}
        | {"rate": 0.1, "margin": None, "accuracy": value}
        for kind, values in accuracies.items()
        for seed, value in enumerate(values)
    ]
    lines = few_images.table([few_images.summary(runs)]).splitlines()[2:]
    assert lines == [
        "| cross entropy | 61.0 ± 1.0 |",
        "| frozen mild | **66.0 ± 1.0 (+5.0)** |",
        "| trained | **65.9 ± 0.8 (+4.9)** |",
        "| paper | 61.1 ± 1.2 (+0.1 ~) |",
    ]


@only_once
def test_strangers_are_those_of_low_scores():
    trained = np.eye(2)[[0] * 10 + [1] * 10]
    near, far = np.eye(2)[[0, 1]], np.full((2, 2), 0.5**0.5)
    logits = {"largest": [np.array([1.0, 3.0]), np.array([2.0, 0.0])]}
    found = unseen_classes.strangers(logits, trained, near, far)
    assert found["auroc_neighbours"] == 100.0
    assert found["fpr95_neighbours"] == 0.0
    assert found["auroc_largest"] == 75.0
    assert found["fpr95_largest"] == 50.0  # 2 is above the threshold, 0 is not


@only_once
def test_largest_of_cross_entropy_is_a_probability_and_energy_knows_the_scale():
    logits = np.array([[0.0, np.log(3.0)]])
    plain = types.SimpleNamespace(kind=feature_heads.KINDS["cross entropy"], scale=1.0)
    cosine = types.SimpleNamespace(kind=feature_heads.KINDS["paper"], scale=2.0)
    assert unseen_classes.largest(logits, plain) == pytest.approx([0.75])
    assert unseen_classes.largest(logits, cosine) == pytest.approx([np.log(3.0)])
    assert unseen_classes.energy(logits, plain) == pytest.approx([np.log(4.0)])
    assert unseen_classes.energy(logits, cosine) == pytest.approx([np.log(10.0)])


@only_once
def test_accuracies_of_sessions_tell_base_and_later_classes_apart():
    plan = incremental_game.Plan([None] * 2, [2, 3], None, np.array([0, 0, 1, 2]))
    hits = [
        (plan.y < 2, np.array([True, True, False, True])),
        (plan.y < 3, np.array([True, False, False, True])),
    ]
    found = incremental_game.accuracies(hits, plan)
    assert found["sessions"] == pytest.approx([200 / 3, 50.0])
    assert found["average"] == pytest.approx(175 / 3)
    assert found["last_base"] == pytest.approx(100 / 3)
    assert found["last_new"] == 100.0


def test_dot_regression_is_the_squared_distance_from_one():
    outputs = {"logits": np.array([[0.5, -1.0], [0.0, 1.0]], "float32")}
    found = feature_heads.dot_regression(np.array([0, 0]), outputs)
    np.testing.assert_allclose(np.array(found), [0.125, 0.5])


@only_once
def test_scale_is_that_of_the_loss():
    shape = feature_heads.Shape(4, 4, 8, 5)
    scales = {
        kind: feature_heads.Network(kind, shape).scale
        for kind in ("cross entropy", "paper", "frozen mild")
    }
    auto = np.log(4 / np.expm1(0.05)) / (1 - 0.2 + 1 / 4)
    assert scales == {
        "cross entropy": 1.0,
        "paper": 15.0,
        "frozen mild": pytest.approx(auto),
    }


@only_once
def test_chunks_that_are_done_are_not_repeated(monkeypatch, tmp_path):
    images = np.arange(7, dtype="uint8")
    arrays = {"x_train": images, "y_train": images, "x_test": images[:3]}
    np.savez(tmp_path / "cifar100.npz", **arrays, y_test=images[:3])
    seen = []

    def embed(batch):
        seen.extend(batch)
        return batch[:, None] + 100.0, batch[:, None] + 200.0

    monkeypatch.setattr(pretrained_features, "network", lambda pixels: embed)
    flags = ["--data-dir", str(tmp_path), "--output", str(tmp_path)]
    flags += ["--chunk", "2", "--batch-size", "1"]
    pretrained_features.main(flags)
    (tmp_path / "cifar100_128" / "train_00004.npz").unlink()
    seen.clear()
    pretrained_features.main(flags)
    assert seen == [4, 5]
    with np.load(tmp_path / "cifar100_128.npz") as file:
        assert file["x_train"][:, 0].tolist() == [100.0 + i for i in range(7)]
        assert file["stages_test"][:, 0].tolist() == [200.0, 201.0, 202.0]
        assert file["y_test"].tolist() == [0, 1, 2]


def test_studies_run_and_go_on_where_they_were(features, tmp_path, monkeypatch):
    few = flags(features, tmp_path, "few", "--seeds", "0", "1", "--most-tried", "5")
    few += ["--per-class", "5", "--steps", "40", "--kinds", "cross entropy"]
    few_images.main([*few, "paper", "frozen mild"])
    written = json.loads((tmp_path / "few.json").read_text())
    assert min(row["mean"] for row in written["rows"]) > 60
    assert written["command"].startswith("python experiments/few_images.py --per-class")
    assert str(tmp_path) not in written["command"]

    choice = ["--choice", str(tmp_path / "few.json"), "--choice-of", "5"]
    choice += ["--per-class", "10", "--steps", "40", "--kinds", "cross entropy"]
    choice += ["frozen mild", "--seeds", "0", "1"]
    unseen_classes.main(flags(features, tmp_path, "unseen", *choice))
    rows = json.loads((tmp_path / "unseen.json").read_text())["rows"]
    assert rows[0]["kind"] == unseen_classes.WITHOUT
    assert rows[2]["accuracy"]["mean"] > 60
    new_network.main(flags(features, tmp_path, "new", *choice, "--queries", "10"))
    rows = json.loads((tmp_path / "new.json").read_text())["rows"]
    frozen = next(row for row in rows if row["kind"] == "frozen mild")["known"]
    assert frozen["new_in_old"]["recall_at_1"]["mean"] > 60

    later = ["--base", "6", "--classes", "1", "--base-images", "60", "--epochs", "4"]
    later += ["--later-steps", "5", "--seeds", "0"]
    monkeypatch.setattr(incremental, "HELD_OUT", 20)
    later = flags(features, tmp_path, "later", *later)
    incremental.main(later)
    rows = json.loads((tmp_path / "later.json").read_text())["rows"]
    assert len(rows) == len(incremental.METHODS)
    assert rows[0]["average"]["mean"] > 60

    monkeypatch.setattr(feature_heads.Network, "train", None)
    few_images.main([*few, "paper", "frozen mild"])
    unseen_classes.main(flags(features, tmp_path, "unseen", *choice))
    new_network.main(flags(features, tmp_path, "new", *choice, "--queries", "10"))
    incremental.main(later)
