"""Losses with a margin on the cosine or on the angle: AM-Softmax and ArcFace."""

import math

import keras
from keras import ops

from keras_pedcc.common.gradients import with_gradient
from keras_pedcc.losses.targets import prepare
from keras_pedcc.losses.arguments import (
    check_cosine_margin,
    check_margin,
    check_scale,
    margin_of,
)
from keras_pedcc.losses.base import MarginLoss
from keras_pedcc.losses.entropy import additive_entropy, margin_entropy

_ANGLES = " radians: above pi the loss would not grow with the angle"


@keras.saving.register_keras_serializable("keras_pedcc")
def am_softmax_loss(y_true, y_pred, *, scale=15.0, margin=0.5):
    """Additive-margin softmax loss (CosFace) of each sample, eq. 8.

    `L = -log(e^{s (cos_y - m)} / (e^{s (cos_y - m)} + sum_{j != y} e^{s cos_j}))`,
    with s = `scale`, m = `margin` and `cos_j` the logits. For soft labels t, whose
    rows sum to 1: `z_j = s (cos_j - m t_j)`, `L = logsumexp(z) - sum_j t_j z_j`,
    which is the same for one-hot t. With `margin=0` it is the softmax cross
    entropy of `scale * logits`.

    Computed in float32, or for float64 logits in float64 where the backend does so:
    TensorFlow throughout, PyTorch in part, JAX if asked to. Accurate to 1e-5 relative
    for scales up to 64 (beyond, in proportion to the scale), also where it is tiny.

    Args:
        y_true: Labels, whole numbers in [0, num_classes) of any dtype, shape
            `(batch,)` or `(batch, 1)`; or one-hot or soft labels, shape
            `(batch, num_classes)`, rows that are not negative and sum to 1.
        y_pred: Cosines in [-1, 1], shape `(batch, num_classes)`; or the dict of
            `"features"` and `"logits"` that the heads of this package return.
        scale: Positive float s; the paper takes 15.
        margin: Float m in [0, 2], in units of cosine; the paper takes 0.5. Or a
            sequence of `num_classes` floats, one for each class; or a scalar
            tensor, whose value is not checked.

    Returns:
        Tensor of shape `(batch,)`, not negative. NaN where the label is not
        valid or a logit is NaN; it may be infinite where one is no cosine.

    Raises:
        ValueError: A shape, `scale` or `margin` does not fit.

    Example:

    >>> loss = keras_pedcc.losses.am_softmax_loss([0], [[1.0, -1.0]], scale=1, margin=0)
    >>> round(float(loss[0]), 4)  # log(1 + exp(-2))
    0.1269

    Reference: Zhu et al., IEEE Access 2020, eq. 8; Wang et al., "Additive Margin
    Softmax for Face Verification", 2018, eq. 6.
    """
    check_scale(scale)
    check_cosine_margin(margin)
    return additive_entropy(*prepare(y_true, y_pred), scale, margin)


@keras.saving.register_keras_serializable("keras_pedcc")
def arcface_loss(y_true, y_pred, *, scale=15.0, margin=0.5):
    """Additive-angular-margin softmax loss (ArcFace) of each sample.

    `L = -log(e^{s psi(theta_y)} / (e^{s psi(theta_y)} + sum_{j != y} e^{s cos_j}))`,
    with s = `scale`, m = `margin`, `cos_j = cos(theta_j)` the logits, and

    - `psi(theta) = cos(theta + m)` where theta + m <= pi,
    - `psi(theta) = cos(theta) + cos(m) - 1` beyond, where cos(theta + m) would
      rise again. This is the standard form and not the "easy margin", which has no
      margin beyond 90 degrees. The usual continuation, `cos(theta) - m sin(m)`,
      has the same slope but jumps where the two meet; this one is continuous.

    For soft labels t class j gets the share t_j of its lowering:
    `z_j = s (cos_j + t_j (psi(theta_j) - cos_j))`, `L = logsumexp(z) - sum_j t_j z_j`.
    The slope of psi over the cosine is infinite at theta = 0; here
    `sin(theta)` below 1e-3 counts as 1e-3 in the gradient. Labels and dtypes are those
    of `am_softmax_loss`.

    Args:
        y_true: Labels, see `am_softmax_loss`.
        y_pred: Cosines, see `am_softmax_loss`.
        scale: Positive float s. The paper on ArcFace takes 64.
        margin: Float m in [0, pi], in radians; 0.5 is 28.6 degrees. Or a sequence
            of `num_classes` floats, one for each class; or a scalar tensor, whose
            value is not checked.

    Returns:
        Tensor of shape `(batch,)`, not negative; NaN as in `am_softmax_loss`.

    Raises:
        ValueError: A shape, `scale` or `margin` does not fit.

    Example:

    >>> right = np.pi / 2
    >>> loss = keras_pedcc.losses.arcface_loss([0], [[1.0, 0.0]], scale=1, margin=right)
    >>> round(float(loss[0]), 4)  # cos(0 + pi/2) = 0: log(2)
    0.6931

    Reference: Deng et al., "ArcFace: Additive Angular Margin Loss for Deep Face
    Recognition", 2019, eq. 3.
    """
    check_scale(scale)
    check_margin(margin, math.pi, _ANGLES)
    logits, target, valid = prepare(y_true, y_pred)
    dtype = keras.backend.standardize_dtype(logits.dtype)
    angle = ops.convert_to_tensor(margin_of(margin, logits, target), dtype)
    return margin_entropy(logits, target, valid, lambda c: _turned(c, angle), scale)


