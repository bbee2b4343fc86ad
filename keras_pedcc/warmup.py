"""A margin that grows in the first epochs of training."""

import keras

from keras_pedcc.callbacks import rebuild_functions
from keras_pedcc.checks import check_whole
from keras_pedcc.cosine_dense import CosineDense
from keras_pedcc.losses.arguments import check_range
from keras_pedcc.optimizers import strategy_scope


class MarginWarmup(keras.callbacks.Callback):
    """Lets the margin of a loss grow to its full size over the first epochs.

    In epoch e, counted from 0, the margin is
    `margin * (start + (1 - start) * min(1, e / epochs))`, with `margin` that of the
    loss: `PEDCCLoss`, `AMSoftmaxLoss` or `ArcFaceLoss`. Validation sees the margin of
    its epoch too, which raises `val_loss`: let other callbacks monitor an accuracy.
    The margin depends on the epoch alone: training that is resumed, by
    `initial_epoch` or from a backup, goes on with the margin it would have had.

    The factor is a weight, not trainable and not saved, of the model's
    `PEDCCDense` or `CosineDense`: a compiled training step reads it anew, and is
    traced once and not once per epoch. Without the callback, as in a model that was
    saved and loaded, the margin is full; after training that ended in the first
    `epochs` it stays where it was.

    Args:
        epochs: int, at least 1. Epochs before the margin is full.
        start: Float in [0, 1]. The share of the margin in epoch 0.

    Raises:
        TypeError: `epochs` is not a whole number.
        ValueError: `epochs` or `start` is out of range; in `fit`, the loss or the
            head of the model is none of those above.

    Example:

    >>> warmup = keras_pedcc.MarginWarmup(epochs=2)
    >>> history = model.fit(x, y, epochs=2, callbacks=[warmup], verbose=0)
    >>> float(model.loss.margin_share)  # in epoch 1, the last
    0.5
    """

    def __init__(self, epochs=10, start=0.0):
        super().__init__()
        check_whole(1, epochs=epochs)
        check_range("start", start, 0.0, 1.0)
        self.epochs = epochs
        self.start = float(start)

    def set_model(self, model):
        # Before any `on_train_begin`: backups count the weights there.
        super().set_model(model)
        loss = getattr(self.model, "loss", None)
        if getattr(self.model, "optimizer", None) is None:
            return
        head = _find_head(self.model, loss)
        with strategy_scope(self.model):
            share = head.margin_share.get()
            if loss.margin_share is not share:
                loss.margin_share = share
                rebuild_functions(self.model)

    def on_epoch_begin(self, epoch, logs=None):
        grown = min(1.0, epoch / self.epochs)
        self.model.loss.margin_share.assign(self.start + (1 - self.start) * grown)


def _find_head(model, loss):
    if not hasattr(loss, "margin_share"):
        raise ValueError(
            "`MarginWarmup` needs a loss with a margin that may be any number: "
            f"`PEDCCLoss`, `AMSoftmaxLoss` or `ArcFaceLoss`. Received: loss={loss!r}. "
            "Pass one to `compile`, or leave the callback out."
        )
    for layer in model._flatten_layers():
        if isinstance(layer, CosineDense):
            return layer
    raise ValueError(
        "`MarginWarmup` needs a model with a `PEDCCDense` or `CosineDense` layer. "
        f"Received: model {model.name!r} without one. Add the layer, or leave the "
        "callback out."
    )
