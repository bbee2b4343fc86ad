import itertools
import os
import pathlib
import time

import keras
import numpy as np
import pytest
from keras import ops

from keras_pedcc import (
    pair_scores,
    roc_curve,
    verification_report,
)


def slow_report(scores, same, fold):
    """Twin of `verification_report`: counts pairs for every threshold by itself."""
    scores, same = [float(s) for s in scores], [bool(s) for s in same]
    everything = range(len(scores))

    def right(threshold, pairs):
        return sum((scores[i] >= threshold) == same[i] for i in pairs)

    def best(pairs):
        values = sorted({scores[i] for i in pairs})
        between = [(a + b) / 2 for a, b in itertools.pairwise(values)]
        candidates = [values[0], *between, np.nextafter(values[-1], np.inf)]
        return max(candidates, key=lambda t: (right(t, pairs), -t))

    accuracies, thresholds = [], []
    for each in sorted(set(fold)):
        threshold = best([i for i in everything if fold[i] != each])
        inside = [i for i in everything if fold[i] == each]
        accuracies.append(right(threshold, inside) / len(inside))
        thresholds.append(threshold)
    alike = [s for s, t in zip(scores, same, strict=True) if t]
    others = [s for s, t in zip(scores, same, strict=True) if not t]
    wins = sum((a > b) + (a == b) / 2 for a in alike for b in others)
    points = [(0.0, 0.0)]
    for t in sorted(set(scores), reverse=True):
        far = sum(s >= t for s in others) / len(others)
        points.append((far, sum(s >= t for s in alike) / len(alike)))
    mean = sum(accuracies) / len(accuracies)
    variance = sum((a - mean) ** 2 for a in accuracies) / (len(accuracies) - 1)
    report = {
        "accuracy": mean,
        "standard_error": (variance / len(accuracies)) ** 0.5,
        "fold_accuracies": accuracies,
        "fold_thresholds": thresholds,
        "threshold": best(everything),
        "auc": wins / len(alike) / len(others),
        "eer": slow_equal_error_rate(points),
        "pairs": len(scores),
        "same": len(alike),
    }
    for name, limit in (("1e-1", 0.1), ("1e-2", 0.01), ("1e-3", 0.001)):
        report[f"tar_at_far_{name}"] = max(t for f, t in points if f <= limit)
    return report


def slow_equal_error_rate(points):
    """Where the line from one point to the next crosses FAR = 1 - TAR."""
    for (f0, t0), (f1, t1) in itertools.pairwise(points):
        if f1 + t1 >= 1:
            share = (1 - f0 - t0) / (f1 + t1 - f0 - t0)
            return f0 + share * (f1 - f0)
    raise AssertionError


def cases():
    rng = np.random.default_rng(3)
    same = rng.permutation(np.arange(120) % 2)
    odd = rng.permutation(np.arange(120) % 5 == 0)
    return {
        "random": (rng.standard_normal(120) + same, same),
        "few different scores": (rng.integers(0, 4, 120) / 4, same),
        "all scores equal": (np.full(120, 0.3), same),
        "all scores equal, few same": (np.full(120, 0.3), odd),
        "separated": (same * 0.5 + rng.uniform(0, 0.4, 120), same),
        "all wrong": (-same.astype(float), same),
        "one neighbouring float apart": (np.where(same, 1.0, np.nextafter(1, 0)), same),
        "same only at the lowest": (np.where(odd, -1.0, rng.normal(size=120)), odd),
        "float32": (rng.standard_normal(120).astype("float32"), odd),
    }


@pytest.mark.parametrize("name", cases())
@pytest.mark.parametrize("given", ["number", "labels"])
def test_report_agrees_with_slow_counting(name, given):
    scores, same = cases()[name]
    folds, fold = 10, np.repeat(np.arange(10), 12)
    if given == "labels":
        folds = fold = np.random.default_rng(1).permutation(np.arange(120) % 7 * 3)
    report = verification_report(same, scores, folds=folds)
    expected = slow_report(scores, same, list(fold))
    assert sorted(report) == sorted(expected)
    for key, value in expected.items():
        np.testing.assert_allclose(report[key], value, rtol=1e-12, atol=1e-15)


def test_threshold_between_neighbouring_floats_separates_them():
    # In float64 nothing lies between them: halfway rounds to one of the two.
    for low in (1.0, np.nextafter(1, 2)):
        scores = np.array([low, np.nextafter(low, 2)] * 2)
        assert verification_report([0, 1] * 2, scores, folds=2)["accuracy"] == 1.0


def test_scores_that_are_all_equal_get_the_more_frequent_answer():
    same = np.array([1, 1, 0, 1] * 5)
    report = verification_report(same, np.ones(20), folds=5)
    assert report["accuracy"] == 0.75
    assert (report["auc"], report["eer"], report["tar_at_far_1e-1"]) == (0.5, 0.5, 0)
    assert verification_report(1 - same, np.ones(20), folds=5)["accuracy"] == 0.75


