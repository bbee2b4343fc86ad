"""Cosines to very many classes, by blocks of classes, never held whole."""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import keras
import numpy as np
from keras import ops

from keras_pedcc.common import Tensor, Tensors
from keras_pedcc.common.gradients import with_gradient
from keras_pedcc.common.vectors import filled, inverse_lengths, unit_vectors
from keras_pedcc.scores.protocol import Lower, Scores, Shift
from keras_pedcc.scores.sharding import ClassLayout

BLOCK_SIZE = 4096
# Heads compute by blocks by default from this many classes: below, slower.
BLOCKWISE_FROM = 100_000
Start: TypeAlias = int | Tensor  # of a block; inside a loop, a tensor


class BlockwiseScores(Scores):
    """`Scores` by blocks of classes, without the array of all cosines.

    Memory is that of the features and of one block, `batch * block_size` cosines.

    Args:
        features: Unit vectors, shape `(batch, dim)`.
        centroids: Shape `(num_classes, dim)`, of any length and float dtype.
        trained: Whether the loss has a gradient with respect to the centroids.
        block_size: int, at least 1.
        num_classes: int, if fewer than there are rows: the first of them are taken.
        training: Whether a gradient is wanted at all.
        ranked: Whether `rank` is wanted, beyond whether it is 0.
        layout: `ClassLayout` of the centroids, or `None` without a distribution. Each
            device goes over the blocks of its own classes.
    """

    parts: int  # that the centroids are cut into
    number_of_part: int  # of classes
    layout: Any  # `ClassLayout` or `None`

    def __init__(
        self,
        features: Tensor,
        centroids: Tensor,
        *,
        trained: bool,
        block_size: int,
        num_classes: int | None = None,
        training: bool = True,
        ranked: bool = False,
        layout: ClassLayout | None = None,
    ) -> None:
        self.features = features
        if layout is not None:
            self.features = layout.for_all_classes(features)
        self.centroids = centroids if trained else ops.stop_gradient(centroids)
        self.trained = trained
        self.layout = layout
        self.parts = 1 if layout is None else layout.parts
        number = centroids.shape[0] if num_classes is None else num_classes
        self.shape = (features.shape[0], number)
        self.number_of_part = number // self.parts
        self.block_size = min(block_size, self.number_of_part)
        self.training = training
        self.ranked = ranked
        self.dtype = keras.backend.standardize_dtype(features.dtype)

    def own(self, index: Tensor) -> Tensor:
        rows = ops.cast(ops.take(self.centroids, index, axis=0), self.dtype)
        return ops.sum(self.features * unit_vectors(rows), axis=1)

    def _entropy(
        self,
        index: Tensor,
        own: Tensor,
        lower: Lower,
        scale: float,
        shift: Shift | None,
    ) -> Tensor:
        others = _others(self, index, scale, ops.stop_gradient(own), shift)
        # With its graph, it would hold this object in a circle through PyTorch.
        self.rank = ops.stop_gradient(others[1])
        scores = scale * lower(own[:, None])[:, 0]
        if shift is not None:
            scores = scores + ops.take(shift.values, index)
        return ops.softplus(others[0] - scores)

    @property
    def tensors(self) -> Tensors:
        """What the centroids consist of."""
        return (self.centroids,)

    def over_others(
        self, scaled: Tensor, bar: Tensor, index: Tensor, *classes: Tensor
    ) -> Tensors:
        """The softmax sums of the scores `z_j = scaled . c_j + b_j` of other classes.

        Args:
            scaled: Features times the scale, shape `(batch, dim)`.
            bar: Score of the own class without b, shape `(batch, 1)`.
            index: Class indices, shape `(batch,)`.
            *classes: The centroids, and b, shape `(num_classes,)`, if there is one.

        Returns:
            The largest z, `sum_j exp(z_j - max)` and the number of `scaled . c_j` at
            or above `bar` (counted where `ranked` or with b, else 0), of shape
            `(batch, 1)`; third of the four, of shape `(batch, dim)`,
            `sum_j exp(z_j - max) c_j`.
        """
        if self.parts == 1:
            return _pass_of_part(self, scaled, bar, classes, index)
        tops, totals, pulls, nearer = self.layout.on_parts(
            lambda part, index: _pass_of_part(self, scaled, bar, part, index),
            classes,
            index,
        )
        top = ops.max(tops, axis=0)
        fading = ops.exp(tops - top)
        total, pull = ops.sum(fading * totals, axis=0), ops.sum(fading * pulls, axis=0)
        return top, total, pull, ops.sum(nearer, axis=0)


