"""The head of L-Softmax: weights that keep their length."""

from typing import Any

import keras
from keras import ops

from keras_pedcc.common import Tensor
from keras_pedcc.common.vectors import lengths
from keras_pedcc.layers.cosine_dense import CosineDense
from keras_pedcc.layers.dtypes import float_dtype


@keras.saving.register_keras_serializable("keras_pedcc")
class ProductDense(CosineDense):
    """Classification head with trainable weights that keep their length.

    `logits[i, j] = w_j . x_i = |w_j||x_i| cos(theta_ij)`, with `x` the input and `w_j`
    the rows of the weight `centroids`: a `Dense` layer without bias, with what
    L-Softmax needs beside its output. As with every head of this package the
    largest logit is the class, `features` are unit vectors, and `norm` is the
    factor between the cosine and the score of softmax: here `|w_j||x_i|`, where for
    the unit weights of `CosineDense` it is `|x_i|`.

    Args:
        num_classes: int, at least 2.
        kernel_initializer: Initializer of the weights.
        **kwargs: `capacity`, see `CosineDense`; `name`, `dtype`, `trainable`, see
            `keras.layers.Layer`.

    Call arguments:
        inputs: Float tensor, shape `(batch, dim)`.

    Returns:
        Dict of `"features"`, shape `(batch, dim)`, `"logits"` and `"norm"`, shape
        `(batch, num_classes)`, and `"iterations"`, int32, shape `(batch,)`: the
        training steps that the layer has seen.

    Raises:
        TypeError: `num_classes` is not a whole number.
        ValueError: `num_classes` or the last dimension of the input is below 2.

    Example:

    >>> outputs = keras_pedcc.ProductDense(10)(keras.ops.ones((2, 64)))
    >>> sorted(outputs)
    ['features', 'iterations', 'logits', 'norm']

    Reference: Liu et al., "Large-Margin Softmax Loss for Convolutional Neural
    Networks", 2016, eq. 1.
    """

    _standardizes = False

    def __init__(
        self,
        num_classes: int,
        *,
        kernel_initializer: Any = "glorot_uniform",
        **kwargs: Any,
    ) -> None:
        super().__init__(
            num_classes,
            return_norm=True,
            kernel_initializer=kernel_initializer,
            **kwargs,
        )

    def call(self, inputs: Tensor, training: bool | None = None) -> dict[str, Tensor]:
        outputs = super().call(inputs, training=training)
        rows = self._in_use(ops.convert_to_tensor(self.centroids))
        weights = lengths(ops.cast(rows, float_dtype(self)))
        norm = ops.expand_dims(outputs["norm"], 1) * weights
        return {**outputs, "logits": norm * outputs["logits"], "norm": norm}

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        del config["return_features"], config["return_norm"], config["scores"]
        return config
