"""Descent of unit vectors on the sphere, inside compiled functions.

It lowers the Riesz energy of charges, or a soft form of the largest cosine. Both are
sums over pairs, computed by blocks of rows, so that many classes need no array of
`num_classes * num_classes`.
"""

import functools
import time
from collections.abc import Callable
from typing import TypeAlias

import keras
import numpy as np
from keras import ops

from keras_pedcc.common import Array, Shape, Tensor, Tensors

BLOCK_ELEMENTS = 2**24  # of one block of the Gram matrix: 64 MiB in float32
LEVELS = 24
SHARPNESS = (8.0, 10_000.0)
ENOUGH = 1e-7  # the descent stops when no coordinate moves by more

# Of points, their largest cosine and a parameter: value, gradient, room and cosine.
Objective: TypeAlias = Callable[[Tensor, Tensor, Tensor], Tensors]


def relax_charges(
    points: Array,
    exponent: float,
    steps: int,
    seconds: float | None = None,
    verbose: int = 0,
) -> Tensor:
    """Minimizes `sum_{i<j} |x_i - x_j|^-s` from each start; returns the best result.

    Args:
        points: NumPy array of unit vectors, shape `(starts, num_classes, dim)`.
        exponent: Float s in (0, 4]; 1 is the Coulomb energy.
        steps: int. Maximum number of steps.
        seconds: Positive float, a time limit, or `None`.
        verbose: 0 or 1. Whether to show a progress bar.

    Returns:
        Float32 tensor of the backend, shape `(num_classes, dim)`.
    """
    descent = _Descent("energy", points, steps, seconds, verbose)
    while descent.advance(exponent, steps):
        pass
    return descent.best()


