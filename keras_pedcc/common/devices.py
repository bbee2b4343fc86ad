"""The device that the backend computes on."""

import contextlib
from collections.abc import Iterator

import keras


def has_accelerator() -> bool:
    """Whether the backend computes on something faster than the CPU."""
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        devices = tf.config.list_logical_devices()
        return any(device.device_type in ("GPU", "TPU") for device in devices)
    if backend == "jax":
        import jax

        return bool(jax.default_backend() != "cpu")
    return bool(keras.ops.zeros(()).device.type != "cpu")


@contextlib.contextmanager
def exact_products() -> Iterator[None]:
    """Context in which float32 products are not rounded to TF32 or bfloat16."""
    backend = keras.backend.backend()
    if backend == "jax":
        import jax

        with jax.default_matmul_precision("float32"):
            yield
        return
    if backend == "tensorflow":
        import tensorflow as tf

        enabled = tf.config.experimental.tensor_float_32_execution_enabled
        set_to = tf.config.experimental.enable_tensor_float_32_execution
        exact: bool | str = False
    else:
        import torch

        enabled = torch.get_float32_matmul_precision
        set_to, exact = torch.set_float32_matmul_precision, "highest"
    before = enabled()
    set_to(exact)
    try:
        yield
    finally:
        set_to(before)
