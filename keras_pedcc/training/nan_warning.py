"""The warning of a loss of NaN, of which a compiled step can tell no more."""

import warnings
from typing import Any

import keras

from keras_pedcc.common import Logs


def with_nan_warning(callbacks: Any) -> Any:
    """The callbacks of `fit`, and one that warns of a loss of NaN."""
    if isinstance(callbacks, keras.callbacks.CallbackList):
        return callbacks
    return [*keras.tree.flatten(callbacks or []), _NaNWarning()]


class _NaNWarning(keras.callbacks.Callback):
    """Names the causes of a loss of NaN, once, where a graph can only compute it."""

    def __init__(self) -> None:
        super().__init__()
        self.warned = False

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        loss = (logs or {}).get("loss", 0.0)
        if loss == loss or self.warned:  # NaN alone differs from itself
            return
        self.warned = True
        warnings.warn(
            f"The loss should be a number. Received: loss=nan in epoch {epoch + 1}. A "
            "label that is no class gives NaN, and so do NaN inputs and training that "
            "diverges: check the data set, then lower the learning rate.",
            stacklevel=2,
        )
