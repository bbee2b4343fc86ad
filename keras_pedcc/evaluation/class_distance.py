"""Distances within and between classes, as functions and as Keras metrics."""

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_pedcc.common import Array, ArrayLike, Tensor
from keras_pedcc.common.checks import check_classes, check_whole, narrow_labels
from keras_pedcc.common.vectors import are_distributions


def intra_class_distance(features: ArrayLike, labels: ArrayLike) -> float:
    """Mean squared distance of features to the mean of their class, eq. 7.

    `D_intra = sum_i P_i E_i |x - mu_i|^2`, with `P_i` the proportion and `mu_i` the
    mean of the samples of class i. In units of squared feature length: for unit
    features in [0, 1]. Computed in float64.

    Args:
        features: Array or tensor, shape `(batch, dim)`.
        labels: Class of each sample, any labels, shape `(batch,)` or `(batch, 1)`.

    Returns:
        float, not negative.

    Raises:
        ValueError: A shape does not fit, there are no samples, or a label is NaN.

    Example:

    >>> intra_class_distance([[0.0, 1.0], [0.0, 3.0], [5.0, 5.0]], [0, 0, 1])
    0.6666666666666666

    Reference: Zhu et al., IEEE Access 2020, eq. 7.
    """
    features, index, _, means = _class_means(features, labels)
    return float(np.mean(np.sum((features - means[index]) ** 2, axis=1)))


def inter_class_distance(features: ArrayLike, labels: ArrayLike) -> float:
    """Mean squared distance of class means to the mean of all samples, eq. 6.

    `D_inter = sum_i P_i |mu_i - mu|^2`, with `mu` the mean of all samples. Arguments
    and units are those of `intra_class_distance`. The two distances add up to the
    total variance of the features.

    Example:

    >>> inter_class_distance([[1.0, 0.0], [-1.0, 0.0]], [0, 1])
    1.0

    Reference: Zhu et al., IEEE Access 2020, eq. 6.
    """
    features, _, priors, means = _class_means(features, labels)
    return float(priors @ np.sum((means - features.mean(axis=0)) ** 2, axis=1))


