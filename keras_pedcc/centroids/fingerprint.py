"""Fingerprints, which tell whether networks or indexes share their centroids."""

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

NUMBERS = 256  # of a fingerprint: distances are accurate to about 9 %
VERSION = 1  # increase it when the same centroids give other numbers


def centroid_fingerprint(source: Any) -> dict[str, Any]:
    """Returns a few numbers that tell whether, or how far, two sets of centroids
    differ.

    With u_j the unit centroids of C classes, and a_k and b_k fixed random signs, number
    k is `1 / sqrt(C) sum_j a_kj (u_j . b_k)`. The expected mean squared difference of
    two fingerprints is the mean squared distance of the centroids.
    `compare_fingerprints` estimates this distance without the centroids.

    The fingerprint is the same on every backend and after saving and loading; another
    float dtype changes it only by rounding. Store it as JSON next to an index of
    embeddings.

    Args:
        source: A built head, such as `PEDCCDense` or `KerdockDense`; a model with one
            such head; a model from `embedder`, which keeps the fingerprint without the
            head; or the centroids: array, tensor or weight, shape `(num_classes, dim)`,
            whose lengths do not matter. Of a head with room, all rows count, so the
            fingerprint does not change when the head grows. Each sub-centre of a
            `SubCenterDense` counts as a centroid.

    Returns:
        JSON-compatible dict of `"version"`, `"num_classes"`, `"dim"`, and `"numbers"`,
        a list of 256 floats.

    Raises:
        ValueError: A shape does not fit, a centroid is zero or not finite, or a model
            does not have exactly one head with centroids.

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
    """Estimates how far the centroids of two fingerprints are apart.

    Args:
        first: A fingerprint, or an argument of `centroid_fingerprint`: a head, a model,
            an embedder, or centroids.
        second: Another one.

    Returns:
        Dict of `"distance"`, an estimate of the root mean squared distance between the
        unit centroids of a class, in [0, 2], accurate to about 9 %; `"degrees"`, the
        angle of that chord; and `"same"`, whether the distance is below 0.01. Rounding
        to bfloat16 changes the distance by less.

    Raises:
        ValueError: An argument is not a fingerprint, or versions, numbers of classes or
            dims differ.

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
    """Raises an error unless two networks, or a network and an index, share centroids.

    Args:
        first: A fingerprint, such as that of an index, or an argument of
            `centroid_fingerprint`: a head, a model, an embedder, or centroids.
        second: Another one.
        degrees: Float, not negative. Tolerance, by which fine-tuning may have turned
            the centroids. Defaults to 0.6: equal up to rounding.

    Raises:
        ValueError: The centroids are further apart, or as in `compare_fingerprints`.

    Example:

    >>> kept = keras_pedcc.centroid_fingerprint(model)
    >>> keras_pedcc.check_same_centroids(kept, keras_pedcc.embedder(model))
    """
    apart = compare_fingerprints(first, second)["degrees"]
    if apart > degrees:
        raise ValueError(
            f"The centroids must be at most {degrees:g} degrees apart. Received: "
            f"{apart:.1f} degrees, as a root mean square over the classes. Make the "
            "network with "
            "the centroids of the index (same seed, method and dim, or "
            "`load_centroids`), embed the images anew, or pass more `degrees` if "
            "fine-tuning moved them."
        )


def _centroids_in(layer: keras.layers.Layer) -> Any:
    """The centroids of the one head in a layer or model, or the stored fingerprint."""
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
