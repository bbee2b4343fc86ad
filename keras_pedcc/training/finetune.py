"""Fine-tuning of the centroids late in training."""

import numbers
import warnings
from typing import Any

import keras
from keras import ops

from keras_pedcc.common import Logs
from keras_pedcc.common.checks import check_whole
from keras_pedcc.common.internals import set_optimizer
from keras_pedcc.common.replicas import strategy_scope
from keras_pedcc.layers.centroid_variables import mark_centroids
from keras_pedcc.layers.heads import heads_of
from keras_pedcc.layers.pedcc_dense import PEDCCDense
from keras_pedcc.training.activations import warn_of_activations
from keras_pedcc.training.finetune_optimizer import FinetuneOptimizer
from keras_pedcc.training.shares import check_inner
from keras_pedcc.training.tracing import trace_anew


class FinetuneCallback(keras.callbacks.Callback):
    """Trains the centroids too, from a given epoch on.

    At the start of that epoch every `PEDCCDense` of the model, in nested models
    too, is unfrozen (`layer.frozen = False`), and its centroids are trained by
    plain SGD at their own learning rate, without momentum, decay or clipping.
    When training starts later than that epoch (`initial_epoch`, or a restored
    backup) they are unfrozen at once. The backbone's optimizer, with its state,
    schedule, clipping and loss scale, goes on as if nothing had happened.

    Each `fit` counts its epochs from 0, and waits for its own `epoch`: centroids that
    a callback unfroze in a former `fit` are frozen again until then, unless
    `initial_epoch` is past it. A head that the user unfroze (`trainable=True` in its
    constructor, or `layer.frozen = False`) is trained from the first epoch, at the
    learning rate of the callback; so is one that a callback unfroze, after
    `layer.fine_tuned = False`. A warning tells where the centroids were not
    trained at all: in a `fit` of fewer epochs, or one that `EarlyStopping` ended.

    The optimizer of the model is wrapped in a `FinetuneOptimizer` as soon as
    `fit` gets the callback, so that checkpoints made before and after the
    unfreezing have the same layout. `keras.callbacks.SwapEMAWeights` does not work
    with it, and raises: `use_ema=True` in the backbone's optimizer sets the averages
    at the end of `fit`, and with `ema_overwrite_frequency` during training.

    Args:
        epoch: int, at least 0. First epoch in which the centroids are trained.
            Epochs count from 0, as in `initial_epoch`: with `epoch=2`, the third one,
            which Keras prints as "Epoch 3". The paper takes 70 of 120. With
            `None` they never are, but the optimizer is wrapped all the same: a
            backup of such a run can go on in one that unfreezes them. Defaults to 70.
        learning_rate: Positive float; the paper takes 1e-3. It stays the same
            to the end of training. Defaults to 1e-3.
        optimizer: `keras.optimizers.Optimizer` for the centroids instead of
            plain SGD; `learning_rate` is then not used. A copy of it is used, which
            accumulates gradients over as many steps as the backbone's optimizer
            unless it has a number of its own. Defaults to `None`.
        verbose: 0 or 1. Whether to print a line at the unfreezing. Defaults to 0.

    Raises:
        TypeError: `epoch` is not a whole number, or `optimizer` no optimizer.
        ValueError: `epoch` or `learning_rate` is out of range, or `optimizer` is
            a `LossScaleOptimizer` or without a learning rate; in `fit`, the model has
            no `PEDCCDense`, or is not built.

    Example:

    >>> finetune = keras_pedcc.FinetuneCallback(epoch=2)
    >>> history = model.fit(x, y, epochs=3, callbacks=[finetune], verbose=0)
    >>> model.layers[-1].frozen
    False

    Reference: Zhu et al., IEEE Access 2020, section IV-A.
    """

    _last_epoch: int | None  # of this `fit`

    def __init__(
        self,
        epoch: int | None = 70,
        learning_rate: float = 1e-3,
        *,
        optimizer: keras.optimizers.Optimizer | None = None,
        verbose: int = 0,
    ) -> None:
        super().__init__()
        check_whole(0, epoch=0 if epoch is None else epoch)
        number = isinstance(learning_rate, numbers.Real)
        if not number or not 0 < learning_rate < float("inf"):
            raise ValueError(
                "`learning_rate` must be a positive number. Received: learning_rate="
                f"{learning_rate!r}. For a schedule, pass `optimizer`."
            )
        if optimizer is not None:
            _check_optimizer(optimizer)
        self.epoch = epoch
        self.learning_rate = float(learning_rate)
        self.optimizer = optimizer
        self.verbose = verbose

    def set_model(self, model: keras.Model) -> None:
        # Before any `on_train_begin`: the order of callbacks does not matter.
        super().set_model(model)
        if getattr(self.model, "optimizer", None) is not None:
            self._heads = _find_heads(self.model)
            warn_of_activations(self.model)
            for head in self._heads:  # a deep copy of a head is not marked yet
                mark_centroids(head.centroids)
            with strategy_scope(self.model):
                self._wrap_optimizer()

    def on_train_begin(self, logs: Logs = None) -> None:
        self._last_epoch = None
        epochs = (self.params or {}).get("epochs")  # none in a loop of the user's own
        if epochs and self.epoch is not None and epochs <= self.epoch:
            self._warn_of_late(epochs)

    def _warn_of_late(self, epochs: int) -> None:
        if self._waiting():
            warnings.warn(
                "The centroids will not be fine-tuned: `epoch` must be below the "
                f"number of epochs. Received: epoch={self.epoch}, with fit(epochs="
                f"{epochs}). Pass a smaller `epoch`, or go on from a former `fit` with "
                "`initial_epoch`.",
                stacklevel=3,
            )

    def on_epoch_begin(self, epoch: int, logs: Logs = None) -> None:
        first, self._last_epoch = self._last_epoch is None, epoch
        waiting = self._waiting()
        if self.epoch is not None and epoch >= self.epoch:
            frozen = [head for head in waiting if head.frozen]
            if frozen and (first or epoch == self.epoch):
                self._unfreeze(frozen, epoch)
        else:
            for head in waiting:
                head.frozen = True
        self._trace_if_changed()

    def on_train_end(self, logs: Logs = None) -> None:
        ended, epochs = self._last_epoch, (self.params or {}).get("epochs")
        if self.epoch is None or ended is None or epochs is None:
            return
        if not ended < self.epoch < epochs:
            return
        if self._waiting():
            warnings.warn(
                "The centroids were not fine-tuned: training ended before `epoch`. "
                f"Received: epoch={self.epoch}, with a last epoch of {ended}, counted "
                "from 0. Pass a smaller `epoch`, or let `EarlyStopping` act later with "
                "`start_from_epoch`.",
                stacklevel=2,
            )

    def _waiting(self) -> list[PEDCCDense]:
        """The heads whose centroids are not to be trained before `epoch`."""
        return [head for head in self._heads if head.frozen or head.fine_tuned]

    def _unfreeze(self, heads: list[PEDCCDense], epoch: int) -> None:
        for head in heads:
            head.frozen = False
            head.fine_tuned = True
        trained = {id(v) for v in self.model.trainable_variables}
        held = [head for head in heads if id(head.centroids) not in trained]
        for head in held:
            head.frozen = True
        if held:
            self._warn_of_held(held)
        if self.verbose and len(held) < len(heads):
            print(f"\nEpoch {epoch + 1}: the centroids are trained from here on.")

    def _warn_of_held(self, heads: list[PEDCCDense]) -> None:
        warnings.warn(
            "The centroids stay frozen: their head, and every model and layer around "
            f"it, must be trainable. Received: {[head.name for head in heads]} in "
            f"model {self.model.name!r}, with `trainable=False` there. Set it to True "
            "before `compile`.",
            stacklevel=4,
        )

    def _trace_if_changed(self) -> None:
        """Has Keras trace a step anew if others are trained than in the last trace."""
        optimizer = _inner(self.model.optimizer)
        trained = tuple(head.trained for head in self._heads)
        if optimizer.traced_with != trained:
            with strategy_scope(self.model):
                trace_anew(self.model)
            optimizer.traced_with = trained

    def _wrap_optimizer(self) -> None:
        outer = self.model.optimizer
        inner = _inner(outer)
        centroids = [head.centroids for head in self._heads]
        if isinstance(inner, FinetuneOptimizer) and self._fits(inner, centroids):
            self._set_rate(inner)
            return
        wrapped = self._wrapped(inner, centroids)
        if inner is not outer:
            wrapped = _with_loss_scale(outer, wrapped)
        set_optimizer(self.model, wrapped)
        trace_anew(self.model)

    def _wrapped(
        self, inner: keras.optimizers.Optimizer, centroids: list[keras.Variable]
    ) -> FinetuneOptimizer:
        previous = inner if isinstance(inner, FinetuneOptimizer) else None
        backbone = previous.optimizer if previous else inner
        if not previous:
            self._check_averages(backbone)
        wrapped = FinetuneOptimizer(backbone, self._centroid_optimizer(backbone))
        ids = {id(v) for v in centroids}
        wrapped.build([v for v in self.model.variables if v.trainable or id(v) in ids])
        if previous and self._same_kind(previous):
            _copy_state(previous.centroid_optimizer, wrapped.centroid_optimizer)
            self._set_rate(wrapped)
        return wrapped

    def _check_averages(self, optimizer: keras.optimizers.Optimizer) -> None:
        """Raises if an optimizer that averages was built with the centroids, too."""
        known = optimizer.built and optimizer.use_ema
        unfrozen = [head.name for head in self._heads if head.trained]
        if known and unfrozen:
            raise ValueError(
                "`FinetuneCallback` needs an optimizer that does not average the "
                f"centroids. Received: use_ema=True, built with those of {unfrozen}. "
                "Call `compile` with a new FinetuneOptimizer(optimizer, "
                "centroid_optimizer), or freeze the head before `compile`."
            )

    def _centroid_optimizer(
        self, backbone: keras.optimizers.Optimizer
    ) -> keras.optimizers.Optimizer:
        wanted = self.optimizer or keras.optimizers.SGD(self.learning_rate)
        # A copy: made inside the strategy's scope, and not shared by models.
        config = wanted.get_config()
        if config.get("gradient_accumulation_steps") is None:
            config["gradient_accumulation_steps"] = backbone.gradient_accumulation_steps
        config["loss_scale_factor"] = backbone.loss_scale_factor
        return type(wanted).from_config(config)

    def _same_kind(self, wrapped: FinetuneOptimizer) -> bool:
        """Whether the centroids' optimizer differs from ours in its rate at most."""
        ours = self._centroid_optimizer(wrapped.optimizer)
        theirs = wrapped.centroid_optimizer
        return type(ours) is type(theirs) and _settings(ours) == _settings(theirs)

    def _fits(
        self, wrapped: FinetuneOptimizer, centroids: list[keras.Variable]
    ) -> bool:
        return wrapped.built and wrapped.covers(centroids) and self._same_kind(wrapped)

    def _set_rate(self, wrapped: FinetuneOptimizer) -> None:
        ours = self._centroid_optimizer(wrapped.optimizer)
        if not _has_schedule(ours):
            rate = ops.convert_to_numpy(ours.learning_rate)
            wrapped.centroid_optimizer.learning_rate = rate