def _others(
    logits: BlockwiseScores,
    index: Tensor,
    scale: float,
    own: Tensor,
    shift: Shift | None,
) -> Tensor:
    """Log-sum-exp of the scores of the other classes, and how many are as near.

    The scores are `scale * cos`, plus the shift if there is one. One pass over the
    centroids computes both. The same pass accumulates the softmax-weighted sum of the
    centroids, which is the gradient with respect to the features. Trained centroids
    need a second pass for their own gradient.

    Returns:
        Tensor of shape `(2, batch)`; the second row has no gradient.
    """
    # With a shift the largest score does not tell whether a cosine is as large.
    counted = logits.ranked or shift is not None

    def value(
        features: Tensor, index: Tensor, own: Tensor, *classes: Tensor
    ) -> tuple[Tensor, Tensors]:
        scaled, bar = scale * features, scale * own[:, None]
        top, total, pull, nearer = logits.over_others(scaled, bar, index, *classes)
        if not counted:  # one at least, or none
            nearer = not_below(top, bar)
        outputs = ops.stack([top + ops.log(total), nearer])[:, :, 0]
        return outputs, (top, total, pull)

    def slopes(tensors: Tensors, residuals: Tensors, upstream: Tensor) -> Tensors:
        if not logits.training:
            raise ValueError(
                "A loss with scores by blocks has a gradient in training only. "
                "Received: training=False. Pass training=True to `compute_loss` or "
                "`for_loss`."
            )
        features, index, _, *classes = tensors
        top, total, pull = residuals
        rate = upstream[0][:, None] / total
        found: list[Tensor | None] = [None] * len(classes)
        if logits.trained:
            scaled = scale * features
            found[0] = _centroid_slopes(logits, scaled, classes, index, top, rate)
        return (scale * rate * pull, None, None, *found)

    shifts = () if shift is None else (shift.values,)
    tensors = (logits.features, index, own, *logits.tensors, *shifts)
    return with_gradient(value, slopes)(*tensors)


def _pass_of_part(
    logits: BlockwiseScores,
    scaled: Tensor,
    bar: Tensor,
    classes: Sequence[Tensor],
    index: Tensor,
) -> Tensors:
    centroids, *shift = classes
    counted = logits.ranked or shift
    nothing = ops.zeros_like(scaled[:, :1])
    # Below any z: the length of a row is the scale.
    lowest = -2 * ops.sqrt(ops.sum(ops.square(scaled), axis=1, keepdims=True)) - 1
    if shift:
        lowest = lowest + ops.minimum(ops.min(shift[0]), 0)
    state = (lowest, nothing, ops.zeros_like(scaled), nothing)

    def add(start: Start, size: int, state: Tensors) -> Tensors:
        top, total, pull, nearer = state
        rows, inverse, scores = _block(logits, scaled, centroids, index, start, size)
        if counted:
            nearer = nearer + ops.sum(not_below(scores, bar), axis=1, keepdims=True)
        scores = _shifted(scores, shift, start)
        higher = ops.maximum(top, ops.max(scores, axis=1, keepdims=True))
        powers = ops.exp(scores - higher)
        fading = ops.exp(top - higher)
        total = fading * total + ops.sum(powers, axis=1, keepdims=True)
        if logits.training:
            pull = fading * pull + ops.matmul(powers * inverse, rows)
        return higher, total, pull, nearer

    return _over_blocks(add, state, logits.number_of_part, logits.block_size)


def not_below(scores: Tensor, bar: Tensor) -> Tensor:
    """1.0 where a score is at or above the bar, or one of them is NaN, else 0.0.

    TensorFlow turns "not below" into "at or above", which NaN never is.
    """
    return 1 - ops.cast(scores < bar, scores.dtype)


def _centroid_slopes(
    logits: BlockwiseScores,
    scaled: Tensor,
    classes: Sequence[Tensor],
    index: Tensor,
    top: Tensor,
    rate: Tensor,
) -> Tensor:
    """Gradient with respect to the centroids, shape `(num_classes, dim)`."""
    if logits.parts == 1:
        return _slopes_of_part(logits, scaled, classes, index, top, rate)
    slopes = logits.layout.on_parts(
        lambda part, index: _slopes_of_part(logits, scaled, part, index, top, rate),
        classes,
        index,
    )
    return ops.reshape(slopes, classes[0].shape)


