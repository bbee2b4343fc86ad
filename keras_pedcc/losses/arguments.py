"""The constants of losses: what is checked of them, and the form they are used in."""

import contextlib
import contextvars
import numbers

import keras
import numpy as np
from keras import ops


def check_range(name, value, low, high, open_below=False, why=""):
    """Raises a `ValueError` unless `value` is a number from `low` to `high`."""
    above = is_number(value) and (value > low if open_below else value >= low)
    if not (above and value <= high and value != float("inf")):
        left, right = "(" if open_below else "[", ")" if high == float("inf") else "]"
        raise ValueError(
            f"`{name}` must be a number in {left}{low:g}, {high:g}{right}{why}. "
            f"Received: {name}={value!r}. Pass a float in that range."
        )


def check_scale(scale):
    """Raises a `ValueError` unless `scale` is a positive number."""
    check_range("scale", scale, 0.0, float("inf"), open_below=True)


def check_cosine_margin(margin):
    """Raises unless a margin on the cosine, or each of one per class, can be kept."""
    why = (
        " in units of cosine: cosines differ by 2 at most, and with more the own "
        "class could never win"
    )
    check_margin(margin, 2.0, why)


def check_margin(margin, high, why=""):
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


def check_dtype(dtype):
    """Returns the dtype a loss computes in, or raises a `ValueError`."""
    if dtype not in (None, "float32", "float64"):
        raise ValueError(
            '`dtype` must be "float32" or "float64": a shorter one rounds the '
            f"labels. Received: dtype={dtype!r}. Leave it out."
        )
    return dtype or "float32"


def is_number(value):
    """Whether a value is a real number of Python or NumPy, and no truth value."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def is_tensor(value):
    """Whether a value is a tensor of the backend or a Keras variable."""
    return isinstance(value, keras.Variable) or ops.is_tensor(value)


def is_sequence(value):
    """Whether a value is a list, tuple or array with one entry per class."""
    array = isinstance(value, np.ndarray) and value.ndim == 1
    return array or isinstance(value, list | tuple)


def plain_margin(margin):
    """A margin as a float, or as a list of floats: what a config can hold."""
    if is_sequence(margin):
        return [float(each) for each in margin]
    return float(margin)


# Of the model whose loss is computed, in this thread: replicas have one each.
_SHARE = contextvars.ContextVar("share of the margin")


@contextlib.contextmanager
def margin_share(share):
    """Gives the losses computed inside this share of their margin, `None` for all.

    One loss may be that of several models: inside, what it carries does not count.
    """
    token = _SHARE.set(share)
    try:
        yield
    finally:
        _SHARE.reset(token)


def carried_share(loss):
    """The share of its margin that a loss has at the moment, `None` for all of it."""
    return _SHARE.get(loss.margin_share)


def margin_of(margin, logits, target):
    """The margin in the shape in which it is subtracted, or added to an angle.

    One margin for all classes: a number, or a tensor of shape `()`. One per class:
    for indices as `target` that of each sample's class, shape `(batch, 1)`; for
    soft labels shape `(num_classes,)`.
    """
    if isinstance(margin, numbers.Real):
        return margin
    margin = ops.convert_to_tensor(
        margin, keras.backend.standardize_dtype(logits.dtype)
    )
    if len(margin.shape) == 0:
        return margin
    if tuple(margin.shape) != (logits.shape[1],):
        raise ValueError(
            "`margin` must be one number, or one per class. Received: margin of "
            f"shape {tuple(margin.shape)}, num_classes={logits.shape[1]}. Pass as "
            "many as there are classes."
        )
    if len(target.shape) == 2:
        return margin
    return ops.expand_dims(ops.take(margin, target), 1)


def weighted(values, sample_weight):
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