def test_scores_that_are_all_equal_are_accepted_where_neither_is_more_frequent():
    report = verification_report(np.arange(20) % 2, np.ones(20), folds=5)
    assert report["accuracy"] == 0.5
    assert report["threshold"] == 1.0


def test_pair_at_the_threshold_is_accepted():
    # All scores are that of the pairs on which the threshold is chosen.
    report = verification_report([1, 1, 0, 1, 0], [0.5] * 5, folds=[*"aaabb"])
    assert report["fold_thresholds"] == [0.5, 0.5]
    assert report["fold_accuracies"] == [2 / 3, 0.5]


def test_false_accept_rate_of_exactly_the_limit_counts():
    scores = np.arange(20.0)
    same = np.arange(20) >= 10
    scores[[9, 15]] = scores[[15, 9]]  # one in ten of the others passes
    report = verification_report(same, scores, folds=np.arange(20) % 5)
    assert report["tar_at_far_1e-1"] == 1.0
    assert report["tar_at_far_1e-2"] == 0.4


def test_report_does_not_depend_on_monotone_changes_of_the_score():
    scores, same = cases()["random"]
    first = verification_report(same, scores)
    second = verification_report(same, 1000 + 3 * np.argsort(np.argsort(scores)))
    for key in ("accuracy", "auc", "eer", "tar_at_far_1e-2", "fold_accuracies"):
        # Halfway between scores may fall on another side of a score of the fold.
        np.testing.assert_allclose(first[key], second[key], atol=0.09)
    assert first["auc"] == second["auc"]


def test_report_is_plain_numbers():
    report = verification_report(*reversed(cases()["random"]))
    flat = [x for v in report.values() for x in (v if isinstance(v, list) else [v])]
    assert {type(x) for x in flat} == {float, int}


@pytest.mark.parametrize("name", cases())
def test_curve_agrees_with_scikit_learn(name):
    metrics = pytest.importorskip("sklearn.metrics")
    scores, same = cases()[name]
    far, tar, thresholds = roc_curve(same, scores)
    expected = metrics.roc_curve(same, scores, drop_intermediate=False)
    for mine, theirs in zip((far, tar, thresholds), expected, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-15)
    auc = verification_report(same, scores)["auc"]
    assert auc == pytest.approx(metrics.roc_auc_score(same, scores), rel=1e-14)


def test_scores_are_cosines_of_any_dtype(rng):
    for dtype in ("float64", "float32", "float16", "uint8", "int16"):
        first = rng.uniform(1, 200, (50, 7)).astype(dtype)
        second = rng.uniform(1, 200, (50, 7)).astype(dtype)
        a, b = first.astype("float64"), second.astype("float64")
        expected = [x @ y / (x @ x * (y @ y)) ** 0.5 for x, y in zip(a, b, strict=True)]
        np.testing.assert_allclose(pair_scores(first, second), expected, rtol=1e-13)


def test_scores_of_pairs_are_those_of_their_rows(rng):
    features = rng.standard_normal((30, 5))
    pairs = rng.integers(0, 30, (80, 2))
    expected = pair_scores(features[pairs[:, 0]], features[pairs[:, 1]])
    assert np.array_equal(pair_scores(features, pairs=pairs), expected)
    tensor = ops.convert_to_tensor(features.astype("float32"))
    scores = pair_scores(tensor, pairs=pairs.tolist())
    np.testing.assert_allclose(scores, expected, atol=1e-6)


def test_scores_do_not_depend_on_the_length_of_features(rng):
    features = rng.standard_normal((6, 5))
    expected = pair_scores(features[:3], features[3:])
    for length in (1e-200, 1e200):
        scores = pair_scores(length * features[:3], length * features[3:])
        np.testing.assert_allclose(scores, expected, rtol=1e-12)


def test_report_takes_tensors_that_have_gradients():
    scores, same = cases()["float32"]
    expected = verification_report(same, scores)
    given = ops.convert_to_tensor(same), keras.Variable(scores)
    assert verification_report(*given) == expected


def test_blocks_change_nothing(rng):
    features = rng.standard_normal((3, 2**20))
    pairs = np.array([[0, 1], [1, 2], [2, 0], [0, 0], [2, 1]])
    units = features / np.linalg.norm(features, axis=1, keepdims=True)
    expected = (units @ units.T)[pairs[:, 0], pairs[:, 1]]
    scores = pair_scores(features, pairs=pairs)
    np.testing.assert_allclose(scores, expected, atol=1e-13)
    assert scores[1] == scores[4]


def test_six_thousand_pairs_take_less_than_a_second(rng):
    features = rng.standard_normal((7000, 512)).astype("float32")
    pairs, same = rng.integers(0, 7000, (6000, 2)), np.arange(6000) % 2
    started = time.process_time()
    verification_report(same, pair_scores(features, pairs=pairs))
    assert time.process_time() - started < 1.0


