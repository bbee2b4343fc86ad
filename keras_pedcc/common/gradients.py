"""Functions with a hand-written gradient, on every backend."""

import contextlib
import functools
from collections.abc import Callable
from typing import Any, TypeAlias

import keras

from keras_pedcc.common import Tensor, Tensors

# Returns a value and the residuals for its gradient.
Function: TypeAlias = Callable[..., tuple[Tensor, Tensors]]
# Takes tensors, residuals, and the gradient of the loss by the value.
Slopes: TypeAlias = Callable[[Tensors, Tensors, Tensor], Tensors]


def with_gradient(function: Function, slopes: Slopes) -> Callable[..., Tensor]:
    """Returns `function` with the gradient that `slopes` computes.

    The result can be differentiated as often as `slopes` itself, and works under
    rematerialisation, loops and batching (on PyTorch the transforms of `torch.func`
    raise). `function` and `slopes` must use no tensor but their arguments.

    Args:
        function: Takes tensors, returns `(value, residuals)`: one tensor, and a tuple
            of tensors that `slopes` needs.
        slopes: Takes `(tensors, residuals, upstream)`, returns a tuple with the
            gradient with respect to each tensor, or `None` for one without.

    Returns:
        Function of the same tensors that returns the value.

    Example:

    >>> def square(x):
    ...     return x**2, ()
    >>> def slope(tensors, residuals, upstream):
    ...     return (2 * tensors[0] * upstream,)
    >>> float(with_gradient(square, slope)(keras.ops.convert_to_tensor(3.0)))
    9.0
    """
    make = {"tensorflow": _tensorflow, "jax": _jax, "torch": _torch}
    return make[keras.backend.backend()](function, slopes)


def _tensorflow(function: Function, slopes: Slopes) -> Callable[..., Tensor]:
    import tensorflow as tf

    @tf.custom_gradient
    def call(*tensors: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensors]]:
        value, residuals = function(*tensors)
        return value, lambda upstream: slopes(tensors, residuals, upstream)

    # A variable that is read inside would be an input unknown to `slopes`.
    return lambda *tensors: call(*map(tf.convert_to_tensor, tensors))


def _jax(function: Function, slopes: Slopes) -> Callable[..., Tensor]:
    import jax

    @jax.custom_vjp
    def call(*tensors: Tensor) -> Tensor:
        return function(*tensors)[0]

    def forward(*tensors: Tensor) -> tuple[Tensor, tuple[Tensors, Tensors]]:
        value, residuals = function(*tensors)
        return value, (tensors, residuals)

    call.defvjp(forward, lambda saved, upstream: slopes(saved[0], saved[1], upstream))
    return call


def _torch(function: Function, slopes: Slopes) -> Callable[..., Tensor]:
    return functools.partial(_torch_function().apply, function, slopes)


@functools.cache
def _torch_function() -> Any:
    import torch

    class WithGradient(torch.autograd.Function):
        @staticmethod
        def forward(
            ctx: Any, function: Function, slopes: Slopes, *tensors: Tensor
        ) -> Tensor:
            with full_precision(tensors[0]):
                value, residuals = function(*tensors)
            ctx.function, ctx.slopes, ctx.number = function, slopes, len(tensors)
            # Not an attribute: saved tensors are freed after the backward pass.
            ctx.save_for_backward(*tensors, *residuals)
            return value

        @staticmethod
        def backward(ctx: Any, upstream: Tensor) -> Tensors:
            tensors = ctx.saved_tensors[: ctx.number]
            residuals = ctx.saved_tensors[ctx.number :]
            with full_precision(upstream):
                if torch.is_grad_enabled():
                    # For a second derivative, they must be functions of the tensors.
                    residuals = ctx.function(*tensors)[1]
                return None, None, *ctx.slopes(tensors, residuals, upstream)

    return WithGradient


def full_precision(tensor: Tensor) -> contextlib.AbstractContextManager[Any]:
    """A context in which `torch.autocast` does not reduce the precision.

    Args:
        tensor: Tensor on the device of the computation.
    """
    if keras.backend.backend() != "torch":
        return contextlib.nullcontext()
    import torch

    device = tensor.device.type
    if device == "meta" or not torch.is_autocast_enabled(device):
        return contextlib.nullcontext()
    return torch.autocast(device, enabled=False)
