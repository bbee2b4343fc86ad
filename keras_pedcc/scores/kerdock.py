"""Cosines to Kerdock's vectors by the Walsh-Hadamard transform."""

import keras
import numpy as np
from keras import ops

from keras_pedcc.centroids.kerdock import KerdockCentroids
from keras_pedcc.common import Tensor, Tensors
from keras_pedcc.common.vectors import filled
from keras_pedcc.scores.blockwise import BlockwiseScores, Start, not_below, rows_from
from keras_pedcc.scores.protocol import Lower, Shift


class KerdockScores(BlockwiseScores):
    """`Scores` of `KerdockCentroids`, by blocks of bases.

    A centroid and its negative share the product z. The z of the own class is set to
    0, and the two terms `exp(-top)` that this adds are subtracted again. Nothing
    cancels: no other pair of terms is smaller, since `exp(z) + exp(-z) >= 2`. The
    negative of the own class is counted beforehand. The last of an odd number of
    classes has no negative: its z is set to minus infinity.

    Args:
        features: Unit vectors, shape `(batch, dim)`.
        centroids: `KerdockCentroids`.
        block_size: int, at least 1. Classes per block, to the next whole basis.
        training, ranked: As of `BlockwiseScores`.
    """

    def __init__(
        self,
        features: Tensor,
        centroids: KerdockCentroids,
        *,
        block_size: int,
        training: bool,
        ranked: bool,
    ) -> None:
        self.shape = (features.shape[0], centroids.shape[0])
        self.dtype = keras.backend.standardize_dtype(features.dtype)
        self.features = centroids.coordinates(features)
        self.centroids = centroids
        self.trained = False
        self.layout, self.parts = None, 1  # every device holds all signs
        self.block_size = min(block_size, centroids.shape[0])
        self.training = training
        self.ranked = ranked

    def own(self, index: Tensor) -> Tensor:
        vectors = ops.cast(self.centroids.vectors(index), self.dtype)
        return ops.sum(self.features * vectors, axis=1)

    def _entropy(
        self,
        index: Tensor,
        own: Tensor,
        lower: Lower,
        scale: float,
        shift: Shift | None,
    ) -> Tensor:
        if shift is not None:
            raise ValueError(
                "`priors` must be None with scores of Kerdock's vectors by blocks, "
                "which come in pairs of opposite ones. Received: priors of length "
                f"{self.shape[1]}. Pass priors=None, or make the head with "
                'scores="dense".'
            )
        return super()._entropy(index, own, lower, scale, shift)

    @property
    def tensors(self) -> Tensors:
        return self.centroids.signs, self.centroids.columns, self.centroids.flips

    def over_others(
        self, scaled: Tensor, bar: Tensor, index: Tensor, *parts: Tensor
    ) -> Tensors:
        # With the batch as columns, which the transform is faster for.
        centroids = KerdockCentroids(*self.centroids.shape, *parts)
        x, bar = ops.transpose(scaled), ops.transpose(bar)
        state = self._of_negative(centroids, x, bar, index)
        state = self._add(state, x, bar, index, None, 0)
        d, signs = centroids.d, centroids.signs
        size = -(-self.block_size // (2 * d))
        blocks = (self.shape[1] // (2 * d) - 1) // size

        def add(block: Tensor, state: Tensors) -> Tensors:
            part = rows_from(signs, block * size, size)
            return self._add(state, x, bar, index, part, d * (1 + block * size))

        if blocks:
            state = ops.fori_loop(0, blocks, add, state)
        rest = signs[blocks * size :]
        if rest.shape[0]:
            state = self._add(state, x, bar, index, rest, d * (1 + blocks * size))
        return tuple(ops.transpose(each) for each in state)

    def _of_negative(
        self, centroids: KerdockCentroids, x: Tensor, bar: Tensor, index: Tensor
    ) -> Tensors:
        """Largest z, sums and count of the negative of the own class, if it is one."""
        there = ops.cast(index | 1 < self.shape[1], x.dtype)[None]
        vector = ops.transpose(ops.cast(centroids.vectors(index), x.dtype))
        # Not from `bar`, which a second derivative takes for a constant.
        score = ops.sum(vector * x, axis=0, keepdims=True)
        nearer = there * not_below(-bar, bar)
        return -there * score, there, -there * vector, nearer

    def _add(
        self,
        state: Tensors,
        x: Tensor,
        bar: Tensor,
        index: Tensor,
        signs: Tensor | None,
        first: Start,
    ) -> Tensors:
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

    def _classes(self, scores: Tensor, first: Start) -> tuple[Tensor, Tensor]:
        """Scores of centroids and of their negatives, -inf for those of no class."""
        if isinstance(first, int) and 2 * (first + scores.shape[0]) > self.shape[1]:
            number = 2 * (first + ops.arange(scores.shape[0])[:, None])
            high = filled(scores, number >= self.shape[1], -np.inf)
            return high, filled(-scores, number + 1 >= self.shape[1], -np.inf)
        return scores, -scores


def _without(scores: Tensor, at: Tensor, instead: Tensor) -> tuple[Tensor, Tensor]:
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
