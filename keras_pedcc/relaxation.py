"""Descent of unit vectors on the sphere, inside compiled functions.

Two things to lower: the Riesz energy of charges, and a soft form of the largest
cosine. Both are sums over pairs, taken by blocks of rows, so that no array of
`num_classes * num_classes` is held when there are many classes.
"""

import functools
import time

import keras
import numpy as np
from keras import ops

BLOCK_ELEMENTS = 2**24  # of one block of the Gram matrix: 64 MiB in float32
LEVELS = 24
SHARPNESS = (8.0, 10_000.0)
ENOUGH = 1e-7  # a step that moves no coordinate further is the last


def relax_charges(points, exponent, steps, seconds=None, verbose=0):
    """Lowers `sum_{i<j} |x_i - x_j|^-s` of each start; returns the best of them.

    Args:
        points: NumPy array of unit vectors, shape `(starts, num_classes, dim)`.
        exponent: Positive float s; 1 is the Coulomb energy.
        steps: int. Most steps.
        seconds: Positive float or `None`. When to stop at the latest.
        verbose: 0 or 1. Whether to show a progress bar.

    Returns:
        Float32 tensor of the backend, shape `(num_classes, dim)`.
    """
    descent = _Descent("energy", points, steps, seconds, verbose)
    while descent.advance(exponent, descent.affordable(steps)):
        pass
    return descent.best()


