"""Values of tensors, if they are known."""

import keras
from keras import ops

from keras_pedcc.common import Tensor


def has_values(tensor: Tensor) -> bool:
    """Whether a tensor has values, rather than being traced into a graph.

    Example:

    >>> from keras_pedcc.common.values import has_values
    >>> has_values(keras.ops.ones(3)), has_values(keras.KerasTensor((3,)))
    (True, False)
    """
    if isinstance(tensor, keras.KerasTensor):
        return False
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        return not tf.is_symbolic_tensor(tensor)
    if keras.backend.backend() == "jax":
        import jax

        return not isinstance(tensor, jax.core.Tracer)
    import torch

    return tensor.device.type != "meta" and not torch.compiler.is_compiling()


def smallest(tensor: Tensor) -> float:
    """The smallest number of a tensor that has values; NaN if one is NaN."""
    least = ops.min(ops.stop_gradient(tensor))
    # TensorFlow makes no array of one bfloat16.
    return float(ops.convert_to_numpy(ops.cast(least, "float32")))
