"""AdaFace: a margin that adapts to the length of the features."""

from typing import Any

import keras
from keras import ops

from keras_pedcc.common import ArrayLike, Tensor
from keras_pedcc.common.vectors import nan_unless
from keras_pedcc.losses.arcface import turned
from keras_pedcc.losses.arguments import (
    Margin,
    Scale,
    check_margin,
    check_range,
    check_scale,
)
from keras_pedcc.losses.base import MarginLoss
from keras_pedcc.losses.first_batch import check_cosines
from keras_pedcc.losses.priors import Priors, shift_of
from keras_pedcc.losses.targets import Batch, Outputs, batch_of, check_held, logits_of
from keras_pedcc.scores.protocol import Scores

_WHY = " in units of cosine: up to 2 m is taken off a cosine"


@keras.saving.register_keras_serializable("keras_pedcc")
def adaface_loss(
    y_true: ArrayLike,
    y_pred: Outputs,
    *,
    scale: float = 64.0,
    margin: Margin = 0.4,
    h: float = 0.333,
    priors: Priors | None = None,
) -> Tensor:
    """AdaFace of each sample: long features get a margin that asks for more.

    `L = -log(e^{s psi} / (e^{s psi} + sum_{j != y} e^{s cos_j}))`, with
    `psi = cos(theta_y - m q) - m (1 + q)`, s = `scale`, m = `margin`, `cos_j` the
    logits, and the quality `q = h (|x| - mean) / deviation` of a sample, clipped to
    [-1, 1]. The length |x| of the features stands for the quality of an image; the
    head keeps its running mean and standard deviation. No gradient goes through q.

    At q = -1 the loss is `arcface_loss`, at q = 0 `am_softmax_loss`, both with margin
    m. Where theta_y - m q is below 0 the cosine of it stays 1, and where it is above
    pi, psi goes on as in `arcface_loss`. Soft labels are as there.

    Args:
        y_true: Labels, see `am_softmax_loss`.
        y_pred: Dict of `CosineDense(return_norm=True)` or another head of cosines:
            `"features"`, `"logits"`, shape `(batch, num_classes)`, and
            `"standard_norm"`, shape `(batch,)`: `(|x| - mean) / deviation`.
        scale: Positive float s. Defaults to 64, as in the paper.
        margin: Float m in [0, 1]. Defaults to 0.4, as in the paper. Or a sequence of
            `num_classes` floats, one for each class; or a scalar tensor, whose value is
            not checked.
        h: Positive float. At 0.333 the quality of about 99.7 % of normally distributed
            lengths is not clipped. Defaults to 0.333.
        priors: Sequence or array of `num_classes` positive numbers, counts or
            frequencies of the classes, see `am_softmax_loss`. Defaults to `None`.

    Returns:
        Tensor of shape `(batch,)`, not negative; NaN as in `am_softmax_loss`.

    Raises:
        ValueError: A shape or constant does not fit, or `y_pred` has no norm.

    Example:

    >>> outputs = {"features": [[1.0]], "logits": [[1.0, 0.0]], "standard_norm": [0.0]}
    >>> loss = keras_pedcc.losses.adaface_loss([0], outputs, scale=1.0, margin=0.5)
    >>> round(float(loss[0]), 4)  # log(1 + exp(-0.5))
    0.4741

    Reference: Kim, Jain and Liu, "AdaFace: Quality Adaptive Margin for Face
    Recognition", CVPR 2022, https://arxiv.org/abs/2204.00964.
    """
    check_scale(scale)
    check_margin(margin, 1.0, _WHY)
    _check_h(h)
    batch = batch_of(y_true, y_pred, scale, margin, shift_of(priors))
    return _adaface(batch, _quality(y_pred, h, batch.scores))


def _adaface(batch: Batch, quality: Tensor) -> Tensor:
    margin = ops.convert_to_tensor(batch.margin, batch.scores.dtype)
    loss = batch.scores.entropy(
        batch.target,
        lambda cos: _adapted(cos, margin, quality),
        batch.scale,
        batch.shift,
    )
    return nan_unless(batch.valid, loss)


