"""Cosines to all classes at once, and the softmax cross entropy of them."""

import math
import numbers
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_pedcc.common import ArrayLike, Tensor, Tensors
from keras_pedcc.common.gradients import with_gradient
from keras_pedcc.common.vectors import entries, filled, nan_unless, with_entries
from keras_pedcc.scores.protocol import Lower, Scores, Shift

# Cosines of short floats, and of the TF32 of GPUs, are rounded by less than 0.01.
LARGEST_COSINE = 1.01


class DenseScores(Scores):
    """`Scores` of a tensor that holds all cosines, or logits of another kind.

    In the entropy the own class is masked inside the sum: subtracting it afterwards
    would cancel.

    Args:
        logits: Array or tensor, shape `(batch, num_classes)`. Computes in float64 if it
            is of that dtype, else in float32.
    """

    takes_soft_labels = True

    def __init__(self, logits: ArrayLike) -> None:
        values = ops.convert_to_tensor(logits)
        self.dtype = keras.backend.standardize_dtype(values.dtype)
        if self.dtype not in ("float32", "float64"):
            self.dtype = "float32"
            values = ops.cast(values, self.dtype)
        self._values = values
        self.shape = values.shape

    @property
    def logits(self) -> Tensor:
        return self._values

    def only_cosines(self, valid: Tensor) -> Tensor:
        # Two reductions: the absolute values would be one more array of that size.
        least, most = _least_and_most(ops.stop_gradient(self._values))
        return valid & (most <= LARGEST_COSINE) & (least >= -LARGEST_COSINE)

    def own(self, target: Tensor) -> Tensor:
        if len(target.shape) == 2:
            return ops.sum(target * self._values, axis=1)
        return entries(self._values, target)[:, 0]

    def distance(self, target: Tensor) -> Tensor:
        if len(target.shape) == 2:
            return ops.sum(target * (1 - self._values), axis=1)
        return super().distance(target)

    def entropy(
        self,
        target: Tensor,
        lower: Lower,
        scale: float | Tensor = 1.0,
        shift: Shift | None = None,
    ) -> Tensor:
        values = self._values
        if len(target.shape) == 2:
            lowered = values + target * (lower(values) - values)
            scores = scale * lowered
            if shift is not None:
                scores = scores + shift.values
            return _soft_entropy(scores, target)
        index = target[:, None]
        own = lower(entries(values, target))
        itself = ops.arange(self.shape[1], dtype=index.dtype) == index
        others = filled(scale * values, itself, -np.inf)
        own = _own_scale(scale, index) * own
        if shift is not None:
            own = own + ops.take(shift.values, index)
            others = others + shift.values
        return _entropy(own, others)

    def additive_entropy(
        self,
        target: Tensor,
        valid: Tensor,
        scale: float,
        margin: float | Tensor,
        mse_weight: float = 0.0,
        shift: Shift | None = None,
    ) -> Tensor:
        if len(target.shape) == 1:
            return _additive_entropy(
                self._values, target, valid, scale, margin, mse_weight, shift
            )
        loss = self.entropy(target, lambda cos: cos - margin, scale, shift)
        return nan_unless(valid, loss + mse_weight * self.distance(target))


def _soft_entropy(scores: Tensor, target: Tensor) -> Tensor:
    """`logsumexp(z) - sum_j t_j z_j = log(sum_j exp(z_j - sum_k t_k z_k))`.

    The entry of the largest target is kept apart: for one-hot labels it is
    exp(0), and a plain logsumexp would lose the rest of the sum beside it.
    """
    mean = ops.sum(target * scores, axis=1, keepdims=True)
    exponent = scores - mean
    largest = ops.expand_dims(ops.argmax(target, axis=1), 1)
    itself = ops.equal(ops.arange(scores.shape[1], dtype=largest.dtype), largest)
    top = ops.stop_gradient(ops.max(exponent, axis=1, keepdims=True))
    top = ops.maximum(top, 0.0)
    exponent = exponent - top
    terms = ops.where(itself, ops.expm1(exponent), ops.exp(exponent))
    return top[:, 0] + ops.log1p(ops.sum(terms, axis=1))