def _find_heads(model: keras.Model) -> list[PEDCCDense]:
    heads = [head for head in heads_of(model) if isinstance(head, PEDCCDense)]
    if not heads:
        raise ValueError(
            "`FinetuneCallback` needs a model with a `PEDCCDense` layer. Received: "
            f"model {model.name!r} without one. Add the layer, or leave the callback "
            "out. A `KerdockDense` cannot be trained: go on with PEDCCDense("
            "num_classes, centroids=np.asarray(head.centroids))."
        )
    unbuilt = [head.name for head in heads if not head.built]
    if unbuilt:
        raise ValueError(
            "`FinetuneCallback` needs a model that is built. Received: model "
            f"{model.name!r}, in which {unbuilt} have no weights yet. Start the model "
            "with `keras.Input`, or call it on a batch before `fit`."
        )
    # A layer may know another one that is no part of the model, such as a teacher.
    own = {id(v) for v in model.variables}
    return [head for head in heads if id(head.centroids) in own]


def _check_optimizer(optimizer: keras.optimizers.Optimizer) -> None:
    check_inner("optimizer", optimizer)
    if "learning_rate" not in optimizer.get_config():
        raise ValueError(
            "`optimizer` must have a learning rate of its own. Received: optimizer="
            f"{optimizer!r}. Pass a plain one, such as keras.optimizers.Adam(1e-3)."
        )


