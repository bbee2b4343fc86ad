"""Vectors in rows: their lengths, their directions, and cosines between them."""

import keras
import numpy as np
from keras import ops


def unit_vectors(vectors):
    """Divides each row by its Euclidean length: `v / |v|`.

    A row shorter than 1e-6 is divided by 1e-6 instead, so that the gradient at a
    row of zeros is finite. A row with a NaN or an infinite entry, or so long that
    its square overflows (1.8e19 in float32), gives NaN.

    Args:
        vectors: Float tensor, shape `(..., dim)`.

    Returns:
        Tensor of the same shape and dtype.
    """
    if keras.backend.backend() == "torch":  # whose own gradient is the quicker one
        return vectors * _row_scale(vectors)

    @ops.custom_gradient
    def divide(vectors):
        inverse = _row_scale(vectors)
        units = vectors * inverse

        def gradient(*args, upstream=None):
            upstream = args[0] if upstream is None else upstream
            along = ops.sum(units * upstream, axis=-1, keepdims=True)
            return inverse * (upstream - units * along)

        return units, gradient

    return divide(vectors)


def _row_scale(vectors):
    squared = ops.sum(ops.square(vectors), axis=-1, keepdims=True)
    inverse = ops.rsqrt(ops.maximum(squared, 1e-12))
    return ops.where(squared < np.inf, inverse, np.nan)


def lengths(vectors):
    """`|v|` of each row, at least 1e-6, so that its gradient is finite.

    Args:
        vectors: Float tensor, shape `(..., dim)`.

    Returns:
        Tensor of shape `(...)`: what `unit_vectors` divides by.
    """
    squared = ops.sum(ops.square(vectors), axis=-1)
    return ops.sqrt(ops.maximum(squared, 1e-12))


def inverse_lengths(rows):
    """`1 / |v|` of each row, shape `(rows,)`, with `|v|` at least 1e-6."""
    squared = ops.sum(ops.square(rows), axis=1)
    return ops.rsqrt(ops.maximum(squared, 1e-12))


def products(features, centroids):
    """`features @ centroids.T`, in the order that TensorFlow multiplies faster in."""
    if centroids.shape[0] <= centroids.shape[1]:
        return ops.matmul(features, ops.transpose(centroids))
    return ops.transpose(ops.matmul(centroids, ops.transpose(features)))


def cosines(features, centroids):
    """`features @ centroids.T / |centroids|`.

    The lengths are taken at every call: weights that were fine-tuned elsewhere may be
    set at any time. A row shorter than 1e-6 is divided by 1e-6.
    """
    return products(features, centroids) * inverse_lengths(centroids)


def with_fixed_mean(rows):
    """`v / |v|` of each row, with gradients that leave the mean of the rows alone.

    From the gradient of each unit vector the mean over the rows is taken,
    `g_j - 1 / n sum_i g_i`, so that they are not pulled into one direction together;
    and once more from the gradient of each row, so that their mean cannot move.

    Args:
        rows: Float tensor, shape `(n, dim)`.

    Returns:
        Tensor of the same shape and dtype.
    """
    return _centered(unit_vectors(_centered(rows)))


def _centered(rows):
    """The same rows; their gradients without the mean over the rows."""
    mean = ops.mean(rows, axis=0, keepdims=True)
    return rows + (ops.stop_gradient(mean) - mean)
