"""Input validation."""

import numbers
from collections.abc import Sequence
from typing import Any

import numpy as np
from keras import ops

from keras_pedcc.common import Array, ArrayLike

BLOCK_ROWS = 8192  # rows that are copied to float64 at a time


def check_centroids(centroids: ArrayLike) -> Array:
    """Returns `centroids` as a NumPy array, or raises a `ValueError`."""
    centroids = np.asarray(centroids)
    if centroids.ndim != 2 or min(centroids.shape) < 2:
        raise ValueError(
            "`centroids` must have shape (num_classes, dim), both at least 2. "
            f"Received: centroids.shape={centroids.shape}. Pass one row per class."
        )
    blocks = _blocks_of_rows(centroids)
    bad = np.concatenate(
        [rows_without_direction(part.astype("float64")) for part in blocks]
    )
    if bad.any():
        raise ValueError(
            "`centroids` must be finite, without a row of zeros. Received: "
            f"centroids with {bad.sum()} such rows, the first at index "
            f"{bad.argmax()}. Remove or replace these rows."
        )
    return centroids


def unit_centroids(centroids: ArrayLike, dtype: str = "float64") -> Array:
    """Returns `centroids` with unit rows, computed in float64, or raises as above."""
    centroids = check_centroids(centroids)
    units = np.empty(centroids.shape, dtype)
    parts = zip(_blocks_of_rows(centroids), _blocks_of_rows(units), strict=True)
    for given, unit in parts:
        unit[:] = unit_rows(given)
    return units


def unit_rows(rows: Array) -> Array:
    """Rows divided by their lengths, in float64, without overflow of squares."""
    rows = rows.astype("float64")
    rows /= np.abs(rows).max(axis=1, keepdims=True)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def _blocks_of_rows(array: Array) -> list[Array]:
    """Views of an array, a few thousand rows each."""
    return [array[i : i + BLOCK_ROWS] for i in range(0, len(array), BLOCK_ROWS)]


def check_features(**named: ArrayLike) -> Array:
    """Returns one array of features as a NumPy array, or raises if rows are invalid.

    Any real dtype, shape `(batch, dim)`, without NaN, infinity or a row of zeros.
    """
    [(name, given)] = named.items()
    features = np.asarray(ops.convert_to_numpy(given))
    if features.ndim != 2 or not features.size or features.dtype.kind in "OSUc":
        raise ValueError(
            f"`{name}` must have shape (batch, dim), with at least one row, of real "
            f"numbers. Received: {name}.shape={features.shape}, {name}.dtype="
            f"{features.dtype}, made of a {type(given).__name__}. Pass one array with "
            "a row for each feature."
        )
    bad = rows_without_direction(features)
    if bad.any():
        raise ValueError(
            f"`{name}` must be finite, without a row of zeros. Received: {bad.sum()} "
            f"such rows, the first {name}[{bad.argmax()}]. Remove these rows, or look "
            "for what made the network diverge."
        )
    return features


def rows_without_direction(features: Array) -> Array:
    """Mask of rows that are zero or contain NaN or infinity, shape `(batch,)`."""
    return ~np.isfinite(features).all(axis=1) | ~features.any(axis=1)


def check_classes(**named: Any) -> Array:
    """Returns labels as a NumPy array of shape `(batch,)`, or raises.

    Args:
        named: The labels, of any type, shape `(batch,)` or `(batch, 1)`; then the array
            whose rows they label.
    """
    (of_labels, labels), (name, rows) = named.items()
    labels = np.asarray(ops.convert_to_numpy(labels))
    if labels.shape not in ((len(rows),), (len(rows), 1)):
        raise ValueError(
            f"`{of_labels}` must be one label for each of `{name}`, shape (batch,) or "
            f"(batch, 1). Received: {of_labels}.shape={labels.shape}, {name}.shape="
            f"{rows.shape}. Pass class indices, not one-hot labels."
        )
    labels = labels.reshape(-1)
    missing = labels != labels  # only NaN differs from itself
    if missing.any():
        raise ValueError(
            f"`{of_labels}` must be classes. Received: {missing.sum()} that are NaN, "
            f"the first {of_labels}[{missing.argmax()}]. Remove these rows."
        )
    return labels


def check_whole(minimum: int, **values: Any) -> None:
    """Raises an error unless each value is a whole number of at least `minimum`."""
    for name, value in values.items():
        if not isinstance(value, numbers.Integral) or isinstance(value, bool):
            raise TypeError(
                f"`{name}` must be a whole number. Received: {name}={value!r} "
                f"(type {type(value).__name__}). Pass an int."
            )
        if value < minimum:
            raise ValueError(
                f"`{name}` must be at least {minimum}. Received: {name}={value}. "
                "Pass a larger number."
            )


def check_positive(most: float = float("inf"), **values: Any) -> None:
    """Raises an error unless each value is finite, above 0 and at most `most`."""
    for name, value in values.items():
        number = isinstance(value, numbers.Real) and not isinstance(value, bool)
        if not number or not 0 < value <= most or value == float("inf"):
            limit = "" if most == float("inf") else f" of at most {most}"
            raise ValueError(
                f"`{name}` must be a positive number{limit}. Received: "
                f"{name}={value!r}. Pass a float in that range."
            )


def check_dim(input_shape: Sequence[int | None]) -> int:
    """Returns the size of the features, or raises a `ValueError`."""
    dim = input_shape[-1] if len(input_shape) == 2 else None
    if dim is None or dim < 2:
        raise ValueError(
            "The input must have shape (batch, dim) with a fixed dim of at least 2. "
            f"Received: input_shape={tuple(input_shape)}. Put a `Dense(dim)` layer "
            "before the head."
        )
    return dim


def narrow_labels(y_true: ArrayLike) -> ArrayLike:
    """Casts NumPy integers to int32, so that labels out of range stay invalid.

    JAX would keep the lower 32 bits of a longer integer.
    """
    if not isinstance(y_true, np.ndarray | list | tuple):
        return y_true
    labels = np.asarray(y_true)
    if labels.dtype.kind in "iu" and labels.dtype.itemsize >= 4:
        return np.clip(labels, -1, 2**31 - 1).astype("int32")
    return labels
