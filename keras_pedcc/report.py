"""How evenly centroids are spread, and how far from possible that is."""

import math

import numpy as np
from keras import ops

from keras_pedcc.checks import check_centroids


def centroid_report(centroids):
    """Measures how evenly centroids are spread, and how far from possible that is.

    Args:
        centroids: Array or tensor, shape `(num_classes, dim)`, both at least 2.
            Rows are normalised first; every number is computed in float64.

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
          `cos(2 pi / n)` for d = 2, else the bound of Levenshtein of degree 3.

    Raises:
        ValueError: `centroids` is not a finite matrix of at least 2 x 2, or a
            row is zero.

    Example:

    >>> report = keras_pedcc.centroid_report(keras_pedcc.generate_pedcc(10, 64))
    >>> round(report["largest_cosine"], 4), round(report["largest_cosine_bound"], 4)
    (-0.1111, -0.1111)
    """
    unit = check_centroids(ops.convert_to_numpy(centroids))
    num_classes, dim = unit.shape
    largest, smallest, energy = _pair_statistics(unit)
    return {
        "num_classes": num_classes,
        "dim": dim,
        "largest_cosine": largest,
        "smallest_angle_degrees": math.degrees(math.acos(min(1.0, largest))),
        "cosine_spread": largest - smallest,
        "mean_norm": float(np.linalg.norm(unit.mean(axis=0))),
        "coulomb_energy": energy,
        "largest_cosine_bound": largest_cosine_bound(num_classes, dim),
    }


def largest_cosine_bound(num_classes, dim):
    """What no arrangement of so many unit vectors can go below."""
    if num_classes <= dim + 1:
        return -1 / (num_classes - 1)
    if num_classes <= 2 * dim:
        return 0.0
    if dim == 2:
        return math.cos(2 * math.pi / num_classes)
    # Levenshtein: n <= d (1 - s) (2 + (d + 1) s) / (1 - d s^2) for s up to the
    # end of its range; solved for s, it is a quadratic equation.
    d, n = dim, num_classes
    a, b, c = d * (n - d - 1), d * (d - 1), 2 * d - n
    root = (-b + math.sqrt(b * b - 4 * a * c)) / (2 * a)
    return min(root, (math.sqrt(d + 3) - 1) / (d + 2))


def _pair_statistics(unit, block=1024):
    """Largest and smallest cosine, and Coulomb energy, by blocks of rows."""
    largest, smallest, energy = -1.0, 1.0, 0.0
    for start in range(0, len(unit), block):
        rows = unit[start : start + block]
        cosines = rows @ unit.T
        later = np.arange(len(unit)) > np.arange(start, start + len(rows))[:, None]
        cosines = cosines[later]
        if cosines.size:
            largest = max(largest, float(cosines.max()))
            smallest = min(smallest, float(cosines.min()))
            with np.errstate(divide="ignore"):
                energy += float(np.sum(np.maximum(2 - 2 * cosines, 0) ** -0.5))
    return largest, smallest, energy
