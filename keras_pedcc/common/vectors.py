"""Vectors in rows: their lengths, their directions, and cosines between them."""

import keras
import numpy as np
from keras import ops

from keras_pedcc.common import Tensor, Tensors
from keras_pedcc.common.gradients import with_gradient

SUM_TOLERANCE = 1e-2  # of soft labels, which low-precision floats round


def unit_vectors(vectors: Tensor) -> Tensor:
    """Divides each row by its Euclidean length: `v / |v|`.

    A row shorter than 1e-6 is divided by 1e-6 instead, so that the gradient at a
    row of zeros is finite. A row with a NaN or an infinite entry, or so long that
    its square overflows (1.8e19 in float32), gives NaN.

    Args:
        vectors: Float tensor, shape `(..., dim)`.

    Returns:
        Tensor of the same shape and dtype.
    """
    return vectors * _row_scale(vectors)


def _row_scale(vectors: Tensor) -> Tensor:
    squared = ops.sum(ops.square(vectors), axis=-1, keepdims=True)
    inverse = ops.rsqrt(at_least(squared, 1e-12))
    # With an overflowing square the result would be 0.
    return filled(inverse, squared == np.inf, np.nan)


def lengths(vectors: Tensor) -> Tensor:
    """`|v|` of each row, at least 1e-6, so that its gradient is finite.

    Args:
        vectors: Float tensor, shape `(..., dim)`.

    Returns:
        Tensor of shape `(...)`: what `unit_vectors` divides by.
    """
    squared = ops.sum(ops.square(vectors), axis=-1)
    return ops.sqrt(at_least(squared, 1e-12))


def inverse_lengths(rows: Tensor) -> Tensor:
    """`1 / |v|` of each row, shape `(rows,)`, with `|v|` at least 1e-6."""
    squared = ops.sum(ops.square(rows), axis=1)
    return ops.rsqrt(at_least(squared, 1e-12))


def products(features: Tensor, centroids: Tensor, trained: bool = True) -> Tensor:
    """`features @ centroids.T`, in the order that is faster on TensorFlow.

    Unless `trained`, the gradient by the centroids is omitted if that saves time.
    """
    if centroids.shape[0] <= centroids.shape[1]:
        return ops.matmul(features, ops.transpose(centroids))
    if keras.backend.backend() == "tensorflow":
        # The default gradient transposes back, which takes longer than the cosines.
        slopes = _product_slopes if trained else _feature_slopes
        return with_gradient(_product, slopes)(features, centroids)
    return _product(features, centroids)[0]


def _product(features: Tensor, centroids: Tensor) -> tuple[Tensor, tuple[()]]:
    return ops.transpose(ops.matmul(centroids, ops.transpose(features))), ()


def _product_slopes(
    tensors: Tensors, residuals: Tensors, upstream: Tensor
) -> tuple[Tensor, Tensor]:
    features, centroids = tensors
    slope = ops.matmul(upstream, centroids)
    return slope, ops.matmul(ops.transpose(upstream), features)


def _feature_slopes(
    tensors: Tensors, residuals: Tensors, upstream: Tensor
) -> tuple[Tensor, None]:
    return ops.matmul(upstream, tensors[1]), None


def cosines(features: Tensor, centroids: Tensor, trained: bool = True) -> Tensor:
    """`features @ centroids.T / |centroids|`.

    The lengths are computed at every call, because the weight may change at any time. A
    row shorter than 1e-6 is divided by 1e-6.
    """
    return products(features, centroids, trained) * inverse_lengths(centroids)


def with_fixed_mean(rows: Tensor) -> Tensor:
    """`v / |v|` of each row, with gradients that do not change the mean of the rows.

    The mean over the rows is subtracted from the gradient of each unit vector, `g_j - 1
    / n sum_i g_i`, so that not all vectors move in one direction. It is subtracted
    again from the gradient of each row, so that the mean of the rows is fixed.

    Args:
        rows: Float tensor, shape `(n, dim)`.

    Returns:
        Tensor of the same shape and dtype.
    """
    return _centered(unit_vectors(_centered(rows)))


def _centered(rows: Tensor) -> Tensor:
    """The rows unchanged; their gradients without the mean over the rows."""
    mean = ops.mean(rows, axis=0, keepdims=True)
    return rows + (ops.stop_gradient(mean) - mean)


def at_least(values: Tensor, least: float) -> Tensor:
    """`max(values, least)`; NaN stays NaN.

    `keras.ops` would make a tensor of the number at every call, which on PyTorch
    copies it to the GPU.
    """
    if keras.backend.backend() == "torch":
        return values.clamp(min=least)
    return ops.maximum(values, least)


def filled(values: Tensor, where: Tensor, number: float) -> Tensor:
    """`values`, with `number` where `where` is true; see `at_least`."""
    if keras.backend.backend() == "torch":
        return values.masked_fill(where, number)
    return ops.where(where, number, values)


def entries(rows: Tensor, index: Tensor) -> Tensor:
    """The entry at `index` of each row, shape `(batch, 1)`."""
    if keras.backend.backend() == "torch":
        return rows.gather(1, index.long()[:, None])
    return ops.take_along_axis(rows, index[:, None], axis=1)


def with_entries(rows: Tensor, index: Tensor, values: Tensor | float) -> Tensor:
    """The rows with `values`, a number or shape `(batch, 1)`, at `index` of each."""
    if keras.backend.backend() == "torch":
        return rows.scatter(1, index.long()[:, None], values)
    number = ops.arange(ops.shape(rows)[0], dtype=index.dtype)
    if isinstance(values, float):
        values = ops.full_like(rows[:, :1], values)
    return ops.scatter_update(rows, ops.stack([number, index], axis=1), values[:, 0])


def are_distributions(rows: Tensor) -> Tensor:
    """Mask of rows without negative entries that sum to 1, within `SUM_TOLERANCE`."""
    sums = ops.abs(ops.sum(rows, axis=1) - 1) <= SUM_TOLERANCE
    return ops.logical_and(sums, ops.all(rows >= 0, axis=1))


def nan_unless(valid: Tensor, values: Tensor) -> Tensor:
    """`values`, with NaN where `valid` is false."""
    return filled(values, ~valid, np.nan)


def one_hot(index: Tensor, number: int, dtype: str) -> Tensor:
    """Rows of zeros with a 1 at `index`, shape `(len(index), number)`.

    On PyTorch `keras.ops.one_hot` copies the largest index from the device.
    """
    places = ops.arange(number, dtype=index.dtype)
    return ops.cast(ops.equal(places, ops.expand_dims(index, 1)), dtype)
