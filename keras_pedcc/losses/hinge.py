"""The multi-class hinge loss."""

from typing import Any

import keras
from keras import ops

from keras_pedcc.common import ArrayLike, Tensor
from keras_pedcc.common.vectors import nan_unless, one_hot
from keras_pedcc.losses.arguments import check_dtype, check_range
from keras_pedcc.losses.targets import Outputs, prepare, scores_of


@keras.saving.register_keras_serializable("keras_pedcc")
def hinge_loss(y_true: ArrayLike, y_pred: Outputs, *, margin: float = 1.0) -> Tensor:
    """Multi-class hinge loss of each sample, in the form of Crammer and Singer.

    `L = max(0, m + max_{j != y} l_j - l_y)`, with m = `margin` and l the logits.
    (`keras.losses.CategoricalHinge` takes 0 for the other classes' largest logit
    where that is negative: cosines to centroids are, and the loss then asks for
    `l_y >= m` instead of a gap.) For soft labels t, `z_j = l_j - m t_j`,
    `L = max_j z_j - sum_j t_j z_j`, which is the same for one-hot t. It is the limit
    of `am_softmax_loss / scale` for large scales.

    Args:
        y_true: Labels, see `am_softmax_loss`.
        y_pred: Logits, not only cosines, shape `(batch, num_classes)`; or the dict
            of a head.
        margin: Positive float m, in units of the logits. Cosines differ by 2 at
            most.

    Returns:
        Tensor of shape `(batch,)`, not negative; NaN as in `am_softmax_loss`.

    Raises:
        ValueError: A shape or `margin` does not fit.

    Example:

    >>> float(keras_pedcc.losses.hinge_loss([0], [[0.5, 0.25]])[0])
    0.75

    Reference: Crammer and Singer, "On the Algorithmic Implementation of Multiclass
    Kernel-based Vector Machines", 2001.
    """
    check_range("margin", margin, 0.0, float("inf"), open_below=True)
    scores, target, valid = prepare(y_true, y_pred)
    if len(target.shape) == 1:
        target = one_hot(target, scores.shape[1], scores.dtype)
    lowered = scores.logits - margin * target
    loss = ops.max(lowered, axis=1) - ops.sum(target * lowered, axis=1)
    return nan_unless(valid, loss)


@keras.saving.register_keras_serializable("keras_pedcc")
class HingeLoss(keras.losses.Loss):
    """Multi-class hinge loss. Class form of `hinge_loss`.

    Args:
        margin: Positive float m, in units of the logits.
        reduction: See `keras.losses.Loss`.
        name: Name of the loss.
        dtype: `"float32"` (default) or `"float64"`.

    Raises:
        ValueError: An argument is out of range.

    Example:

    >>> float(keras_pedcc.HingeLoss()([0], [[0.5, 0.25]]))
    0.75

    Reference: Crammer and Singer, "On the Algorithmic Implementation of Multiclass
    Kernel-based Vector Machines", 2001.
    """

    def __init__(
        self,
        margin: float = 1.0,
        *,
        reduction: str | None = "sum_over_batch_size",
        name: str = "hinge_loss",
        dtype: str = "float32",
    ) -> None:
        super().__init__(name=name, reduction=reduction, dtype=check_dtype(dtype))
        check_range("margin", margin, 0.0, float("inf"), open_below=True)
        self.margin = float(margin)

    def __call__(
        self, y_true: ArrayLike, y_pred: Outputs, sample_weight: ArrayLike | None = None
    ) -> Tensor:
        return super().__call__(y_true, scores_of(y_pred).logits, sample_weight)

    def call(self, y_true: ArrayLike, y_pred: Any) -> Tensor:
        return hinge_loss(y_true, y_pred, margin=self.margin)

    def get_config(self) -> dict[str, Any]:
        own = {"margin": self.margin, "dtype": self.dtype}
        return {**super().get_config(), **own}
