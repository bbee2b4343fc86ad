"""PEDCC-Loss, eqs. 9 and 10, as functions and as a Keras loss."""

from typing import Any

import keras
from keras import ops

from keras_pedcc.common import ArrayLike, Tensor
from keras_pedcc.common.replicas import sum_over_replicas
from keras_pedcc.common.vectors import nan_unless
from keras_pedcc.losses.arguments import (
    Margin,
    Scale,
    check_cosine_margin,
    check_range,
    check_scale,
    is_number,
    weighted,
)
from keras_pedcc.losses.base import MarginLoss
from keras_pedcc.losses.priors import Priors, shift_of
from keras_pedcc.losses.targets import Batch, Outputs, batch_of, prepare


@keras.saving.register_keras_serializable("keras_pedcc")
def centroid_distance(y_true: ArrayLike, y_pred: Outputs) -> Tensor:
    """Half the squared distance of unit features to their centroid, eq. 9.

    `d = 1/2 |x - c_y|^2 = 1 - cos_y`, because x and c_y are unit vectors; for
    soft labels t, `d = sum_j t_j (1 - cos_j)`. Arguments, dtypes and errors are
    those of `am_softmax_loss`.

    Returns:
        Tensor of shape `(batch,)`, in [0, 2].

    Example:

    >>> float(centroid_distance([1], [[0.0, 0.25]])[0])
    0.75

    Reference: Zhu et al., IEEE Access 2020, eq. 9.
    """
    scores, target, valid = prepare(y_true, y_pred)
    return nan_unless(scores.only_cosines(valid), scores.distance(target))


@keras.saving.register_keras_serializable("keras_pedcc")
def pedcc_loss(
    y_true: ArrayLike,
    y_pred: Outputs,
    *,
    scale: float = 15.0,
    margin: Margin = 0.5,
    mse_weight: float = 10.0,
    mse_root: int = 1,
    priors: Priors | None = None,
    sample_weight: ArrayLike | None = None,
) -> Tensor:
    """PEDCC-Loss, eq. 10, as a vector whose mean over the batch is the loss.

    `L = mean_i(w_i L_AM,i) + lambda * mean_i(w_i d_i)^(1/n)`, with `L_AM` of eq. 8
    (`am_softmax_loss`), `d` of eq. 9 (`centroid_distance`), lambda = `mse_weight`,
    n = `mse_root`, w = `sample_weight` and the means over the batch size. The
    paper does not say whether eq. 9 is a sum or a mean over the batch; this function
    takes the mean, then its root.

    For n = 1 entry i is `w_i (L_AM,i + lambda d_i)`. For n > 1 it is
    `w_i L_AM,i + lambda mean(w d)^(1/n)`: the second term is common to the batch.
    Its gradient is zero where the mean distance is exactly zero. Inside a
    `tf.distribute` replica the mean is over the batches of all replicas.

    Args:
        y_true: Labels, see `am_softmax_loss`.
        y_pred: Cosines, see `am_softmax_loss`.
        scale: Positive float s; the paper takes 15.
        margin: Float m in [0, 2], in units of cosine; the paper takes 0.5. Or one
            for each class, see `am_softmax_loss`.
        mse_weight: Float lambda, not negative; the paper takes 10.
        mse_root: Whole number n, at least 1; the paper compares 1, 2 and 3.
        priors: Sequence or array of `num_classes` positive numbers, counts or
            frequencies of the classes, see `am_softmax_loss`. They change eq. 8, not
            the distance. Defaults to `None`.
        sample_weight: Weights, shape `(batch,)` or `(batch, 1)`, or `None`.

    Returns:
        Tensor of shape `(batch,)`; NaN as in `am_softmax_loss`.

    Raises:
        ValueError: A shape or one of the constants does not fit.

    Example:

    >>> loss = pedcc_loss([0], [[1.0, -1.0]], margin=0.0, scale=1.0)
    >>> round(float(loss[0]), 4)  # on its centroid: log(1 + exp(-2)) alone
    0.1269

    Reference: Zhu et al., IEEE Access 2020, eq. 10.
    """
    check_constants(scale, margin, mse_weight, mse_root)
    shift = shift_of(priors)
    batch = batch_of(y_true, y_pred, scale, margin, shift, sample_weight)
    return _pedcc(batch, mse_weight, mse_root)


def _pedcc(batch: Batch, mse_weight: float, mse_root: int) -> Tensor:
    scores, target, valid, scale, margin, shift, weight = batch
    # Without a root both terms are a sum over samples, and one pass gives both.
    inside = mse_weight if mse_root == 1 else 0.0
    loss = scores.additive_entropy(target, valid, scale, margin, inside, shift)
    if weight is not None:
        loss = weighted(loss, weight)
    if mse_root == 1:
        return loss
    distance = nan_unless(valid, scores.distance(target))
    mean = _mean_over_replicas(weighted(distance, weight))
    return loss + mse_weight * _root(mean, mse_root)


