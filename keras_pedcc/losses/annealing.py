"""How much of the plain softmax is left in A- and L-Softmax as training goes on."""

import numbers

import numpy as np
from keras import ops

from keras_pedcc.common import ArrayLike, Tensor
from keras_pedcc.losses.arguments import check_range


def annealing_lambda(
    iterations: ArrayLike,
    *,
    base: float = 1000.0,
    gamma: float = 0.12,
    power: float = 1.0,
    least: float = 5.0,
) -> Tensor:
    """The weight of the plain softmax in A- and L-Softmax as training goes on.

    `lambda = max(least, base * (1 + gamma * iterations)^-power)`. The defaults are
    those of SphereFace; L-Softmax was published with `gamma=2.5e-5, power=35,
    least=0`.

    Args:
        iterations: Training steps so far, not negative, of any shape. A tensor is
            taken as it is.
        base: Float, not negative. Lambda before the first step.
        gamma: Float, not negative, per step.
        power: Float, not negative.
        least: Float, not negative. What lambda stays at.

    Returns:
        Tensor of the same shape, float32.

    Raises:
        ValueError: A constant is out of range, or a number of steps is negative.

    Example:

    >>> [float(v) for v in keras_pedcc.losses.annealing_lambda([0, 25, 10**6])]
    [1000.0, 250.0, 5.0]

    Reference: Liu et al., "SphereFace: Deep Hypersphere Embedding for Face
    Recognition", 2017, appendix.
    """
    check_annealing(base, gamma, power, least)
    _check_steps(iterations)
    # As a power of e: float32 does not lose the digits of small gammas.
    steps = ops.cast(ops.convert_to_tensor(iterations), "float32")
    return ops.maximum(base * ops.exp(-power * ops.log1p(gamma * steps)), least)


def check_annealing(
    base: float, gamma: float, power: float, least: float, prefix: str = ""
) -> None:
    """Raises a `ValueError` unless the constants of `annealing_lambda` are in range."""
    constants = {"base": base, "gamma": gamma, "power": power, "least": least}
    for name, value in constants.items():
        check_range(prefix + name, value, 0.0, float("inf"))


def _check_steps(iterations: ArrayLike) -> None:
    known = isinstance(iterations, numbers.Real | np.ndarray | list | tuple)
    if known and not (np.asarray(iterations) >= 0).all():
        raise ValueError(
            "`iterations` must not be negative. Received: "
            f"iterations={iterations!r}. Pass the training steps so far."
        )