@pytest.mark.slow
def test_raw_pixels_of_real_faces_give_the_known_floor():
    path = pathlib.Path(os.environ.get("KERAS_PEDCC_DATA", "")) / "lfw.npz"
    if not path.is_file():
        pytest.skip("no lfw.npz in the folder KERAS_PEDCC_DATA")
    with np.load(path, allow_pickle=False) as data:
        images, pairs = data["images"], data["pairs"]
    scores = pair_scores(images.reshape(len(images), -1), pairs=pairs[:, :2])
    report = verification_report(pairs[:, 2], scores, folds=pairs[:, 3])
    assert round(100 * report["accuracy"], 1) == 61.1
    assert round(100 * report["standard_error"], 2) == 0.65


def test_scores_refuse_what_has_no_direction(rng):
    features = rng.standard_normal((4, 3))
    for bad in ([np.nan, 0, 1], [np.inf, 0, 1], [0, 0, 0]):
        broken = features.copy()
        broken[2] = bad
        with pytest.raises(ValueError, match=r"`features` must be finite.*features\[2"):
            pair_scores(broken, pairs=[[0, 1]])
        with pytest.raises(ValueError, match=r"`others` must be finite.*Received: 1"):
            pair_scores(features, broken)


def test_scores_refuse_shapes(rng):
    features = rng.standard_normal((4, 3))
    with pytest.raises(ValueError, match=r"`features` must have shape \(batch, dim\)"):
        pair_scores(features[0], pairs=[[0, 1]])
    with pytest.raises(ValueError, match=r"`features` must .*\.shape=\(0, 3\)"):
        pair_scores(features[:0], features[:0])
    with pytest.raises(ValueError, match=r"of real numbers.*made of a dict\. Pass one"):
        pair_scores({"features": features}, pairs=[[0, 1]])
    with pytest.raises(ValueError, match=r"dtype=<U1, made of a list\. Pass one"):
        pair_scores([["a", "b"]], pairs=[[0, 0]])
    with pytest.raises(ValueError, match=r"the same shape.*others.shape=\(3, 3\)"):
        pair_scores(features, features[:3])
    with pytest.raises(ValueError, match="exactly one of `others` and `pairs`"):
        pair_scores(features)
    with pytest.raises(ValueError, match="others=given, pairs=given"):
        pair_scores(features, features, pairs=[[0, 1]])


def test_scores_refuse_pairs(rng):
    features = rng.standard_normal((4, 3))
    with pytest.raises(ValueError, match=r"the 4 rows.*2 pairs.*pairs\[1\]=\[4, 0\]"):
        pair_scores(features, pairs=[[0, 3], [4, 0], [-1, 0]])
    with pytest.raises(ValueError, match=r"shape \(pairs, 2\).*pairs.shape=\(2, 3\)"):
        pair_scores(features, pairs=[[0, 1, 1], [1, 2, 0]])
    with pytest.raises(ValueError, match="at least one pair"):
        pair_scores(features, pairs=np.zeros((0, 2), int))
    with pytest.raises(ValueError, match=r"`pairs` must be whole.*float64"):
        pair_scores(features, pairs=[[0.0, 1.0]])


@pytest.mark.parametrize("function", [verification_report, roc_curve])
def test_report_refuses_scores_and_labels(function):
    same = [0, 1, 1, 0]
    with pytest.raises(ValueError, match=r"one score for each.*scores.shape=\(3,\)"):
        function(same, [0.1, 0.2, 0.3])
    with pytest.raises(ValueError, match=r"`scores` must be finite.*scores\[1\]=nan"):
        function(same, [0.1, np.nan, 0.3, 0.4])
    with pytest.raises(ValueError, match="Received: 4 of 4 pairs of one class"):
        function(np.ones(4), np.ones(4))
    with pytest.raises(ValueError, match="Received: 0 of 4 pairs of one class"):
        function(np.zeros(4), np.ones(4))
    with pytest.raises(ValueError, match="must have pairs of one class"):
        function([], [])
    with pytest.raises(ValueError, match="`same` must be True or False"):
        function([0, 1, 2, 1], np.ones(4))
    with pytest.raises(ValueError, match=r"`same` must .*same.shape=\(4, 1\)"):
        function(np.reshape(same, (4, 1)), np.ones(4))


def test_report_refuses_folds():
    scores, same = np.arange(8.0), np.arange(8) % 2
    with pytest.raises(ValueError, match="`folds` must be at least 2"):
        verification_report(same, scores, folds=1)
    with pytest.raises(ValueError, match=r"at most the number of pairs, 8.*folds=10"):
        verification_report(same, scores)
    with pytest.raises(TypeError, match="`folds` must be a whole number"):
        verification_report(same, scores, folds="lfw")
    with pytest.raises(TypeError, match="`folds` must be a whole number"):
        verification_report(same, scores, folds=2.5)
    with pytest.raises(ValueError, match=r"the fold of each pair.*shape=\(3,\)"):
        verification_report(same, scores, folds=[0, 1, 2])
    with pytest.raises(ValueError, match=r"at least two folds.*with 1 different"):
        verification_report(same, scores, folds=np.zeros(8))
    with pytest.raises(ValueError, match="all of one kind inside fold number 1"):
        verification_report(np.arange(8) >= 4, scores, folds=2)
