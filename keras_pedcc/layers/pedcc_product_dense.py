"""The head with predefined, frozen centroids and features that keep their length."""

from typing import Any

import keras

from keras_pedcc.common import Tensor
from keras_pedcc.common.checks import check_positive
from keras_pedcc.common.vectors import unit_vectors
from keras_pedcc.layers.pedcc_dense import PEDCCDense


@keras.saving.register_keras_serializable("keras_pedcc")
class PEDCCProductDense(PEDCCDense):
    """Classification head with predefined centroids and features of any length.

    `logits[i, j] = r x_i . c_j = r |x_i| cos(theta_ij)`, with r = `radius`, `x` the
    input, not normalized, and `c_j` the centroids of `PEDCCDense`: unit vectors,
    frozen, with the same ways to train them. Train the network with plain cross
    entropy, `keras.losses.SparseCategoricalCrossentropy(from_logits=True)`. A loss
    with a scale and a margin takes cosines, and so needs `PEDCCDense`.

    The head is for classification alone. A sample may lower its loss by its length
    instead of its angle, so that features compared by cosines, as in retrieval and
    verification, are worse than those of `PEDCCDense`.

    Args:
        num_classes: int, at least 2.
        radius: Positive float r, the length of the centroids; published with 0.1 to 1.
            Defaults to 1.
        **kwargs: Arguments of `PEDCCDense` but `scores` and `return_norm`: all logits
            are computed at once.

    Call arguments:
        inputs: Float tensor, shape `(batch, dim)`.

    Returns:
        With `return_features=True` a dict of `"features"`, shape `(batch, dim)`,
        unit vectors, and `"logits"`, shape `(batch, num_classes)`; else the logits
        alone.

    Raises:
        TypeError: `num_classes` or `seed` is not a whole number.
        ValueError: `radius` is not positive; `scores` or `return_norm` is given; an
            argument of `PEDCCDense` does not fit.

    Example:

    >>> head = keras_pedcc.PEDCCProductDense(2, radius=0.5, return_features=False)
    >>> logits = head(keras.ops.array([[3.0, 4.0]]))
    >>> round(float(keras.ops.sum(logits)), 4)  # the centroids are opposite
    0.0

    Reference: Kasarla et al., "Maximum Class Separation as Inductive Bias in One
    Matrix", NeurIPS 2022, https://arxiv.org/abs/2206.08704.
    """

    def __init__(self, num_classes: int, *, radius: float = 1.0, **kwargs: Any) -> None:
        for name in ("scores", "return_norm"):
            if name in kwargs:
                raise ValueError(
                    "`PEDCCProductDense` computes all logits at once, and returns no "
                    f"norm. Received: {name}={kwargs[name]!r}. Leave it out, or use "
                    "`PEDCCDense`."
                )
        super().__init__(num_classes, scores="dense", **kwargs)
        check_positive(radius=radius)
        self.radius = float(radius)

    def _outputs(
        self, inputs: Tensor, training: bool | None
    ) -> Tensor | dict[str, Tensor]:
        logits = self.radius * self._logits(inputs, training)
        if not self.return_features:
            return logits
        return {"features": unit_vectors(inputs), "logits": logits}

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        del config["return_norm"], config["scores"]
        return {**config, "radius": self.radius}
