"""The constants of losses: what is checked of them, and the form they are used in."""

import numbers
from collections.abc import Sequence
from typing import Any, Literal, TypeAlias, TypeGuard

import keras
import numpy as np
from keras import ops

from keras_pedcc.common import Array, ArrayLike, Tensor

Scale: TypeAlias = float | Literal["auto"]
# Of all classes, or of each.
Margin: TypeAlias = float | Sequence[float] | Array | Tensor


def check_range(
    name: str,
    value: Any,
    low: float,
    high: float,
    open_below: bool = False,
    why: str = "",
) -> None:
    """Raises a `ValueError` unless `value` is a number from `low` to `high`."""
    above = is_number(value) and (value > low if open_below else value >= low)
    if not (above and value <= high and value != float("inf")):
        left, right = "(" if open_below else "[", ")" if high == float("inf") else "]"
        raise ValueError(
            f"`{name}` must be a number in {left}{low:g}, {high:g}{right}{why}. "
            f"Received: {name}={value!r}. Pass a float in that range."
        )


def check_scale(scale: Any) -> None:
    """Raises a `ValueError` unless `scale` is a positive number."""
    check_range("scale", scale, 0.0, float("inf"), open_below=True)


def check_cosine_margin(margin: Any) -> None:
    """Raises unless a margin on the cosine, or each of one per class, can be kept."""
    why = (
        " in units of cosine: cosines differ by 2 at most, and with more the own "
        "class could never win"
    )
    check_margin(margin, 2.0, why)


def check_margin(margin: Any, high: float, why: str = "") -> None:
    """Raises unless a margin, or each of one per class, is from 0 to `high`.

    A tensor or variable is taken as it is: its value may not be known yet.
    """
    if is_tensor(margin):
        return
    if is_sequence(margin) and len(margin) == 0:
        raise ValueError(
            "`margin` must be one number, or one per class. Received: "
            f"margin={margin!r}. Pass as many as there are classes."
        )
    if not is_sequence(margin):
        check_range("margin", margin, 0.0, high, why=why)
        return
    values = np.asarray(margin)
    numeric = values.ndim == 1 and values.dtype.kind in "iuf"
    # One by one only to name the first that is wrong: there may be very many.
    if not numeric or not ((values >= 0) & (values <= high)).all():
        for each in margin:
            check_range("margin", each, 0.0, high, why=why)


def check_dtype(dtype: str | None) -> str:
    """Returns the dtype a loss computes in, or raises a `ValueError`."""
    if dtype not in (None, "float32", "float64"):
        raise ValueError(
            '`dtype` must be "float32" or "float64": a shorter one rounds the '
            f"labels. Received: dtype={dtype!r}. Leave it out."
        )
    return dtype or "float32"


def is_number(value: object) -> bool:
    """Whether a value is a real number of Python or NumPy, and no truth value."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def is_tensor(value: object) -> bool:
    """Whether a value is a tensor of the backend or a Keras variable."""
    return isinstance(value, keras.Variable) or ops.is_tensor(value)


def is_sequence(value: object) -> TypeGuard[Sequence[float]]:
    """Whether a value is a list, tuple or array with one entry per class."""
    array = isinstance(value, np.ndarray) and value.ndim == 1
    return array or isinstance(value, list | tuple)


def plain_margin(margin: Any) -> float | list[float]:
    """A margin as a float, or as a list of floats: what a config can hold."""
    if is_sequence(margin):
        return [float(each) for each in margin]
    return float(margin)


def weighted(values: Tensor, sample_weight: ArrayLike | None) -> Tensor:
    """Each entry of `values` times the weight of its sample."""
    if sample_weight is None:
        return values
    weight = ops.cast(ops.convert_to_tensor(sample_weight), values.dtype)
    if len(weight.shape) > 2 or (len(weight.shape) == 2 and weight.shape[1] != 1):
        raise ValueError(
            "`sample_weight` must have shape (batch,) or (batch, 1). Received: "
            f"sample_weight.shape={tuple(weight.shape)}. Pass one weight per sample."
        )
    return values * ops.reshape(weight, (-1,))
