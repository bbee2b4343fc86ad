"""Fingerprints of centroids: do two networks, or a network and an index, share them?"""

import math
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_pedcc.centroids.kerdock import KerdockCentroids
from keras_pedcc.common import Array, ArrayLike
from keras_pedcc.common.checks import BLOCK_ROWS, check_centroids, unit_rows
from keras_pedcc.common.processes import whole
from keras_pedcc.common.sublayers import layers_of

NUMBERS = 256  # of a fingerprint: distances are right to about 9 %
VERSION = 1  # raised when the same centroids come to give other numbers


def centroid_fingerprint(source: Any) -> dict[str, Any]:
    """A few numbers that tell whether two sets of centroids are the same, or how far.

    With u_j the unit centroids of C classes, and a_k and b_k random signs that are
    always the same, number k is `1 / sqrt(C) sum_j a_kj (u_j . b_k)`. The mean square
    of the differences of two fingerprints is, in the mean, the mean squared distance
    of the centroids: `compare_fingerprints` estimates it without the centroids.

    It is the same on every backend and after saving and loading; another float dtype
    changes it by rounding alone. Keep it beside an index of embeddings, as JSON.

    Args:
        source: A head that is built, `KerdockDense` included; a model with one such
            head; what `embedder` returns, which keeps the fingerprint without the head;
            or the centroids: array, tensor or weight, shape `(num_classes, dim)`, whose
            lengths do not matter. Of a head with room all rows count: its fingerprint
            stays the same when it grows. Each sub-centre of a `SubCenterDense` is one.

    Returns:
        Dict that JSON can hold: `"version"`, `"num_classes"`, `"dim"`, and
        `"numbers"`, a list of 256 floats.

    Raises:
        ValueError: A shape does not fit, a centroid has no direction, or a model has
            the centroids of no head, or of several.

    Example:

    >>> centroids = keras_pedcc.generate_pedcc(10, 64)
    >>> found = keras_pedcc.centroid_fingerprint(centroids)
    >>> found["num_classes"], found["dim"], len(found["numbers"])
    (10, 64, 256)
    >>> embed = keras_pedcc.embedder(model)
    >>> found = keras_pedcc.centroid_fingerprint(embed)
    >>> found == keras_pedcc.centroid_fingerprint(model)
    True

    Reference: the signs are those of a random projection, Achlioptas,
    "Database-friendly random projections", 2003.
    """
    is_layer = isinstance(source, keras.layers.Layer)
    centroids = _centroids_in(source) if is_layer else source
    if isinstance(centroids, dict):
        return centroids
    if not isinstance(centroids, KerdockCentroids):
        centroids = check_centroids(_array_of(centroids))
    number, dim = centroids.shape
    # `RandomState` gives the same stream in every version of NumPy.
    signs = np.random.RandomState(VERSION)
    of_dim = _draw(signs, dim)
    total = np.zeros(NUMBERS)
    for start in range(0, number, BLOCK_ROWS):
        rows = unit_rows(_rows(centroids, start, min(start + BLOCK_ROWS, number)))
        total += np.sum(_draw(signs, len(rows)) * (rows @ of_dim), axis=0)
    numbers = np.round(total / math.sqrt(number), 7)
    return {
        "version": VERSION,
        "num_classes": number,
        "dim": dim,
        "numbers": numbers.tolist(),
    }


def compare_fingerprints(first: Any, second: Any) -> dict[str, Any]:
    """How far the centroids of two fingerprints are apart.

    Args:
        first: What `centroid_fingerprint` returned, or what it takes: a head, a model,
            an embedder, or centroids.
        second: Another one.

    Returns:
        Dict of `"distance"`, an estimate of the root of the mean squared distance of
        the unit centroids of a class, in [0, 2], right to about 9 %; `"degrees"`, the
        angle of that chord; and `"same"`, whether the distance is below 0.01, which
        rounding to bfloat16 does not reach.

    Raises:
        ValueError: One is no fingerprint, or they are of another version, number of
            classes or dim.

    Example:

    >>> one, other = (keras_pedcc.generate_pedcc(100, 16, seed=seed) for seed in (0, 1))
    >>> first, second = map(keras_pedcc.centroid_fingerprint, (one, other))
    >>> keras_pedcc.compare_fingerprints(first, first)["same"]
    True
    >>> keras_pedcc.compare_fingerprints(first, second)["same"]
    False
    """
    first, second = _fingerprint_of(first), _fingerprint_of(second)
    for name in ("version", "num_classes", "dim"):
        if first[name] != second[name]:
            raise ValueError(
                f"The fingerprints must be of one {name}. Received: {first[name]} and "
                f"{second[name]}. The networks do not belong together."
            )
    differences = np.subtract(first["numbers"], second["numbers"])
    distance = min(2.0, float(np.sqrt(np.mean(differences**2))))
    degrees = math.degrees(2 * math.asin(distance / 2))
    return {"distance": distance, "degrees": degrees, "same": distance < 0.01}


