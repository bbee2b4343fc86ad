"""The loss and the metrics of a model whose head returns its features alone."""

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_pedcc.common import Tensor
from keras_pedcc.losses.base import MarginLoss

# By what Keras calls it: name, and among how many nearest classes it looks.
HITS = {
    "accuracy": ("accuracy", 1),
    "acc": ("accuracy", 1),
    "sparse_categorical_accuracy": ("sparse_categorical_accuracy", 1),
    "sparse_top_k_categorical_accuracy": ("sparse_top_k_categorical_accuracy", 5),
}


def check_blockwise_loss(loss: Any) -> None:
    """Raises a `ValueError` unless the loss takes `Scores` that hold no logits."""
    takes = isinstance(loss, MarginLoss) and loss.takes_scores
    if loss is not None and not takes:
        raise ValueError(
            "The loss of a head with scores by blocks must be PEDCCLoss, AMSoftmaxLoss "
            f"or ArcFaceLoss. Received: loss={loss!r}. Pass one of them, or make the "
            'head with scores="dense".'
        )


def split_metrics(metrics: Any) -> tuple[list[Any], dict[str, Any] | None]:
    """The metrics of the logits as a list, and those of the features."""
    if metrics is not None and not isinstance(metrics, dict | list | tuple):
        metrics = [metrics]
    metrics = for_logits(metrics) or {}
    of_logits = metrics.get("logits") or []
    of_logits = of_logits if isinstance(of_logits, list | tuple) else [of_logits]
    rest = {name: value for name, value in metrics.items() if name != "logits"}
    return list(of_logits), rest or None


class Hits:
    """Metrics of logits that are not held: how often the own class is among k.

    Args:
        metrics: Those of the logits, as `split_metrics` returns them.

    Attributes:
        means: The metrics that count. `PEDCCModel` shows them to Keras.
        ranked: Whether they ask how many classes are nearer, not only whether one is.
    """

    def __init__(self, metrics: Sequence[Any] = ()) -> None:
        found = [_hit_of(metric) for metric in metrics]
        if len(dict(found)) < len(found):
            raise ValueError(
                "`metrics` must have different names. Received: "
                f"{[name for name, _ in found]}. Pass `name` to them."
            )
        self.means = [keras.metrics.Mean(name) for name, _ in found]
        self._numbers = [k for _, k in found]
        self._given = list(metrics)
        self.ranked = any(k > 1 for k in self._numbers)

    def update(self, rank: Tensor | None) -> None:
        """Counts a batch, given how many classes are nearer than the own one."""
        for mean, k in zip(self.means, self._numbers, strict=True):
            mean.update_state(ops.stop_gradient(rank) < k)

    def get_config(self) -> Any:
        """The metrics as they were given, for the config of the model."""
        return keras.saving.serialize_keras_object(self._given)


def _hit_of(metric: Any) -> tuple[str, int]:
    if isinstance(metric, keras.metrics.SparseTopKCategoricalAccuracy):
        return metric.name, metric.k
    if isinstance(metric, keras.metrics.SparseCategoricalAccuracy):
        return metric.name, 1
    if isinstance(metric, str) and metric in HITS:
        return HITS[metric]
    raise ValueError(
        'With scores by blocks the metrics of the logits are "accuracy" and '
        f"keras.metrics.SparseTopKCategoricalAccuracy(k). Received: {metric!r}. Leave "
        'it out, or make the head with scores="dense".'
    )


def refuse_weighted(of_logits: list[Any]) -> None:
    """Raises a `ValueError` if there are weighted metrics of the logits."""
    if of_logits:
        raise ValueError(
            "With scores by blocks no weighted metric sees the logits. Received: "
            f"weighted_metrics={of_logits}. Pass `metrics`, which count every sample "
            'alike, or make the head with scores="dense".'
        )


def for_logits(metrics: Any) -> Any:
    """A plain list of metrics as those of the logits; anything else as it is."""
    if not metrics or not isinstance(metrics, list | tuple):
        return metrics
    return {"logits": list(metrics)}
