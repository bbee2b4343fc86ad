"""The check of the first logits that a loss of cosines gets."""

import warnings

import numpy as np
from keras import ops

from keras_pedcc.common import Array, Tensor
from keras_pedcc.common.values import has_values
from keras_pedcc.scores.dense import LARGEST_COSINE


def check_cosines(logits: Tensor) -> bool:
    """Raises unless logits are cosines, warns of probabilities.

    Reading values off a GPU waits for it: a loss calls this for its first batch alone,
    and later logits that are no cosines give NaN.

    Args:
        logits: Tensor, shape `(batch, num_classes)`.

    Returns:
        bool. Whether there were values to check: a graph has none.

    Raises:
        ValueError: A logit is more than 0.01 outside [-1, 1].
    """
    if len(logits.shape) != 2 or not has_values(logits):
        return False
    values = ops.convert_to_numpy(ops.cast(ops.stop_gradient(logits), "float32"))
    low, high = values.min(initial=0.0), values.max(initial=0.0)
    if max(-low, high) > LARGEST_COSINE:  # which NaN is not
        raise ValueError(
            "The logits must be cosines, in [-1, 1]. Received: logits from "
            f"{low:.3g} to {high:.3g}. End the model with `PEDCCDense` or "
            "`CosineDense`, without a scale: that of the loss is enough. For the "
            "output of a `Dense`, take a cross entropy with from_logits=True."
        )
    if _are_probabilities(values):
        warnings.warn(
            "The logits must be the cosines of the head, unchanged. Received: rows "
            "of positive numbers that sum to 1, as softmax gives. Remove the "
            "activation after the head: the loss contains the softmax.",
            stacklevel=3,
        )
    return True


def _are_probabilities(values: Array) -> bool:
    # Fewer rows, or of two classes, may sum to 1 by chance.
    if values.shape[0] < 4 or values.shape[1] < 3:
        return False
    sums_to_one = np.abs(values.sum(axis=1) - 1) < 1e-4
    return bool((values > 0).all() and sums_to_one.all())
