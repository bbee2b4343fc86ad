"""Scores of novelty and their report, against slow float64 twins and scikit-learn."""

import numpy as np
import pytest
from keras import ops
from tensors import only_once

import keras_pedcc
from keras_pedcc import (
    cosine_score,
    energy_score,
    length_score,
    neighbor_score,
    novelty_report,
    novelty_threshold,
)
from keras_pedcc.evaluation import ranking


@only_once
def test_energy_is_the_soft_maximum(rng):
    cosines = rng.uniform(-1, 1, (20, 7))
    for scale in (0.5, 15.0):
        expected = [
            np.log(sum(np.exp(scale * c) for c in row)) / scale for row in cosines
        ]
        np.testing.assert_allclose(
            energy_score(cosines, scale=scale), expected, rtol=1e-12
        )
    # No exponential overflows, and a large scale leaves the largest cosine.
    np.testing.assert_allclose(
        energy_score(1000 * cosines, scale=100.0), cosine_score(1000 * cosines)
    )


def test_scores_take_what_a_head_returns(rng):
    features = rng.standard_normal((6, 8)).astype("float32")
    outputs = keras_pedcc.PEDCCDense(4, return_norm=True)(features)
    logits = ops.convert_to_numpy(outputs["logits"]).astype("float64")
    np.testing.assert_array_equal(cosine_score(outputs), logits.max(axis=1))
    expected = energy_score(logits, scale=2.0)
    np.testing.assert_array_equal(energy_score(outputs, scale=2.0), expected)
    lengths = np.sqrt([sum(float(x) ** 2 for x in row) for row in features])
    np.testing.assert_allclose(length_score(outputs), lengths, rtol=1e-6)
    np.testing.assert_allclose(length_score(features), lengths, rtol=1e-12)


@only_once
@pytest.mark.parametrize("block", [2**27, 2000])
def test_neighbors_agree_with_sorting_everything(rng, monkeypatch, block):
    monkeypatch.setattr(ranking, "BLOCK", block)
    features, gallery = rng.standard_normal((50, 5)), rng.standard_normal((30, 5))
    unit = [x / np.sqrt((x**2).sum(axis=1, keepdims=True)) for x in (features, gallery)]
    ordered = np.sort(unit[0] @ unit[1].T, axis=1)
    for k in (1, 4, 30):
        found = neighbor_score(features, gallery, k=k)
        np.testing.assert_allclose(found, ordered[:, -k], rtol=1e-12)


@only_once
@pytest.mark.parametrize("digits", [None, 1])
def test_report_agrees_with_scikit_learn(rng, digits):
    metrics = pytest.importorskip("sklearn.metrics")
    known, unknown = rng.normal(1, 1, 200), rng.normal(0, 1, 90)
    if digits:  # many are equal
        known, unknown = known.round(digits - 1), unknown.round(digits - 1)
    report = novelty_report(known, unknown)
    labels, scores = [1] * 200 + [0] * 90, np.concatenate([known, unknown])
    auc = metrics.roc_auc_score(labels, scores)
    assert report["auc"] == pytest.approx(auc, rel=1e-12)
    passing = [t for t in known if np.mean(known >= t) >= 0.95]
    expected = np.mean(unknown >= max(passing))
    assert report["fpr_at_95_tpr"] == pytest.approx(expected, rel=1e-12)
    assert (report["known"], report["unknown"]) == (200, 90)


@only_once
@pytest.mark.parametrize("rate", [0.0, 0.055, 0.29, 0.5, 0.99])
def test_threshold_is_the_largest_with_so_few_false_alarms(rng, rate):
    known = rng.integers(0, 60, 100).astype("float64")
    allowed = [t for t in known if np.mean(known < t) <= rate]
    threshold = novelty_threshold(known, false_alarm_rate=rate)
    assert threshold == max(allowed)
    report = novelty_report(known, known - 10, false_alarm_rate=rate)
    assert report["threshold"] == threshold
    assert report["false_alarms"] == np.mean(known < threshold)
    assert report["refused"] == np.mean(known - 10 < threshold)


@only_once
def test_false_alarm_rate_is_met_exactly_where_no_scores_are_equal():
    known = np.arange(100.0)
    report = novelty_report(known, known, false_alarm_rate=0.29)
    assert report["false_alarms"] == 0.29


@only_once
def test_report_judges_a_threshold_of_other_images():
    report = novelty_report([0.9, 0.5], [0.4, 0.7, 0.1], threshold=0.6)
    assert report["threshold"] == 0.6
    assert report["false_alarms"] == 0.5
    assert report["refused"] == pytest.approx(2 / 3)


@only_once
def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"`logits` must have shape.*shape=\(3,\)"):
        cosine_score([0.1, 0.2, 0.3])
    with pytest.raises(ValueError, match=r"`logits` must be finite.*logits\[1\]"):
        cosine_score([[0.1], [np.nan]])
    with pytest.raises(ValueError, match=r'must have "norm"\. Received.*features'):
        length_score({"features": [[1.0]]})
    with pytest.raises(ValueError, match="`scale` must be a positive number"):
        energy_score([[0.1]], scale=0)
    with pytest.raises(ValueError, match=r"at least `k` rows.*k=3"):
        neighbor_score([[1.0, 0.0]], [[1.0, 0.0]] * 2, k=3)
    with pytest.raises(ValueError, match=r"of the dim of `features`.*\(2, 3\)"):
        neighbor_score([[1.0, 0.0]], [[1.0, 0.0, 0.0]] * 2)
    with pytest.raises(TypeError, match="`k` must be a whole number"):
        neighbor_score([[1.0, 0.0]], [[1.0, 0.0]], k=1.0)
    with pytest.raises(ValueError, match=r"`known_scores` must have shape.*\(0,\)"):
        novelty_report([], [0.1])
    with pytest.raises(ValueError, match=r"`unknown_scores` must be finite.*\[0\]"):
        novelty_report([0.1], [np.inf])
    with pytest.raises(ValueError, match=r"in \[0, 1\).*false_alarm_rate=1"):
        novelty_threshold([0.1], false_alarm_rate=1)
