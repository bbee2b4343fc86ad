"""A Keras model with one loss over the dict of a head and one label."""

import inspect
import re
from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from keras_pedcc.common import Tensor
from keras_pedcc.layers.center_dense import CenterDense
from keras_pedcc.layers.cosine_dense import CosineDense
from keras_pedcc.layers.heads import heads_of
from keras_pedcc.training.activations import check_logits, warn_of_activations
from keras_pedcc.training.blockwise_loss import (
    Hits,
    check_blockwise_loss,
    for_logits,
    refuse_weighted,
    split_metrics,
)
from keras_pedcc.training.compiled_loss import check_one_loss, resolve_loss
from keras_pedcc.training.functional import functional_kind, takes_graph
from keras_pedcc.training.kept_weights import kept_in_evaluate, kept_in_fit
from keras_pedcc.training.label_checks import (
    check_number,
    check_own_labels,
    checked,
    count_of,
)
from keras_pedcc.training.margin_share import MarginShare
from keras_pedcc.training.nan_warning import with_nan_warning
from keras_pedcc.training.tracing import trace_anew


@keras.saving.register_keras_serializable("keras_pedcc")
class PEDCCModel(keras.Model):
    """`keras.Model` for a head that returns `{"features", "logits"}`.

    Keras applies a loss to each output on its own, with a label for each. This
    model gives one loss the whole dict and one label, and otherwise trains,
    saves and distributes like any Keras model:

    - `compile(loss=PEDCCLoss())`, or any loss class or function of yours, is
      called as `loss(y, {"features": ..., "logits": ...}, sample_weight)`.
    - A loss of Keras, or of a subclass of one, gets the logits. One that takes
      probabilities is refused: the logits are cosines.
    - `metrics=["accuracy"]` sees the logits; `metrics={"logits": [...],
      "features": [...]}` routes each output. Either way a metric is logged under
      its own name (`accuracy`), unless both outputs have one of that name.
    - With a head that returns the features alone (`scores="blockwise"` and the like),
      the loss is one with a margin and computes the logits by blocks of classes;
      `metrics` may hold `"accuracy"`, metrics of the features under their name, and
      `keras.metrics.SparseTopKCategoricalAccuracy(k)`.
    - Labels that are no class are refused before any backend casts them: arrays,
      lists and tensors before anything runs, also in `train_on_batch` and
      `test_on_batch`; those of a `PyDataset`, a generator or a PyTorch `DataLoader`
      batch by batch. In a `tf.data.Dataset` they make the loss NaN, of which `fit`
      warns once. Validation labels are checked alike.

    A subclass may have a `call` of its own, which returns what a head returns.

    Args:
        inputs: As in `keras.Model(inputs, outputs)`.
        outputs: Dict with `"features"` and `"logits"`, as `PEDCCDense` returns, and
            what else the head has for its loss; or with `"features"` alone, of a
            head with other scores than `"dense"`.

    Raises:
        ValueError: `outputs` is not such a dict, or an activation follows the head; in
            `compile`, the loss takes probabilities; in training and evaluation, labels
            are out of range, not whole, or of another shape, or `call` returns
            something else.

    Example:

    >>> inputs = keras.Input((8,))
    >>> outputs = keras_pedcc.PEDCCDense(3)(keras.layers.Dense(16)(inputs))
    >>> model = keras_pedcc.PEDCCModel(inputs, outputs)
    >>> model.compile("sgd", keras_pedcc.PEDCCLoss(), metrics=["accuracy"])
    >>> history = model.fit(np.ones((4, 8)), np.zeros(4), verbose=0)
    >>> sorted(history.history)
    ['accuracy', 'loss']
    """

    _loss_of_outputs: Any  # function that `compile` sets, or `None`
    _for_loss: Any  # function, or `None`
    _count: Any  # function: the classes in use, which may grow; or `None`

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        functional = takes_graph(args, kwargs)
        if functional:
            # mypy holds that a class has no hash.
            self.__class__ = functional_kind(type(self))  # type: ignore[arg-type]
        super().__init__(*args, **kwargs)
        self.margin_share = MarginShare()
        self._hits = Hits()
        self._loss_of_outputs = None
        # A subclass with a `call` of its own has no outputs yet.
        self._count = self._check_outputs() if functional else None
        self._streams = functional and "logits" not in self.output

    def compile(
        self,
        optimizer: Any = "rmsprop",
        loss: Any = None,
        loss_weights: Any = None,
        metrics: Any = None,
        weighted_metrics: Any = None,
        **kwargs: Any,
    ) -> None:
        """Configures training; arguments as in `keras.Model.compile`."""
        loss = loss() if inspect.isclass(loss) else loss
        check_one_loss(loss, loss_weights)
        hits = Hits()
        if self._streams:
            check_blockwise_loss(loss)
            refuse_weighted(split_metrics(weighted_metrics)[0])
            of_logits, metrics = split_metrics(metrics)
            hits = Hits(of_logits)
        self._loss_of_outputs, self._hits = resolve_loss(loss), hits
        self._for_loss = None  # found with the first loss
        self._plain_metrics = not isinstance(metrics, dict)
        self._plain_weighted_metrics = not isinstance(weighted_metrics, dict)
        super().compile(
            optimizer=optimizer,
            loss=None if loss is None else ComputedLoss(),
            metrics=for_logits(metrics),
            weighted_metrics=for_logits(weighted_metrics),
            **kwargs,
        )
        self.loss = loss

    def get_compile_config(self) -> dict[str, Any] | None:
        config = super().get_compile_config()
        if config:
            config.pop("loss_weights", None)
            config["loss"] = keras.saving.serialize_keras_object(self.loss)
            if self._plain_metrics and config["metrics"]:
                config["metrics"] = config["metrics"]["logits"]
            if self._hits.means:
                of_features = config["metrics"] or {}
                config["metrics"] = {**of_features, "logits": self._hits.get_config()}
            if self._plain_weighted_metrics and config["weighted_metrics"]:
                config["weighted_metrics"] = config["weighted_metrics"]["logits"]
        return config

    def compile_from_config(self, config: dict[str, Any]) -> None:
        self.compile(**keras.saving.deserialize_keras_object(config))
        if self.built and self.optimizer is not None:
            self.optimizer.build(self.trainable_variables)

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Tensor:
        self._check_call(y, y_pred)
        if self._for_loss is None:
            self._for_loss = self._find_for_loss()
            warn_of_activations(self)
        outputs = self._for_loss(y_pred, training, self._hits.ranked)
        if self.margin_share.value is not None:
            share = ops.convert_to_tensor(self.margin_share.value)
            outputs = {**outputs, "margin_share": share}
        loss = self._loss_of_outputs(y, outputs, sample_weight)
        if self._streams:
            self._hits.update(outputs["logits"].rank)
        # Keras adds the losses of layers, as each replica needs them.
        return super().compute_loss(x, loss, loss, training=training)

    def compute_metrics(
        self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None
    ) -> dict[str, Any]:
        self._check_outputs_of_call(y_pred)
        labels = dict.fromkeys(y_pred, y)
        return super().compute_metrics(x, labels, y_pred, sample_weight)

    def _check_call(self, y: Any, y_pred: Any) -> None:
        if self._loss_of_outputs is None:
            raise ValueError(
                "No loss to compute. Received: loss=None in `compile()`. Pass "
                "loss=keras_pedcc.PEDCCLoss()."
            )
        _check_one_label(y)
        self._check_outputs_of_call(y_pred)

    def _check_outputs_of_call(self, y_pred: Any) -> None:
        if self._streams:
            return
        if isinstance(y_pred, dict) and set(y_pred) == {"features"}:
            raise ValueError(
                "A head that returns features alone needs a functional model. "
                f"Received: outputs {sorted(y_pred)} of {type(self).__name__}. Build "
                "it as PEDCCModel(inputs, outputs), or make the head with "
                'scores="dense".'
            )
        if not (isinstance(y_pred, dict) and {"features", "logits"} <= set(y_pred)):
            raise ValueError(
                f"`{type(self).__name__}.call` must return a dict with the keys "
                f'"features" and "logits". Received: {_keys_of(y_pred)}. Return what '
                "`PEDCCDense` returns, or use `PEDCCDense(return_features=False)` "
                "with `keras.Model`."
            )

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        return [*super().metrics, *self._hits.means, *self.margin_share.metrics]

    def get_metrics_result(self) -> dict[str, Any]:
        results = super().get_metrics_result()
        # Keras prefixes the metrics of `compile` alone, where there are two outputs.
        others = results if self._streams else {m.name for m in self.metrics}
        plain = {
            name: name if name in others else re.sub("^(logits|features)_", "", name)
            for name in results
        }
        names = list(plain.values())
        return {
            plain[name] if names.count(plain[name]) == 1 else name: result
            for name, result in results.items()
        }

    def fit(
        self,
        x: Any = None,
        y: Any = None,
        batch_size: int | None = None,
        epochs: int = 1,
        verbose: Any = "auto",
        callbacks: Any = None,
        validation_split: float = 0.0,
        validation_data: Any = None,
        *args: Any,
        **kwargs: Any,
    ) -> keras.callbacks.History:
        """Trains the model; arguments as in `keras.Model.fit`."""
        callbacks = with_nan_warning(callbacks)
        validation = (validation_split, self._checked_validation(validation_data))
        data = (self._checked(x, y), y, batch_size)
        try:
            with kept_in_fit(self, callbacks) as callbacks:
                return super().fit(
                    *data, epochs, verbose, callbacks, *validation, *args, **kwargs
                )
        finally:
            self._give_full_margin()

    def evaluate(self, x: Any = None, y: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Returns loss and metrics; arguments as in `keras.Model.evaluate`."""
        x = self._checked(x, y)
        with kept_in_evaluate(self):
            return super().evaluate(x, y, *args, **kwargs)

    def train_on_batch(self, x: Any, y: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Trains on one batch; arguments as in `keras.Model.train_on_batch`."""
        return super().train_on_batch(self._checked(x, y), y, *args, **kwargs)

    def test_on_batch(self, x: Any, y: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Evaluates one batch; arguments as in `keras.Model.test_on_batch`."""
        return super().test_on_batch(self._checked(x, y), y, *args, **kwargs)

    def _give_full_margin(self) -> None:
        """Resets the share of the margin after a `fit` that was interrupted."""
        if self.margin_share.value is not None:
            self.margin_share.stop()
            trace_anew(self)

    def _checked_validation(self, data: Any) -> Any:
        if not isinstance(data, list | tuple):
            return self._checked(data, what="validation labels")
        if len(data) > 1:
            self._checked(data[0], data[1], "validation labels")
        return data

    def _checked(self, x: Any, y: Any = None, what: str = "labels") -> Any:
        """Returns `x`, or what checks the labels in it; raises for those in `y`."""
        if self._count is None:
            self._count = count_of(heads_of(self))
        number = self._count() if self._count else None
        if number is None:
            return x
        if y is None:
            return checked(x, number, what)
        check_own_labels(y, number, what)
        return x

    def _check_outputs(self) -> Callable[[], int | None] | None:
        """Returns how to count the classes; raises unless a head has the outputs."""
        outputs, head = self.output, self._source_of_features()
        if isinstance(outputs, dict) and {"features", "logits"} <= set(outputs):
            check_logits(self)
            number = outputs["logits"].shape[-1]
            if number is None:  # of a head with room, here or in a nested model
                own = isinstance(head, CosineDense)
                return count_of([head] if own else heads_of(self))
            check_number(number)
            return lambda: number
        if isinstance(head, CosineDense) and head.streams:
            return count_of([head])
        raise ValueError(
            '`outputs` must be a dict with the keys "features" and "logits"; without '
            "logits the features must come from a head that returns them alone, in "
            f"this model itself. Received: {_keys_of(outputs)}. Pass what "
            "`PEDCCDense` returns, or use `PEDCCDense(return_features=False)` with "
            "`keras.Model`."
        )

    def _find_for_loss(self) -> Callable[..., Any]:
        """`for_loss` of the head, or a function that changes nothing."""
        if self._streams:
            return self._source_of_features().for_loss
        heads = [head for head in heads_of(self) if isinstance(head, CenterDense)]
        return heads[0].for_loss if len(heads) == 1 else lambda outputs, *_: outputs

    def _source_of_features(self) -> Any:
        """The layer that the features come from, or `None`."""
        outputs = self.output if isinstance(self.output, dict) else {}
        keys = keras.tree.flatten({key: key for key in outputs})
        sources = dict(zip(keys, self.output_names, strict=False))
        found = [x for x in self.layers if x.name == sources.get("features")]
        return found[0] if found else None


@keras.saving.register_keras_serializable("keras_pedcc")
class ComputedLoss(keras.losses.Loss):
    """Hands on the loss that `PEDCCModel.compute_loss` has computed over the dict.

    Keras compiles it in the place of the user's loss, which it would apply to each
    output with a label for each.
    """

    def __call__(
        self, y_true: Any, y_pred: Tensor, sample_weight: Any = None
    ) -> Tensor:
        return y_pred


def _check_one_label(y: Any) -> None:
    if y is None or isinstance(y, dict):
        raise ValueError(
            "There must be one array of labels, for all outputs together. "
            f"Received: y={y if y is None else sorted(y)}. Pass fit(x, y)."
        )


def _keys_of(outputs: object) -> list[str] | str:
    return sorted(outputs) if isinstance(outputs, dict) else type(outputs).__name__
