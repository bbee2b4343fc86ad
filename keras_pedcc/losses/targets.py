"""Labels and cosines as a loss gets them: one form for all."""

import keras
import numpy as np
from keras import ops

from keras_pedcc.common.checks import narrow_labels
from keras_pedcc.common.vectors import filled
from keras_pedcc.scores.blockwise import StreamedLogits


def prepare(y_true, y_pred):
    """Returns float logits, the target, and which samples have a valid one.

    The target is the class index, shape `(batch,)`, clipped to the valid range; or
    the distribution over classes of soft labels, shape `(batch, num_classes)`.
    """
    logits = logits_of(y_pred)
    if not isinstance(logits, StreamedLogits):
        logits = ops.convert_to_tensor(logits)
        if keras.backend.standardize_dtype(logits.dtype) != "float64":
            logits = ops.cast(logits, "float32")
    labels = ops.convert_to_tensor(narrow_labels(y_true))
    _check_shapes(labels, logits)
    num_classes = logits.shape[1]
    if len(labels.shape) == 2 and labels.shape[1] == num_classes:
        _refuse_soft_labels(logits)
        target = ops.cast(labels, logits.dtype)
        off = ops.abs(ops.sum(target, axis=1) - 1) > 1e-2
        negative = ops.any(target < 0, axis=1)
        return logits, target, ops.logical_not(off | negative)
    if len(labels.shape) == 2:
        labels = ops.reshape(labels, (-1,))
    index = ops.cast(labels, "int32") % num_classes
    # Only a valid label survives the round trip through the class index.
    return logits, index, ops.equal(ops.cast(index, labels.dtype), labels)


def nan_unless(valid, values):
    """`values`, with NaN for the samples without a valid label."""
    return filled(values, ops.logical_not(valid), np.nan)


def _refuse_soft_labels(logits):
    if isinstance(logits, StreamedLogits):
        raise ValueError(
            "A head that streams needs class indices as labels, shape (batch,). "
            f"Received: y_true.shape={logits.shape}, one-hot or soft labels. Pass "
            "`y_true.argmax(axis=1)`, or make the head with streaming=False."
        )


def logits_of(y_pred):
    """The logits of what a head returns: a dict, or the logits alone."""
    if not isinstance(y_pred, dict):
        return y_pred
    if not {"features", "logits"} <= set(y_pred):
        raise ValueError(
            'A dict `y_pred` must have the keys "features" and "logits". Received: '
            f"y_pred with keys {sorted(y_pred)}. Pass what `PEDCCDense` returns."
        )
    return y_pred["logits"]


def _check_shapes(labels, logits):
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
