"""Scores and thresholds that tell known classes from anything else."""

from typing import Any

import numpy as np
from keras import ops

from keras_pedcc.common import Array, ArrayLike
from keras_pedcc.common.checks import check_positive, check_whole
from keras_pedcc.evaluation import ranking, retrieval
from keras_pedcc.evaluation.verification import area, roc_curve

Outputs = ArrayLike | dict[str, ArrayLike]


def cosine_score(outputs: Outputs) -> Array:
    """Returns the largest cosine of each sample, `max_j cos_j`; near 1 if known.

    For heads without cosines it is the largest logit.

    Args:
        outputs: Cosines, shape `(batch, num_classes)`, or a dict with `"logits"`, as
            `PEDCCDense` returns.

    Returns:
        NumPy array of float64, shape `(batch,)`.

    Raises:
        ValueError: A shape does not fit, or a logit is NaN or infinite.

    Example:

    >>> keras_pedcc.cosine_score([[0.5, 0.25], [0.0, -1.0]]).tolist()
    [0.5, 0.0]
    """
    return _rows(outputs, "logits").max(axis=1)


def energy_score(outputs: Outputs, *, scale: float) -> Array:
    """Returns the soft maximum of the cosines, `log(sum_j exp(s cos_j)) / s`.

    It exceeds the largest cosine by at most `log(num_classes) / s`. It is high if the
    sample is near one centroid or several. It is the negative energy of the reference,
    at the temperature 1 / s.

    Args:
        outputs: As in `cosine_score`.
        scale: Positive float s, the scale of the loss: `loss.scale`, or
            `keras_pedcc.losses.auto_scale` for `"auto"`. Pass 1 for logits of plain
            cross entropy.

    Returns:
        NumPy array of float64, shape `(batch,)`, in units of the logits.

    Raises:
        ValueError: `scale` is not positive, or as in `cosine_score`.

    Example:

    >>> float(keras_pedcc.energy_score([[0.5, 0.5]], scale=2.0)[0].round(4))
    0.8466

    Reference: Liu et al., "Energy-based Out-of-distribution Detection", 2020, eq. 4,
    https://arxiv.org/abs/2010.03759.
    """
    check_positive(scale=scale)
    logits = _rows(outputs, "logits")
    top = logits.max(axis=1)
    return top + np.log(np.exp(scale * (logits - top[:, None])).sum(axis=1)) / scale


def length_score(features: Outputs) -> Array:
    """Returns the length of each feature before normalization.

    Args:
        features: Features that are not unit vectors, shape `(batch, dim)`; or a dict
            with `"norm"`, as a head with `return_norm=True` returns.

    Returns:
        NumPy array of float64, shape `(batch,)`.

    Raises:
        ValueError: A shape does not fit, or a feature is NaN or infinite.

    Example:

    >>> keras_pedcc.length_score([[3.0, 4.0], [0.0, 1.0]]).tolist()
    [5.0, 1.0]
    """
    if isinstance(features, dict):
        return _column(norm=_entry(features, "norm"))
    return np.linalg.norm(_rows(features, "features"), axis=1)


