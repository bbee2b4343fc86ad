"""Replicas of `tf.distribute`; a single replica on other backends."""

import contextlib
from typing import Any

import keras

from keras_pedcc.common import Tensor


def number_of_replicas() -> int:
    """Number of replicas whose losses Keras sums."""
    if keras.backend.backend() != "tensorflow":
        return 1
    import tensorflow as tf

    return tf.distribute.get_strategy().num_replicas_in_sync


def sum_over_replicas(values: Tensor) -> Tensor:
    """Inside a replica, the sum of a tensor over all replicas; else the tensor."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        context = tf.distribute.get_replica_context()
        if context is not None and context.num_replicas_in_sync > 1:
            return context.all_reduce("SUM", values)
    return values


def strategy_scope(model: keras.Model) -> contextlib.AbstractContextManager[Any]:
    """The strategy scope of a model, in which its variables must be created."""
    strategy = getattr(model, "distribute_strategy", None)  # TensorFlow only
    return strategy.scope() if strategy is not None else contextlib.nullcontext()
