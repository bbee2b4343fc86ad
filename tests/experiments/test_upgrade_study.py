import json
import types

import numpy as np
import pytest
import upgrade
from image_experiment.data import Images
from tensors import only_once
from upgrade_study import figure, heads, measures, strangers, tables, tasks

pytestmark = pytest.mark.slow


@pytest.fixture
def images(rng):
    """Six classes, ten training and five test images each, told by brightness."""
    y_train, y_test = np.repeat(np.arange(6), 10), np.repeat(np.arange(6), 5)
    x = [
        rng.integers(0, 40, (len(y), 12, 12, 1)) + 40 * y[:, None, None, None]
        for y in (y_train, y_test)
    ]
    x = [each.astype("uint8") for each in x]
    return Images(x[0], y_train, x[1], y_test, "made", num_classes=6)


def test_study_makes_each_run_once(images, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(tasks, "load", lambda _: images)
    path = tmp_path / "upgrade.json"
    flags = ["--steps", "2", "--batch-size", "8", "--dim", "8", "--seeds", "0"]
    flags += ["--result", str(path), "--cache-dir", str(tmp_path / "old")]
    names = [
        "frozen",
        "slowly trained from old means",
        "AM-Softmax, from the old head",
        "cross entropy + BCT",
    ]
    upgrade.main([*flags, "--heads", *names])
    upgrade.main([*flags, "--parts", "heads", "reserve", "--heads", *names])
    written = json.loads(path.read_text())
    shares = [f"{share} % more" for share in upgrade.RESERVES]
    assert [run["name"] for run in written["runs"]] == names + shares
    assert len(written["commands"]) == 2
    assert all(0 <= run["accuracy"] <= 100 for run in written["runs"])
    kept = sorted(each.name.split("_")[0] for each in (tmp_path / "old").iterdir())
    assert kept == ["am-softmax", "cross-entropy", "frozen"]
    upgrade.main([*flags, "--parts", "novelty"])
    figure.draw(written["runs"], tmp_path / "upgrade.png")
    assert (tmp_path / "upgrade.png").stat().st_size > 10_000
    assert "frozen: largest logit" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="Set KERAS_BACKEND to another"):
        upgrade.main([*flags, "--parts", "backend"])
    with pytest.raises(SystemExit, match="runs with other settings"):
        upgrade.main([*flags, "--steps", "3"])


@only_once
def test_old_network_sees_half_of_the_images_of_known_classes(images):
    task = tasks.make_task(images, 0)
    assert (task.num_classes, task.num_known) == (6, 4)
    seen = task.y[task.for_old]
    assert np.bincount(seen).tolist() == [5, 5, 5, 5]
    both = np.concatenate([task.probes(True), task.probes(False)])
    assert sorted(both) == list(range(60))
    # The numbers of the classes change; images and classes stay together.
    for x, y in ((task.x, task.y), (task.x_test, task.y_test)):
        levels = [np.unique(x[y == k] // 40).size for k in range(6)]
        assert levels == [1] * 6
    other = tasks.make_task(images, 1)
    assert not np.array_equal(other.y, task.y)


@only_once
def test_rows_start_where_the_head_says(rng):
    old = {"rows": 2 * np.eye(4, 8), "unseen_means": np.eye(8)[4:6]}
    given = {"number": 6, "dim": 8, "seed": 3, "own_seed": 1003, "old": old}
    rows = {
        kind: heads.start_rows(heads.Head(rows=kind), **given)
        for kind in ("predefined", "random", "own", "old means", "old head")
    }
    cosines = rows["predefined"] @ rows["predefined"].T
    np.testing.assert_allclose(cosines[~np.eye(6, dtype=bool)], -1 / 5, atol=1e-6)
    np.testing.assert_array_equal(rows["old means"][:4], rows["predefined"][:4])
    np.testing.assert_array_equal(rows["old means"][4:], np.eye(8)[4:6])
    # Cross entropy's rows have lengths: those of the unseen classes get the mean one.
    np.testing.assert_array_equal(rows["old head"], 2 * np.eye(6, 8))
    again = heads.start_rows(heads.Head(rows="random"), **{**given, "own_seed": 3})
    np.testing.assert_array_equal(rows["random"], again)
    again = heads.start_rows(heads.Head(rows="own"), **{**given, "own_seed": 3})
    assert not np.allclose(rows["own"], again)


@only_once
def test_pairs_across_networks_are_of_both_kinds(rng):
    labels = np.repeat(np.arange(7), 9)
    pairs, same = measures.draw_pairs(labels)
    np.testing.assert_array_equal(labels[pairs[:, 0]] == labels[pairs[:, 1]], same)
    assert same.mean() == 0.5
    assert (pairs[:, 0] != pairs[:, 1]).all()
    # Sorted labels and the same features: told apart wherever the classes are.
    features = np.eye(7)[labels] + 0.01 * rng.standard_normal((63, 7))
    assert measures.across(features, features, labels)["auc"] == 1


@only_once
def test_scores_of_strangers_leave_reserved_rows_out():
    task = types.SimpleNamespace(num_known=2)
    logits = np.array([[0.5, 0.1, 0.9], [0.5, 0.1, -0.9]])
    old = {"test_logits": logits, "test_features": np.ones((2, 4))}
    name = "frozen, reserved rows"
    cosine, energy, probability = (
        strangers.scores_of(task, name, old, "test", score)
        for score in ("largest logit", "energy", "largest probability")
    )
    assert cosine.tolist() == [0.5, 0.5]
    assert energy[0] == energy[1]
    scale = heads.scale_of(heads.OLD[name], 3)
    shares = np.exp(scale * logits)
    expected = np.log(shares[:, :2].max(axis=1) / shares.sum(axis=1))
    np.testing.assert_allclose(probability, expected, rtol=1e-9)


def made_run(seed, value, part="heads", name="frozen"):
    found = {"recall_at_1": value, "mean_average_precision_at_r": value / 2}
    searches = dict.fromkeys(tables.SEARCHES, found)
    report = {"known": searches, "unseen": searches, "compatible": value > 0.5}
    shares = {"same_not_farther": 0.25, "others_not_nearer": 0.5}
    run = {"part": part, "name": name, "seed": seed, "accuracy": 80.0, "loss": 1.0}
    return {**run, "report": {**report, **shares}, "verification": {"eer": 0.1}}


@only_once
def test_tables_have_means_and_deviations():
    runs = [made_run(0, 0.25), made_run(1, 0.75)]
    made = tables.blocks(runs)
    assert sorted(made) == ["criteria", "heads"]
    assert "| frozen | 50.0 ± 35.4 |" in made["heads"]
    expected = "| 1 of 2 | 25.0 ± 0.0 | 50.0 ± 0.0 | 10.0 ± 0.0 |"
    assert expected in made["criteria"]
    more = made_run(0, 0.5, "reserve", "50 % more")
    text = tables.blocks([*runs, more])["reserve"]
    assert "| 0 % more | 80.0 ± 0.0 | 1.000 ± 0.000 |" in text
    assert "| 50 % more | 80.0 | 1.000 | 25.0 | 25.0 |" in text


@only_once
def test_study_refuses_arguments(capsys):
    with pytest.raises(SystemExit):
        upgrade.parse_args(["--min-images", "0"])
    assert "--min-images must be at least 1" in capsys.readouterr().err
