"""Center loss: softmax cross entropy and the distance to a moving class centre."""

from typing import Any

import keras
from keras import ops

from keras_pedcc.common import ArrayLike, Tensor
from keras_pedcc.common.gradients import full_precision
from keras_pedcc.common.replicas import number_of_replicas, sum_over_replicas
from keras_pedcc.common.vectors import filled, nan_unless
from keras_pedcc.losses.arguments import check_dtype, check_range, weighted
from keras_pedcc.losses.targets import Outputs, check_held, prepare
from keras_pedcc.scores.protocol import Scores


@keras.saving.register_keras_serializable("keras_pedcc")
def center_loss(
    y_true: ArrayLike,
    y_pred: Outputs,
    *,
    center_weight: float = 0.003,
    sample_weight: ArrayLike | None = None,
) -> Tensor:
    """Center loss as a vector whose mean over the batch is the loss.

    `L = mean_i(-log softmax(l_i)_y) + lambda/2 mean_i |x_i - c_y|^2`, with l the
    logits, x the features with their length, c_j the centres of `CenterDense`,
    and lambda = `center_weight`. The gradient over x is that of L. The gradient over
    the centres is the published step instead,
    `delta_j = sum_{i: y_i = j} (c_j - x_i) / (1 + n_j)`, with n_j the samples of class
    j in the batch, whatever lambda is: plain SGD of rate alpha on the centres is
    then `c_j -= alpha delta_j`. For soft labels t, `|x - c_y|^2` is
    `sum_j t_j |x - c_j|^2` and n_j is `sum_i t_ij`. Samples of weight w count w times
    in the means, in `delta_j` and in n_j. Inside a `tf.distribute` replica n_j counts
    the batches of all replicas.

    Args:
        y_true: Labels, see `am_softmax_loss`.
        y_pred: Dict of `CenterDense.for_loss`: `"logits"`, shape `(batch,
            num_classes)`, `"features"`, shape `(batch, dim)`, `"norm"`, shape
            `(batch,)`, and `"centers"`, shape `(num_classes, dim)`.
        center_weight: Float lambda, not negative; published with 0.003.
        sample_weight: Weights, shape `(batch,)` or `(batch, 1)`, or `None`.

    Returns:
        Tensor of shape `(batch,)`; NaN as in `am_softmax_loss`.

    Raises:
        ValueError: A shape or `center_weight` does not fit, or `y_pred` has no
            centres.

    Example:

    >>> outputs = {"features": [[0.6, 0.8]], "norm": [5.0], "logits": [[0.0, 0.0]]}
    >>> outputs["centers"] = [[3.0, 2.0], [9.0, 9.0]]
    >>> loss = keras_pedcc.losses.center_loss([0], outputs, center_weight=1.0)
    >>> round(float(loss[0]), 4)  # log(2) + ((3 - 3)^2 + (4 - 2)^2) / 2
    2.6931

    Reference: Wen et al., "A Discriminative Feature Learning Approach for Deep Face
    Recognition", 2016, eqs. 2 to 5.
    """
    check_range("center_weight", center_weight, 0.0, float("inf"))
    scores, target, valid = prepare(y_true, y_pred)
    entropy = nan_unless(valid, scores.entropy(target, lambda logit: logit))
    inputs, centers = _inputs_and_centers(y_pred, scores)
    with full_precision(inputs):
        pull = _squared(inputs, ops.stop_gradient(centers), target)
        loss = weighted(entropy + center_weight / 2 * pull, sample_weight)
        weights = weighted(ops.ones_like(entropy), sample_weight)
        # A sample of NaN is no count of a class, which would be NaN for the others.
        weights = filled(weights, ops.isnan(entropy), 0.0)
        return loss + _center_step(ops.stop_gradient(inputs), centers, target, weights)


