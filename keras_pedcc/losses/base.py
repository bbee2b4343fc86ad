"""The base of the losses of cosines with a scale and a margin."""

import contextlib
import contextvars
from collections.abc import Iterator
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
from keras_pedcc.losses.targets import Outputs, logits_of
from keras_pedcc.scores.protocol import Scores, Shift

# Of the model whose loss is computed, in this thread: replicas have one each.
_SHARE: contextvars.ContextVar[Any] = contextvars.ContextVar("share of the margin")


@contextlib.contextmanager
def margin_share(share: keras.Variable | None) -> Iterator[None]:
    """Sets the share of the margin for the losses computed inside the context.

    `None` is the full margin. The share overrides `loss.margin_share`, because several
    models may use one loss.
    """
    token = _SHARE.set(share)
    try:
        yield
    finally:
        _SHARE.reset(token)


class MarginLoss(keras.losses.Loss):
    """A loss of cosines with a scale s and a margin m; subclasses have the formula.

    Args:
        scale: Positive float, or `"auto"`.
        margin: Float, or one for each class, see `check_margin`.
        priors: A positive number for each class, or `None`.
        reduction: See `keras.losses.Loss`.
        name: Name of the loss.
        dtype: `"float32"` or `"float64"`.
    """

    margin_share: keras.Variable | None
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
        self.margin_share = None  # what `MarginWarmup` gives it, see `margin_share`

    # Whether the scores may be computed by parts.
    takes_scores = True

    @property
    def weights_inside(self) -> bool:
        """Whether `call` takes the sample weights."""
        return False

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
        # Of `Scores`, Keras could make no tensor: `_OfScores` leaves them out.
        y_pred = ops.convert_to_tensor(logits if held else y_true)
        if held and not self._checked:
            self._checked = check_cosines(y_pred)
        if self.weights_inside and sample_weight is not None:
            y_pred, sample_weight = (y_pred, sample_weight), None
        if held:
            return super().__call__(y_true, y_pred, sample_weight)
        return _OfScores(self, logits)(y_true, y_pred, sample_weight)

    def get_config(self) -> dict[str, Any]:
        own = {"scale": self.scale, "margin": self.margin, "priors": self.priors}
        return {**super().get_config(), **own, "dtype": self.dtype}

    def check_margin(self, margin: Margin) -> None:
        """Raises unless the margin is in range."""
        raise NotImplementedError

    def lowered(self, margin: float) -> float:
        """The score of a sample on its centroid, after the margin is applied."""
        raise NotImplementedError

    def constants(self, logits: Tensor) -> tuple[float, float | Tensor, Shift | None]:
        """Scale, margin and shift for these logits."""
        number = logits.shape[1] if len(logits.shape) == 2 else None
        if number not in self._scales:  # warns, and only once
            self._scales[number] = scale_of(self, number, self._largest)
        share = _SHARE.get(self.margin_share)
        if share is None:
            return self._scales[number], self._constant, self._shift
        share = ops.convert_to_tensor(share)
        margin = share * ops.cast(self._constant, share.dtype)
        return self._scales[number], margin, self._shift


class _OfScores(keras.losses.Loss):
    """A loss of `Scores`, whatever `y_pred` is, reduced as Keras does."""

    def __init__(self, loss: MarginLoss, scores: Scores) -> None:
        super().__init__(loss.name, loss.reduction, loss.dtype)
        self.loss, self.scores = loss, scores

    def call(self, y_true: ArrayLike, y_pred: Any) -> Tensor:
        if isinstance(y_pred, tuple):
            return self.loss.call(y_true, (self.scores, *y_pred[1:]))
        return self.loss.call(y_true, self.scores)
