"""Fine-tuning of the centroids late in training."""

import numbers
import warnings

import keras
from keras import ops

from keras_pedcc.checks import check_whole
from keras_pedcc.optimizers import FinetuneOptimizer, strategy_scope
from keras_pedcc.pedcc_dense import PEDCCDense


class FinetuneCallback(keras.callbacks.Callback):
    """Trains the centroids too, from a given epoch on.

    At the start of that epoch every `PEDCCDense` of the model, in nested models
    too, is unfrozen (`layer.trainable = True`), and its centroids are trained by
    plain SGD at their own learning rate, without momentum, decay or clipping.
    When training starts later than that epoch (`initial_epoch`, or a restored
    backup) they are unfrozen at once. The backbone's optimizer, with its state,
    schedule, clipping and loss scale, goes on as if nothing had happened.

    The optimizer of the model is wrapped in a `FinetuneOptimizer` as soon as
    `fit` gets the callback, so that checkpoints made before and after the
    unfreezing have the same layout. `keras.callbacks.SwapEMAWeights` does not look
    inside it: for averaged weights give the backbone's optimizer an
    `ema_overwrite_frequency`.

    Args:
        epoch: int, at least 0. First epoch, counted from 0 as Keras does, in
            which the centroids are trained; the paper takes 70 of 120. With
            `None` they never are, but the optimizer is wrapped all the same: a
            backup of such a run can go on in one that unfreezes them.
        learning_rate: Positive float; the paper takes 1e-3. It stays the same
            to the end of training.
        optimizer: `keras.optimizers.Optimizer` for the centroids instead of
            plain SGD; `learning_rate` is then not used. A copy of it is used, which
            accumulates gradients over as many steps as the backbone's optimizer
            unless it has a number of its own.
        verbose: 0 or 1. Whether to print a line at the unfreezing.

    Raises:
        TypeError: `epoch` is not a whole number, or `optimizer` no optimizer.
        ValueError: `epoch` or `learning_rate` is out of range; in `fit`, the
            model has no `PEDCCDense`, or is not built.

    Example:

    >>> finetune = keras_pedcc.FinetuneCallback(epoch=2)
    >>> history = model.fit(x, y, epochs=3, callbacks=[finetune], verbose=0)
    >>> model.layers[-1].trainable
    True

    Reference: Zhu et al., IEEE Access 2020, section IV-A.
    """

    def __init__(self, epoch=70, learning_rate=1e-3, *, optimizer=None, verbose=0):
        super().__init__()
        check_whole(0, epoch=0 if epoch is None else epoch)
        if not isinstance(learning_rate, numbers.Real) or not (
            0 < learning_rate < float("inf")
        ):
            raise ValueError(
                "`learning_rate` must be a positive number. Received: learning_rate="
                f"{learning_rate!r}. For a schedule, pass `optimizer`."
            )
        if not isinstance(optimizer, keras.optimizers.Optimizer | None):
            raise TypeError(
                "`optimizer` must be a `keras.optimizers.Optimizer`. Received: "
                f"optimizer={optimizer!r}. Pass one, as keras.optimizers.Adam(1e-3), "
                "or leave it out for plain SGD."
            )
        self.epoch = epoch
        self.learning_rate = float(learning_rate)
        self.optimizer = optimizer
        self.verbose = verbose

    def set_model(self, model):
        # Before any `on_train_begin`: the order of callbacks does not matter.
        super().set_model(model)
        if getattr(self.model, "optimizer", None) is not None:
            self._heads = _find_heads(self.model)
            with strategy_scope(self.model):
                self._wrap_optimizer()

    def on_train_begin(self, logs=None):
        epochs = self.params.get("epochs")
        frozen = any(not head.trainable for head in self._heads)
        if frozen and None not in (self.epoch, epochs) and self.epoch >= epochs:
            warnings.warn(
                "The centroids will not be fine-tuned: `epoch` must be below the "
                f"number of epochs. Received: epoch={self.epoch}, with fit(epochs="
                f"{epochs}). Pass a smaller `epoch`.",
                stacklevel=2,
            )

    def on_epoch_begin(self, epoch, logs=None):
        frozen = [head for head in self._heads if not head.trainable]
        if self.epoch is None or epoch < self.epoch or not frozen:
            return
        for head in frozen:
            head.trainable = True
        if not self._all_trained():
            self._stay_frozen(frozen)
            return
        with strategy_scope(self.model):
            rebuild_functions(self.model)
        if self.verbose:
            print(f"\nEpoch {epoch + 1}: the centroids are trained from here on.")

    def _all_trained(self):
        trained = {id(v) for v in self.model.trainable_variables}
        return all(id(head.centroids) in trained for head in self._heads)

    def _stay_frozen(self, heads):
        for head in heads:
            head.trainable = False
        warnings.warn(
            "The centroids stay frozen: every model and layer around them must be "
            f"trainable. Received: model {self.model.name!r} with a part that is "
            "not. Set its `trainable` to True before `compile`.",
            stacklevel=3,
        )

    def _wrap_optimizer(self):
        outer = self.model.optimizer
        scaled = isinstance(outer, keras.optimizers.LossScaleOptimizer)
        inner = outer.inner_optimizer if scaled else outer
        centroids = [head.centroids for head in self._heads]
        if isinstance(inner, FinetuneOptimizer) and self._fits(inner, centroids):
            self._set_rate(inner)
            return
        wrapped = self._wrapped(inner, centroids)
        if scaled:
            wrapped = _with_loss_scale(outer, wrapped)
        self.model.optimizer = wrapped
        # What a saved model is compiled with when it is loaded.
        self.model._compile_config.config["optimizer"] = wrapped
        rebuild_functions(self.model)

    def _wrapped(self, inner, centroids):
        previous = inner if isinstance(inner, FinetuneOptimizer) else None
        backbone = previous.optimizer if previous else inner
        wrapped = FinetuneOptimizer(backbone, self._centroid_optimizer(backbone))
        ids = {id(v) for v in centroids}
        wrapped.build([v for v in self.model.variables if v.trainable or id(v) in ids])
        if previous and self._same_kind(previous):
            _copy_state(previous.centroid_optimizer, wrapped.centroid_optimizer)
            self._set_rate(wrapped)
        return wrapped

    def _centroid_optimizer(self, backbone):
        wanted = self.optimizer or keras.optimizers.SGD(self.learning_rate)
        # A copy: made inside the strategy's scope, and not shared by models.
        config = wanted.get_config()
        if config.get("gradient_accumulation_steps") is None:
            config["gradient_accumulation_steps"] = backbone.gradient_accumulation_steps
        config["loss_scale_factor"] = backbone.loss_scale_factor
        return type(wanted).from_config(config)

    def _same_kind(self, wrapped):
        """Whether the centroids' optimizer differs from ours in its rate at most."""
        ours = self._centroid_optimizer(wrapped.optimizer)
        theirs = wrapped.centroid_optimizer
        return type(ours) is type(theirs) and _settings(ours) == _settings(theirs)

    def _fits(self, wrapped, centroids):
        return wrapped.built and wrapped.covers(centroids) and self._same_kind(wrapped)

    def _set_rate(self, wrapped):
        ours = self._centroid_optimizer(wrapped.optimizer)
        if not _has_schedule(ours):
            rate = ops.convert_to_numpy(ours.learning_rate)
            wrapped.centroid_optimizer.learning_rate = rate


