"""Predefined evenly-distributed class centroids (PEDCC) and how good they are."""

import functools
import math
import numbers

import keras
import numpy as np
from keras import ops

METHODS = ("auto", "simplex", "orthogonal_simplices", "polygon", "energy")


def generate_pedcc(num_classes, dim, *, method="auto", seed=0, steps=1000, starts=None):
    """Spreads class centroids over the unit sphere, as far apart as possible.

    The centroids are the rest positions of `num_classes` equal charges that
    repel each other on the unit sphere of `dim` dimensions. Where the best
    arrangement is known it is built directly:

    | `num_classes` | arrangement (`method`) | largest cosine |
    |---|---|---|
    | `<= dim + 1` | regular simplex (`"simplex"`) | `-1 / (num_classes - 1)` |
    | `<= 2 * dim` | `num_classes - dim` mutually orthogonal regular simplices
      (`"orthogonal_simplices"`) | `0` |
    | any, `dim == 2` | regular polygon (`"polygon"`) | `cos(2 pi / num_classes)` |

    All of these have mean zero and are optimal in the largest cosine. Beyond
    them `method="energy"` lets the charges move: projected gradient descent with
    Barzilai-Borwein steps on the Coulomb energy `sum_{i<j} 1 / |c_i - c_j|`,
    inside one compiled function, from several random starts of which the one of
    lowest energy is returned.

    Args:
        num_classes: int, at least 2. Number of centroids.
        dim: int, at least 2. Length of each centroid.
        method: `"auto"` (a closed form wherever one is optimal, else the
            energy), or one of the names above.
        seed: int, at least 0. Draws the random rotation of a closed form, or
            the starts of the descent. The same seed gives the same centroids in
            every process on the same backend.
        steps: int, at least 1. Most steps of the descent; it stops earlier once
            no charge moves by more than 1e-7. Used by `"energy"` only.
        starts: int, at least 1, or `None` for 8 up to 128 classes and 1 above.
            Used by `"energy"` only.

    Returns:
        A float32 tensor of the backend, shape `(num_classes, dim)`, whose rows
        are unit vectors.

    Raises:
        TypeError: A size, `seed`, `steps` or `starts` is not a whole number.
        ValueError: A size is out of range, or `method` is unknown or does not
            reach `num_classes` in `dim` dimensions.

    Example:

    >>> centroids = keras_pedcc.generate_pedcc(4, 3)
    >>> cosines = keras.ops.tensordot(centroids, centroids, axes=(1, 1))
    >>> [round(float(cosine), 3) for cosine in cosines[0]]
    [1.0, -0.333, -0.333, -0.333]

    Reference: Zhu et al., "A New Loss Function for CNN Classifier Based on
    Predefined Evenly-Distributed Class Centroids", IEEE Access 2020, section
    III-B.
    """
    check_whole(2, num_classes=num_classes, dim=dim)
    check_whole(0, seed=seed)
    check_whole(1, steps=steps)
    method = _resolve_method(method, num_classes, dim)
    rng = np.random.default_rng(seed)
    if method == "energy":
        starts = (8 if num_classes <= 128 else 1) if starts is None else starts
        check_whole(1, starts=starts)
        return _relax_charges(rng, num_classes, dim, steps, starts)
    centroids = {
        "simplex": _simplex,
        "orthogonal_simplices": _orthogonal_simplices,
        "polygon": _polygon,
    }[method](num_classes, dim)
    rotation = _random_rotation(rng, dim, centroids.shape[1])
    return ops.convert_to_tensor((centroids @ rotation).astype("float32"))


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

    >>> report = centroid_report(generate_pedcc(10, 64))
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
        "largest_cosine_bound": _largest_cosine_bound(num_classes, dim),
    }


def check_centroids(centroids):
    """Returns `centroids` with unit rows in float64, or raises a `ValueError`."""
    centroids = np.asarray(centroids)
    if centroids.ndim != 2 or min(centroids.shape) < 2:
        raise ValueError(
            "`centroids` must have shape (num_classes, dim), both at least 2. "
            f"Received: centroids.shape={centroids.shape}. Pass one row per class."
        )
    centroids = centroids.astype("float64")
    largest = np.abs(centroids).max(axis=1, keepdims=True)
    bad = ~np.isfinite(largest[:, 0]) | (largest[:, 0] == 0)
    if bad.any():
        raise ValueError(
            "`centroids` must be finite, without a row of zeros. Received: "
            f"centroids with {bad.sum()} such rows, the first at index "
            f"{bad.argmax()}. Remove or replace these rows."
        )
    centroids /= largest
    return centroids / np.linalg.norm(centroids, axis=1, keepdims=True)


def check_whole(minimum, **values):
    """Raises unless each value is a whole number of at least `minimum`."""
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


