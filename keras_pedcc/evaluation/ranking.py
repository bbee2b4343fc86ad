"""Exact search by cosine: positions of the matches of each query in the gallery."""

from collections.abc import Iterator
from typing import TypeAlias

import numpy as np
from keras import ops

from keras_pedcc.common import Array, Tensor
from keras_pedcc.common.devices import exact_products, has_accelerator

BLOCK = 2**27  # bytes of cosines that are computed at a time
# Cosines of a query to its matches, and the largest to others; both descending.
Found: TypeAlias = tuple[Array, Array]


def ranked(
    queries: Array,
    items: Array,
    codes: Array,
    members: list[Array],
    depth: int,
    without_self: bool,
) -> Array:
    """The position of the first match and the average precision, for each query.

    Args:
        queries: Unit vectors, see `retrieval.prepared` for this and the next three.
        items: Unit vectors of the gallery.
        codes: The code of each query.
        members: The items of each code.
        depth: int, at least 1. Positions are exact up to this one.
        without_self: bool. Whether item i is query i, which then is not a match.

    Returns:
        Array of float64, shape `(queries, 2)`; NaN for a query without a match.
    """
    # JAX has no float64 by default.
    on_device = has_accelerator() and items.dtype == "float32"
    nearest = _nearest_on_device if on_device else _nearest
    rows = np.full((len(queries), 2), np.nan)
    found = nearest(queries, items, codes, members, depth, without_self)
    for row, (matches, others) in zip(rows, found, strict=True):
        if len(matches):
            positions = _positions(matches, others)
            row[:] = positions[0], _average_precision(positions)
    return rows


def _nearest(
    queries: Array,
    items: Array,
    codes: Array,
    members: list[Array],
    depth: int,
    without_self: bool,
) -> Iterator[Found]:
    """Yields `Found` for each query, with NumPy."""
    size = max(1, BLOCK // items[:, 0].nbytes)
    for start in range(0, len(queries), size):
        scores = queries[start : start + size] @ items.T
        for query, row in enumerate(scores, start):
            own = members[codes[query]]
            if without_self:
                row[query] = -np.inf
                own = own[own != query]
            matches = np.sort(row[own])[::-1]
            row[own] = -np.inf
            deep = min(max(depth, len(own)), len(row))
            yield matches, np.sort(np.partition(row, -deep)[-deep:])[::-1]


def _nearest_on_device(
    queries: Array,
    items: Array,
    codes: Array,
    members: list[Array],
    depth: int,
    without_self: bool,
) -> Iterator[Found]:
    """The same, with the backend; only the largest cosines leave its device."""
    largest = max(map(len, members))
    numbers = largest, min(max(depth, largest), len(items))
    kinds = np.empty(len(items), "int32")
    for code, own in enumerate(members):
        kinds[own] = code
    gallery = ops.convert_to_tensor(items), ops.convert_to_tensor(kinds)
    size = max(1, BLOCK // items[:, 0].nbytes)
    for start in range(0, len(queries), size):
        block = slice(start, start + size)
        first = start if without_self else None
        with exact_products():
            found = _largest(queries[block], codes[block], *gallery, numbers, first)
        both = zip(*map(ops.convert_to_numpy, found), strict=True)
        for code, (matches, others) in zip(codes[block], both, strict=True):
            yield matches[: len(members[code]) - without_self], others


def _largest(
    queries: Array,
    codes: Array,
    items: Tensor,
    kinds: Tensor,
    numbers: tuple[int, int],
    first: int | None,
) -> tuple[Tensor, Tensor]:
    """The largest cosines to matches and to other items.

    `first` is the item of the first query, if the queries are items.
    """
    scores = ops.matmul(ops.convert_to_tensor(queries), ops.transpose(items))
    same = ops.equal(ops.convert_to_tensor(codes.astype("int32"))[:, None], kinds)
    matches = ops.where(same, scores, -np.inf)
    if first is not None:
        itself = first + np.arange(len(queries), dtype="int32")[:, None]
        places = ops.arange(items.shape[0], dtype="int32")
        matches = ops.where(ops.equal(places, itself), -np.inf, matches)
    others = ops.where(same, -np.inf, scores)
    return ops.top_k(matches, numbers[0])[0], ops.top_k(others, numbers[1])[0]


def _positions(matches: Array, others: Array) -> Array:
    """Positions of the matches from 1, ascending; exact up to the number of others."""
    # The cosines of equal features differ by rounding, depending on the block.
    least = matches - 4 * np.finfo(others.dtype).eps
    ahead = len(others) - np.searchsorted(others[::-1], least, side="left")
    return np.arange(1, len(matches) + 1) + ahead


def _average_precision(positions: Array) -> float:
    among = positions[positions <= len(positions)]
    return float(np.sum(np.arange(1, len(among) + 1) / among) / len(positions))