def check_same_centroids(first: Any, second: Any, *, degrees: float = 0.6) -> None:
    """Raises unless two networks, or a network and an index, share their centroids.

    Args:
        first: A fingerprint, as kept beside an index, or what `centroid_fingerprint`
            takes: a head, a model, an embedder, or centroids.
        second: Another one.
        degrees: Float, not negative. How far fine-tuning may have turned them.
            Defaults to 0.6: the same, but for rounding.

    Raises:
        ValueError: They are further apart, or as in `compare_fingerprints`.

    Example:

    >>> kept = keras_pedcc.centroid_fingerprint(model)
    >>> keras_pedcc.check_same_centroids(kept, keras_pedcc.embedder(model))
    """
    apart = compare_fingerprints(first, second)["degrees"]
    if apart > degrees:
        raise ValueError(
            f"The centroids must be at most {degrees:g} degrees apart. Received: "
            f"{apart:.1f} degrees, in the mean over the classes. Make the network with "
            "the centroids of the index (same seed, method and dim, or "
            "`load_centroids`), embed the images anew, or pass more `degrees` if "
            "fine-tuning moved them."
        )


def _centroids_in(layer: keras.layers.Layer) -> Any:
    """The centroids of the one head in a layer or model, or the fingerprint kept."""
    found = []
    for each in (layer, *layers_of(layer)):
        names = "centroid_fingerprint", "all_centroids", "centroids"
        values = (getattr(each, name, None) for name in names)
        found += [value for value in values if value is not None][:1]
    if len(found) != 1:
        raise ValueError(
            "`source` must have the centroids of one head. Received: "
            f"{layer.name!r} (type {type(layer).__name__}), with those of {len(found)}"
            ". Pass a head of this package that is built, or the centroids."
        )
    return found[0]


def _fingerprint_of(given: Any) -> dict[str, Any]:
    if isinstance(given, keras.layers.Layer) or hasattr(given, "shape"):
        return centroid_fingerprint(given)
    _check(given)
    return given


def _array_of(centroids: Any) -> Array:
    if isinstance(centroids, np.ndarray):
        return centroids
    array = whole(centroids) if hasattr(centroids, "shape") else np.asarray(centroids)
    return array.astype("float32") if array.dtype.kind == "V" else array


def _rows(centroids: Array | KerdockCentroids, start: int, stop: int) -> Array:
    if not isinstance(centroids, KerdockCentroids):
        return centroids[start:stop]
    vectors = centroids.vectors(ops.arange(start, stop, dtype="int32"))
    coordinates = ops.convert_to_numpy(vectors)
    rows = np.zeros((stop - start, centroids.shape[1]), "float32")
    columns, flips = map(ops.convert_to_numpy, (centroids.columns, centroids.flips))
    rows[:, columns] = coordinates * flips
    return rows


def _draw(signs: np.random.RandomState, rows: int) -> Array:
    return 2.0 * signs.randint(0, 2, (rows, NUMBERS)) - 1


def _check(fingerprint: ArrayLike | dict[str, Any]) -> None:
    names = {"version", "num_classes", "dim", "numbers"}
    if not isinstance(fingerprint, dict) or not names <= set(fingerprint):
        raise ValueError(
            "A fingerprint must be what `centroid_fingerprint` returns. Received: "
            f"{type(fingerprint).__name__}. Keep the fingerprint of the network beside "
            "the index when you make it; an index without one cannot be checked."
        )
    numbers = np.asarray(fingerprint["numbers"], "float64")
    if numbers.shape != (NUMBERS,) or not np.isfinite(numbers).all():
        raise ValueError(
            f'A fingerprint must have {NUMBERS} finite "numbers". Received: '
            f"{numbers.size} numbers. It is damaged: make it again."
        )