@keras.saving.register_keras_serializable("keras_pedcc")
class AdaFaceLoss(MarginLoss):
    """AdaFace. Class form of `adaface_loss`.

    For `CosineDense(num_classes, return_norm=True)` in a `PEDCCModel`, or another head
    of cosines with `return_norm=True`. Running mean and deviation of the lengths are
    weights of the head, and are saved with it. A layer right before the head that makes
    all lengths alike, such as layer normalization, leaves nothing to adapt to.

    Args:
        scale: Positive float s, or `"auto"`: `auto_scale` for the margin of a sample of
            mean length.
        margin: Float m in [0, 1], in units of cosine, or one for each class.
        h: Positive float, see `adaface_loss`.
        priors: Sequence or array of `num_classes` positive numbers, counts or
            frequencies of the classes, see `am_softmax_loss`. `scale="auto"` and the
            warning of a small scale ignore them. Defaults to `None`.
        reduction: See `keras.losses.Loss`.
        name: Name of the loss.
        dtype: `"float32"` (default) or `"float64"`.

    Raises:
        ValueError: An argument is out of range; in training, the head has computed no
            norm.

    Example:

    >>> head = keras_pedcc.CosineDense(10, return_norm=True)
    >>> loss = keras_pedcc.AdaFaceLoss()
    >>> bool(loss([3], head(keras.ops.ones((1, 64)))) > 0)
    True

    Reference: Kim, Jain and Liu, "AdaFace: Quality Adaptive Margin for Face
    Recognition", CVPR 2022, https://arxiv.org/abs/2204.00964.
    """

    takes_scores = False  # the heads that compute them by parts return no norm

    def __init__(
        self,
        scale: Scale = 64.0,
        margin: Margin = 0.4,
        h: float = 0.333,
        *,
        priors: Priors | None = None,
        reduction: str | None = "sum_over_batch_size",
        name: str = "adaface_loss",
        dtype: str = "float32",
    ) -> None:
        super().__init__(
            scale, margin, priors=priors, reduction=reduction, name=name, dtype=dtype
        )
        self.h = h

    @property
    def h(self) -> float:
        """How far qualities spread, see `adaface_loss`. Settable."""
        return self._h

    @h.setter
    def h(self, h: float) -> None:
        _check_h(h)
        self._h = float(h)

    def check_margin(self, margin: Margin) -> None:
        check_margin(margin, 1.0, _WHY)

    def lowered(self, margin: float) -> float:
        return 1 - margin

    def __call__(
        self, y_true: ArrayLike, y_pred: Outputs, sample_weight: ArrayLike | None = None
    ) -> Tensor:
        check_held(y_pred)
        if not self._checked:
            _norm_in(y_pred)
            self._checked = check_cosines(ops.convert_to_tensor(logits_of(y_pred)))
        # The base class would hand on the logits alone.
        return keras.losses.Loss.__call__(self, y_true, y_pred, sample_weight)

    def call(self, y_true: ArrayLike, y_pred: Any) -> Tensor:
        _norm_in(y_pred)  # tells what is missing, before the logits are taken
        share = y_pred.get("margin_share")
        batch = self.batch(y_true, y_pred["logits"], margin_share=share)
        return _adaface(batch, _quality(y_pred, self.h, batch.scores))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "h": self.h}


def _adapted(cosines: Tensor, margin: Tensor, quality: Tensor) -> Tensor:
    """`psi` of `adaface_loss`."""
    angle = margin * quality
    farther = turned(cosines, ops.relu(-angle))
    # cos(theta - a) = -cos((pi - theta) + a), and 1 where theta is below a.
    nearer = ops.minimum(-turned(-cosines, ops.relu(angle)), 1.0)
    return ops.where(quality < 0, farther, nearer) - (margin + angle)


def _quality(y_pred: Outputs, h: float, scores: Scores) -> Tensor:
    """Quality of each sample, shape `(batch, 1)`, in [-1, 1]."""
    norm = ops.cast(ops.convert_to_tensor(_norm_in(y_pred)), scores.dtype)
    if len(norm.shape) != 1:
        raise ValueError(
            "The standard norm must have shape (batch,). Received: "
            f"standard_norm.shape={tuple(norm.shape)}. Pass what "
            "`CosineDense(num_classes, return_norm=True)` returns."
        )
    return ops.expand_dims(ops.stop_gradient(ops.clip(h * norm, -1, 1)), 1)


def _norm_in(y_pred: Any) -> Any:
    if not isinstance(y_pred, dict) or "standard_norm" not in y_pred:
        keys = sorted(y_pred) if isinstance(y_pred, dict) else "logits alone"
        raise ValueError(
            '`y_pred` must be a dict with the key "standard_norm". Received: '
            f"{keys}. Make the head `CosineDense(num_classes, return_norm=True)` in a "
            "`PEDCCModel`."
        )
    return y_pred["standard_norm"]


def _check_h(h: Any) -> None:
    check_range("h", h, 0.0, float("inf"), open_below=True)