@keras.saving.register_keras_serializable("keras_pedcc")
class PEDCCLoss(MarginLoss):
    """PEDCC-Loss, eq. 10. Class form of `pedcc_loss`.

    Takes the dict of `PEDCCDense` (in a `PEDCCModel`) or the logits alone
    (`return_features=False`, in any Keras model): by eq. 9 it needs nothing but
    the cosines. At the end of training the loss does not go to zero: with C
    classes, every sample on its centroid and a regular simplex it is
    `log(1 + (C - 1) exp(-s (1 - m + 1 / (C - 1))))`.

    Args:
        scale: Positive float s; the paper takes 15. Or `"auto"`: `auto_scale` of the
            number of classes. A scale so small that the loss cannot fall below 1 is
            warned of.
        margin: Float m in [0, 2], in units of cosine; the paper takes 0.5. Or one
            for each class, see `am_softmax_loss`.
        mse_weight: Float lambda, not negative; the paper takes 10.
        mse_root: Whole number n, at least 1; the paper compares 1, 2 and 3. Above 1 the
            root is that of each batch: `evaluate` gives the mean of these over the
            batches, which changes a little with the batch size. Replicas of
            `tf.distribute` are one batch; processes of PyTorch's
            `DistributedDataParallel` and accumulated gradients take a root each.
        priors: Sequence or array of `num_classes` positive numbers, counts or
            frequencies of the classes, see `am_softmax_loss`. `scale="auto"` and the
            warning of a small scale ignore them. Defaults to `None`.
        reduction: See `keras.losses.Loss`. With `mse_root` above 1 only
            `"sum_over_batch_size"` (or `"mean"`, the same): eq. 10 takes the
            root of a mean.
        name: Name of the loss.
        dtype: `"float32"` (default) or `"float64"`; nothing shorter, which would
            also round the labels.

    Raises:
        ValueError: An argument is out of range.

    Example:

    >>> loss = keras_pedcc.PEDCCLoss(scale=1.0, margin=0.0)
    >>> round(float(loss([0], [[1.0, -1.0]])), 4)
    0.1269

    Reference: Zhu et al., IEEE Access 2020, eqs. 8-10.
    """

    def __init__(
        self,
        scale: Scale = 15.0,
        margin: Margin = 0.5,
        mse_weight: float = 10.0,
        mse_root: int = 1,
        *,
        priors: Priors | None = None,
        reduction: str | None = "sum_over_batch_size",
        name: str = "pedcc_loss",
        dtype: str = "float32",
    ) -> None:
        check_constants(1.0, margin, mse_weight, mse_root)
        super().__init__(
            scale, margin, priors=priors, reduction=reduction, name=name, dtype=dtype
        )
        if mse_root > 1 and reduction not in ("sum_over_batch_size", "mean"):
            raise ValueError(
                "`mse_root` above 1 takes the root of a mean over the batch and "
                f"needs a mean as reduction. Received: reduction={reduction!r}, "
                f'mse_root={mse_root}. Pass reduction="sum_over_batch_size".'
            )
        self.mse_weight = mse_weight
        self.mse_root = mse_root

    @property
    def mse_weight(self) -> float:
        """Lambda of eq. 10. Settable."""
        return self._mse_weight

    @mse_weight.setter
    def mse_weight(self, mse_weight: float) -> None:
        check_constants(1.0, 0.0, mse_weight, 1)
        self._mse_weight = float(mse_weight)

    @property
    def mse_root(self) -> int:
        """N of eq. 10. Settable."""
        return self._mse_root

    @mse_root.setter
    def mse_root(self, mse_root: int) -> None:
        check_constants(1.0, 0.0, 0.0, mse_root)
        self._mse_root = int(mse_root)
        # Under the root, where Keras would not put them.
        self.weights_inside = self._mse_root > 1

    def check_margin(self, margin: Margin) -> None:
        check_cosine_margin(margin)

    def lowered(self, margin: float) -> float:
        return 1 - margin

    def of_batch(self, batch: Batch) -> Tensor:
        return _pedcc(batch, self.mse_weight, self.mse_root)

    def get_config(self) -> dict[str, Any]:
        own = {"mse_weight": self.mse_weight, "mse_root": self.mse_root}
        return {**super().get_config(), **own}


def check_constants(
    scale: float, margin: Margin, mse_weight: float, mse_root: int
) -> None:
    """Raises a `ValueError` unless the constants of eq. 10 are in range."""
    check_scale(scale)
    check_cosine_margin(margin)
    check_range("mse_weight", mse_weight, 0.0, float("inf"))
    if not is_number(mse_root) or mse_root not in range(1, 1000):
        raise ValueError(
            "`mse_root` must be a whole number from 1 up (the paper compares 1, 2 "
            f"and 3). Received: mse_root={mse_root!r}. Pass an int."
        )


def _mean_over_replicas(values: Tensor) -> Tensor:
    # Sum and count apart: a replica may hold none of the last batch.
    sums = ops.stack([ops.sum(values), ops.cast(ops.size(values), values.dtype)])
    sums = sum_over_replicas(sums)
    return sums[0] / ops.maximum(sums[1], 1)


def _root(mean: Tensor, degree: int) -> Tensor:
    """`mean ** (1 / degree)`, with gradient 0 where the mean is 0."""
    positive = ops.where(mean <= 0, ops.ones_like(mean), mean)
    root = positive ** (1 / degree)
    return ops.where(mean <= 0, ops.zeros_like(mean), root)
