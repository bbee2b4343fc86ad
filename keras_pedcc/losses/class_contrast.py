"""NTCE and NONL: each class tells its own samples from the others of the batch."""

from typing import Any

import keras
from keras import ops

from keras_pedcc.common import ArrayLike, Tensor
from keras_pedcc.common.replicas import sum_over_replicas
from keras_pedcc.common.vectors import filled, nan_unless, one_hot
from keras_pedcc.losses.arguments import check_dtype, check_range
from keras_pedcc.losses.targets import Outputs, prepare, scores_of

_LARGEST_SCALE = 40.0  # exp(-2 * 40) is still a float32


@keras.saving.register_keras_serializable("keras_pedcc")
def ntce_loss(y_true: ArrayLike, y_pred: Outputs, *, scale: float = 10.0) -> Tensor:
    """NTCE of each sample: its class finds it among all samples of the batch.

    `L_i = -log(e^{s cos_iy} / sum_k e^{s cos_ky})`, with s = `scale` (one over the
    temperature), `cos_ij` the logit of sample i and class j, y the class of sample i,
    and k all samples of the batch. Cross entropy sums over the classes, this loss over
    the samples: it depends on the batch. Where class y has n samples in the batch, all
    on their centroid, it is `log(n)` or more. For soft labels t,
    `L_i = sum_j t_ij (log(sum_k e^{s cos_kj}) - s cos_ij)`. Inside a `tf.distribute`
    replica k runs over the batches of all replicas. A sample whose label is not valid
    is left out of the sums.

    Args:
        y_true: Labels, see `am_softmax_loss`.
        y_pred: Cosines, see `am_softmax_loss`.
        scale: Float s in (0, 40]. Defaults to 10, a temperature of 0.1.

    Returns:
        Tensor of shape `(batch,)`. NaN where the label is not valid, and for every
        sample whose sum has a logit of NaN.

    Raises:
        ValueError: A shape or `scale` does not fit.

    Example:

    >>> cosines = [[1.0, 0.0], [0.0, 1.0], [0.0, 0.5]]
    >>> loss = keras_pedcc.losses.ntce_loss([0, 1, 1], cosines, scale=1.0)
    >>> round(float(loss[0]), 4)  # log(e^1 + e^0 + e^0) - 1
    0.5514

    Reference: Koromilas et al., "Neural Collapse by Design: Learning Class Prototypes
    on the Hypersphere", ICML 2026, https://arxiv.org/abs/2605.20302; formula of the
    authors' published code, https://github.com/pakoromilas/nc_by_design.
    """
    return _class_contrast(y_true, y_pred, scale, negatives_only=False)


@keras.saving.register_keras_serializable("keras_pedcc")
def nonl_loss(y_true: ArrayLike, y_pred: Outputs, *, scale: float = 10.0) -> Tensor:
    """NONL of each sample: NTCE whose sum is over the samples of other classes alone.

    `L_i = -log(e^{s cos_iy} / sum_{k: y_k != y} e^{s cos_ky})`, with the symbols of
    `ntce_loss`. Without the positive samples in the sum, pulling a sample to its
    centroid and pushing those of other classes from it are two separate terms. The
    loss may be negative. For soft labels t, sample k counts in the sum of class j with
    the share `1 - t_kj`. Where the batch has no sample of another class, the loss is
    `s (1 - cos_iy)`.

    Args:
        y_true: Labels, see `am_softmax_loss`.
        y_pred: Cosines, see `am_softmax_loss`.
        scale: Float s in (0, 40]. Defaults to 10, a temperature of 0.1.

    Returns:
        Tensor of shape `(batch,)`. NaN where the label is not valid, and for every
        sample whose sum has a logit of NaN.

    Raises:
        ValueError: A shape or `scale` does not fit.

    Example:

    >>> cosines = [[1.0, 0.0], [0.0, 1.0], [0.0, 0.5]]
    >>> loss = keras_pedcc.losses.nonl_loss([0, 1, 1], cosines, scale=1.0)
    >>> round(float(loss[0]), 4)  # log(e^0 + e^0) - 1
    -0.3069

    Reference: Koromilas et al., "Neural Collapse by Design: Learning Class Prototypes
    on the Hypersphere", ICML 2026, https://arxiv.org/abs/2605.20302; formula of the
    authors' published code, https://github.com/pakoromilas/nc_by_design.
    """
    return _class_contrast(y_true, y_pred, scale, negatives_only=True)


