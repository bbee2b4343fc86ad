"""Probabilities and names of classes, from the cosines of a head."""

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_pedcc.common import Shape, Tensor
from keras_pedcc.common.checks import check_positive
from keras_pedcc.common.gradients import full_precision


@keras.saving.register_keras_serializable("keras_pedcc")
class ClassProbabilities(keras.layers.Layer):
    """Softmax of scaled cosines: `p_j = exp(s cos_j) / sum_k exp(s cos_k)`.

    s is `scale`. Computed in float32, whatever the dtype policy. `classifier` puts this
    layer behind a model.

    Args:
        scale: Positive float. That of the loss.
        class_names: Names of the classes, in the order of the logits, which the config
            keeps; or `None`.
        **kwargs: `name`, see `keras.layers.Layer`.

    Call arguments:
        inputs: Logits, shape `(batch, num_classes)`.

    Returns:
        Tensor of the same shape; each row sums to 1.

    Raises:
        ValueError: `scale` is not positive; the names are not as many as the classes,
            or not all different.

    Example:

    >>> layer = keras_pedcc.layers.class_probabilities.ClassProbabilities(15.0)
    >>> probabilities = layer(np.array([[0.9, 0.1, -0.2]], "float32"))
    >>> round(float(probabilities[0, 0]), 3)
    1.0
    """

    def __init__(
        self, scale: float, class_names: Sequence[str] | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**{**kwargs, "dtype": "float32"})
        check_positive(scale=scale)
        self.scale = float(scale)
        self.class_names = _check_names(class_names)

    def build(self, input_shape: Shape) -> None:
        names, number = self.class_names, input_shape[-1]  # `None`: a head with room
        if names is not None and number is not None and len(names) != number:
            raise ValueError(
                "`class_names` must be one name for each class. Received: "
                f"{len(names)} names, for {number} classes. Pass them in the "
                "order of the labels."
            )

    def call(self, inputs: Tensor) -> Tensor:
        with full_precision(inputs):
            return ops.softmax(self.scale * inputs, axis=-1)

    def get_config(self) -> dict[str, Any]:
        own = {"scale": self.scale, "class_names": self.class_names}
        return {**super().get_config(), **own}


def _check_names(class_names: Sequence[str] | None) -> list[str] | None:
    if class_names is None:
        return None
    names = [str(name) for name in class_names]
    if len(set(names)) < len(names):
        repeated = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(
            f"`class_names` must be all different. Received: {repeated[:3]} more than "
            "once. Name each class once."
        )
    return names