def _find_heads(model):
    heads = [
        layer for layer in model._flatten_layers() if isinstance(layer, PEDCCDense)
    ]
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
    return list({id(head): head for head in heads}.values())


def rebuild_functions(model):
    """Makes Keras trace anew: a traced function keeps what it was traced with."""
    for name in ("train", "test", "predict"):
        if getattr(model, f"{name}_function") is not None:
            getattr(model, f"make_{name}_function")(force=True)


def _with_loss_scale(old, inner):
    """A loss-scale optimizer around `inner`, with the scale that `old` has found."""
    new = keras.optimizers.LossScaleOptimizer(
        inner, old.initial_scale, old.dynamic_growth_steps, name=old.name
    )
    new.build(inner._trainable_variables)
    if old.built:
        new.step_counter.assign(old.step_counter)
        new.dynamic_scale.assign(old.dynamic_scale)
    return new


def _has_schedule(optimizer):
    return isinstance(optimizer.get_config()["learning_rate"], dict)


def _settings(optimizer):
    """The config without what may differ between two of the same kind."""
    config = optimizer.get_config()
    if not _has_schedule(optimizer):
        del config["learning_rate"]
    return {name: value for name, value in config.items() if name != "name"}


def _copy_state(source, target):
    for old, new in zip(source.variables, target.variables, strict=True):
        new.assign(old)