class _ClassSums(keras.metrics.Metric):
    """Sums over the samples of each class, from which both distances follow.

    They are sums, not means, because replicas sum their variables.
    """

    def __init__(
        self,
        num_classes: int,
        dim: int,
        *,
        name: str | None = None,
        dtype: str = "float32",
    ) -> None:
        super().__init__(name=name, dtype=dtype)
        check_whole(2, num_classes=num_classes, dim=dim)
        self.num_classes = num_classes
        self.dim = dim
        self.counts = self.add_variable((num_classes,), "zeros", name="counts")
        self.sums = self.add_variable((num_classes, dim), "zeros", name="sums")
        self.squares = self.add_variable((), "zeros", name="squares")

    def update_state(
        self,
        y_true: ArrayLike,
        y_pred: ArrayLike | dict[str, ArrayLike],
        sample_weight: ArrayLike | None = None,
    ) -> None:
        features = ops.cast(self._features(y_pred), self.dtype)
        labels = ops.convert_to_tensor(narrow_labels(y_true))
        self._check_labels(labels, features)
        weight = ops.ones_like(features[:, 0])
        if sample_weight is not None:
            weight = weight * ops.reshape(ops.cast(sample_weight, self.dtype), (-1,))
        counts, sums = self._per_class(labels, features, weight)
        squares = ops.sum(ops.square(features), axis=1)
        self.counts.assign_add(counts)
        self.sums.assign_add(sums)
        self.squares.assign_add(ops.sum(weight * squares))

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        config.update(num_classes=self.num_classes, dim=self.dim)
        return config

    def _features(self, y_pred: ArrayLike | dict[str, ArrayLike]) -> Tensor:
        features = y_pred["features"] if isinstance(y_pred, dict) else y_pred
        features = ops.convert_to_tensor(features)
        if len(features.shape) != 2 or features.shape[1] != self.dim:
            raise ValueError(
                f"`{self.name}` needs features of shape (batch, {self.dim}). Received: "
                f"shape {tuple(features.shape)}. Compile a `PEDCCModel` with "
                'metrics={"features": [...]}.'
            )
        return features

    def _check_labels(self, labels: Tensor, features: Tensor) -> None:
        rows, width = (*labels.shape, 1, 1)[:2]
        fits = len(labels.shape) in (1, 2) and width in (1, self.num_classes)
        # In a graph the size of the batch may be unknown.
        if not fits or len({rows, features.shape[0]} - {None}) > 1:
            raise ValueError(
                f"`{self.name}` needs one label for each feature, shape (batch,), "
                f"(batch, 1) or (batch, {self.num_classes}). Received: y_true.shape="
                f"{tuple(labels.shape)} with {features.shape[0]} features. Pass labels "
                "and features of one batch."
            )

    def _per_class(
        self, labels: Tensor, features: Tensor, weight: Tensor
    ) -> tuple[Tensor, Tensor]:
        soft = len(labels.shape) == 2 and labels.shape[1] == self.num_classes
        target, valid = self._distribution(labels) if soft else self._index(labels)
        weight = ops.where(valid, weight, np.nan)
        if soft:
            share = target * weight[:, None]
            return ops.sum(share, axis=0), ops.matmul(ops.transpose(share), features)
        weighted = ops.concatenate(
            [weight[:, None], weight[:, None] * features], axis=1
        )
        sums = ops.segment_sum(weighted, target, num_segments=self.num_classes)
        return sums[:, 0], sums[:, 1:]

    def _index(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Class of each sample, and whether its label is valid."""
        labels = ops.reshape(labels, (-1,))
        index = ops.clip(ops.cast(labels, "int32"), 0, self.num_classes - 1)
        return index, ops.equal(ops.cast(index, labels.dtype), labels)

    def _distribution(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Share of each class in each sample, and whether its label is valid."""
        share = ops.cast(labels, self.dtype)
        return share, are_distributions(share)

    def _moments(self) -> tuple[Tensor, Tensor, Tensor]:
        """Mean squared length of the features, of class means, and of the mean."""
        total = ops.sum(self.counts)
        counts = ops.maximum(self.counts, 1e-30)
        between = ops.sum(ops.sum(ops.square(self.sums), axis=1) / counts) / total
        mean = ops.sum(self.sums, axis=0) / total
        return self.squares / total, between, ops.sum(ops.square(mean))


@keras.saving.register_keras_serializable("keras_pedcc")
class IntraClassDistance(_ClassSums):
    """Keras metric of `intra_class_distance`, eq. 7.

    Accumulates over batches and replicas in float32; for unit features the error is
    about 1e-6. A label out of range makes the result NaN, and so does a row of soft
    labels that has a negative entry or does not sum to 1.

    Args:
        num_classes: int, at least 2.
        dim: int, at least 2. Length of the features.
        name: Name of the metric.
        dtype: Dtype of the sums.

    Call arguments:
        y_true: Labels, shape `(batch,)`, `(batch, 1)` or, one-hot or soft,
            `(batch, num_classes)`.
        y_pred: Features, shape `(batch, dim)`, or a dict with `"features"`.
        sample_weight: Weights, shape `(batch,)`, or `None`.

    Example:

    >>> metric = keras_pedcc.IntraClassDistance(num_classes=10, dim=64)
    >>> model.compile("sgd", keras_pedcc.PEDCCLoss(), metrics={"features": [metric]})

    Reference: Zhu et al., IEEE Access 2020, eq. 7.
    """

    def __init__(
        self,
        num_classes: int,
        dim: int,
        *,
        name: str = "intra_class_distance",
        dtype: str = "float32",
    ) -> None:
        super().__init__(num_classes, dim, name=name, dtype=dtype)

    def result(self) -> Tensor:
        features, means, _ = self._moments()
        return ops.maximum(features - means, 0.0)


@keras.saving.register_keras_serializable("keras_pedcc")
class InterClassDistance(_ClassSums):
    """Keras metric of `inter_class_distance`, eq. 6.

    Arguments and precision as in `IntraClassDistance`.

    Reference: Zhu et al., IEEE Access 2020, eq. 6.
    """

    def __init__(
        self,
        num_classes: int,
        dim: int,
        *,
        name: str = "inter_class_distance",
        dtype: str = "float32",
    ) -> None:
        super().__init__(num_classes, dim, name=name, dtype=dtype)

    def result(self) -> Tensor:
        _, means, overall = self._moments()
        return ops.maximum(means - overall, 0.0)


def _class_means(
    features: ArrayLike, labels: ArrayLike
) -> tuple[Array, Array, Array, Array]:
    """Features in float64, class index of each, priors and means of the classes."""
    features = np.asarray(ops.convert_to_numpy(features), "float64")
    if features.ndim != 2 or not len(features):
        raise ValueError(
            "There must be features of shape (batch, dim), at least one. Received: "
            f"features.shape={features.shape}. Pass one row for each sample."
        )
    labels = check_classes(labels=labels, features=features)
    _, index, counts = np.unique(labels, return_inverse=True, return_counts=True)
    sums = np.zeros((len(counts), features.shape[1]))
    np.add.at(sums, index, features)
    return features, index, counts / len(labels), sums / counts[:, None]
