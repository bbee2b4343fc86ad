"""Processes that train one model together, with `keras.distribution` on JAX.

With one process, and on other backends, these functions are trivial.
"""

import json
from collections.abc import Sequence
from typing import Any, TypeVar

import keras
import numpy as np
from keras import ops

from keras_pedcc.common import Array, ArrayLike

T = TypeVar("T")


def together() -> bool:
    """Whether other processes train the same model."""
    # Without a distribution each process trains its own model.
    if keras.backend.backend() != "jax" or keras.distribution.distribution() is None:
        return False
    import jax

    return jax.process_count() > 1


def is_first() -> bool:
    """Whether this process writes files."""
    if not together():
        return True
    import jax

    return jax.process_index() == 0


def own(values: Sequence[T]) -> T:
    """The value of this process among those that `exchange` returned."""
    if not together():
        return values[0]
    import jax

    return values[jax.process_index() % len(values)]


def exchange(value: T) -> list[T]:
    """Returns the values of all processes. All of them must call this.

    Args:
        value: JSON-compatible value.

    Returns:
        List of one value for each process.
    """
    if not together():
        return [value]
    text = json.dumps(value).encode()
    length = int(np.max(_gather(np.array(len(text), "int32"))))
    texts = _gather(np.frombuffer(text.ljust(length), "uint8"))
    return [json.loads(bytes(each)) for each in texts]


def wait() -> None:
    """Waits until all processes have called this."""
    if together():
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices("keras_pedcc")


def whole(tensor: ArrayLike | keras.Variable) -> Array:
    """Returns the NumPy array of a tensor or variable, also if processes share it.

    All processes must call this. The whole value must fit on each device.
    """
    value = tensor.value if isinstance(tensor, keras.Variable) else tensor
    if not together() or getattr(value, "is_fully_replicated", True):
        return ops.convert_to_numpy(tensor)
    return np.asarray(_gather(value, tiled=True))


def _gather(value: ArrayLike, tiled: bool = False) -> Any:
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(value, tiled=tiled)
