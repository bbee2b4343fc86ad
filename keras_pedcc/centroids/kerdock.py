"""Vectors of a Kerdock set, stored as signs."""

import keras
import numpy as np
import numpy.typing as npt
from keras import ops

from keras_pedcc.centroids.closed_forms import hadamard
from keras_pedcc.common import Array, Tensor
from keras_pedcc.common.vectors import one_hot


class KerdockCentroids:
    """The centroids of `method="kerdock"`, without the array of them.

    In d = 2^m of the `dim` dimensions they are orthonormal bases: the standard one, and
    `H diag(t) / sqrt(d)` with signs t for each, H Sylvester's matrix; each vector is
    followed by its negative. Only t is stored: d bytes for 2 d classes. H is the
    Kronecker product `H_r x H_q`, r q = d, so that a product with a whole basis and its
    negatives is two with small matrices: `d (r + q)` multiplications, not `2 d^2`.

    `numpy.asarray` makes the array.

    Args:
        num_classes: int, more than `2 d`.
        dim: int, at least d.
        signs: t of each basis but the first, int8, shape `(bases - 1, d)`.
        columns: Which of the `dim` features each coordinate is, int32, shape `(d,)`.
        flips: What each coordinate is multiplied by, 1 or -1, int8, shape `(d,)`.
    """

    def __init__(
        self, num_classes: int, dim: int, signs: Tensor, columns: Tensor, flips: Tensor
    ) -> None:
        self.shape = (num_classes, dim)
        self.signs, self.columns, self.flips = signs, columns, flips
        self.d = d = signs.shape[1]
        self.q = 1 << (d.bit_length() // 2)
        self.r = d // self.q
        self.inner = hadamard(self.q).astype("float32")
        self.outer = hadamard(self.r) * d**-0.5

    def coordinates(self, features: Tensor) -> Tensor:
        """Coordinates of features in the standard basis: shape `(batch, d)`."""
        chosen = ops.take(features, self.columns, axis=1)
        return chosen * ops.cast(self.flips, features.dtype)

    def vectors(self, index: Tensor) -> Tensor:
        """Coordinates of the centroids of classes, float32: `(len(index), d)`."""
        pair, d = index // 2, self.d
        basis, row = pair // d, pair % d
        outer, inner = (ops.cast(each, "float32") for each in (self.outer, self.inner))
        outer = ops.take(outer, row // self.q, axis=0)[:, :, None]
        inner = ops.take(inner, row % self.q, axis=0)[:, None, :]
        signs = ops.take(self.signs, ops.relu(basis - 1), axis=0)
        turned = ops.reshape(outer * inner, (-1, d)) * ops.cast(signs, "float32")
        standard = one_hot(row, d, "float32")
        positive = ops.where((basis == 0)[:, None], standard, turned)
        return positive * ops.cast(1 - 2 * (index % 2), "float32")[:, None]

    def rows(self, index: Tensor) -> Tensor:
        """Centroids of classes, float32, shape `(len(index), dim)`."""
        turned = self.vectors(index) * ops.cast(self.flips, "float32")
        shape = (self.shape[1], turned.shape[0])
        return ops.transpose(
            ops.scatter(self.columns[:, None], ops.transpose(turned), shape)
        )

    def cosines(
        self, features: Tensor, start: int = 0, size: int | None = None
    ) -> Tensor:
        """Cosines with `size` classes from `start` on, a multiple of `2 d`."""
        size = self.shape[0] - start if size is None else size
        first, end = start // (2 * self.d), -(-(start + size) // (2 * self.d))
        x = ops.transpose(self.coordinates(features))
        parts = [x] if first == 0 else []
        signs = self.signs[max(first - 1, 0) : end - 1]
        if signs.shape[0]:
            parts.append(self.products(signs, x))
        positive = ops.concatenate(parts)
        both = ops.stack([positive, -positive], axis=1)
        both = ops.reshape(both, (2 * positive.shape[0], -1))
        return ops.transpose(both[:size])

    def products(self, signs: Tensor, x: Tensor) -> Tensor:
        """Products of `x`, shape `(d, batch)`, with the positive vectors of bases."""
        parts = ops.reshape(x, (self.r, self.q, -1))
        parts = ops.matmul(self._signed(signs, x.dtype), parts)
        parts = self._across(parts)
        return ops.reshape(parts, (signs.shape[0] * self.d, -1))

    def sums(self, signs: Tensor, weights: Tensor) -> Tensor:
        """Sums of the same vectors, weighted by `(vectors, batch)`: `(d, batch)`."""
        parts = ops.reshape(weights, (signs.shape[0], self.r, self.q, -1))
        parts = self._across(parts)
        signed = ops.swapaxes(self._signed(signs, weights.dtype), -1, -2)
        return ops.reshape(ops.sum(ops.matmul(signed, parts), axis=0), (self.d, -1))

    def _across(self, parts: Tensor) -> Tensor:
        """`H_r / sqrt(d)` over the second axis of `(bases, r, q, batch)`."""
        outer = ops.cast(self.outer, parts.dtype)
        if keras.distribution.distribution() is not None:
            # A batch that devices share stays a separate axis; slower on one device.
            return ops.einsum("ts,bsqn->btqn", outer, parts)
        merged = ops.reshape(parts, (parts.shape[0], self.r, -1))
        return ops.reshape(ops.matmul(outer, merged), ops.shape(parts))

    def _signed(self, signs: Tensor, dtype: str) -> Tensor:
        """`H_q` with its columns multiplied by signs: `(bases, r, q, q)`."""
        signs = ops.reshape(signs, (signs.shape[0], self.r, 1, self.q))
        return ops.cast(self.inner, dtype) * ops.cast(signs, dtype)

    def __repr__(self) -> str:
        return f"<KerdockCentroids, shape={self.shape}; numpy.asarray makes the array>"

    def __array__(
        self, dtype: npt.DTypeLike | None = None, copy: bool | None = None
    ) -> Array:
        if copy is False:
            raise ValueError("The array of `KerdockCentroids` is made, never shared.")
        whole = np.empty(self.shape, "float32" if dtype is None else dtype)
        for start in range(0, len(whole), 8192):
            index = np.arange(start, min(start + 8192, len(whole)), dtype="int32")
            rows = self.rows(ops.convert_to_tensor(index))
            whole[index] = ops.convert_to_numpy(rows)
        return whole
