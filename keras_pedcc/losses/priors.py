"""Class priors: how frequent the classes are, and what a loss makes of it."""

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from keras import ops

from keras_pedcc.common import Array, ArrayLike
from keras_pedcc.common.checks import check_whole
from keras_pedcc.common.vectors import SUM_TOLERANCE
from keras_pedcc.losses.arguments import is_tensor
from keras_pedcc.scores.protocol import Scores, Shift

Priors: TypeAlias = Sequence[float] | Array  # a count or frequency for each class


def class_priors(labels: ArrayLike, num_classes: int | None = None) -> Array:
    """Frequencies of the classes among labels, for the argument `priors` of a loss.

    A class without samples counts as if it had one, so that every frequency is
    positive.

    Args:
        labels: Class indices, whole numbers of any dtype, shape `(batch,)` or
            `(batch, 1)`; or one-hot or soft labels, shape `(batch, num_classes)`,
            whose rows sum to 1.
        num_classes: int, at least 1. Defaults to the width of one-hot labels, or to
            the largest class index plus 1.

    Returns:
        NumPy array of float64, shape `(num_classes,)`, that sums to 1.

    Raises:
        TypeError: `num_classes` is not a whole number.
        ValueError: The labels are no classes, or do not fit `num_classes`.

    Example:

    >>> keras_pedcc.class_priors([0, 0, 0, 1])
    array([0.75, 0.25])
    """
    if num_classes is not None:
        check_whole(1, num_classes=num_classes)
    given = np.asarray(ops.convert_to_numpy(labels))
    if given.ndim not in (1, 2) or not given.size or given.dtype.kind not in "biuf":
        raise ValueError(
            "`labels` must have shape (batch,), (batch, 1) or (batch, num_classes), "
            "with at least one number. Received: labels.shape="
            f"{given.shape}, labels.dtype={given.dtype}. Pass class indices or one-hot "
            "labels."
        )
    rows = given.ndim == 2 and given.shape[1] > 1
    counted = _sum_of_rows if rows else _count_of_indices
    counts = np.maximum(counted(given, num_classes), 1.0)
    return counts / counts.sum()


def _sum_of_rows(rows: Array, num_classes: int | None) -> Array:
    if num_classes not in (None, rows.shape[1]):
        raise ValueError(
            "One-hot `labels` must have a column for each class. Received: "
            f"labels.shape={rows.shape}, num_classes={num_classes}. Leave "
            "`num_classes` out."
        )
    rows = rows.astype("float64")
    good = (rows >= 0).all(axis=1) & (abs(rows.sum(axis=1) - 1) <= SUM_TOLERANCE)
    if not good.all():
        at = good.argmin()
        raise ValueError(
            "Rows of `labels` must not be negative and must sum to 1. Received: "
            f"labels[{at}]={rows[at]}. Remove these rows."
        )
    return rows.sum(axis=0)


def _count_of_indices(labels: Array, num_classes: int | None) -> Array:
    labels = labels.reshape(-1)
    most = np.inf if num_classes is None else num_classes
    good = (labels >= 0) & (labels < most) & (labels == np.floor(labels))
    if not good.all():
        at = good.argmin()
        raise ValueError(
            f"`labels` must be whole numbers in [0, {most}). Received: "
            f"labels[{at}]={labels[at]}. Remove these labels, or pass a larger "
            "`num_classes`."
        )
    return np.bincount(labels.astype("int64"), minlength=num_classes or 0)


def check_priors(priors: Any) -> Array:
    """Returns priors as a float64 array, or raises a `ValueError`."""
    values = _as_array(priors)
    if values.ndim != 1 or not values.size or values.dtype.kind not in "iuf":
        raise ValueError(
            "`priors` must be one positive number per class, as a list or NumPy array. "
            f"Received: priors={priors!r}. Pass counts or frequencies, as "
            "`keras_pedcc.class_priors(labels)` returns them."
        )
    good = (values > 0) & (values < np.inf)
    if not good.all():
        at = int(good.argmin())
        raise ValueError(
            "`priors` must be positive and finite. Received: "
            f"priors={values[at]} for class {at}. Pass counts or frequencies above 0, "
            "as `keras_pedcc.class_priors(labels)` returns them."
        )
    return values.astype("float64")


def _as_array(priors: Any) -> Array:
    if is_tensor(priors):  # its value may not be known yet
        return np.asarray(None)
    try:
        return np.asarray(priors)
    except ValueError:  # rows of unequal length
        return np.asarray(None)


def shift_of(priors: Priors | None) -> Shift | None:
    """The logarithms of checked priors, without the constant that softmax cancels."""
    if priors is None:
        return None
    logs = np.log(check_priors(priors))
    high, low = float(logs.max()), float(logs.min())
    # Next to 0 a short float keeps more digits.
    return Shift(logs - (high + low) / 2, high - low)


def shift_for(shift: Shift, scores: Scores) -> Shift:
    """The shift as a tensor in the dtype of the scores; raises unless it fits them."""
    number = len(shift.values)
    if number != scores.shape[1]:
        raise ValueError(
            "`priors` must be one positive number per class. Received: priors of "
            f"length {number}, num_classes={scores.shape[1]}. Pass as many as there "
            "are classes."
        )
    values = ops.convert_to_tensor(shift.values, scores.dtype)
    return Shift(values, shift.spread)
