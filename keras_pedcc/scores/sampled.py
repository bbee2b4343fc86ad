"""Cosines to the classes of a batch and a random part of the others."""

import keras
import numpy as np
from keras import ops

from keras_pedcc.common import Tensor
from keras_pedcc.common.gradients import full_precision
from keras_pedcc.common.vectors import filled, unit_vectors
from keras_pedcc.scores.blockwise import BlockwiseScores, not_below
from keras_pedcc.scores.protocol import Lower, Shift


def number_of_samples(num_classes: int, rate: float) -> int:
    """How many classes a step draws beside those of its batch, at least 1."""
    return min(max(1, round(rate * num_classes)), num_classes - 1)


class SampledScores(BlockwiseScores):
    """`Scores` of the classes of a batch and a random part of the others.

    Beside the distinct classes Y of the batch, n of the others are drawn, anew for each
    loss that is taken. The sum over the classes other than its own is, for sample i
    and with the scale s,

    `sum_{j in Y, j != y_i} exp(s cos_ij) + (C - |Y|) / n sum_{j drawn} exp(s cos_ij)`.

    Over the draws its mean is the sum over all C classes: each class outside Y is drawn
    with the probability `n / (C - |Y|)`. Its logarithm, and with it the loss, is lower
    in the mean, to the order 1/n by `p^2 v^2 (1/n - 1/(C - |Y|)) / 2`, with p the
    probability that softmax gives to the classes outside Y and v the standard deviation
    of `exp(s cos_ij)` over them divided by its mean (were they in a random order). If
    n is all of them, the loss is exact.

    Memory is `n * dim` for the centroids and `batch * (batch + n)` for the cosines, a
    few times. The gradient with respect to the centroids is zero outside the classes
    of the step.

    Args:
        features: Unit vectors, shape `(batch, dim)`.
        centroids: Shape `(num_classes, dim)`, of any length and float dtype.
        trained: Whether the loss has a gradient with respect to the centroids.
        number: int n, from 1 to `num_classes - 1`. Where fewer are left beside those
            of the batch, they are all drawn.
        seed: `keras.random.SeedGenerator`.
        num_classes: As of `BlockwiseScores`.

    Reference: An et al., "Partial FC: Training 10 Million Identities on a Single
    Machine", 2021. The weights are not taken from there.
    """

    def __init__(
        self,
        features: Tensor,
        centroids: Tensor,
        *,
        trained: bool,
        number: int,
        seed: keras.random.SeedGenerator,
        num_classes: int | None = None,
    ) -> None:
        super().__init__(
            features,
            centroids,
            trained=trained,
            block_size=number,
            num_classes=num_classes,
        )
        self.number = number
        self.seed = seed

    def _entropy(
        self,
        index: Tensor,
        own: Tensor,
        lower: Lower,
        scale: float,
        shift: Shift | None,
    ) -> Tensor:
        """`log(1 + sum_{j != y} w_j exp(s cos_j + b_j - s lower(cos_y) - b_y))`.

        With w_j the weights of `drawn_classes` and b the shift. `rank` is that among
        the classes of this step.
        """
        classes, log_weights = drawn_classes(
            index, self.shape[1], self.number, self.seed
        )
        rows = ops.cast(ops.take(self.centroids, classes, axis=0), self.dtype)
        with full_precision(rows):
            cosines = ops.matmul(self.features, ops.transpose(unit_vectors(rows)))
        log_weights = ops.cast(log_weights, self.dtype)
        # The own class is masked: subtracting it from the sum would cancel.
        out = ops.equal(classes, index[:, None]) | (log_weights == -np.inf)
        if shift is not None:
            log_weights = log_weights + ops.take(shift.values, classes)
        scores = filled(scale * cosines + log_weights, out, -np.inf)
        others = filled(cosines, out, -np.inf)
        self.rank = ops.sum(not_below(others, own[:, None]), axis=1)
        own_score = scale * lower(own[:, None])[:, 0]
        if shift is not None:
            own_score = own_score + ops.take(shift.values, index)
        return ops.softplus(ops.logsumexp(scores, axis=1) - own_score)


def drawn_classes(
    index: Tensor, num_classes: int, number: int, seed: keras.random.SeedGenerator | int
) -> tuple[Tensor, Tensor]:
    """Classes of the batch, then `number` sampled others, and their log weights.

    A class of the batch has the weight 1, its repetitions 0. A drawn one has
    `(C - |Y|) / n`, with n the number that was drawn; those that are too many, 0.

    Args:
        index: Classes of the batch, int32, shape `(batch,)`.
        num_classes: int C.
        number: int, at least 1.
        seed: `keras.random.SeedGenerator`, or an int.

    Returns:
        `(classes, log_weights)`, int32 and float32, of shape `(batch + number,)`.
    """
    ordered = ops.sort(index)
    first = ops.not_equal(ordered, _before(ordered))
    rank = ops.cumsum(ops.cast(first, "int32")) - 1
    others = num_classes - ops.sum(ops.cast(first, "int32"))
    bits = keras.random.randint((number + 1,), 0, 2**31 - 1, "int32", seed=seed)
    places, there = _places(others, bits)
    # How many of the others come before each class of the batch, in order.
    skipped = ops.sort(ops.where(first, ordered - rank, num_classes))
    drawn = places + ops.cast(ops.searchsorted(skipped, places, "right"), "int32")
    weight = ops.maximum(others, 1) / ops.maximum(ops.minimum(others, number), 1)
    log_weight = ops.log(ops.cast(weight, "float32"))
    log_weights = [
        ops.where(first, 0.0, -np.inf),
        filled(ops.broadcast_to(log_weight, there.shape), ~there, -np.inf),
    ]
    classes = ops.concatenate([ordered, ops.minimum(drawn, num_classes - 1)])
    return classes, ops.concatenate(log_weights)


def _before(ordered: Tensor) -> Tensor:
    """The entry before each, -1 before the first."""
    return ops.pad(ordered, [[1, 0]], constant_values=-1)[:-1]


def _places(others: Tensor, bits: Tensor) -> tuple[Tensor, Tensor]:
    """Draws distinct numbers below `others` by stratified sampling.

    The range is rotated by a random offset and cut into parts of nearly equal length,
    as many as numbers are wanted. Each part yields one number. The offset makes all
    numbers equally likely. The cost grows with what is drawn, not with `others`.

    Args:
        others: int32 scalar, not negative.
        bits: Random int32 from 0 up, shape `(number + 1,)`: for the offset, and for
            each part. Their remainders are uniform to `others / 2^31`.

    Returns:
        `(places, there)`, int32 and bool, of shape `(number,)`. With fewer others than
        wanted each is there once.
    """
    number = bits.shape[0] - 1
    length, longer = others // number, others % number
    part = ops.arange(number, dtype="int32")
    start = part * length + ops.minimum(part, longer)
    length = length + ops.cast(part < longer, "int32")
    place = start + bits[1:] % ops.maximum(length, 1) + bits[0] % ops.maximum(others, 1)
    return place % ops.maximum(others, 1), length > 0
