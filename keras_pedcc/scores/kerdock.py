"""Kerdock's vectors, held as signs: cosines to them by the Walsh-Hadamard transform."""

import keras
import numpy as np
from keras import ops

from keras_pedcc.centroids.closed_forms import hadamard
from keras_pedcc.scores.blockwise import StreamedLogits, not_below, rows_from
from keras_pedcc.common.vectors import filled, one_hot


class KerdockCentroids:
    """The centroids of `method="kerdock"`, without the array of them.

    In d = 2^m of the `dim` dimensions they are orthonormal bases: the standard one, and
    `H diag(t) / sqrt(d)` with signs t for each, H Sylvester's matrix; each vector is
    followed by its negative. Only t is held: d bytes for 2 d classes. H is the
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

    def __init__(self, num_classes, dim, signs, columns, flips):
        self.shape = (num_classes, dim)
        self.signs, self.columns, self.flips = signs, columns, flips
        self.d = d = signs.shape[1]
        self.q = 1 << (d.bit_length() // 2)
        self.r = d // self.q
        self.inner = hadamard(self.q).astype("float32")
        self.outer = hadamard(self.r) * d**-0.5

    def coordinates(self, features):
        """Of features along the standard basis: shape `(batch, d)`."""
        chosen = ops.take(features, self.columns, axis=1)
        return chosen * ops.cast(self.flips, features.dtype)

    def vectors(self, index):
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

    def rows(self, index):
        """Centroids of classes, float32, shape `(len(index), dim)`."""
        turned = self.vectors(index) * ops.cast(self.flips, "float32")
        shape = (self.shape[1], turned.shape[0])
        return ops.transpose(
            ops.scatter(self.columns[:, None], ops.transpose(turned), shape)
        )

    def cosines(self, features, start=0, size=None):
        """With `size` classes from `start` on, a multiple of `2 d`: `(batch, size)`."""
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

    def products(self, signs, x):
        """Of coordinates `x`, `(d, batch)`, with the positive vectors of some bases."""
        parts = ops.reshape(x, (self.r, self.q, -1))
        parts = ops.matmul(self._signed(signs, x.dtype), parts)
        parts = self._across(parts)
        return ops.reshape(parts, (signs.shape[0] * self.d, -1))

    def sums(self, signs, weights):
        """The same vectors, weighted by `(vectors, batch)` and added: `(d, batch)`."""
        parts = ops.reshape(weights, (signs.shape[0], self.r, self.q, -1))
        parts = self._across(parts)
        signed = ops.swapaxes(self._signed(signs, weights.dtype), -1, -2)
        return ops.reshape(ops.sum(ops.matmul(signed, parts), axis=0), (self.d, -1))

    def _across(self, parts):
        """`H_r / sqrt(d)` over the second axis of `(bases, r, q, batch)`."""
        outer = ops.cast(self.outer, parts.dtype)
        if keras.distribution.distribution() is not None:
            # A batch that is cut over devices stays an axis of its own; slower on one.
            return ops.einsum("ts,bsqn->btqn", outer, parts)
        merged = ops.reshape(parts, (parts.shape[0], self.r, -1))
        return ops.reshape(ops.matmul(outer, merged), ops.shape(parts))

    def _signed(self, signs, dtype):
        """`H_q` with its columns multiplied by signs: `(bases, r, q, q)`."""
        signs = ops.reshape(signs, (signs.shape[0], self.r, 1, self.q))
        return ops.cast(self.inner, dtype) * ops.cast(signs, dtype)

    def __repr__(self):
        return f"<KerdockCentroids, shape={self.shape}; numpy.asarray makes the array>"

    def __array__(self, dtype=None, copy=None):
        if copy is False:
            raise ValueError("The array of `KerdockCentroids` is made, never shared.")
        whole = np.empty(self.shape, "float32" if dtype is None else dtype)
        for start in range(0, len(whole), 8192):
            index = np.arange(start, min(start + 8192, len(whole)), dtype="int32")
            rows = self.rows(ops.convert_to_tensor(index))
            whole[index] = ops.convert_to_numpy(rows)
        return whole


class KerdockLogits(StreamedLogits):
    """`StreamedLogits` of `KerdockCentroids`, by blocks of bases.

    A centroid and its negative share a product z. That of a sample's own class is set
    to 0 and its two terms, `exp(-top)` each, are subtracted again. Nothing cancels:
    no other pair of terms is smaller, since `exp(z) + exp(-z) >= 2`. The negative of
    the own class is counted beforehand. The last of an odd number of classes has no
    negative: its z is set to minus infinity.

    Args:
        features: Unit vectors, shape `(batch, dim)`.
        centroids: `KerdockCentroids`.
        block_size: int, at least 1. Classes per block, to the next whole basis.
        training, ranked: As of `StreamedLogits`.
    """

    def __init__(self, features, centroids, *, block_size, training, ranked):
        super().__init__(
            centroids.coordinates(features),
            centroids,
            trained=True,  # nothing to stop the gradient of
            block_size=block_size,
            training=training,
            ranked=ranked,
        )
        self.trained = False

    def own(self, index):
        vectors = ops.cast(self.centroids.vectors(index), self.dtype)
        return ops.sum(self.features * vectors, axis=1)

    @property
    def tensors(self):
        return self.centroids.signs, self.centroids.columns, self.centroids.flips

    def over_others(self, scaled, bar, index, *parts):
        # With the batch as columns, which the transform is faster for.
        centroids = KerdockCentroids(*self.centroids.shape, *parts)
        x, bar = ops.transpose(scaled), ops.transpose(bar)
        state = self._of_negative(centroids, x, bar, index)
        state = self._add(state, x, bar, index, None, 0)
        d, signs = centroids.d, centroids.signs
        size = -(-self.block_size // (2 * d))
        blocks = (self.shape[1] // (2 * d) - 1) // size

        def add(block, state):
            part = rows_from(signs, block * size, size)
            return self._add(state, x, bar, index, part, d * (1 + block * size))

        if blocks:
            state = ops.fori_loop(0, blocks, add, state)
        rest = signs[blocks * size :]
        if rest.shape[0]:
            state = self._add(state, x, bar, index, rest, d * (1 + blocks * size))
        return [ops.transpose(each) for each in state]

    def _of_negative(self, centroids, x, bar, index):
        """Largest z, sums and count of the negative of the own class, if it is one."""
        there = ops.cast(index | 1 < self.shape[1], x.dtype)[None]
        vector = ops.transpose(ops.cast(centroids.vectors(index), x.dtype))
        # Not from `bar`, which a second derivative takes for a constant.
        score = ops.sum(vector * x, axis=0, keepdims=True)
        nearer = there * not_below(-bar, bar)
        return -there * score, there, -there * vector, nearer

    def _add(self, state, x, bar, index, signs, first):
        """The state with the vectors of some bases, pairs from `first` on."""
        top, total, pull, nearer = state
        scores = x if signs is None else self.centroids.products(signs, x)
        paired = ops.cast(index | 1 < self.shape[1], x.dtype)
        alone = index | 1 >= self.shape[1]
        instead = filled(ops.zeros_like(paired), alone, -np.inf)
        scores, inside = _without(scores, index // 2 - first, instead)
        high, low = self._classes(scores, first)
        higher = ops.maximum(
            top, ops.max(ops.maximum(high, low), axis=0, keepdims=True)
        )
        powers, opposite = ops.exp(high - higher), ops.exp(low - higher)
        inside = 2 * inside * paired
        fading = ops.exp(top - higher)
        added = ops.sum(powers + opposite, axis=0, keepdims=True)
        total = fading * total + (added - inside * ops.exp(-higher))
        if self.training:
            slopes = powers - opposite
            if signs is not None:
                slopes = self.centroids.sums(signs, slopes)
            pull = fading * pull + slopes
        if self.ranked:
            near = not_below(high, bar) + not_below(low, bar)
            near = ops.sum(near, axis=0, keepdims=True)
            nearer = nearer + near - inside * not_below(ops.zeros_like(bar), bar)
        return higher, total, pull, nearer

    def _classes(self, scores, first):
        """Scores of centroids and of their negatives, -inf for those of no class."""
        if isinstance(first, int) and 2 * (first + scores.shape[0]) > self.shape[1]:
            number = 2 * (first + ops.arange(scores.shape[0])[:, None])
            high = filled(scores, number >= self.shape[1], -np.inf)
            return high, filled(-scores, number + 1 >= self.shape[1], -np.inf)
        return scores, -scores


def _without(scores, at, instead):
    """`scores`, with an entry of `instead` in row `at` of each column that has the row.

    Returns:
        The scores, and 1.0 for each column that has its row, shape `(1, columns)`.
    """
    number = scores.shape[0]
    row = at % number
    inside = ops.equal(row, at)
    if keras.distribution.distribution() is not None:
        # Writing single entries, devices would first have to tell each other which.
        own = ops.equal(ops.arange(number, dtype=at.dtype)[:, None], at)
        scores = ops.where(own, instead, scores)
        return scores, ops.cast(inside, scores.dtype)[None]
    column = ops.arange(ops.shape(at)[0], dtype=row.dtype)
    where = ops.stack([row, column], axis=1)
    there = ops.take_along_axis(scores, row[None], axis=0)[0]
    scores = ops.scatter_update(scores, where, ops.where(inside, instead, there))
    return scores, ops.cast(inside, scores.dtype)[None]
