"""What replicas of `tf.distribute` have in common; one of them on other backends."""

import contextlib
from typing import Any

import keras

from keras_pedcc.common import Tensor


def number_of_replicas() -> int:
    """Replicas whose losses Keras adds up."""
    if keras.backend.backend() != "tensorflow":
        return 1
    import tensorflow as tf

    return tf.distribute.get_strategy().num_replicas_in_sync


def sum_over_replicas(values: Tensor) -> Tensor:
    """The sum of a tensor over all replicas, inside of one; else the tensor."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        context = tf.distribute.get_replica_context()
        if context is not None and context.num_replicas_in_sync > 1:
            return context.all_reduce("SUM", values)
    return values


def strategy_scope(model: keras.Model) -> contextlib.AbstractContextManager[Any]:
    """The scope that a model was made in, in which its variables must be made."""
    strategy = getattr(model, "distribute_strategy", None)  # TensorFlow only
    return strategy.scope() if strategy is not None else contextlib.nullcontext()
