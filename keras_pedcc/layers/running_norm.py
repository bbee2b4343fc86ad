"""Running mean and standard deviation of the lengths of features."""

from keras import ops

from keras_pedcc.common import Tensor
from keras_pedcc.common.replicas import sum_over_replicas
from keras_pedcc.common.vectors import at_least

RATE = 0.01  # of a batch, after the first 100
EPSILON = 1e-3  # beside the deviation, which may be 0


def updated(
    mean: Tensor, deviation: Tensor, norm: Tensor, steps: Tensor
) -> tuple[Tensor, Tensor]:
    """Mean and deviation after a batch of norms, of all replicas together.

    `mean += a (batch_mean - mean)`, and alike for the deviation, with
    `a = max(0.01, 1 / steps)`: a plain average over the first 100 batches, then an
    exponential one. A batch with a norm that is not finite changes neither, but
    counts as a step.

    Args:
        mean: Running mean, a scalar.
        deviation: Running standard deviation, a scalar.
        norm: Lengths of the features of the batch, shape `(batch,)`.
        steps: Number of batches, this one included, an int scalar.
    """
    number = sum_over_replicas(ops.cast(ops.size(norm), norm.dtype))
    batch_mean = sum_over_replicas(ops.sum(norm)) / number
    squares = sum_over_replicas(ops.sum(ops.square(norm - batch_mean)))
    batch_deviation = ops.sqrt(squares / number)
    rate = at_least(1 / ops.cast(steps, norm.dtype), RATE)
    finite = ops.isfinite(batch_deviation)

    def moved(running: Tensor, batch: Tensor) -> Tensor:
        return ops.where(finite, running + rate * (batch - running), running)

    return moved(mean, batch_mean), moved(deviation, batch_deviation)


def standardized(norm: Tensor, mean: Tensor, deviation: Tensor) -> Tensor:
    """How many standard deviations the norms are above their mean."""
    return (norm - mean) / (deviation + EPSILON)
