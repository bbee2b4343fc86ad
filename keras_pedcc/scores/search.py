"""The classes of largest cosine, by blocks of classes."""

from typing import Any

import keras
from keras import ops

from keras_pedcc.centroids.kerdock import KerdockCentroids
from keras_pedcc.common import ArrayLike, Tensor
from keras_pedcc.common.checks import check_whole
from keras_pedcc.common.gradients import full_precision
from keras_pedcc.common.vectors import inverse_lengths, unit_vectors
from keras_pedcc.scores.blockwise import BLOCK_SIZE, cast_rows
from keras_pedcc.scores.sharding import ClassLayout, class_layout


def nearest_classes(
    features: ArrayLike,
    centroids: Any,
    k: int = 1,
    *,
    block_size: int = BLOCK_SIZE,
) -> tuple[Tensor, Tensor]:
    """The `k` classes of largest cosine for each feature, by blocks of classes.

    Memory beside the arguments is `batch * (block_size + k)` cosines and indices. If
    the classes are cut over devices, each searches its own.

    Args:
        features: Array or tensor, shape `(batch, dim)`. Need not be unit vectors.
        centroids: A head of this package that is built: its classes in use are
            searched, on all devices if they are cut over them and the distribution of
            the model is set. Or an array, tensor or weight, shape `(num_classes, dim)`,
            of any float dtype, that need not be unit vectors.
        k: int, from 1 to `num_classes`.
        block_size: int, at least 1. Classes per block.

    Returns:
        `(cosines, classes)`, tensors of shape `(batch, k)`, float32 and int32, the
        largest cosine first.

    Raises:
        TypeError: `k` or `block_size` is not a whole number.
        ValueError: A shape or number does not fit.

    Example:

    >>> centroids = keras_pedcc.generate_pedcc(1000, 64)
    >>> cosines, classes = keras_pedcc.nearest_classes(centroids[7:9], centroids, 2)
    >>> keras.ops.convert_to_numpy(classes[:, 0]).tolist()
    [7, 8]
    """
    check_whole(1, k=k, block_size=block_size)
    number = None
    if isinstance(centroids, keras.layers.Layer):
        centroids, number = _rows_of(centroids)
    held = isinstance(centroids, keras.Variable)
    layout = class_layout(centroids.path) if held else None
    features = ops.convert_to_tensor(features)
    if not isinstance(centroids, KerdockCentroids):
        centroids = ops.convert_to_tensor(centroids)
    number = _check_search(features, centroids, k, number)
    if keras.backend.standardize_dtype(features.dtype) != "float64":
        features = ops.cast(features, "float32")
    with full_precision(features):
        features = unit_vectors(features)
        if layout is not None and _can_share(layout, centroids, number):
            return _best_of_parts(layout, features, centroids, k, block_size)
        return _best(features, centroids, k, block_size, number)


def _rows_of(head: Any) -> tuple[Any, int]:
    """The centroids of a head, and how many are in use."""
    if not hasattr(head, "centroids") or hasattr(head, "sub_centers"):
        raise ValueError(
            "`centroids` must be a built head with one centroid for each class, or "
            f"rows. Received: layer {head.name!r} (type {type(head).__name__}). Pass "
            "the rows to search, as of `dominant_sub_centers`."
        )
    return head.centroids, head.num_classes


def _can_share(layout: ClassLayout, centroids: Tensor, number: int) -> bool:
    """Whether several devices have equal parts of the classes to search."""
    even = number == centroids.shape[0] and number % layout.parts == 0
    return layout.parts > 1 and even


def _best(
    features: Tensor,
    centroids: Tensor | KerdockCentroids,
    k: int,
    block_size: int,
    number: int,
) -> tuple[Tensor, Tensor]:
    # First the largest possible block that cannot leave fewer than k behind.
    size = max(block_size, k)
    if isinstance(centroids, KerdockCentroids):
        size = -(-size // (2 * centroids.d)) * 2 * centroids.d
    size = min(size, number)
    best = _best_of_block(features, centroids, 0, size, k)
    for start in range(size, number, size):
        block = _best_of_block(features, centroids, start, min(size, number - start), k)
        best = _merged(best, block, k)
    return best


def _best_of_parts(
    layout: ClassLayout, features: Tensor, centroids: Tensor, k: int, block_size: int
) -> tuple[Tensor, Tensor]:
    size = centroids.shape[0] // layout.parts
    cosines, classes = layout.on_parts(
        lambda part: _best(features, part[0], min(k, size), block_size, size),
        (centroids,),
    )
    first = size * ops.arange(layout.parts, dtype="int32")
    best = [cosines, classes + first[:, None, None]]
    # Few enough for every device to have them all.
    best = [layout.spread(each, (None, None, None)) for each in best]
    best = [ops.moveaxis(each, 0, 1) for each in best]
    cosines, classes = (ops.reshape(each, (len(features), -1)) for each in best)
    return _top(cosines, classes, k)


def _best_of_block(
    features: Tensor,
    centroids: Tensor | KerdockCentroids,
    start: int,
    size: int,
    k: int,
) -> tuple[Tensor, Tensor]:
    if isinstance(centroids, KerdockCentroids):
        cosines = centroids.cosines(features, start, size)
    else:
        rows = cast_rows(centroids, start, size, features.dtype)
        cosines = ops.matmul(features, ops.transpose(rows)) * inverse_lengths(rows)
    cosines, at = ops.top_k(cosines, min(k, size))
    return cosines, ops.cast(at, "int32") + start


def _merged(
    best: tuple[Tensor, Tensor], block: tuple[Tensor, Tensor], k: int
) -> tuple[Tensor, Tensor]:
    cosines = ops.concatenate([best[0], block[0]], axis=1)
    classes = ops.concatenate([best[1], block[1]], axis=1)
    return _top(cosines, classes, k)


def _top(cosines: Tensor, classes: Tensor, k: int) -> tuple[Tensor, Tensor]:
    cosines, at = ops.top_k(cosines, k)
    return cosines, ops.take_along_axis(classes, ops.cast(at, "int32"), axis=1)


def _check_search(
    features: Tensor,
    centroids: Tensor | KerdockCentroids,
    k: int,
    number: int | None,
) -> int:
    """Returns the number of classes to search."""
    fits = len(features.shape) == 2 and len(centroids.shape) == 2
    if not fits or features.shape[1] != centroids.shape[1]:
        raise ValueError(
            "`features` and `centroids` must be rows of one length. Received: "
            f"features.shape={tuple(features.shape)}, centroids.shape="
            f"{tuple(centroids.shape)}. Pass arrays of shape (batch, dim) and "
            "(num_classes, dim)."
        )
    number = centroids.shape[0] if number is None else number
    if k > number:
        raise ValueError(
            "`k` must be at most the number of classes. Received: "
            f"k={k}, centroids.shape={tuple(centroids.shape)}, of which {number} are "
            "in use. Ask for fewer."
        )
    return number
