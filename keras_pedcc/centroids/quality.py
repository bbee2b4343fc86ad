"""How evenly centroids are spread, and how far from possible that is."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from keras import ops

from keras_pedcc.common import Array, ArrayLike
from keras_pedcc.common.checks import check_centroids, unit_rows

BLOCK_ROWS = 1024  # on each side: 8 MiB of cosines in float64 at a time


def centroid_report(centroids: ArrayLike) -> dict[str, Any]:
    """Measures how evenly centroids are spread, and how far from possible that is.

    Args:
        centroids: Array or tensor, shape `(num_classes, dim)`, both at least 2.
            Rows are normalised first. Every number is computed in float64, by blocks of
            rows, which take some tens of MiB in addition to the input.

    Returns:
        A plain dict:

        - `num_classes`, `dim`: the shape.
        - `largest_cosine`: largest cosine between two centroids.
        - `smallest_angle_degrees`: the same as an angle, in degrees.
        - `cosine_spread`: largest minus smallest cosine; 0 when equidistant.
        - `mean_norm`: Euclidean norm of the mean centroid; 0 when balanced.
        - `coulomb_energy`: `sum_{i<j} 1 / |c_i - c_j|`.
        - `largest_cosine_bound`: no arrangement has a smaller largest cosine:
          `-1/(n-1)` for n <= d + 1 and 0 for n <= 2 d (Rankin 1955),
          `cos(2 pi / n)` for d = 2, else the bound of Levenshtein.

    Raises:
        ValueError: `centroids` is not a finite matrix of at least 2 x 2, or a
            row is zero.

    Example:

    >>> report = keras_pedcc.centroid_report(keras_pedcc.generate_pedcc(10, 64))
    >>> round(report["largest_cosine"], 4), round(report["largest_cosine_bound"], 4)
    (-0.1111, -0.1111)
    """
    centroids = check_centroids(ops.convert_to_numpy(centroids))
    num_classes, dim = centroids.shape
    blocks = np.array_split(centroids, -(-num_classes // BLOCK_ROWS))
    mean = sum(unit_rows(block).sum(axis=0) for block in blocks) / num_classes
    largest, smallest, energy = _pair_statistics(blocks)
    return {
        "num_classes": num_classes,
        "dim": dim,
        "largest_cosine": largest,
        "smallest_angle_degrees": math.degrees(math.acos(min(1.0, largest))),
        "cosine_spread": largest - smallest,
        "mean_norm": float(np.linalg.norm(mean)),
        "coulomb_energy": energy,
        "largest_cosine_bound": largest_cosine_bound(num_classes, dim),
    }


def largest_cosine_bound(num_classes: int, dim: int) -> float:
    """Lower bound of the largest cosine of any arrangement of unit vectors."""
    if num_classes <= dim + 1:
        return -1 / (num_classes - 1)
    if num_classes <= 2 * dim:
        return 0.0
    if dim == 2:
        return math.cos(2 * math.pi / num_classes)
    return _levenshtein(num_classes, dim)


def _levenshtein(num_classes: int, dim: int) -> float:
    """The s at which Levenshtein's bound on the number of vectors is `num_classes`.

    With P_k Gegenbauer's polynomials of `dim` dimensions, P_k(1) = 1, up to the
    largest zero of P_k - P_{k+1} (beside s = 1) at most
    `C(k+d-3, k-1) ((2k+d-3)/(d-1) - (P_{k-1} - P_k) / ((1-s) P_k))` vectors have
    cosines up to s, and from there to the largest zero of P_{k+1}' at most
    `C(k+d-2, k) ((2k+d-1)/(d-1) - (1+s) (P_k - P_{k+1}) / ((1-s) (P_k + P_{k+1})))`.
    """
    d, low = dim, 0.0
    for k in range(2, 1000):

        def odd(s: float, k: int = k) -> float:
            before, p, _ = _gegenbauer(s, k, d)
            ratio = (before - p) / ((1 - s) * p)
            return math.comb(k + d - 3, k - 1) * ((2 * k + d - 3) / (d - 1) - ratio)

        def even(s: float, k: int = k) -> float:
            _, p, after = _gegenbauer(s, k, d)
            ratio = (1 + s) * (p - after) / ((1 - s) * (p + after))
            return math.comb(k + d - 2, k) * ((2 * k + d - 1) / (d - 1) - ratio)

        ends = _largest_zero_of_difference(k, d), _largest_zero(k, d + 2)
        for bound, high in zip((odd, even), ends, strict=True):
            if bound(high - 1e-12) >= num_classes:
                return _where(bound, num_classes, low, high)
            low = high
    return low


def _gegenbauer(s: float, k: int, dim: int) -> tuple[float, float, float]:
    """P_{k-1}, P_k and P_{k+1} at s."""
    before, p = 1.0, s
    for i in range(1, k + 1):
        after = ((2 * i + dim - 2) * s * p - i * before) / (i + dim - 2)
        if i < k:
            before, p = p, after
    return before, p, after


def _largest_zero(k: int, dim: int) -> float:
    """The largest zero of P_k, an eigenvalue of its recurrence."""
    i = np.arange(1, k)
    beside = np.sqrt(i * (i + dim - 3) / ((2 * i + dim - 4) * (2 * i + dim - 2)))
    matrix = np.diag(beside, 1) + np.diag(beside, -1)
    return float(np.linalg.eigvalsh(matrix)[-1])


def _largest_zero_of_difference(k: int, dim: int) -> float:
    """The largest zero below 1 of P_k - P_{k+1}."""

    def difference(s: float) -> float:
        _, p, after = _gegenbauer(s, k, dim)
        return p - after

    # It lies between the largest zeros of P_k' and of P_{k+1}'.
    low, high = _largest_zero(k - 1, dim + 2), _largest_zero(k, dim + 2)
    return _where(difference, 0.0, low, high)


def _where(
    function: Callable[[float], float], value: float, low: float, high: float
) -> float:
    """The argument at which an increasing function takes a value, by bisection."""
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (low, middle) if function(middle) > value else (middle, high)
    return low


def _pair_statistics(blocks: list[Array]) -> tuple[float, float, float]:
    """Largest and smallest cosine, and Coulomb energy, one pair of blocks at a time."""
    largest, smallest, energy = -1.0, 1.0, 0.0
    for first, block in enumerate(blocks):
        rows = unit_rows(block)
        for other in blocks[first:]:
            cosines = _cosines_of_pairs(rows, None if other is block else other)
            if cosines.size:
                largest = max(largest, float(cosines.max()))
                smallest = min(smallest, float(cosines.min()))
                energy += _energy(cosines)
    return largest, smallest, energy


def _cosines_of_pairs(rows: Array, others: Array | None) -> Array:
    """Cosines of rows with `others`; if that is `None`, of each pair of rows once."""
    if others is not None:
        return rows @ unit_rows(others).T
    return (rows @ rows.T)[np.triu_indices(len(rows), 1)]


def _energy(cosines: Array) -> float:
    distances = np.sqrt(np.maximum(2 - 2 * cosines, 0))
    with np.errstate(divide="ignore"):
        return float(np.sum(1 / distances))