def _inner(optimizer: keras.optimizers.Optimizer) -> keras.optimizers.Optimizer:
    """The optimizer itself, without the one that scales its loss."""
    scaled = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
    return optimizer.inner_optimizer if scaled else optimizer


def _with_loss_scale(
    old: keras.optimizers.LossScaleOptimizer, inner: FinetuneOptimizer
) -> keras.optimizers.LossScaleOptimizer:
    """A loss-scale optimizer around `inner`, with the scale that `old` has found."""
    new = keras.optimizers.LossScaleOptimizer(
        inner, old.initial_scale, old.dynamic_growth_steps, name=old.name
    )
    new.build(inner.model_variables)
    if old.built:
        new.step_counter.assign(old.step_counter)
        new.dynamic_scale.assign(old.dynamic_scale)
    return new


def _has_schedule(optimizer: keras.optimizers.Optimizer) -> bool:
    return isinstance(optimizer.get_config()["learning_rate"], dict)


def _settings(optimizer: keras.optimizers.Optimizer) -> dict[str, Any]:
    """The config without what may differ between two of the same kind."""
    config = optimizer.get_config()
    if not _has_schedule(optimizer):
        del config["learning_rate"]
    return {name: value for name, value in config.items() if name != "name"}


def _copy_state(
    source: keras.optimizers.Optimizer, target: keras.optimizers.Optimizer
) -> None:
    for old, new in zip(source.variables, target.variables, strict=True):
        new.assign(old)
