"""The head of center loss: a centre for each class beside the weights."""

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_pedcc.common import Shape, Tensor
from keras_pedcc.common.checks import check_dim, check_whole
from keras_pedcc.common.gradients import full_precision
from keras_pedcc.common.vectors import lengths, unit_vectors
from keras_pedcc.layers.centroid_variables import mark_centroids
from keras_pedcc.layers.dtypes import check_float, float_dtype


@keras.saving.register_keras_serializable("keras_pedcc")
class CenterDense(keras.layers.Layer):
    """A `Dense` classification head with a centre for each class, for `CenterLoss`.

    `logits = x . kernel + bias`, with `x` the input. `features` are unit vectors;
    `features * norm[:, None]` is the input. The weight `centers`, one row per class,
    takes no part in the outputs: the loss asks for it, see `for_loss`.

    The centres are marked as such for `FinetuneOptimizer`, whose second optimizer
    trains them: `FinetuneOptimizer(SGD(0.1, momentum=0.9), SGD(0.5))` has
    alpha = 0.5. Any other optimizer treats them as weights like others. The layer
    computes in float32; its weights have the variable dtype of the policy.

    Args:
        num_classes: int, at least 2.
        kernel_initializer: Initializer of the kernel, shape `(dim, num_classes)`.
        center_initializer: Initializer of the centres, shape `(num_classes, dim)`.
        **kwargs: `name`, `dtype`, `trainable`, see `keras.layers.Layer`.

    Call arguments:
        inputs: Float tensor, shape `(batch, dim)`.

    Returns:
        Dict of `"features"`, shape `(batch, dim)`, `"norm"`, shape `(batch,)`, and
        `"logits"`, shape `(batch, num_classes)`.

    Raises:
        TypeError: `num_classes` is not a whole number.
        ValueError: `num_classes` or the last dimension of the input is below 2.

    Example:

    >>> outputs = keras_pedcc.CenterDense(10)(keras.ops.ones((2, 64)))
    >>> float(outputs["norm"][0])
    8.0

    Reference: Wen et al., "A Discriminative Feature Learning Approach for Deep Face
    Recognition", 2016, section 3.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        kernel_initializer: Any = "glorot_uniform",
        center_initializer: Any = "zeros",
        **kwargs: Any,
    ) -> None:
        super().__init__(**{**kwargs, "autocast": False})
        check_float(self.variable_dtype)
        check_whole(2, num_classes=num_classes)
        self.num_classes = int(num_classes)
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.center_initializer = keras.initializers.get(center_initializer)
        self.input_spec = keras.layers.InputSpec(ndim=2)

    def build(self, input_shape: Sequence[int | None]) -> None:
        dim, number = check_dim(input_shape), self.num_classes
        self.kernel = self._add("kernel", (dim, number), self.kernel_initializer)
        self.bias = self._add("bias", (number,), "zeros")
        self.centers = self._add("centers", (number, dim), self.center_initializer)
        mark_centroids(self.centers)
        self.input_spec = keras.layers.InputSpec(ndim=2, axes={-1: dim})

    def _add(self, name: str, shape: Shape, initializer: Any) -> keras.Variable:
        return self.add_weight(
            shape=shape, initializer=initializer, autocast=False, name=name
        )

    def call(self, inputs: Tensor) -> dict[str, Tensor]:
        inputs = ops.cast(inputs, float_dtype(self))
        kernel = ops.cast(self.kernel, inputs.dtype)
        bias = ops.cast(self.bias, inputs.dtype)
        with full_precision(inputs):
            logits = ops.matmul(inputs, kernel) + bias
        return {
            "features": unit_vectors(inputs),
            "norm": lengths(inputs),
            "logits": logits,
        }

    def for_loss(
        self, outputs: dict[str, Tensor], training: bool = True, ranked: bool = False
    ) -> dict[str, Tensor]:
        """What `CenterLoss` takes: the outputs and, under `"centers"`, the centres.

        `PEDCCModel` calls it. In a training loop of your own:
        `loss(y, head.for_loss(head(x)))`, on JAX inside one `keras.StatelessScope`.
        """
        return {**outputs, "centers": ops.convert_to_tensor(self.centers)}

    def get_config(self) -> dict[str, Any]:
        serialize = keras.initializers.serialize
        config = super().get_config()
        config["num_classes"] = self.num_classes
        config["kernel_initializer"] = serialize(self.kernel_initializer)
        config["center_initializer"] = serialize(self.center_initializer)
        return config