@keras.saving.register_keras_serializable("keras_pedcc")
class AMSoftmaxLoss(MarginLoss):
    """Additive-margin softmax loss. Class form of `am_softmax_loss`.

    With `CosineDense` this is AM-Softmax; with `PEDCCDense` it is PEDCC-AM.

    Args:
        scale: Positive float s, or `"auto"`: `auto_scale` of the number of classes.
        margin: Float m in [0, 2], in units of cosine, or one for each class.
        reduction: See `keras.losses.Loss`.
        name: Name of the loss.
        dtype: `"float32"` (default) or `"float64"`.

    Raises:
        ValueError: An argument is out of range.

    Example:

    >>> loss = keras_pedcc.AMSoftmaxLoss(scale=1.0, margin=0.0)
    >>> round(float(loss([0], [[1.0, -1.0]])), 4)
    0.1269

    Reference: Zhu et al., IEEE Access 2020, eq. 8.
    """

    def __init__(
        self,
        scale=15.0,
        margin=0.5,
        *,
        reduction="sum_over_batch_size",
        name="am_softmax_loss",
        dtype="float32",
    ):
        check_cosine_margin(margin)
        super().__init__(scale, margin, reduction=reduction, name=name, dtype=dtype)

    def lowered(self, margin):
        return 1 - margin

    def call(self, y_true, y_pred):
        return am_softmax_loss(y_true, y_pred, **self.constants(y_pred))


@keras.saving.register_keras_serializable("keras_pedcc")
class ArcFaceLoss(MarginLoss):
    """Additive-angular-margin softmax loss. Class form of `arcface_loss`.

    Works with `CosineDense` and with `PEDCCDense`.

    Args:
        scale: Positive float s, or `"auto"`: see `auto_scale`, with `cos(m)` in the
            place of `1 - m`.
        margin: Float m in [0, pi], in radians, or one for each class.
        reduction: See `keras.losses.Loss`.
        name: Name of the loss.
        dtype: `"float32"` (default) or `"float64"`.

    Raises:
        ValueError: An argument is out of range.

    Example:

    >>> loss = keras_pedcc.ArcFaceLoss(scale=1.0, margin=np.pi / 2)
    >>> round(float(loss([0], [[1.0, 0.0]])), 4)
    0.6931

    Reference: Deng et al., "ArcFace: Additive Angular Margin Loss for Deep Face
    Recognition", 2019, eq. 3.
    """

    def __init__(
        self,
        scale=15.0,
        margin=0.5,
        *,
        reduction="sum_over_batch_size",
        name="arcface_loss",
        dtype="float32",
    ):
        check_margin(margin, math.pi, _ANGLES)
        super().__init__(scale, margin, reduction=reduction, name=name, dtype=dtype)

    def lowered(self, margin):
        return math.cos(margin)

    def call(self, y_true, y_pred):
        return arcface_loss(y_true, y_pred, **self.constants(y_pred))


def _turned(cosines, margin):
    """`psi` of `arcface_loss`: the cosine of an angle larger by `margin`."""
    margin = ops.stop_gradient(margin)
    return with_gradient(_turn, _turn_slope)(cosines, ops.cos(margin), ops.sin(margin))


def _turn(cosines, cos_m, sin_m):
    # Near 1 the difference of squares keeps the digits that 1 - cos^2 loses.
    sine = ops.sqrt(ops.relu((1 - cosines) * (1 + cosines)))
    turned = cosines * cos_m - sine * sin_m
    return ops.where(cosines >= -cos_m, turned, cosines + (cos_m - 1)), ()


def _turn_slope(tensors, residuals, upstream):
    cosines, cos_m, sin_m = tensors
    sine = ops.sqrt(ops.maximum((1 - cosines) * (1 + cosines), 1e-6))
    # For margins next to pi, it would be below 0 where the sine is cut off.
    slope = ops.relu(cos_m + sin_m * cosines / sine)
    slope = ops.where(cosines >= -cos_m, slope, ops.ones_like(slope))
    return upstream * slope, None, None
