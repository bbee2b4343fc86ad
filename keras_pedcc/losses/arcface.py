"""ArcFace: a margin on the angle."""

import math

import keras
from keras import ops

from keras_pedcc.common import ArrayLike, Tensor, Tensors
from keras_pedcc.common.gradients import with_gradient
from keras_pedcc.common.vectors import nan_unless
from keras_pedcc.losses.arguments import Margin, Scale, check_margin, check_scale
from keras_pedcc.losses.base import MarginLoss
from keras_pedcc.losses.priors import Priors, shift_of
from keras_pedcc.losses.targets import Batch, Outputs, batch_of

_ANGLES = " radians: above pi the loss would not grow with the angle"


@keras.saving.register_keras_serializable("keras_pedcc")
def arcface_loss(
    y_true: ArrayLike,
    y_pred: Outputs,
    *,
    scale: float = 15.0,
    margin: Margin = 0.5,
    priors: Priors | None = None,
) -> Tensor:
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
        priors: Sequence or array of `num_classes` positive numbers, counts or
            frequencies of the classes, see `am_softmax_loss`. Defaults to `None`.

    Returns:
        Tensor of shape `(batch,)`, not negative; NaN as in `am_softmax_loss`.

    Raises:
        ValueError: A shape, `scale`, `margin` or `priors` does not fit.

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
    return _arcface(batch_of(y_true, y_pred, scale, margin, shift_of(priors)))


def _arcface(batch: Batch) -> Tensor:
    angle = ops.convert_to_tensor(batch.margin, batch.scores.dtype)
    loss = batch.scores.entropy(
        batch.target, lambda cos: turned(cos, angle), batch.scale, batch.shift
    )
    return nan_unless(batch.valid, loss)


@keras.saving.register_keras_serializable("keras_pedcc")
class ArcFaceLoss(MarginLoss):
    """Additive-angular-margin softmax loss. Class form of `arcface_loss`.

    Works with `CosineDense` and with `PEDCCDense`.

    Args:
        scale: Positive float s, or `"auto"`: see `auto_scale`, with `cos(m)` in the
            place of `1 - m`.
        margin: Float m in [0, pi], in radians, or one for each class.
        priors: Sequence or array of `num_classes` positive numbers, counts or
            frequencies of the classes, see `am_softmax_loss`. `scale="auto"` and the
            warning of a small scale ignore them. Defaults to `None`.
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
        scale: Scale = 15.0,
        margin: Margin = 0.5,
        *,
        priors: Priors | None = None,
        reduction: str | None = "sum_over_batch_size",
        name: str = "arcface_loss",
        dtype: str = "float32",
    ) -> None:
        super().__init__(
            scale, margin, priors=priors, reduction=reduction, name=name, dtype=dtype
        )

    def check_margin(self, margin: Margin) -> None:
        check_margin(margin, math.pi, _ANGLES)

    def lowered(self, margin: float) -> float:
        return math.cos(margin)

    def of_batch(self, batch: Batch) -> Tensor:
        return _arcface(batch)


def turned(cosines: Tensor, margin: Tensor) -> Tensor:
    """`psi` of `arcface_loss`: the cosine of an angle larger by `margin`."""
    margin = ops.stop_gradient(margin)
    return with_gradient(_turn, _turn_slope)(cosines, ops.cos(margin), ops.sin(margin))


def _turn(cosines: Tensor, cos_m: Tensor, sin_m: Tensor) -> tuple[Tensor, Tensors]:
    # Near 1 the difference of squares keeps the digits that 1 - cos^2 loses.
    sine = ops.sqrt(ops.relu((1 - cosines) * (1 + cosines)))
    turned = cosines * cos_m - sine * sin_m
    return ops.where(cosines >= -cos_m, turned, cosines + (cos_m - 1)), ()


def _turn_slope(tensors: Tensors, residuals: Tensors, upstream: Tensor) -> Tensors:
    cosines, cos_m, sin_m = tensors
    sine = ops.sqrt(ops.maximum((1 - cosines) * (1 + cosines), 1e-6))
    # For margins next to pi, it would be below 0 where the sine is cut off.
    slope = ops.relu(cos_m + sin_m * cosines / sine)
    slope = ops.where(cosines >= -cos_m, slope, ops.ones_like(slope))
    return upstream * slope, None, None
