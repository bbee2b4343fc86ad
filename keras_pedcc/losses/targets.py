"""Labels and scores as a loss gets them: one form for all."""

import numbers
from typing import Any, NamedTuple, TypeAlias

from keras import ops

from keras_pedcc.common import ArrayLike, Tensor
from keras_pedcc.common.checks import narrow_labels
from keras_pedcc.common.vectors import are_distributions
from keras_pedcc.losses.arguments import Margin
from keras_pedcc.losses.priors import shift_for
from keras_pedcc.scores.dense import DenseScores
from keras_pedcc.scores.protocol import Scores, Shift

# What a head returns, or its logits alone.
Outputs: TypeAlias = dict[str, Any] | ArrayLike


class Batch(NamedTuple):
    """What the formula of a loss of cosines takes.

    Attributes:
        scores: `Scores` of the batch.
        target: See `prepare`.
        valid: Which samples have a valid label and cosines as logits, shape `(batch,)`.
        scale: Positive float.
        margin: See `margin_of`.
        shift: `Shift` that fits the scores, or `None`.
        weight: Sample weights, where the formula takes them, or `None`.
    """

    scores: Scores
    target: Tensor
    valid: Tensor
    scale: float
    margin: float | Tensor
    shift: Shift | None
    weight: ArrayLike | None = None


def batch_of(
    y_true: ArrayLike,
    y_pred: Outputs,
    scale: float,
    margin: Margin,
    shift: Shift | None,
    weight: ArrayLike | None = None,
) -> Batch:
    """The `Batch` of labels, what a head returns, and the constants of a loss."""
    scores, target, valid = prepare(y_true, y_pred)
    margin = margin_of(margin, scores, target)
    if shift is not None:
        shift = shift_for(shift, scores)
    valid = scores.only_cosines(valid)
    return Batch(scores, target, valid, scale, margin, shift, weight)


def prepare(y_true: ArrayLike, y_pred: Outputs) -> tuple[Scores, Tensor, Tensor]:
    """Returns the `Scores`, the target, and which samples have a valid one.

    The target is the class index, shape `(batch,)`, clipped to the valid range; or
    the distribution over classes of soft labels, shape `(batch, num_classes)`.
    """
    scores = scores_of(y_pred)
    if not ops.is_tensor(y_true):
        y_true = narrow_labels(y_true)
    labels = ops.convert_to_tensor(y_true)  # and moved to where the scores are
    _check_shapes(labels, scores)
    num_classes = scores.shape[1]
    if len(labels.shape) == 2 and labels.shape[1] == num_classes:
        _refuse_soft_labels(scores, labels)
        target = ops.cast(labels, scores.dtype)
        return scores, target, are_distributions(target)
    if len(labels.shape) == 2:
        labels = labels[:, 0]
    index = ops.cast(labels, "int32") % num_classes
    # Only a valid label survives the round trip through the class index.
    return scores, index, ops.cast(index, labels.dtype) == labels


def scores_of(y_pred: Outputs) -> Scores:
    """The `Scores` of what a head returns, of logits, or of `CosineDense.for_loss`."""
    logits = logits_of(y_pred)
    return logits if isinstance(logits, Scores) else DenseScores(logits)


def check_held(y_pred: Outputs) -> None:
    """Raises where the scores are computed by parts: Keras makes no tensor of them."""
    logits = y_pred.get("logits") if isinstance(y_pred, dict) else y_pred
    if isinstance(logits, Scores):
        _ = logits.logits  # tells what the loss needs


def _refuse_soft_labels(scores: Scores, labels: Tensor) -> None:
    if not scores.takes_soft_labels:
        raise ValueError(
            "A head with scores by blocks needs class indices as labels, shape "
            f"(batch,). Received: y_true.shape={tuple(labels.shape)}, one-hot or soft "
            "labels. "
            'Pass `y_true.argmax(axis=1)`, or make the head with scores="dense".'
        )


def margin_of(margin: Margin, scores: Scores, target: Tensor) -> float | Tensor:
    """The margin in the shape in which it is subtracted, or added to an angle.

    One margin for all classes: a number, or a tensor of shape `()`. One per class:
    for indices as `target` that of each sample's class, shape `(batch, 1)`; for
    soft labels shape `(num_classes,)`.
    """
    if isinstance(margin, numbers.Real):
        return margin
    margin = ops.convert_to_tensor(margin, scores.dtype)
    if len(margin.shape) == 0:
        return margin
    if tuple(margin.shape) != (scores.shape[1],):
        raise ValueError(
            "`margin` must be one number, or one per class. Received: margin of "
            f"shape {tuple(margin.shape)}, num_classes={scores.shape[1]}. Pass as "
            "many as there are classes."
        )
    if len(target.shape) == 2:
        return margin
    return ops.expand_dims(ops.take(margin, target), 1)


def logits_of(y_pred: Outputs) -> Any:
    """The logits of what a head returns: a dict, or the logits alone."""
    if not isinstance(y_pred, dict):
        return y_pred
    if not {"features", "logits"} <= set(y_pred):
        raise ValueError(
            'A dict `y_pred` must have the keys "features" and "logits". Received: '
            f"y_pred with keys {sorted(y_pred)}. Pass what `PEDCCDense` returns."
        )
    return y_pred["logits"]


def _check_shapes(labels: Tensor, logits: Scores) -> None:
    if len(logits.shape) != 2 or logits.shape[1] is None or logits.shape[1] < 2:
        raise ValueError(
            "The logits must have shape (batch, num_classes), with num_classes at "
            f"least 2. Received: logits.shape={tuple(logits.shape)}. Pass the output "
            "of `PEDCCDense`."
        )
    widths = (1, logits.shape[1])
    fits = len(labels.shape) == 2 and labels.shape[1] in widths
    if not (len(labels.shape) == 1 or fits):
        raise ValueError(
            "`y_true` must have shape (batch,), (batch, 1) or (batch, num_classes). "
            f"Received: y_true.shape={tuple(labels.shape)}, logits.shape="
            f"{tuple(logits.shape)}. Make the labels fit the number of classes."
        )
    if None not in (labels.shape[0], logits.shape[0]):
        if labels.shape[0] != logits.shape[0]:
            raise ValueError(
                "`y_true` must have one label per row of logits. Received: "
                f"y_true.shape={tuple(labels.shape)}, logits.shape="
                f"{tuple(logits.shape)}. Pass labels of the same batch."
            )
