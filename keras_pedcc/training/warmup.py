"""A margin that grows in the first epochs of training."""

import keras

from keras_pedcc.common import Logs
from keras_pedcc.common.checks import check_whole
from keras_pedcc.common.replicas import strategy_scope
from keras_pedcc.losses.arguments import check_range
from keras_pedcc.losses.base import MarginLoss
from keras_pedcc.training.margin_share import MarginShare
from keras_pedcc.training.model import PEDCCModel
from keras_pedcc.training.tracing import trace_anew


class MarginWarmup(keras.callbacks.Callback):
    """Lets the margin of a loss grow to its full size over the first epochs.

    In epoch e, counted from 0, the margin is
    `margin * (start + (1 - start) * min(1, e / epochs))`, with `margin` that of the
    loss: `PEDCCLoss`, `AMSoftmaxLoss`, `ArcFaceLoss` or `AdaFaceLoss`. Validation sees
    the margin of its epoch too, which raises `val_loss`: let other callbacks monitor an
    accuracy.
    The margin depends on the epoch alone: training that is resumed, by
    `initial_epoch` or from a backup, goes on with the margin it would have had.

    The model must be a `PEDCCModel`, which holds the share of the margin. The share
    belongs to `fit` and to its model: outside of `fit`, in another model with the same
    loss, and in a model that was saved and loaded, the margin is full. It is no weight,
    so that `EarlyStopping(restore_best_weights=True)` and `set_weights` do not touch
    it. A training step is traced once for all epochs.

    Args:
        epochs: int, at least 1. Epochs before the margin is full. Defaults to 10.
        start: Float in [0, 1]. The share of the margin in epoch 0. Defaults to 0.

    Attributes:
        share: The share of the margin in the epoch that runs; 1 outside of `fit`.

    Raises:
        TypeError: `epochs` is not a whole number.
        ValueError: `epochs` or `start` is out of range; in `fit`, the model is no
            `PEDCCModel`, its loss none of those above, or there are two of these
            callbacks.

    Example:

    >>> warmup = keras_pedcc.MarginWarmup(epochs=2)
    >>> tell = keras.callbacks.LambdaCallback(
    ...     on_epoch_begin=lambda epoch, logs: print(epoch, warmup.share)
    ... )
    >>> history = model.fit(x, y, epochs=3, callbacks=[warmup, tell], verbose=0)
    0 0.0
    1 0.5
    2 1.0
    """

    def __init__(self, epochs: int = 10, start: float = 0.0) -> None:
        super().__init__()
        check_whole(1, epochs=epochs)
        check_range("start", start, 0.0, 1.0)
        self.epochs = epochs
        self.start = float(start)
        self._holder = MarginShare()

    @property
    def share(self) -> float:
        return self._holder.share

    def set_model(self, model: keras.Model) -> None:
        super().set_model(model)
        if isinstance(self.model, PEDCCModel):
            self._holder = self.model.margin_share
            self._holder.callback = self  # the last of several

    def on_train_begin(self, logs: Logs = None) -> None:
        self._check()
        with strategy_scope(self.model):
            self._holder.start()
            trace_anew(self.model)

    def on_epoch_begin(self, epoch: int, logs: Logs = None) -> None:
        grown = min(1.0, epoch / self.epochs)
        self._holder.set(self.start + (1 - self.start) * grown)

    def on_train_end(self, logs: Logs = None) -> None:
        self._holder.stop()
        with strategy_scope(self.model):
            trace_anew(self.model)

    def _check(self) -> None:
        if not isinstance(self.model, PEDCCModel):
            raise ValueError(
                "`MarginWarmup` needs a `PEDCCModel`, which holds the share of the "
                f"margin. Received: {type(self.model).__name__} {self.model.name!r}. "
                "Make the model with `PEDCCModel`, or leave the callback out."
            )
        if not isinstance(self.model.loss, MarginLoss):
            raise ValueError(
                "`MarginWarmup` needs a loss with a margin that may be any number: "
                "`PEDCCLoss`, `AMSoftmaxLoss`, `ArcFaceLoss` or `AdaFaceLoss`. "
                "Received: loss="
                f"{self.model.loss!r}. Pass one to `compile`, or leave the callback "
                "out."
            )
        if self._holder.callback is not self:
            raise ValueError(
                "`fit` takes one `MarginWarmup`. Received: a second one, with epochs="
                f"{self._holder.callback.epochs}. Leave one out."
            )
