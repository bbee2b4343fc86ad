import json
import types

import numpy as np
import priors
import pytest

pytestmark = pytest.mark.slow


def test_study_writes_a_row_for_each_loss(rng, monkeypatch, tmp_path):
    labels = np.arange(60) % 6
    images = types.SimpleNamespace(
        x_train=rng.integers(0, 255, (60, 28, 28, 1)),
        y_train=labels,
        x_test=rng.integers(0, 255, (12, 28, 28, 1)),
        y_test=labels[:12],
        num_classes=6,
    )
    monkeypatch.setattr("image_experiment.data.load", lambda *_: images)
    path = tmp_path / "priors.json"
    flags = ["--steps", "2", "--batch-size", "8", "--most", "8", "--imbalance", "4"]
    priors.main([*flags, "--seeds", "0", "--result", str(path)])
    assert np.bincount(images.y_train).tolist() == [8, 6, 5, 3, 3, 2]
    written = json.loads(path.read_text())
    found = [(row["kind"], row["priors"]) for row in written["rows"]]
    assert found == [(kind, with_it) for kind in priors.KINDS for with_it in (0, 1)]
    assert "--imbalance 4.0" in written["command"]


def test_rows_are_means_over_the_seeds():
    runs = [
        {"kind": "a", "priors": True, "accuracy": value, "rarest_third": 0.0}
        for value in (1.0, 3.0)
    ]
    [row] = priors.rows(runs)
    assert row["accuracy"] == {"mean": 2.0, "deviation": pytest.approx(2**0.5)}
    assert priors.rows(runs[:1])[0]["accuracy"]["deviation"] is None


def test_study_refuses_arguments(capsys):
    with pytest.raises(SystemExit):
        priors.parse_args(["--imbalance", "0.5"])
    assert "--imbalance must be at least 1" in capsys.readouterr().err