def _resolve_method(method, num_classes, dim):
    reach = {
        "simplex": num_classes <= dim + 1,
        "orthogonal_simplices": dim + 2 <= num_classes <= 2 * dim,
        "polygon": dim == 2,
        "energy": True,
    }
    if method == "auto":
        return next(name for name, fits in reach.items() if fits)
    if method not in reach:
        raise ValueError(
            f"`method` must be one of {METHODS}. Received: method={method!r}."
        )
    if not reach[method]:
        raise ValueError(
            f"`method` must reach num_classes in dim dimensions. Received: "
            f"method={method!r}, num_classes={num_classes}, dim={dim}. "
            'Use method="auto".'
        )
    return method


def _simplex(num_classes, dim):
    """Rows: the corners of a regular simplex in `num_classes - 1` dimensions."""
    k = np.arange(1, num_classes)
    helmert = np.tri(num_classes - 1, num_classes)
    helmert[k - 1, k] = -k
    helmert *= np.sqrt(num_classes / (num_classes - 1) / (k * (k + 1)))[:, None]
    return helmert.T


def _orthogonal_simplices(num_classes, dim):
    """Rows: `num_classes - dim` simplices, each in dimensions of its own."""
    centroids = np.zeros((num_classes, dim))
    column = 0
    for rows in np.array_split(np.arange(num_classes), num_classes - dim):
        width = len(rows) - 1
        centroids[rows, column : column + width] = _simplex(len(rows), width)
        column += width
    return centroids


def _polygon(num_classes, dim):
    angle = 2 * np.pi * np.arange(num_classes) / num_classes
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)


def _random_rotation(rng, dim, rows):
    """`rows` orthonormal vectors of length `dim`, uniform over all such sets."""
    q, r = np.linalg.qr(rng.standard_normal((dim, rows)))
    return (q * np.sign(np.diag(r))).T


def _relax_charges(rng, num_classes, dim, steps, starts):
    points = rng.standard_normal((starts, num_classes, dim))
    points /= np.linalg.norm(points, axis=-1, keepdims=True)
    descend = _compiled_descent(keras.backend.backend(), points.shape)
    points = ops.convert_to_tensor(points.astype("float32"))
    return descend(points, ops.convert_to_tensor(steps, dtype="int32"))


@functools.lru_cache(maxsize=16)
def _compiled_descent(backend, shape):
    """One compiled function for each shape: each would be traced anew anyway."""
    if backend == "tensorflow":
        import tensorflow as tf

        return tf.function(_descend, autograph=False)
    if backend == "jax":
        import jax

        return jax.jit(_descend)
    return _descend


def _descend(points, steps):
    """Lowers the Coulomb energy of every start and returns the lowest of them."""
    energy, gradient, room = _coulomb(points)
    state = (
        ops.zeros((), "int32"),
        points,
        gradient,
        room / ops.maximum(_largest_row(gradient), 1e-30),
        points,
        energy,
        ops.max(room),
    )

    def moving(step, points, gradient, rate, best, best_energy, moved):
        return ops.logical_and(step < steps, moved > 1e-7)

    def move(step, points, gradient, rate, best, best_energy, moved):
        reached = _normalized(points - rate * gradient)
        energy, slope, room = _coulomb(reached)
        rate = _barzilai_borwein(reached - points, slope - gradient, rate)
        rate = ops.minimum(rate, room / ops.maximum(_largest_row(slope), 1e-30))
        better = energy < best_energy
        best = ops.where(better[:, None, None], reached, best)
        best_energy = ops.minimum(energy, best_energy)
        moved = ops.max(ops.abs(reached - points))
        return step + 1, reached, slope, rate, best, best_energy, moved

    best, best_energy = ops.while_loop(moving, move, state)[4:6]
    return ops.take(best, ops.argmin(best_energy), axis=0)


def _coulomb(points):
    """Energy, its gradient on the sphere, and a fifth of the smallest distance."""
    gram = ops.matmul(points, ops.transpose(points, (0, 2, 1)))
    itself = ops.eye(points.shape[1], dtype="bool")
    squared = ops.where(itself, np.inf, ops.maximum(2 - 2 * gram, 1e-12))
    inverse = ops.rsqrt(squared)
    push = ops.matmul(inverse**3, points)
    gradient = push - ops.sum(push * points, axis=-1, keepdims=True) * points
    room = 0.2 / ops.max(inverse, axis=(1, 2), keepdims=True)
    return ops.sum(inverse, axis=(1, 2)) / 2, gradient, room


def _barzilai_borwein(step, change, rate):
    """The step length `<s, s> / <s, y>`, or twice the last where it has no sense."""
    curvature = ops.sum(step * change, axis=(1, 2), keepdims=True)
    length = ops.sum(ops.square(step), axis=(1, 2), keepdims=True)
    safe = ops.where(curvature > 0, curvature, 1.0)
    return ops.where(curvature > 0, length / safe, 2 * rate)


def _largest_row(vectors):
    norms = ops.sqrt(ops.sum(ops.square(vectors), axis=-1, keepdims=True))
    return ops.max(norms, axis=1, keepdims=True)


def _normalized(points):
    return points * ops.rsqrt(ops.sum(ops.square(points), axis=-1, keepdims=True))


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


def _largest_cosine_bound(num_classes, dim):
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