def neighbor_score(features: ArrayLike, gallery: ArrayLike, *, k: int = 1) -> Array:
    """Returns the cosine of each feature to its k-th nearest of a gallery of known
    images.

    The search is exact, on the CPU, in blocks of queries. In addition to the features
    and a normalized copy of them, it needs at most about 0.3 GiB.

    Args:
        features: Array or tensor, shape `(batch, dim)`; need not be unit vectors.
        gallery: Array or tensor of features of known classes, shape `(items, dim)`,
            such as those of training images.
        k: int, from 1 to the number of items. A larger k is more robust to outliers in
            the gallery. Defaults to 1.

    Returns:
        NumPy array of float64, shape `(batch,)`.

    Raises:
        TypeError: `k` is not a whole number.
        ValueError: `k` is out of range, a shape does not fit, or a feature is NaN,
            infinite or a row of zeros.

    Example:

    >>> gallery = [[1.0, 0.0], [0.6, 0.8]]
    >>> keras_pedcc.neighbor_score([[1.0, 0.0]], gallery, k=2).round(6).tolist()
    [0.6]

    Reference: Sun et al., "Out-of-Distribution Detection with Deep Nearest Neighbors",
    2022, https://arxiv.org/abs/2204.06507.
    """
    queries = retrieval.unit_features(features=features)
    items = retrieval.unit_features(gallery=gallery)
    check_whole(1, k=k)
    if k > len(items) or queries.shape[1] != items.shape[1]:
        raise ValueError(
            "`gallery` must have at least `k` rows, of the dim of `features`. "
            f"Received: gallery.shape={items.shape}, features.shape={queries.shape}, "
            f"k={k}. Pass features of one embedder, or a smaller k."
        )
    size = max(1, ranking.BLOCK // items[:, 0].nbytes // 2)
    found = np.empty(len(queries))
    for start in range(0, len(queries), size):
        cosines = queries[start : start + size] @ items.T
        cosines.partition(len(items) - k, axis=1)
        found[start : start + size] = cosines[:, -k]
    return found


def novelty_threshold(
    known_scores: ArrayLike, *, false_alarm_rate: float = 0.05
) -> float:
    """Returns the threshold below which a sample is refused, from known samples alone.

    It is the largest score t such that the share of known samples with a score below t
    is at most `false_alarm_rate`.

    Args:
        known_scores: Finite scores of samples of the known classes, shape `(known,)`;
            larger means better known. Use images that the network was not trained on:
            training images score higher.
        false_alarm_rate: Float in [0, 1). Accepted share of known samples that are
            refused as strangers. Defaults to 0.05.

    Returns:
        float, in units of the scores.

    Raises:
        ValueError: A shape or value does not fit.

    Example:

    >>> scores = [0.9, 0.2, 0.8, 0.7]
    >>> keras_pedcc.novelty_threshold(scores, false_alarm_rate=0.25)
    0.7
    """
    known = np.sort(_column(known_scores=known_scores))
    if not 0 <= false_alarm_rate < 1:
        raise ValueError(
            "`false_alarm_rate` must lie in [0, 1). Received: false_alarm_rate="
            f"{false_alarm_rate!r}. Pass the share of known samples to refuse at most."
        )
    below = np.arange(len(known)) / len(known)
    return float(known[np.searchsorted(below, false_alarm_rate, side="right") - 1])


def novelty_report(
    known_scores: ArrayLike,
    unknown_scores: ArrayLike,
    *,
    false_alarm_rate: float = 0.05,
    threshold: float | None = None,
) -> dict[str, Any]:
    """Reports how well scores tell known classes from strangers.

    A sample is refused as a stranger if its score is below the threshold. The ROC is
    that of `roc_curve`, with known samples instead of same-class pairs.

    Args:
        known_scores: Finite scores of samples of the known classes, shape `(known,)`;
            larger means better known.
        unknown_scores: Finite scores of strangers, shape `(unknown,)`.
        false_alarm_rate: As in `novelty_threshold`, which chooses the threshold.
            Defaults to 0.05.
        threshold: Float to use instead, such as that of `novelty_threshold` for other
            images. Defaults to `None`.

    Returns:
        Dict of Python numbers:

        - `"auc"`: area under the ROC, the probability that a known sample scores
          higher than a stranger, ties counted half,
        - `"fpr_at_95_tpr"`: share of the strangers that pass if at least 95 % of the
          known samples pass; not interpolated,
        - `"threshold"`: see above,
        - `"false_alarms"`: share of the known samples that it refuses,
        - `"refused"`: share of the strangers that it refuses,
        - `"known"`, `"unknown"`: how many there are.

    Raises:
        ValueError: A shape or value does not fit.

    Example:

    >>> report = keras_pedcc.novelty_report([0.9, 0.8, 0.4], [0.5, 0.1])
    >>> report["threshold"], report["refused"], round(report["auc"], 3)
    (0.4, 0.5, 0.833)

    Reference: Hendrycks and Gimpel, "A Baseline for Detecting Misclassified and
    Out-of-Distribution Examples in Neural Networks", 2017,
    https://arxiv.org/abs/1610.02136.
    """
    known = _column(known_scores=known_scores)
    unknown = _column(unknown_scores=unknown_scores)
    if threshold is None:
        threshold = novelty_threshold(known, false_alarm_rate=false_alarm_rate)
    is_known = np.repeat([True, False], [len(known), len(unknown)])
    fpr, tpr, _ = roc_curve(is_known, np.concatenate([known, unknown]))
    return {
        "auc": area(fpr, tpr),
        "fpr_at_95_tpr": float(fpr[np.searchsorted(tpr, 0.95)]),
        "threshold": float(threshold),
        "false_alarms": float(np.mean(known < threshold)),
        "refused": float(np.mean(unknown < threshold)),
        "known": len(known),
        "unknown": len(unknown),
    }


def _rows(outputs: Outputs, name: str) -> Array:
    """An array of shape `(batch, n)` in float64, which may be an entry of a dict."""
    given = _entry(outputs, name) if isinstance(outputs, dict) else outputs
    rows = np.asarray(ops.convert_to_numpy(given), "float64")
    if rows.ndim != 2 or not rows.size:
        raise ValueError(
            f"`{name}` must have shape (batch, n), with at least one row. Received: "
            f"{name}.shape={rows.shape}. Pass one row for each sample."
        )
    return _finite(rows, name)


def _column(**named: ArrayLike) -> Array:
    """One number for each sample, in float64."""
    [(name, given)] = named.items()
    values = np.asarray(ops.convert_to_numpy(given), "float64")
    if values.ndim != 1 or not values.size:
        raise ValueError(
            f"`{name}` must have shape (batch,), with at least one number. Received: "
            f"{name}.shape={values.shape}. Pass one score for each sample."
        )
    return _finite(values, name)


def _entry(outputs: dict[str, ArrayLike], name: str) -> ArrayLike:
    if name not in outputs:
        raise ValueError(
            f'The outputs must have "{name}". Received: a dict with {sorted(outputs)}. '
            "Pass the array itself, or let the head return it."
        )
    return outputs[name]


def _finite(values: Array, name: str) -> Array:
    bad = ~np.isfinite(values).reshape(len(values), -1).all(axis=1)
    if bad.any():
        raise ValueError(
            f"`{name}` must be finite. Received: {bad.sum()} rows that are not, the "
            f"first {name}[{bad.argmax()}]. Look for NaN in the features."
        )
    return values