def maximize_angle(
    points: Array, steps: int, seconds: float | None = None, verbose: int = 0
) -> Tensor:
    """Minimizes the largest cosine from each start; returns the best result.

    Minimizes `log(sum_{i != j} exp(b cos_ij)) / b` while the sharpness b rises from 8
    to 10,000 in 24 levels of equal numbers of steps, or of equal times if these run out
    first. In the limit this is the largest cosine. Arguments as in `relax_charges`.
    """
    descent = _Descent("max_angle", points, steps, seconds, verbose)
    low, high = SHARPNESS
    sharpness = low
    while descent.advance(sharpness, max(1, steps // LEVELS)):
        level = min(LEVELS - 1, int(LEVELS * descent.share()))
        sharpness = low * (high / low) ** (level / (LEVELS - 1))
    return descent.best()


class _Descent:
    """State of a descent: the points, and how much of the budget is used."""

    def __init__(
        self, kind: str, points: Array, steps: int, seconds: float | None, verbose: int
    ) -> None:
        self.kind = kind
        self.begin, self.move = _compiled(keras.backend.backend(), kind, points.shape)
        self.points = ops.convert_to_tensor(points.astype("float32"))
        self.top = ops.ones((len(points), 1, 1), "float32")
        self.parameter: float | None = None
        self.state: Tensors = ()
        self.steps, self.seconds = steps, seconds
        self.used, self.begun = 0, time.monotonic()
        self.bar = verbose and keras.utils.Progbar(
            steps, unit_name="step", stateful_metrics=["largest_cosine"]
        )

    def share(self) -> float:
        """The used part of the budget, from 0 to 1."""
        elapsed = time.monotonic() - self.begun
        in_time = elapsed / self.seconds if self.seconds else 0.0
        return min(1.0, max(self.used / self.steps, in_time))

    def advance(self, parameter: float, steps: int) -> bool:
        """Takes steps for about a second; returns whether to continue."""
        number = ops.convert_to_tensor(parameter, "float32")
        if parameter != self.parameter:
            self.state = self.begin(self.points, self.top, number)
            self.parameter = parameter
        steps = min(steps, self.steps - self.used, self._affordable())
        self.state = self.move(
            (ops.zeros((), "int32"), *self.state[1:]),
            number,
            ops.convert_to_tensor(steps, "int32"),
        )
        taken = int(self.state[0])
        self.points, self.value, self.top = (self.state[i] for i in (4, 5, 7))
        # Charges at rest stay there; a soft maximum goes on at the next sharpness.
        at_rest = self.kind == "energy" and taken < steps
        self.used += steps
        done = at_rest or self.share() >= 1
        self._show(done)
        return not done

    def best(self) -> Tensor:
        """The best result of all starts."""
        if self.kind == "max_angle":
            self.value = _largest_cosine(self.points)
        return ops.take(self.points, ops.argmin(self.value), axis=0)

    def _affordable(self) -> int:
        starts, num_classes, dim = self.points.shape
        eager = keras.backend.backend() == "torch"
        operations = 4 * starts * num_classes**2 * dim + (4e7 if eager else 0)
        return max(1, int(2e10 / operations))

    def _show(self, done: bool) -> None:
        if self.bar:
            shown = [("largest_cosine", float(ops.min(self.top)))]
            self.bar.update(self.steps if done else self.used, shown, finalize=done)


@functools.lru_cache(maxsize=16)
def _compiled(
    backend: str, kind: str, shape: Shape
) -> tuple[Callable[..., Tensors], ...]:
    """`begin` and `move`, one pair per shape: each shape is traced separately."""
    objective = {"energy": _energy, "max_angle": _soft_largest_cosine}[kind]
    begin, move = _begin(objective), _move(objective)
    if backend == "tensorflow":
        import tensorflow as tf

        return tuple(tf.function(f, autograph=False) for f in (begin, move))
    if backend == "jax":
        import jax

        return jax.jit(begin), jax.jit(move)
    return begin, move


def _begin(objective: Objective) -> Callable[..., Tensors]:
    def begin(points: Tensor, top: Tensor, parameter: Tensor) -> Tensors:
        value, gradient, room, top = objective(points, top, parameter)
        rate = room / ops.maximum(_largest_row(gradient), 1e-30)
        moved = ops.max(room)
        start = ops.zeros((), "int32")
        return start, points, gradient, rate, points, value, moved, top

    return begin


def _move(objective: Objective) -> Callable[..., Tensors]:
    """Projected gradient descent with Barzilai-Borwein steps, keeping the best."""

    def move(state: Tensors, parameter: Tensor, steps: Tensor) -> Tensors:
        def moving(
            step: Tensor,
            points: Tensor,
            gradient: Tensor,
            rate: Tensor,
            best: Tensor,
            lowest: Tensor,
            moved: Tensor,
            top: Tensor,
        ) -> Tensor:
            return ops.logical_and(step < steps, moved > ENOUGH)

        def once(
            step: Tensor,
            points: Tensor,
            gradient: Tensor,
            rate: Tensor,
            best: Tensor,
            lowest: Tensor,
            moved: Tensor,
            top: Tensor,
        ) -> Tensors:
            reached = _normalized(points - rate * gradient)
            value, slope, room, top = objective(reached, top, parameter)
            rate = _barzilai_borwein(reached - points, slope - gradient, rate)
            rate = ops.minimum(rate, room / ops.maximum(_largest_row(slope), 1e-30))
            better = value < lowest
            best = ops.where(better[:, None, None], reached, best)
            lowest = ops.minimum(value, lowest)
            moved = ops.max(ops.abs(reached - points))
            return step + 1, reached, slope, rate, best, lowest, moved, top

        return ops.while_loop(moving, once, state)

    return move


def _energy(points: Tensor, top: Tensor, exponent: Tensor) -> Tensors:
    """Energy, its gradient on the sphere, a fifth of the least distance, cosine."""

    def block(gram: Tensor) -> tuple[Tensor, Tensor]:
        squared = ops.maximum(2 - 2 * gram, 1e-12)
        inverse = ops.where(gram < -2, 0.0, ops.rsqrt(squared))
        power = inverse**exponent
        return ops.sum(power, axis=(1, 2)) / 2, power * ops.square(inverse)

    value, push, largest = _over_pairs(points, block)
    room = 0.2 * ops.sqrt(ops.maximum(2 - 2 * largest, 1e-12))
    return value, _tangent(exponent * push, points), room, largest


def _soft_largest_cosine(points: Tensor, top: Tensor, sharpness: Tensor) -> Tensors:
    """`log(sum exp(b cos)) / b`, its gradient on the sphere, 3 / b, largest cosine.

    `top`, the largest cosine of the previous step, keeps exp in range.
    """

    def block(gram: Tensor) -> tuple[Tensor, Tensor]:
        powers = ops.exp(sharpness * (gram - top))
        return ops.sum(powers, axis=(1, 2)), powers

    total, push, largest = _over_pairs(points, block)
    value = top[:, 0, 0] + ops.log(total) / sharpness
    push = push * (2 / total)[:, None, None]
    room = ops.ones_like(top) * (3 / sharpness)
    return value, _tangent(push, points), room, largest


def _over_pairs(
    points: Tensor, block: Callable[[Tensor], tuple[Tensor, Tensor]]
) -> tuple[Tensor, Tensor, Tensor]:
    """Sums over pairs, by blocks of rows.

    `block` gets cosines, -inf for a point with itself, shape `(starts, rows,
    num_classes)`, and returns a value of each start and a weight of each pair.
    Returns the sum of the values, the sums of the weighted points, and the largest
    cosine of each start.
    """
    starts, num_classes, dim = points.shape
    size = min(num_classes, max(1, BLOCK_ELEMENTS // (starts * num_classes)))
    blocks = -(-num_classes // size)
    padded = ops.pad(points, [(0, 0), (0, blocks * size - num_classes), (0, 0)])
    columns = ops.transpose(points, (0, 2, 1))

    def add(number: Tensor, sums: Tensors) -> Tensors:
        total, largest, push = sums
        first = number * size
        rows = ops.slice(padded, (0, first, 0), (starts, size, dim))
        index = first + ops.arange(size, dtype="int32")[:, None]
        itself = ops.equal(index, ops.arange(num_classes, dtype="int32"))
        left_out = ops.logical_or(itself, index >= num_classes)
        gram = ops.where(left_out, -np.inf, ops.matmul(rows, columns))
        value, weights = block(gram)
        largest = ops.maximum(largest, ops.max(gram, axis=(1, 2), keepdims=True))
        push = ops.slice_update(push, (0, first, 0), ops.matmul(weights, points))
        return total + value, largest, push

    sums = (
        ops.zeros((starts,), "float32"),
        -ops.ones((starts, 1, 1), "float32"),
        ops.zeros_like(padded),
    )
    # A loop, because a compiler might keep all independent blocks in memory.
    loop = ops.fori_loop if blocks > 1 else _once
    total, largest, push = loop(0, blocks, add, sums)
    return total, push[:, :num_classes], largest


def _once(
    lower: int, upper: int, body: Callable[[Tensor, Tensors], Tensors], initial: Tensors
) -> Tensors:
    return body(lower, initial)


def _largest_cosine(points: Tensor) -> Tensor:
    largest = _over_pairs(points, lambda gram: (0.0, ops.zeros_like(gram)))[2]
    return largest[:, 0, 0]


def _barzilai_borwein(step: Tensor, change: Tensor, rate: Tensor) -> Tensor:
    """The step length `<s, s> / <s, y>`, or twice the last if it is not positive."""
    curvature = ops.sum(step * change, axis=(1, 2), keepdims=True)
    length = ops.sum(ops.square(step), axis=(1, 2), keepdims=True)
    safe = ops.where(curvature > 0, curvature, 1.0)
    return ops.where(curvature > 0, length / safe, 2 * rate)


def _tangent(vectors: Tensor, points: Tensor) -> Tensor:
    """The component of `vectors` that is tangent to the sphere."""
    return vectors - ops.sum(vectors * points, axis=-1, keepdims=True) * points


def _largest_row(vectors: Tensor) -> Tensor:
    # Scaled before squaring: charges that almost touch repel very strongly.
    largest = ops.max(ops.abs(vectors), axis=(1, 2), keepdims=True)
    largest = ops.maximum(largest, 1e-30)
    squared = ops.sum(ops.square(vectors / largest), axis=-1, keepdims=True)
    return largest * ops.sqrt(ops.max(squared, axis=1, keepdims=True))


def _normalized(points: Tensor) -> Tensor:
    return points * ops.rsqrt(ops.sum(ops.square(points), axis=-1, keepdims=True))
