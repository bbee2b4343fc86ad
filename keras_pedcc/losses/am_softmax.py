"""AM-Softmax: a margin on the cosine."""

import keras

from keras_pedcc.common import ArrayLike, Tensor
from keras_pedcc.losses.arguments import Margin, Scale, check_cosine_margin, check_scale
from keras_pedcc.losses.base import MarginLoss
from keras_pedcc.losses.priors import Priors, shift_of
from keras_pedcc.losses.targets import Batch, Outputs, batch_of


@keras.saving.register_keras_serializable("keras_pedcc")
def am_softmax_loss(
    y_true: ArrayLike,
    y_pred: Outputs,
    *,
    scale: float = 15.0,
    margin: Margin = 0.5,
    priors: Priors | None = None,
) -> Tensor:
    """Additive-margin softmax loss (CosFace) of each sample, eq. 8.

    `L = -log(e^{s (cos_y - m)} / (e^{s (cos_y - m)} + sum_{j != y} e^{s cos_j}))`,
    with s = `scale`, m = `margin` and `cos_j` the logits. For soft labels t, whose
    rows sum to 1: `z_j = s (cos_j - m t_j)`, `L = logsumexp(z) - sum_j t_j z_j`,
    which is the same for one-hot t. With `margin=0` it is the softmax cross
    entropy of `scale * logits`.

    With `priors` pi the logarithm of the frequency of each class is added to its score
    (logit adjustment): `z_j = s (cos_j - m t_j) + log pi_j`, where the loss divides
    the priors by their sum. Rare classes then need a larger cosine in training.
    Predictions stay the classes of largest cosine, without the priors.

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
        priors: Sequence or array of `num_classes` positive numbers, counts or
            frequencies of the classes; or `None`. Defaults to `None`.

    Returns:
        Tensor of shape `(batch,)`, not negative. NaN where the label is not
        valid, or a logit is no cosine: NaN, or more than 0.01 outside [-1, 1].

    Raises:
        ValueError: A shape, `scale`, `margin` or `priors` does not fit.

    Example:

    >>> loss = keras_pedcc.losses.am_softmax_loss([0], [[1.0, -1.0]], scale=1, margin=0)
    >>> round(float(loss[0]), 4)  # log(1 + exp(-2))
    0.1269

    Reference: Zhu et al., IEEE Access 2020, eq. 8; Wang et al., "Additive Margin
    Softmax for Face Verification", 2018, eq. 6; for `priors` Menon et al., "Long-tail
    learning via logit adjustment", ICLR 2021, arXiv 2007.07314.
    """
    check_scale(scale)
    check_cosine_margin(margin)
    return _am_softmax(batch_of(y_true, y_pred, scale, margin, shift_of(priors)))


def _am_softmax(batch: Batch) -> Tensor:
    return batch.scores.additive_entropy(
        batch.target, batch.valid, batch.scale, batch.margin, shift=batch.shift
    )


@keras.saving.register_keras_serializable("keras_pedcc")
class AMSoftmaxLoss(MarginLoss):
    """Additive-margin softmax loss. Class form of `am_softmax_loss`.

    With `CosineDense` this is AM-Softmax; with `PEDCCDense` it is PEDCC-AM.

    Args:
        scale: Positive float s, or `"auto"`: `auto_scale` of the number of classes.
        margin: Float m in [0, 2], in units of cosine, or one for each class.
        priors: Sequence or array of `num_classes` positive numbers, counts or
            frequencies of the classes, see `am_softmax_loss`. `scale="auto"` and the
            warning of a small scale ignore them. Defaults to `None`.
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
        scale: Scale = 15.0,
        margin: Margin = 0.5,
        *,
        priors: Priors | None = None,
        reduction: str | None = "sum_over_batch_size",
        name: str = "am_softmax_loss",
        dtype: str = "float32",
    ) -> None:
        super().__init__(
            scale, margin, priors=priors, reduction=reduction, name=name, dtype=dtype
        )

    def check_margin(self, margin: Margin) -> None:
        check_cosine_margin(margin)

    def lowered(self, margin: float) -> float:
        return 1 - margin

    def of_batch(self, batch: Batch) -> Tensor:
        return _am_softmax(batch)