@keras.saving.register_keras_serializable("keras_pedcc")
class CenterLoss(keras.losses.Loss):
    """Center loss. Class form of `center_loss`.

    For `CenterDense` in a `PEDCCModel`, with an optimizer that moves the centres at
    their own rate alpha; published with 0.5. With gradient accumulation the step of
    a centre is the mean of the steps of the parts.

    Args:
        center_weight: Float lambda, not negative; published with 0.003.
        reduction: `"sum_over_batch_size"` or `"mean"`: with another the gradient
            over the centres would not be their step.
        name: Name of the loss.
        dtype: `"float32"` (default) or `"float64"`.

    Raises:
        ValueError: An argument is out of range.

    Example:

    >>> inputs = keras.Input((8,))
    >>> model = keras_pedcc.PEDCCModel(inputs, keras_pedcc.CenterDense(10)(inputs))
    >>> sgd = keras.optimizers.SGD
    >>> optimizer = keras_pedcc.FinetuneOptimizer(sgd(0.1), sgd(0.5))
    >>> model.compile(optimizer, keras_pedcc.CenterLoss())
    >>> history = model.fit(x, y, verbose=0)

    Reference: Wen et al., "A Discriminative Feature Learning Approach for Deep Face
    Recognition", 2016, eqs. 2 to 5.
    """

    def __init__(
        self,
        center_weight: float = 0.003,
        *,
        reduction: str | None = "sum_over_batch_size",
        name: str = "center_loss",
        dtype: str = "float32",
    ) -> None:
        super().__init__(name=name, reduction=reduction, dtype=check_dtype(dtype))
        check_range("center_weight", center_weight, 0.0, float("inf"))
        if reduction not in ("sum_over_batch_size", "mean"):
            raise ValueError(
                "`reduction` must be a mean: the gradient over the centres is their "
                f"step only then. Received: reduction={reduction!r}. Pass "
                'reduction="sum_over_batch_size".'
            )
        self.center_weight = float(center_weight)

    def __call__(
        self, y_true: ArrayLike, y_pred: Outputs, sample_weight: ArrayLike | None = None
    ) -> Tensor:
        check_held(y_pred)
        if sample_weight is None:
            return super().__call__(y_true, y_pred)
        # The weights belong into the counts of the classes, too.
        return super().__call__(y_true, (y_pred, sample_weight))

    def call(self, y_true: ArrayLike, y_pred: Any) -> Tensor:
        y_pred, weight = y_pred if isinstance(y_pred, tuple) else (y_pred, None)
        return center_loss(
            y_true, y_pred, center_weight=self.center_weight, sample_weight=weight
        )

    def get_config(self) -> dict[str, Any]:
        own = {"center_weight": self.center_weight, "dtype": self.dtype}
        return {**super().get_config(), **own}


def _squared(inputs: Tensor, centers: Tensor, target: Tensor) -> Tensor:
    """`sum_j t_j |x_i - c_j|^2`, shape `(batch,)`, from the own centres alone."""
    if len(target.shape) == 1:
        own = ops.take(centers, target, axis=0)
        return ops.sum(ops.square(inputs - own), axis=1)
    length = ops.sum(ops.square(inputs), axis=1) * ops.sum(target, axis=1)
    along = ops.sum(inputs * ops.matmul(target, centers), axis=1)
    return length - 2 * along + ops.matmul(target, ops.sum(ops.square(centers), axis=1))


def _center_step(
    inputs: Tensor, centers: Tensor, target: Tensor, weights: Tensor
) -> Tensor:
    """A vector of zeros whose mean has the published step as its gradient."""
    if len(target.shape) == 1:
        counts = ops.segment_sum(weights, target, num_segments=centers.shape[0])
        counts = ops.take(1 + sum_over_replicas(counts), target)
        pull = weights / counts * _squared(inputs, centers, target) / 2
    else:
        # A soft label of NaN has the weight 0, which would not take it out.
        target = ops.where(weights[:, None] != 0, target * weights[:, None], 0.0)
        share = target / (1 + sum_over_replicas(ops.sum(target, axis=0)))
        pull = _squared(inputs, centers, share) / 2
    # Keras takes the mean over the samples and over the replicas; this is a sum.
    number = ops.shape(target)[0] * number_of_replicas()
    return ops.cast(number, weights.dtype) * (pull - ops.stop_gradient(pull))


def _inputs_and_centers(y_pred: Outputs, scores: Scores) -> tuple[Tensor, Tensor]:
    names = ("features", "norm", "centers")
    if not isinstance(y_pred, dict) or not set(names) <= set(y_pred):
        keys = sorted(y_pred) if isinstance(y_pred, dict) else "logits alone"
        raise ValueError(
            '`y_pred` must be a dict with the keys "features", "norm" and '
            f'"centers". Received: {keys}. Make the head `CenterDense(num_classes)` '
            "in a `PEDCCModel`, or pass head.for_loss(outputs)."
        )
    features, norm, centers = (
        ops.cast(ops.convert_to_tensor(y_pred[name]), scores.dtype) for name in names
    )
    wanted = (scores.shape[1], features.shape[-1])
    if tuple(centers.shape) != wanted or len(norm.shape) != 1:
        raise ValueError(
            "The centers must have shape (num_classes, dim), and the norm (batch,). "
            f"Received: centers.shape={tuple(centers.shape)}, norm.shape="
            f"{tuple(norm.shape)}, features.shape={tuple(features.shape)}, "
            f"logits.shape={tuple(scores.shape)}. Make the head "
            "`CenterDense(num_classes)`."
        )
    return features * ops.expand_dims(norm, 1), centers
