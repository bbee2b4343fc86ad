"""A margin that grows in the first epochs of training."""

from typing import Any

import keras

from keras_pedcc.common import Logs
from keras_pedcc.common.checks import check_whole
from keras_pedcc.common.replicas import strategy_scope
from keras_pedcc.common.sublayers import layers_of
from keras_pedcc.layers.cosine_dense import CosineDense
from keras_pedcc.layers.margin_share import MarginShare
from keras_pedcc.losses.arguments import check_range
from keras_pedcc.training.finetune import rebuild_functions
from keras_pedcc.training.model import PEDCCModel


class MarginWarmup(keras.callbacks.Callback):
    """Lets the margin of a loss grow to its full size over the first epochs.

    In epoch e, counted from 0, the margin is
    `margin * (start + (1 - start) * min(1, e / epochs))`, with `margin` that of the
    loss: `PEDCCLoss`, `AMSoftmaxLoss`, `ArcFaceLoss` or `AdaFaceLoss`. Validation sees
    the margin of its epoch too, which raises `val_loss`: let other callbacks monitor an
    accuracy.
    The margin depends on the epoch alone: training that is resumed, by
    `initial_epoch` or from a backup, goes on with the margin it would have had.

    The share of the margin belongs to `fit` and to its model: outside of `fit`, in
    another model with the same loss, and in a model that was saved and loaded, the
    margin is full. It is no weight, so that `EarlyStopping(restore_best_weights=True)`
    and `set_weights` do not touch it. A training step is traced once for all epochs.

    In a model that is not a `PEDCCModel` the loss itself carries the share during
    `fit`: no other such model may use the same loss object meanwhile. After a `fit`
    that was interrupted there, by Ctrl+C or an error, call `on_train_end()` of the
    callback, or compile the model with a new loss.

    Args:
        epochs: int, at least 1. Epochs before the margin is full. Defaults to 10.
        start: Float in [0, 1]. The share of the margin in epoch 0. Defaults to 0.

    Attributes:
        share: The share of the margin in the epoch that runs; 1 outside of `fit`.

    Raises:
        TypeError: `epochs` is not a whole number.
        ValueError: `epochs` or `start` is out of range; in `fit`, the loss or the
            head of the model is none of those above, or there are two of these
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

    _holder: Any  # `MarginShare`

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
        holder = _holder_of(self.model)
        if holder is not None:
            holder.callback = self  # the last of several

    def on_train_begin(self, logs: Logs = None) -> None:
        self._check()
        self._holder, loss = _holder_of(self.model), self.model.loss
        # That of a `fit` around this one, and not of one interrupted before.
        interrupted = loss.margin_share is self._holder.value
        self._carried = None if interrupted else loss.margin_share
        with strategy_scope(self.model):
            self._holder.start()
            rebuild_functions(self.model)
        self._carry(self._holder.value)

    def on_epoch_begin(self, epoch: int, logs: Logs = None) -> None:
        grown = min(1.0, epoch / self.epochs)
        self._holder.set(self.start + (1 - self.start) * grown)

    def on_train_end(self, logs: Logs = None) -> None:
        self._holder.stop()
        self._carry(self._carried)
        with strategy_scope(self.model):
            rebuild_functions(self.model)

    def _carry(self, share: keras.Variable | None) -> None:
        # A `PEDCCModel` hands its own share to its loss.
        if not isinstance(self.model, PEDCCModel):
            self.model.loss.margin_share = share

    def _check(self) -> None:
        if not hasattr(self.model.loss, "margin_share"):
            raise ValueError(
                "`MarginWarmup` needs a loss with a margin that may be any number: "
                "`PEDCCLoss`, `AMSoftmaxLoss`, `ArcFaceLoss` or `AdaFaceLoss`. "
                "Received: loss="
                f"{self.model.loss!r}. Pass one to `compile`, or leave the callback "
                "out."
            )
        holder = _holder_of(self.model)
        if holder is None:
            raise ValueError(
                "`MarginWarmup` needs a `PEDCCModel`, or a model with a `PEDCCDense` "
                f"or `CosineDense` layer. Received: model {self.model.name!r} without "
                "one. Add the layer, or leave the callback out."
            )
        if holder.callback is not self:
            raise ValueError(
                "`fit` takes one `MarginWarmup`. Received: a second one, with epochs="
                f"{holder.callback.epochs}. Leave one out."
            )


def _holder_of(model: keras.Model) -> MarginShare | None:
    """Where a model has the share of its margin, or `None`."""
    if isinstance(model, PEDCCModel):
        return model.margin_share
    heads = [layer for layer in layers_of(model) if isinstance(layer, CosineDense)]
    return heads[0].margin_share if heads else None
