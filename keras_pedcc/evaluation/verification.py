"""Verification of pairs: scores, accuracy and ROC."""

from typing import Any

import numpy as np
from keras import ops

from keras_pedcc.common import Array, ArrayLike
from keras_pedcc.common.checks import check_features, check_whole


def pair_scores(
    features: ArrayLike,
    others: ArrayLike | None = None,
    *,
    pairs: ArrayLike | None = None,
) -> Array:
    """Returns the cosine of the two features of each pair: `a . b / (|a| |b|)`.

    The features come from two arrays, row by row (`others`), or from one array by index
    (`pairs`). Computed in float64, by blocks of pairs, for any dtype: raw pixels in
    uint8 are possible, too.

    Args:
        features: Array or tensor, shape `(batch, dim)`; with `others` one row per
            pair. Need not be unit vectors.
        others: Array or tensor of the same shape, or `None`.
        pairs: Whole numbers in [0, batch), shape `(pairs, 2)`, or `None`.

    Returns:
        NumPy array of float64, cosines in [-1, 1] up to rounding, shape `(pairs,)`.

    Raises:
        ValueError: Not exactly one of `others` and `pairs` is given; a shape does not
            fit; a feature is NaN, infinite, or a row of zeros; a pair points past
            the array.

    Example:

    >>> features = [[1.0, 0.0], [2.0, 0.0], [0.0, 1.0]]
    >>> keras_pedcc.pair_scores(features, pairs=[[0, 1], [1, 2]]).tolist()
    [1.0, 0.0]
    """
    if (others is None) == (pairs is None):
        raise ValueError(
            "There must be exactly one of `others` and `pairs`. Received: others="
            f"{'None' if others is None else 'given'}, pairs="
            f"{'None' if pairs is None else 'given'}. Pass the second feature of each "
            "pair, or the indices of both."
        )
    first, second, index = _two_sides(features, others, pairs)
    size = max(1, 2**21 // first.shape[1])  # 16 MiB of float64
    blocks = np.split(index, range(size, len(index), size))
    return np.concatenate([_cosines(first[b[:, 0]], second[b[:, 1]]) for b in blocks])


def roc_curve(same: ArrayLike, scores: ArrayLike) -> tuple[Array, Array, Array]:
    """Returns the receiver operating characteristic (ROC) of verification.

    A pair is accepted as the same class if its score is at least the threshold t.
    `TAR(t)`, the true accept rate, is the share of accepted same-class pairs; `FAR(t)`,
    the false accept rate, that of the other pairs. The curve has one point for each
    distinct score, after a first one at which no pair is accepted.

    Args:
        same: Whether both are of one class: bool, or 0 and 1, shape `(pairs,)`.
        scores: Finite numbers, shape `(pairs,)`; larger means more alike.

    Returns:
        `(far, tar, thresholds)`, NumPy arrays of one shape. Both rates rise from 0
        to 1; the thresholds, in units of the scores, fall from infinity.

    Raises:
        ValueError: A shape or value does not fit, or all pairs are of one kind.

    Example:

    >>> far, tar, thresholds = keras_pedcc.roc_curve([1, 1, 0], [0.9, 0.5, 0.5])
    >>> far.tolist(), tar.tolist()
    ([0.0, 0.0, 1.0], [0.0, 0.5, 1.0])

    Reference: Fawcett, "An introduction to ROC analysis", 2006.
    """
    return _curve(*check_scores(scores, same))


def verification_report(
    same: ArrayLike, scores: ArrayLike, *, folds: int | ArrayLike = 10
) -> dict[str, Any]:
    """Reports how well scores tell pairs of one class from pairs of two.

    Accuracy by the protocol of LFW: for each fold, the threshold with the highest
    accuracy on the pairs of all other folds is applied to the pairs of the fold. With
    `a_k` the accuracy on fold k of K, `accuracy = mean a_k` and `standard_error =
    sqrt(sum_k (a_k - accuracy)^2 / (K - 1)) / sqrt(K)`.

    A pair is accepted as the same class if its score is at least the threshold.
    Thresholds lie halfway between neighbouring scores, at the lowest score, or just
    above the highest; of equally accurate ones the lowest is used. If all scores are
    equal, every pair gets the answer that is more frequent in the other folds, "same"
    in a tie.

    Args:
        same: Whether both are of one class: bool, or 0 and 1, shape `(pairs,)`.
        scores: Finite numbers, shape `(pairs,)`; larger means more alike.
        folds: int, at least 2: folds of neighbouring pairs, as equal in size as
            possible. Or the fold of each pair, any labels, shape `(pairs,)`.

    Returns:
        Dict of Python numbers and lists:

        - `"accuracy"`, `"standard_error"`: see above, in [0, 1].
        - `"fold_accuracies"`, `"fold_thresholds"`: one for each fold, in the sorted
          order of the folds.
        - `"threshold"`: the best for all pairs together, in units of the scores.
        - `"auc"`: area under the ROC, the probability that a same-class pair scores
          higher than another, ties counted half.
        - `"eer"`: equal error rate, `FAR = 1 - TAR` on the linearly interpolated ROC.
        - `"tar_at_far_1e-1"`, `"tar_at_far_1e-2"`, `"tar_at_far_1e-3"`: the largest
          TAR of a threshold whose FAR is at most that; not interpolated.
        - `"pairs"`, `"same"`: number of pairs, and of those from one class.

    Raises:
        TypeError: `folds` is neither a whole number nor a sequence.
        ValueError: A shape or value does not fit, all pairs are of one kind, or those
            outside a fold are.

    Example:

    >>> scores = [0.9, 0.8, 0.1, 0.7, 0.3, 0.2]
    >>> report = keras_pedcc.verification_report([1, 1, 0, 1, 0, 0], scores, folds=2)
    >>> report["accuracy"], report["auc"], report["eer"], report["threshold"]
    (1.0, 1.0, 0.0, 0.5)

    Reference: Huang et al., "Labeled Faces in the Wild", 2007.
    """
    scores, same = check_scores(scores, same)
    far, tar, _ = _curve(scores, same)
    fold = check_folds(folds, same)
    return {
        **_cross_validated(scores, same, fold),
        "threshold": _best_threshold(scores, same),
        "auc": area(far, tar),
        # FAR + TAR rises strictly along the curve, from 0 to 2.
        "eer": float(np.interp(1.0, far + tar, far)),
        "tar_at_far_1e-1": _tar_at(0.1, far, tar),
        "tar_at_far_1e-2": _tar_at(0.01, far, tar),
        "tar_at_far_1e-3": _tar_at(0.001, far, tar),
        "pairs": len(same),
        "same": int(same.sum()),
    }


def area(far: Array, tar: Array) -> float:
    """Area under a curve of `roc_curve`."""
    return float(np.sum(np.diff(far) * (tar[1:] + tar[:-1])) / 2)


def check_pairs(pairs: ArrayLike, size: int) -> Array:
    """Returns `pairs` as indices, shape `(pairs, 2)`, all below `size`, or raises."""
    pairs = np.asarray(ops.convert_to_numpy(pairs))
    if pairs.ndim != 2 or pairs.shape[1] != 2 or not len(pairs):
        raise ValueError(
            "`pairs` must have shape (pairs, 2), with at least one pair. Received: "
            f"pairs.shape={pairs.shape}. Pass two indices per pair, `same` apart."
        )
    if pairs.dtype.kind not in "iu":
        raise ValueError(
            f"`pairs` must be whole numbers. Received: pairs.dtype={pairs.dtype}. Pass "
            "indices of images or features."
        )
    outside = ((pairs < 0) | (pairs >= size)).any(axis=1)
    if outside.any():
        raise ValueError(
            f"`pairs` must point into the {size} rows. Received: {outside.sum()} pairs "
            f"that do not, the first pairs[{outside.argmax()}]="
            f"{pairs[outside.argmax()].tolist()}. Count from 0, and pass all rows."
        )
    return pairs.astype("int64")


def check_same(same: ArrayLike) -> Array:
    """Returns `same` as bool, shape `(pairs,)`, with both kinds, or raises."""
    given = np.asarray(ops.convert_to_numpy(same))
    if given.ndim != 1 or not np.isin(given, (0, 1)).all():
        raise ValueError(
            "`same` must be True or False (1 or 0) for each pair. Received: "
            f"same.shape={given.shape}, same.dtype={given.dtype}, with other values or "
            "another shape than (pairs,). Pass one for each pair."
        )
    given = given.astype(bool)
    if given.all() or not given.any():
        raise ValueError(
            "`same` must have pairs of one class and pairs of two. Received: "
            f"{given.sum()} of {len(given)} pairs of one class. Add pairs of the "
            "other kind."
        )
    return given


def check_scores(scores: ArrayLike, same: ArrayLike) -> tuple[Array, Array]:
    """Returns `scores` in float64 and `same` as bool, or raises a `ValueError`."""
    scores = np.asarray(ops.convert_to_numpy(scores), "float64")
    same = check_same(same)
    if scores.shape != same.shape:
        raise ValueError(
            "There must be one score for each of `same`. Received: scores.shape="
            f"{scores.shape}, same.shape={same.shape}. Pass both of shape (pairs,)."
        )
    bad = ~np.isfinite(scores)
    if bad.any():
        raise ValueError(
            f"`scores` must be finite. Received: {bad.sum()} that are not, the first "
            f"scores[{bad.argmax()}]={scores[bad.argmax()]}. Look for NaN in the "
            "features."
        )
    return scores, same


def check_folds(folds: int | ArrayLike, same: Array) -> Array:
    """Returns the index of the fold of each pair, or raises."""
    if np.ndim(folds) == 0:
        return _check_both_kinds(_contiguous(folds, len(same)), same)
    fold = np.asarray(ops.convert_to_numpy(folds))
    if fold.shape != same.shape or len(np.unique(fold)) < 2:
        raise ValueError(
            "`folds` must be a number, or the fold of each pair with at least two "
            f"folds. Received: folds.shape={fold.shape}, with {len(np.unique(fold))} "
            f"different, for {len(same)} pairs. Pass one entry for each pair."
        )
    index = np.unique(fold, return_inverse=True)[1]
    return _check_both_kinds(index.reshape(-1), same)


def _contiguous(folds: Any, pairs: int) -> Array:
    check_whole(2, folds=folds)
    if folds > pairs:
        raise ValueError(
            f"`folds` must be at most the number of pairs, {pairs}. Received: "
            f"folds={folds}. Pass a smaller number, or more pairs."
        )
    return np.arange(pairs) * int(folds) // pairs


def _check_both_kinds(fold: Array, same: Array) -> Array:
    for kind in (same, ~same):
        inside = np.bincount(fold, kind)
        if inside.max() == kind.sum():
            raise ValueError(
                "`folds` must leave pairs of both kinds outside each fold. Received: "
                f"all of one kind inside fold number {inside.argmax()}. Mix the pairs, "
                "or pass the fold of each pair."
            )
    return fold


def _two_sides(
    features: ArrayLike, others: ArrayLike | None, pairs: ArrayLike | None
) -> tuple[Array, Array, Array]:
    """Two arrays of features, and the index into both of each pair."""
    features = check_features(features=features)
    if pairs is not None:
        return features, features, check_pairs(pairs, len(features))
    others = check_features(others=others)
    if features.shape != others.shape:
        raise ValueError(
            "`features` and `others` must have the same shape. Received: "
            f"features.shape={features.shape}, others.shape={others.shape}. Pass one "
            "row of each for each pair."
        )
    return features, others, np.repeat(np.arange(len(features))[:, None], 2, axis=1)


def _cosines(first: Array, second: Array) -> Array:
    first, second = _scaled(first), _scaled(second)
    # Not `einsum`: its sums depend on memory alignment, which would break ties.
    products = np.sum(first * second, axis=1)
    lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    return products / lengths


def _scaled(rows: Array) -> Array:
    """Rows in float64, divided by their largest entry: no square of it overflows."""
    rows = rows.astype("float64")
    return rows / np.maximum(rows.max(axis=1), -rows.min(axis=1))[:, None]


def _counts(scores: Array, same: Array) -> tuple[Array, Array, Array]:
    """The distinct scores, rising, and how many pairs of each kind have each."""
    values, index = np.unique(scores, return_inverse=True)
    of_same, of_others = (
        np.bincount(index, kind, len(values)) for kind in (same, ~same)
    )
    return values, of_same, of_others


def _curve(scores: Array, same: Array) -> tuple[Array, Array, Array]:
    values, accepted, rejected = _counts(scores, same)
    tar = np.append(0.0, np.cumsum(accepted[::-1]) / same.sum())
    far = np.append(0.0, np.cumsum(rejected[::-1]) / (~same).sum())
    return far, tar, np.append(np.inf, values[::-1])


def _tar_at(limit: float, far: Array, tar: Array) -> float:
    return float(tar[np.searchsorted(far, limit, side="right") - 1])


def _best_threshold(scores: Array, same: Array) -> float:
    values, of_same, of_others = _counts(scores, same)
    # Number of right answers if the threshold is below the i-th distinct score.
    right = np.append(0, np.cumsum(of_others - of_same))
    best = np.argmax(right)
    if best in (0, len(values)):
        return float(values[0] if best == 0 else np.nextafter(values[-1], np.inf))
    low, high = values[best - 1 : best + 1]
    middle = low / 2 + high / 2
    return float(middle if middle > low else high)


def _cross_validated(scores: Array, same: Array, fold: Array) -> dict[str, Any]:
    accuracies, thresholds = [], []
    for each in range(fold.max() + 1):
        inside = fold == each
        threshold = _best_threshold(scores[~inside], same[~inside])
        accuracies.append(float(np.mean((scores[inside] >= threshold) == same[inside])))
        thresholds.append(threshold)
    return {
        "accuracy": float(np.mean(accuracies)),
        "standard_error": float(np.std(accuracies, ddof=1) / len(accuracies) ** 0.5),
        "fold_accuracies": accuracies,
        "fold_thresholds": thresholds,
    }