def _slopes_of_part(
    logits: BlockwiseScores,
    scaled: Tensor,
    classes: Sequence[Tensor],
    index: Tensor,
    top: Tensor,
    rate: Tensor,
) -> Tensor:
    centroids, *shift = classes

    def slopes(start: Start, size: int) -> Tensor:
        rows, inverse, scores = _block(logits, scaled, centroids, index, start, size)
        scores = _shifted(scores, shift, start)
        inverse = ops.transpose(inverse)
        units = rows * inverse
        powers = rate * ops.exp(scores - top)
        along = ops.matmul(ops.transpose(powers), scaled)
        along = along - units * ops.sum(units * along, axis=1, keepdims=True)
        return along * inverse

    parts = _of_blocks(slopes, logits.number_of_part, logits.block_size)
    rest = centroids.shape[0] - logits.number_of_part
    if rest:
        parts = ops.pad(parts, [[0, rest], [0, 0]])
    return ops.cast(parts, centroids.dtype)


def _block(
    logits: BlockwiseScores,
    scaled: Tensor,
    centroids: Tensor,
    index: Tensor,
    start: Start,
    size: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """The rows of a block, their inverse lengths, shape `(1, size)`, and the scores.

    The score of the own class is minus infinity.
    """
    rows = cast_rows(centroids, start, size, scaled.dtype)
    # A batch is smaller than `dim`, mostly: its scores are divided, not the rows.
    inverse = inverse_lengths(rows)[None]
    scores = ops.matmul(scaled, ops.transpose(rows)) * inverse
    inside = index - start
    if logits.layout is not None:
        # Writing single entries, devices would first have to tell each other which.
        own = ops.equal(ops.arange(size, dtype=inside.dtype), inside[:, None])
        return rows, inverse, filled(scores, own, -np.inf)
    at = inside % size
    there = ops.take_along_axis(scores, at[:, None], axis=1)[:, 0]
    there = filled(there, ops.equal(at, inside), -np.inf)
    where = ops.stack([ops.arange(ops.shape(at)[0], dtype=at.dtype), at], axis=1)
    return rows, inverse, ops.scatter_update(scores, where, there)


def _shifted(scores: Tensor, shift: Sequence[Tensor], start: Start) -> Tensor:
    """The scores of a block plus its part of the shift, if there is one."""
    if not shift:
        return scores
    part = rows_from(ops.expand_dims(shift[0], 1), start, scores.shape[1])
    return scores + ops.transpose(part)


def cast_rows(centroids: Tensor, start: Start, size: int, dtype: Any) -> Tensor:
    """`rows_from(centroids, start, size)` in another dtype, one block at a time."""
    if keras.backend.backend() == "jax" and centroids.dtype != dtype:
        import jax

        # On the CPU XLA would cast all of them before the loop over the blocks.
        start = ops.convert_to_tensor(start, "int32")
        centroids, start = jax.lax.optimization_barrier((centroids, start))
    return ops.cast(rows_from(centroids, start, size), dtype)


def rows_from(matrix: Tensor, start: Start, size: int) -> Tensor:
    """`size` rows of a matrix, with `start` an int or, inside a loop, a tensor."""
    if isinstance(start, int):  # on PyTorch `ops.slice` would read it off the device
        return matrix[start : start + size]
    return ops.slice(matrix, (start, 0), (size, matrix.shape[1]))


def _over_blocks(
    step: Callable[[Start, int, Tensors], Tensors],
    state: Tensors,
    number: int,
    size: int,
) -> Tensors:
    """`step(start, size, state)` for each block of `number` rows, the last shorter."""
    whole, rest = divmod(number, size)
    if whole == 1:
        state = step(0, size, state)
    else:
        state = ops.fori_loop(
            0, whole, lambda i, state: step(i * size, size, state), state
        )
    return step(whole * size, rest, state) if rest else state


def _of_blocks(
    function: Callable[[Start, int], Tensor], number: int, size: int
) -> Tensor:
    """The rows that `function(start, size)` gives for each block, one after another."""
    whole, rest = divmod(number, size)
    if keras.backend.backend() == "torch":
        # `ops.map` would read the start of each block off the device.
        parts = [function(i * size, size) for i in range(whole)]
    else:
        starts = size * ops.arange(whole, dtype="int32")
        made = ops.map(lambda start: function(start, size), starts)
        parts = [ops.reshape(made, (whole * size, -1))]
    if rest:
        parts.append(function(whole * size, rest))
    return ops.concatenate(parts) if len(parts) > 1 else parts[0]
