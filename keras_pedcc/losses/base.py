"""The base of the losses of cosines with a scale and a margin."""

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_pedcc.common import ArrayLike, Tensor
from keras_pedcc.losses.arguments import (
    Margin,
    Scale,
    check_dtype,
    is_sequence,
    plain_margin,
)
from keras_pedcc.losses.first_batch import check_cosines
from keras_pedcc.losses.priors import Priors, check_priors, shift_of
from keras_pedcc.losses.scale import check_scale_or_auto, scale_of
from keras_pedcc.losses.targets import Batch, Outputs, batch_of, logits_of
from keras_pedcc.scores.protocol import Scores, Shift


class MarginLoss(keras.losses.Loss):
    """A loss of cosines with a scale s and a margin m; subclasses have `of_batch`.

    `AdaFaceLoss`, which needs more than the logits, has a `call` of its own.

    Args:
        scale: Positive float, or `"auto"`.
        margin: Float, or one for each class, see `check_margin`.
        priors: A positive number for each class, or `None`.
        reduction: See `keras.losses.Loss`.
        name: Name of the loss.
        dtype: `"float32"` or `"float64"`.
    """

    takes_scores = True  # whether they may be computed by parts
    weights_inside = False  # whether the formula takes the sample weights

    _largest: Any  # float, that of the class with the largest margin
    _constant: Any  # float, or tensor with one for each class
    _scales: dict[int | None, float]

    def __init__(
        self,
        scale: Scale,
        margin: Margin,
        *,
        priors: Priors | None,
        reduction: str | None,
        name: str,
        dtype: str,
    ) -> None:
        super().__init__(name=name, reduction=reduction, dtype=check_dtype(dtype))
        self.scale = scale
        self.margin = margin
        self._priors = None if priors is None else check_priors(priors).tolist()
        self._shift = self._made_shift()
        self._checked = False  # the first logits

    @property
    def scale(self) -> Scale:
        """The scale as a float, or "auto". Settable."""
        return self._scale

    @scale.setter
    def scale(self, scale: Scale) -> None:
        self._scale = check_scale_or_auto(scale)
        self._scales = {}  # by the number of classes

    @property
    def margin(self) -> float | list[float]:
        """The margin as a float, or as a list of one for each class. Settable."""
        return self._margin

    @margin.setter
    def margin(self, margin: Margin) -> None:
        self.check_margin(margin)
        self._margin = self._largest = self._constant = plain_margin(margin)
        if is_sequence(self._margin):
            # Once: there may be as many as there are classes, in every step.
            self._largest = max(self._margin)
            self._constant = ops.convert_to_tensor(np.array(self._margin, self.dtype))
        self._scales = {}

    @property
    def priors(self) -> list[float] | None:
        """The priors as they were given, as a list of floats, or `None`."""
        return self._priors

    def _made_shift(self) -> Shift | None:
        shift = shift_of(self._priors)
        if shift is None:
            return None
        # A tensor, once: there may be very many classes.
        values = ops.convert_to_tensor(shift.values.astype(self.dtype))
        return Shift(values, shift.spread)

    def __call__(
        self, y_true: ArrayLike, y_pred: Outputs, sample_weight: ArrayLike | None = None
    ) -> Tensor:
        logits = logits_of(y_pred)
        held = not isinstance(logits, Scores)
        more = {}  # that the formula takes
        if isinstance(y_pred, dict) and "margin_share" in y_pred:
            more["margin_share"] = y_pred["margin_share"]
        if self.weights_inside and sample_weight is not None:
            more["weight"], sample_weight = sample_weight, None
        if not held:
            # Keras could make no tensor of them.
            return _OfScores(self, logits)(y_true, more or y_true, sample_weight)
        if not ops.is_tensor(logits):
            logits = ops.convert_to_tensor(logits)
        if not self._checked:
            self._checked = check_cosines(logits)
        y_pred = {"logits": logits, **more} if more else logits
        return super().__call__(y_true, y_pred, sample_weight)

    def get_config(self) -> dict[str, Any]:
        own = {"scale": self.scale, "margin": self.margin, "priors": self.priors}
        return {**super().get_config(), **own, "dtype": self.dtype}

    def call(self, y_true: ArrayLike, y_pred: Any) -> Tensor:
        given = y_pred if isinstance(y_pred, dict) else {"logits": y_pred}
        return self.of_batch(self.batch(y_true, **given))

    def batch(
        self,
        y_true: ArrayLike,
        logits: Any,
        weight: ArrayLike | None = None,
        margin_share: Tensor | None = None,
    ) -> Batch:
        """The batch as the formula takes it, with the constants of this loss."""
        scale = self.scale_for(logits.shape[1] if len(logits.shape) == 2 else None)
        margin = self._constant
        if margin_share is not None:  # of a `MarginWarmup`
            margin = margin_share * ops.cast(margin, margin_share.dtype)
        return batch_of(y_true, logits, scale, margin, self._shift, weight)

    def scale_for(self, num_classes: int | None) -> float:
        """The scale with so many classes; `None` where their number is not known."""
        if num_classes not in self._scales:  # warns, and only once
            self._scales[num_classes] = scale_of(self, num_classes, self._largest)
        return self._scales[num_classes]

    def of_batch(self, batch: Batch) -> Tensor:
        """The loss of each sample, shape `(batch,)`: the formula."""
        raise NotImplementedError

    def check_margin(self, margin: Margin) -> None:
        """Raises unless the margin is in range."""
        raise NotImplementedError

    def lowered(self, margin: float) -> float:
        """The score of a sample on its centroid, after the margin is applied."""
        raise NotImplementedError


class _OfScores(keras.losses.Loss):
    """A loss of `Scores`, whatever `y_pred` is, reduced as Keras does."""

    def __init__(self, loss: MarginLoss, scores: Scores) -> None:
        super().__init__(loss.name, loss.reduction, loss.dtype)
        self.loss, self.scores = loss, scores

    def call(self, y_true: ArrayLike, y_pred: Any) -> Tensor:
        more = y_pred if isinstance(y_pred, dict) else {}
        return self.loss.call(y_true, {"logits": self.scores, **more})
