"""A Keras model with one loss over the dict of a head and one label."""

import inspect
import re

import keras
import numpy as np
from keras import ops

from keras_pedcc.cosine_dense import CosineDense
from keras_pedcc.labels import check_labels
from keras_pedcc.replicas import number_of_replicas
from keras_pedcc.streamed_training import (
    StreamedLoss,
    check_streamed_loss,
    for_logits,
    hits_of,
    refuse_weighted,
    split_metrics,
)


@keras.saving.register_keras_serializable("keras_pedcc")
class PEDCCModel(keras.Model):
    """`keras.Model` for a head that returns `{"features", "logits"}`.

    Keras applies a loss to each output on its own, with a label for each. This
    model gives one loss the whole dict and one label, and otherwise trains,
    saves and distributes like any Keras model:

    - `compile(loss=PEDCCLoss())`, or any loss class or function of yours, is
      called as `loss(y, {"features": ..., "logits": ...}, sample_weight)`.
    - A loss of Keras gets the logits. One that takes probabilities is refused:
      the logits are cosines.
    - `metrics=["accuracy"]` sees the logits; `metrics={"logits": [...],
      "features": [...]}` routes each output. Either way a metric is logged under
      its own name (`accuracy`), unless both outputs have one of that name.
    - With a head that streams, which returns the features alone, the loss is one with a
      margin and takes the logits by blocks of classes; `metrics` may hold
      `"accuracy"`, `keras.metrics.SparseTopKCategoricalAccuracy(k)`, and metrics of the
      features under their name.
    - `fit` and `evaluate` check NumPy labels, those for validation too, before
      anything runs (not in a subclass with a `call` of its own).

    Args:
        inputs: As in `keras.Model(inputs, outputs)`.
        outputs: Dict with `"features"` and `"logits"`, as `PEDCCDense` returns, and
            what else the head has for its loss; or with `"features"` alone, of a
            head that streams.

    Raises:
        ValueError: `outputs` is not such a dict; in `compile`, the loss takes
            probabilities; in `fit` and `evaluate`, labels are out of range, not
            whole, or of another shape.

    Example:

    >>> inputs = keras.Input((8,))
    >>> outputs = keras_pedcc.PEDCCDense(3)(keras.layers.Dense(16)(inputs))
    >>> model = keras_pedcc.PEDCCModel(inputs, outputs)
    >>> model.compile("sgd", keras_pedcc.PEDCCLoss(), metrics=["accuracy"])
    >>> history = model.fit(np.ones((4, 8)), np.zeros(4), verbose=0)
    >>> sorted(history.history)
    ['accuracy', 'loss']
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        outputs = kwargs.get("outputs", args[1] if len(args) > 1 else None)
        # A subclass with a `call` of its own has no outputs yet.
        self._num_classes = None if outputs is None else _check_outputs(outputs)
        self._streams = outputs is not None and "logits" not in outputs
        self._means = {}  # of hits among the k nearest, all that were ever asked for
        self._hits = {}  # name of each metric of the logits that are not held: k

    def compile(
        self,
        optimizer="rmsprop",
        loss=None,
        loss_weights=None,
        metrics=None,
        weighted_metrics=None,
        **kwargs,
    ):
        """Configures training; arguments as in `keras.Model.compile`."""
        _check_one_loss(loss, loss_weights)
        if self._streaming_head() is not None:
            check_streamed_loss(loss)
            refuse_weighted(split_metrics(weighted_metrics)[0])
            metrics = self._take_hits(metrics)
        self._plain_metrics = not isinstance(metrics, dict)
        self._plain_weighted_metrics = not isinstance(weighted_metrics, dict)
        super().compile(
            optimizer=optimizer,
            loss=loss,
            metrics=for_logits(metrics),
            weighted_metrics=for_logits(weighted_metrics),
            **kwargs,
        )
        self._loss_of_outputs = _resolve_loss(loss)

    def _take_hits(self, metrics):
        """Keeps the metrics of logits that are not held; returns the others."""
        of_logits, metrics = split_metrics(metrics)
        self._hits = hits_of(of_logits)
        # Not the metrics, which Keras would log beside those that count here.
        self._of_logits = keras.saving.serialize_keras_object(of_logits)
        for name in self._hits:
            if name not in self._means:
                self._means[name] = keras.metrics.Mean(name)
        return metrics

    def get_compile_config(self):
        config = super().get_compile_config()
        if config:
            config.pop("loss_weights", None)
            if self._plain_metrics and config["metrics"]:
                config["metrics"] = config["metrics"]["logits"]
            if self._hits:
                config["metrics"] = {
                    **(config["metrics"] or {}),
                    "logits": list(self._of_logits),
                }
            if self._plain_weighted_metrics and config["weighted_metrics"]:
                config["weighted_metrics"] = config["weighted_metrics"]["logits"]
        return config

    def compile_from_config(self, config):
        self.compile(**keras.saving.deserialize_keras_object(config))
        if self.built and self.optimizer is not None:
            self.optimizer.build(self.trainable_variables)

    def compute_loss(
        self, x=None, y=None, y_pred=None, sample_weight=None, training=True
    ):
        self._check_call(y, y_pred)
        head = self._streaming_head()
        if head is None:
            loss = self._loss_of_outputs(y, y_pred, sample_weight)
        else:
            ranked = any(k > 1 for k in self._hits.values())
            logits = head.stream(y_pred["features"], training, ranked)
            loss = StreamedLoss(self.loss, logits)(y, y_pred["features"], sample_weight)
            # Among the outputs it reaches `compute_metrics` on every backend.
            y_pred["rank"] = ops.stop_gradient(logits.rank)
        extra = sum(ops.sum(each) for each in self.losses)
        self._say_built(True)
        # Each replica has the whole of them, and Keras adds the replicas up.
        return loss + extra / number_of_replicas()

    def _say_built(self, built):
        """Whether Keras need not try the loss before it trains.

        It asks at each `train_on_batch`, of an object that nothing else calls here. A
        trial at each `fit` tells what is wrong while a model on JAX still has weights.
        """
        if self._compile_loss is not None:
            self._compile_loss.built = built

    def _check_call(self, y, y_pred):
        if self._loss_of_outputs is None:
            raise ValueError(
                "No loss to compute. Received: loss=None in `compile()`. Pass "
                "loss=keras_pedcc.PEDCCLoss()."
            )
        if y is None or isinstance(y, dict):
            raise ValueError(
                "There must be one array of labels, for all outputs together. "
                f"Received: y={y if y is None else sorted(y)}. Pass fit(x, y)."
            )
        lacks_logits = isinstance(y_pred, dict) and "logits" not in y_pred
        if lacks_logits and not self._streams:
            raise ValueError(
                "A head that streams needs a functional model. Received: outputs "
                f"{sorted(y_pred)} of {type(self).__name__}. Build it as "
                "PEDCCModel(inputs, outputs), or make the head with streaming=False."
            )

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        y_pred = dict(y_pred)
        rank = y_pred.pop("rank", None)
        if self._hits and rank is None:
            raise ValueError(
                "With a head that streams the metrics of the logits come with the "
                f"loss. Received: y_pred with keys {sorted(y_pred)}. Call "
                "`compute_loss` with the same dict before."
            )
        for name, k in self._hits.items():
            self._means[name].update_state(rank < k)
        labels = dict.fromkeys(y_pred, y)
        return super().compute_metrics(x, labels, y_pred, sample_weight)

    @property
    def metrics(self):
        idle = [mean for name, mean in self._means.items() if name not in self._hits]
        return [each for each in super().metrics if not any(each is i for i in idle)]

    def get_metrics_result(self):
        results = super().get_metrics_result()
        plain = {name: re.sub("^(logits|features)_", "", name) for name in results}
        names = list(plain.values())
        return {
            plain[name] if names.count(plain[name]) == 1 else name: result
            for name, result in results.items()
        }

    def fit(self, x=None, y=None, *args, **kwargs):
        validation = kwargs.get("validation_data")
        if len(args) > 5:  # batch_size, epochs, verbose, callbacks, validation_split
            validation = args[5]
        if isinstance(validation, (list, tuple)) and len(validation) > 1:
            self._check_labels(validation[1], "validation labels")
        self._check_labels(y, "labels")
        self._say_built(False)
        return super().fit(x, y, *args, **kwargs)

    def evaluate(self, x=None, y=None, *args, **kwargs):
        self._check_labels(y, "labels")
        self._say_built(False)
        return super().evaluate(x, y, *args, **kwargs)

    def _streaming_head(self):
        """The head that leaves the logits to the loss, or `None`."""
        return _head_of(self.output) if self._streams else None

    def _check_labels(self, y, what):
        if isinstance(y, (list, tuple)):
            y = np.asarray(y)
        if isinstance(y, np.ndarray) and self._num_classes is not None:
            check_labels(y, self._num_classes, what)


def _check_one_loss(loss, loss_weights):
    if loss_weights is not None:
        raise ValueError(
            "`loss_weights` has no use with one loss. Received: "
            f"loss_weights={loss_weights}. Leave it out, or weight inside the "
            "loss (`mse_weight`)."
        )
    if isinstance(loss, dict | list | tuple):
        raise ValueError(
            "`loss` must be one loss over the whole dict of outputs. Received: "
            f"loss={loss}. Pass loss=keras_pedcc.PEDCCLoss()."
        )


def _check_outputs(outputs):
    """Raises unless these are the outputs of a head; returns the number of classes."""
    if isinstance(outputs, dict) and "features" in outputs and "logits" not in outputs:
        head = _head_of(outputs)
        if isinstance(head, CosineDense) and head.streams:
            return _check_number(head.num_classes)
    if not (isinstance(outputs, dict) and {"features", "logits"} <= set(outputs)):
        keys = sorted(outputs) if isinstance(outputs, dict) else type(outputs).__name__
        raise ValueError(
            '`outputs` must be a dict with the keys "features" and "logits"; without '
            "logits the features must come from a head that streams, in this model "
            f"itself. Received: {keys}. Pass what `PEDCCDense` returns, or use "
            "`PEDCCDense(return_features=False)` with `keras.Model`."
        )
    return _check_number(outputs["logits"].shape[-1])


def _check_number(num_classes):
    if num_classes > 2**24:
        raise ValueError(
            "`num_classes` must be at most 16,777,216: Keras gives a loss its labels "
            "in float32, which rounds larger ones. Received: num_classes="
            f"{num_classes}. Split the classes over several models."
        )
    return num_classes


def _head_of(outputs):
    """The layer that the features come from."""
    return outputs["features"]._keras_history.operation


def _resolve_loss(loss):
    """Returns `f(y, outputs, sample_weight)`, or `None` for no loss."""
    if loss is None:
        return None
    resolved = keras.losses.get(loss)
    if not isinstance(resolved, keras.losses.Loss):
        function, resolved = resolved, _as_loss(resolved)
    else:
        function = resolved
    if not _is_from_keras(function):
        return resolved
    if _takes_probabilities(function):
        raise ValueError(
            "The loss must take scores, because the logits are cosines and not "
            f"probabilities. Received: loss={loss!r}, which takes probabilities. Pass "
            "loss=keras_pedcc.PEDCCLoss(), or a loss with from_logits=True."
        )
    return lambda y, outputs, weight: resolved(y, outputs["logits"], weight)


def _as_loss(function):
    class FunctionLoss(keras.losses.Loss):
        def call(self, y_true, y_pred):
            return function(y_true, y_pred)

    return FunctionLoss(name=getattr(function, "__name__", "loss"))


def _is_from_keras(loss):
    loss = getattr(loss, "func", loss)  # of a functools.partial
    kind = type(loss) if isinstance(loss, keras.losses.Loss) else loss
    return getattr(kind, "__module__", "").split(".")[0] == "keras"


def _takes_probabilities(loss):
    name = getattr(loss, "name", getattr(loss, "__name__", ""))
    if name in ("kl_divergence", "poisson", "dice", "tversky"):
        return True
    if isinstance(loss, keras.losses.Loss):
        return loss.get_config().get("from_logits") is False
    parameter = inspect.signature(loss).parameters.get("from_logits")
    return parameter is not None and parameter.default is False
