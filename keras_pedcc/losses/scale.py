"""The scale of losses of cosines: what it lets them reach, and how to choose it."""

import math
import warnings
from typing import TYPE_CHECKING, Any

from keras_pedcc.common.checks import check_whole
from keras_pedcc.losses.arguments import (
    Scale,
    check_range,
    check_scale,
)

if TYPE_CHECKING:
    from keras_pedcc.losses.base import MarginLoss

# What "auto" lets the loss reach: about what the paper's s = 15 does for 100 classes.
AUTO_FLOOR = 0.05


def loss_floor(num_classes: int, *, scale: float = 15.0, margin: float = 0.5) -> float:
    """What eq. 8 is at the end, every sample on its centroid of a regular simplex.

    `log(1 + (C - 1) exp(-s (1 - m + 1 / (C - 1))))`, with C = `num_classes`, s =
    `scale` and m = `margin`. No loss falls lower, and for many classes it is far from
    0: 4.0 for 100,000 at the paper's s = 15, m = 0.5.

    Args:
        num_classes: int, at least 2.
        scale: Positive float.
        margin: Float in [0, 2], in units of cosine.

    Returns:
        Float.

    Raises:
        TypeError: `num_classes` is not a whole number.
        ValueError: An argument is out of range.

    Example:

    >>> round(keras_pedcc.losses.loss_floor(100), 5)
    0.04598
    """
    check_whole(2, num_classes=num_classes)
    check_scale(scale)
    check_range("margin", margin, 0.0, 2.0)
    return _floor(num_classes, scale, 1 - margin)


def auto_scale(num_classes: int, *, margin: float = 0.5) -> float:
    """The scale at which eq. 8 can fall to 0.05, see `loss_floor`.

    `s = log((C - 1) / (e^0.05 - 1)) / (1 - m + 1 / (C - 1))`, with C = `num_classes`
    and m = `margin`: 14.8 for 100 classes at m = 0.5, where the paper takes 15, and
    29.0 for 100,000. It is what `scale="auto"` of the losses takes; ArcFace has
    `cos(m)` in the place of `1 - m`.

    Args:
        num_classes: int, at least 2.
        margin: Float in [0, 1], in units of cosine. With another margin for each
            class the losses take the largest.

    Returns:
        Float.

    Raises:
        TypeError: `num_classes` is not a whole number.
        ValueError: An argument is out of range.

    Example:

    >>> round(keras_pedcc.losses.auto_scale(100), 1)
    14.8
    """
    check_whole(2, num_classes=num_classes)
    why = ", so that some scale is large enough"
    check_range("margin", margin, 0.0, 1.0, why=why)
    return _scale(num_classes, 1 - margin)


def check_scale_or_auto(scale: Any) -> Scale:
    """Returns a scale as a float, or the word "auto"; or raises a `ValueError`."""
    if isinstance(scale, str) and scale == "auto":
        return "auto"
    check_scale(scale)
    return float(scale)


def scale_of(loss: "MarginLoss", number: int | None, margin: float) -> float:
    """The scale of a loss for logits; warns where it is too small to learn.

    Args:
        loss: `MarginLoss`.
        number: int, the number of classes; `None` where it is not known.
        margin: Float, the largest margin of the loss.
    """
    if number is None or number < 2:  # refused by what takes the scale
        return AUTO_FLOOR if loss.scale == "auto" else loss.scale
    own = loss.lowered(margin)
    if loss.scale == "auto":
        return _scale(number, own)
    floor = _floor(number, loss.scale, own)
    if floor > 1:
        warnings.warn(
            f"The loss cannot fall below {floor:.2f}: `scale` is small for so many "
            f"classes. Received: scale={loss.scale:g}, with {number} classes and "
            f'margin {margin:g}. Pass scale="auto", or a smaller margin.',
            stacklevel=2,
        )
    return loss.scale


def _floor(num_classes: int, scale: float, own: float) -> float:
    others = num_classes - 1
    exponent = math.log(others) - scale * (own + 1 / others)
    return exponent if exponent > 100 else math.log1p(math.exp(exponent))


def _scale(num_classes: int, own: float) -> float:
    others = num_classes - 1
    gap = own + 1 / others
    if gap <= 0:
        raise ValueError(
            '`scale="auto"` needs a margin that a class on its centroid can keep. '
            f"Received: a margin that leaves {gap:.3g} of the cosine, with "
            f"{num_classes} classes. Pass a smaller margin, or a number as scale."
        )
    return math.log(others / math.expm1(AUTO_FLOOR)) / gap