def _entropy(own: Tensor, others: Tensor) -> Tensor:
    """`log(1 + sum_j exp(others_j - own))`, exp kept in range by the largest."""
    exponent = others - own
    top = ops.stop_gradient(ops.relu(ops.max(exponent, axis=1, keepdims=True)))
    total = ops.sum(ops.exp(exponent - top), axis=1, keepdims=True)
    return (top + ops.log1p(ops.expm1(-top) + total))[:, 0]


def _own_scale(scale: Any, index: Tensor) -> Any:
    per_class = len(getattr(scale, "shape", ())) == 2 and scale.shape[1] != 1
    return ops.take_along_axis(scale, index, axis=1) if per_class else scale


def _additive_entropy(
    logits: Tensor,
    index: Tensor,
    valid: Tensor,
    scale: float,
    margin: float | Tensor,
    mse_weight: float,
    shift: Shift | None,
) -> Tensor:
    """`log(1 + sum_{j != y} exp(u_j)) + lambda (1 - cos_y)`.

    With `u_j = s (cos_j - cos_y + m) + b_j - b_y`, b the shift, and with the gradient
    written out: as few operations and passes over `(batch, num_classes)` as there can
    be. The class y is masked inside the sum, because subtracting it afterwards would
    cancel.
    """
    spread = 0.0 if shift is None else shift.spread
    in_range = _in_range(scale, margin, logits, spread)
    powers_of = _plain_powers if in_range else _safe_powers
    one_margin, shifted = isinstance(margin, numbers.Real), shift is not None

    def loss(
        logits: Tensor, index: Tensor, valid: Tensor, *constants: Tensor
    ) -> tuple[Tensor, Tensors]:
        own = nan_unless(valid[:, None], entries(logits, index))
        others = with_entries(logits, index, -np.inf)
        lowered = own - (margin if one_margin else constants[0])
        if shifted:
            # In units of cosine: the gradient is the same, given the powers.
            others = others + constants[-1]
            lowered = lowered + ops.take(constants[-1], index[:, None])
        value, *powers = powers_of(others, lowered, scale)
        if mse_weight:
            value = value + mse_weight * (1 - own)
        return value[:, 0], tuple(powers)

    def slopes(tensors: Tensors, residuals: Tensors, upstream: Tensor) -> Tensors:
        powers, inverse, total = residuals
        upstream = upstream[:, None]
        rate = scale * upstream * inverse
        at_own = -rate * total
        if mse_weight:
            at_own = at_own - mse_weight * upstream
        slope = with_entries(powers * rate, tensors[1], at_own)
        return (slope, *[None] * (len(tensors) - 1))

    tensors = [logits, index, valid]
    if not one_margin:
        tensors.append(ops.stop_gradient(margin))
    if shift is not None:
        tensors.append(shift.values / scale)
    return with_gradient(loss, slopes)(*tensors)


def _least_and_most(values: Tensor) -> Tensors:
    """The smallest and the largest number of each row."""
    if keras.backend.backend() == "torch":
        return tuple(values.aminmax(dim=1))
    return ops.min(values, axis=1), ops.max(values, axis=1)


def _in_range(scale: float, margin: Any, logits: Tensor, spread: float) -> bool:
    """Whether no `exp(s cos_j + b_j)`, and no sum of `exp(u_j)`, leaves float32."""
    margin = margin if isinstance(margin, numbers.Real) else 2.0
    return scale * (2 + margin) + spread + math.log(logits.shape[1]) < 85


def _plain_powers(others: Tensor, lowered: Tensor, scale: float) -> Tensors:
    """The loss, `e_j = exp(s others_j)`, `1 / (e_own + sum_j e_j)`, and `sum_j e_j`."""
    powers = ops.exp(scale * others)
    total = ops.sum(powers, axis=1, keepdims=True)
    own = ops.exp(scale * lowered)
    return ops.log1p(total / own), powers, 1 / (own + total), total


def _safe_powers(others: Tensor, lowered: Tensor, scale: float) -> Tensors:
    """The same, with `e` divided by `exp(s max(others, lowered))`, to stay in range."""
    nearest = ops.max(others, axis=1, keepdims=True)
    top = ops.relu(scale * (nearest - lowered))
    powers = ops.exp(scale * (others - ops.maximum(nearest, lowered)))
    total = ops.sum(powers, axis=1, keepdims=True)
    value = top + ops.log1p(ops.expm1(-top) + total)
    return value, powers, 1 / (ops.exp(-top) + total), total