def maximize_angle(points, steps, seconds=None, verbose=0):
    """Lowers the largest cosine of each start; returns the best of them.

    `log(sum_{i != j} exp(b cos_ij)) / b` is lowered while the sharpness b rises from
    8 to 10,000, by the same factor for the same share of `steps` (or of `seconds`,
    if that is used up sooner); in the limit it is the largest cosine. Arguments as
    in `relax_charges`.
    """
    descent = _Descent("max_angle", points, steps, seconds, verbose)
    low, high = SHARPNESS
    level = max(1, steps // LEVELS)
    while descent.advance(
        low * (high / low) ** descent.share(), descent.affordable(level)
    ):
        pass
    return descent.best()


class _Descent:
    """Where the points are, and how much of the budget is used."""

    def __init__(self, kind, points, steps, seconds, verbose):
        self.kind = kind
        self.functions = _compiled(keras.backend.backend(), kind, points.shape)
        self.points = ops.convert_to_tensor(points.astype("float32"))
        self.top = ops.ones((len(points), 1, 1))
        self.steps, self.seconds = steps, seconds
        self.used, self.begun = 0, time.monotonic()
        self.bar = verbose and keras.utils.Progbar(
            steps, unit_name="step", stateful_metrics=["largest_cosine"]
        )

    def share(self):
        """The part of the budget that is used, from 0 to 1."""
        elapsed = time.monotonic() - self.begun
        in_time = elapsed / self.seconds if self.seconds else 0.0
        return min(1.0, max(self.used / self.steps, in_time))

    def affordable(self, steps):
        """At most `steps`, and no more than a second or so at 20 GFLOP/s."""
        starts, num_classes, dim = self.points.shape
        operations = 4 * starts * num_classes**2 * dim
        return max(1, min(steps, int(2e10 / operations)))

    def advance(self, parameter, steps):
        """Takes some steps; returns whether to go on."""
        begin, move = self.functions
        parameter = ops.convert_to_tensor(parameter, "float32")
        steps = min(steps, self.steps - self.used)
        state = begin(self.points, self.top, parameter)
        state = move(state, parameter, ops.convert_to_tensor(steps, "int32"))
        taken, self.points, self.value, self.top = (
            int(state[0]),
            state[4],
            state[5],
            state[7],
        )
        self.used += steps if self.kind == "max_angle" else taken
        done = self.used >= self.steps or self.share() >= 1
        # Charges at rest stay there; a soft maximum goes on at the next sharpness.
        done = done or (self.kind == "energy" and taken < steps)
        if self.bar:
            self.bar.update(
                self.steps if done else self.used,
                [("largest_cosine", float(ops.min(self.top)))],
                finalize=done,
            )
        return not done

    def best(self):
        """The start that ended lowest."""
        if self.kind == "max_angle":
            self.value = _largest_cosine(self.points)
        return ops.take(self.points, ops.argmin(self.value), axis=0)


@functools.lru_cache(maxsize=16)
def _compiled(backend, kind, shape):
    """`begin` and `move`, one pair per shape: each would be traced anew anyway."""
    objective = {"energy": _energy, "max_angle": _soft_largest_cosine}[kind]
    begin, move = _begin(objective), _move(objective)
    if backend == "tensorflow":
        import tensorflow as tf

        return tuple(tf.function(f, autograph=False) for f in (begin, move))
    if backend == "jax":
        import jax

        return jax.jit(begin), jax.jit(move)
    return begin, move


def _begin(objective):
    def begin(points, top, parameter):
        value, gradient, room, top = objective(points, top, parameter)
        rate = room / ops.maximum(_largest_row(gradient), 1e-30)
        moved = ops.max(room)
        start = ops.zeros((), "int32")
        return start, points, gradient, rate, points, value, moved, top

    return begin


def _move(objective):
    """Projected gradient descent with Barzilai-Borwein steps, keeping the best."""

    def move(state, parameter, steps):
        def moving(step, points, gradient, rate, best, lowest, moved, top):
            return ops.logical_and(step < steps, moved > ENOUGH)

        def once(step, points, gradient, rate, best, lowest, moved, top):
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


def _energy(points, top, exponent):
    """Energy, its gradient on the sphere, a fifth of the least distance, cosine."""

    def block(gram):
        squared = ops.maximum(2 - 2 * gram, 1e-12)
        inverse = ops.where(gram < -2, 0.0, ops.rsqrt(squared))
        power = inverse**exponent
        return ops.sum(power, axis=(1, 2)) / 2, power * ops.square(inverse)

    value, push, largest = _over_pairs(points, block)
    room = 0.2 * ops.sqrt(ops.maximum(2 - 2 * largest, 1e-12))
    return value, _tangent(exponent * push, points), room, largest


def _soft_largest_cosine(points, top, sharpness):
    """`log(sum exp(b cos)) / b`, its gradient on the sphere, 3 / b, largest cosine.

    `top` is the largest cosine of the step before: close enough to keep exp in range.
    """

    def block(gram):
        powers = ops.exp(sharpness * (gram - top))
        return ops.sum(powers, axis=(1, 2)), powers

    total, push, largest = _over_pairs(points, block)
    value = top[:, 0, 0] + ops.log(total) / sharpness
    push = push * (2 / total)[:, None, None]
    room = ops.ones_like(top) * (3 / sharpness)
    return value, _tangent(push, points), room, largest


def _over_pairs(points, block):
    """Sums over pairs, by blocks of rows.

    `block` gets cosines, -inf for a point with itself, shape `(starts, rows,
    num_classes)`, and returns a value of each start and a weight of each pair.
    Returns the sum of the values, the sums of the weighted points, and the largest
    cosine of each start.
    """
    starts, num_classes, _ = points.shape
    size = max(1, BLOCK_ELEMENTS // (starts * num_classes))
    columns = ops.transpose(points, (0, 2, 1))
    values, pushes, tops = [], [], []
    for first in range(0, num_classes, size):
        rows = points[:, first : first + size]
        index = ops.arange(first, min(first + size, num_classes))
        itself = ops.equal(index[:, None], ops.arange(num_classes)[None])
        gram = ops.where(itself, -np.inf, ops.matmul(rows, columns))
        value, weights = block(gram)
        values.append(value)
        pushes.append(ops.matmul(weights, points))
        tops.append(ops.max(gram, axis=(1, 2), keepdims=True))
    total = functools.reduce(ops.add, values)
    largest = functools.reduce(ops.maximum, tops)
    return total, ops.concatenate(pushes, axis=1), largest


def _largest_cosine(points):
    largest = _over_pairs(points, lambda gram: (0.0, ops.zeros_like(gram)))[2]
    return largest[:, 0, 0]


def _barzilai_borwein(step, change, rate):
    """The step length `<s, s> / <s, y>`, or twice the last where it has no sense."""
    curvature = ops.sum(step * change, axis=(1, 2), keepdims=True)
    length = ops.sum(ops.square(step), axis=(1, 2), keepdims=True)
    safe = ops.where(curvature > 0, curvature, 1.0)
    return ops.where(curvature > 0, length / safe, 2 * rate)


def _tangent(vectors, points):
    """What of `vectors` lies along the sphere."""
    return vectors - ops.sum(vectors * points, axis=-1, keepdims=True) * points


def _largest_row(vectors):
    norms = ops.sqrt(ops.sum(ops.square(vectors), axis=-1, keepdims=True))
    return ops.max(norms, axis=1, keepdims=True)


def _normalized(points):
    return points * ops.rsqrt(ops.sum(ops.square(points), axis=-1, keepdims=True))