def _class_contrast(
    y_true: ArrayLike, y_pred: Outputs, scale: float, negatives_only: bool
) -> Tensor:
    _check_scale(scale)
    scores, target, valid = prepare(y_true, y_pred)
    if len(target.shape) == 1:
        target = one_hot(target, scores.shape[1], scores.dtype)
    exponents = scale * (scores.logits - 1)
    share = 1 - target if negatives_only else ops.ones_like(target)
    share = filled(share, ops.logical_not(valid)[:, None], 0.0)
    sums = sum_over_replicas(ops.sum(share * ops.exp(exponents), axis=0))
    # A class without a negative pushes nothing; log(0) would be NaN in the gradient.
    sums = filled(sums, sums == 0, 1.0)
    return nan_unless(valid, ops.sum(target * (ops.log(sums) - exponents), axis=1))


class _ContrastLoss(keras.losses.Loss):
    """A loss of all cosines of a batch with a scale; subclasses have the formula."""

    def __init__(self, scale: float, **kwargs: Any) -> None:
        super().__init__(**{**kwargs, "dtype": check_dtype(kwargs["dtype"])})
        _check_scale(scale)
        self.scale = float(scale)

    def __call__(
        self, y_true: ArrayLike, y_pred: Outputs, sample_weight: ArrayLike | None = None
    ) -> Tensor:
        return super().__call__(y_true, scores_of(y_pred).logits, sample_weight)

    def get_config(self) -> dict[str, Any]:
        own = {"scale": self.scale, "dtype": self.dtype}
        return {**super().get_config(), **own}


@keras.saving.register_keras_serializable("keras_pedcc")
class NTCELoss(_ContrastLoss):
    """NTCE: a softmax over the samples of the batch. Class form of `ntce_loss`.

    For `CosineDense`, whose centroids are trained, or another head with dense scores.
    The loss depends on the batch: compare values at the same batch size alone. A
    weight of a sample weighs its own loss, not its part in the sums of the others.

    Args:
        scale: Float s in (0, 40]. Defaults to 10, a temperature of 0.1.
        reduction: See `keras.losses.Loss`.
        name: Name of the loss.
        dtype: `"float32"` (default) or `"float64"`.

    Raises:
        ValueError: An argument is out of range.

    Example:

    >>> loss = keras_pedcc.NTCELoss(scale=1.0)
    >>> round(float(loss([0, 1], [[1.0, 0.0], [0.0, 1.0]])), 4)
    0.3133

    Reference: see `ntce_loss`.
    """

    def __init__(
        self,
        scale: float = 10.0,
        *,
        reduction: str | None = "sum_over_batch_size",
        name: str = "ntce_loss",
        dtype: str = "float32",
    ) -> None:
        super().__init__(scale, reduction=reduction, name=name, dtype=dtype)

    def call(self, y_true: ArrayLike, y_pred: Any) -> Tensor:
        return ntce_loss(y_true, y_pred, scale=self.scale)


@keras.saving.register_keras_serializable("keras_pedcc")
class NONLLoss(_ContrastLoss):
    """NONL: NTCE with samples of other classes alone. Class form of `nonl_loss`.

    Heads, batches and weights are those of `NTCELoss`. The loss may be negative.

    Args:
        scale: Float s in (0, 40]. Defaults to 10, a temperature of 0.1.
        reduction: See `keras.losses.Loss`.
        name: Name of the loss.
        dtype: `"float32"` (default) or `"float64"`.

    Raises:
        ValueError: An argument is out of range.

    Example:

    >>> loss = keras_pedcc.NONLLoss(scale=1.0)
    >>> float(loss([0, 1], [[1.0, 0.0], [0.0, 1.0]]))
    -1.0

    Reference: see `nonl_loss`.
    """

    def __init__(
        self,
        scale: float = 10.0,
        *,
        reduction: str | None = "sum_over_batch_size",
        name: str = "nonl_loss",
        dtype: str = "float32",
    ) -> None:
        super().__init__(scale, reduction=reduction, name=name, dtype=dtype)

    def call(self, y_true: ArrayLike, y_pred: Any) -> Tensor:
        return nonl_loss(y_true, y_pred, scale=self.scale)


def _check_scale(scale: Any) -> None:
    why = ": beyond, exponentials of cosines leave float32"
    check_range("scale", scale, 0.0, _LARGEST_SCALE, open_below=True, why=why)
