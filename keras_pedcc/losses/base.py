"""The base of the losses of cosines with a scale and a margin."""

import keras
import numpy as np
from keras import ops

from keras_pedcc.losses.arguments import (
    carried_share,
    check_dtype,
    is_sequence,
    plain_margin,
)
from keras_pedcc.losses.scale import check_scale_or_auto, scale_of
from keras_pedcc.losses.targets import logits_of


class MarginLoss(keras.losses.Loss):
    """A loss of cosines with a scale s and a margin m; subclasses have the formula.

    Args:
        scale: Positive float, or `"auto"`.
        margin: Float, or one for each class, see `check_margin`.
        reduction: See `keras.losses.Loss`.
        name: Name of the loss.
        dtype: `"float32"` or `"float64"`.
    """

    def __init__(self, scale, margin, *, reduction, name, dtype):
        super().__init__(name=name, reduction=reduction, dtype=check_dtype(dtype))
        self.scale = check_scale_or_auto(scale)
        self.margin = margin
        self.margin_share = None  # what `MarginWarmup` gives it, see `carried_share`
        self.warned = False  # of a scale that is too small

    @property
    def margin(self):
        """The margin as a float, or as a list of one for each class. Settable."""
        return self._margin

    @margin.setter
    def margin(self, margin):
        self.check_margin(margin)
        self._margin = self._largest = self._constant = plain_margin(margin)
        if is_sequence(self._margin):
            # Once: there may be as many as there are classes, in every step.
            self._largest = max(self._margin)
            self._constant = ops.convert_to_tensor(np.array(self._margin, self.dtype))

    def __call__(self, y_true, y_pred, sample_weight=None):
        return super().__call__(y_true, logits_of(y_pred), sample_weight)

    def get_config(self):
        own = {"scale": self.scale, "margin": self.margin, "dtype": self.dtype}
        return {**super().get_config(), **own}

    def check_margin(self, margin):
        """Raises unless the margin is in range."""
        raise NotImplementedError

    def lowered(self, margin):
        """The cosine of a class on its centroid, less its margin."""
        raise NotImplementedError

    def constants(self, logits):
        """The arguments `scale` and `margin` of the function, for these logits."""
        scale = scale_of(self, logits, self._largest)
        share = carried_share(self)
        if share is None:
            return {"scale": scale, "margin": self._constant}
        share = ops.convert_to_tensor(share)
        return {"scale": scale, "margin": share * ops.cast(self._constant, share.dtype)}
