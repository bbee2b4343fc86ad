"""Which rows of a weight are classes in use, for what sees the weight alone."""

import weakref
from typing import Any

import keras

# Beside the variables, not on them: they belong to Keras.
_heads: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()


def mark_room(variable: keras.Variable, head: Any) -> None:
    """Makes known that `head.num_classes` rows of its centroids are in use."""
    _heads[id(variable)] = head


def rows_in_use(variable: keras.Variable) -> int:
    """How many rows, from the first on, are in use: all but in a head with room."""
    head = _heads.get(id(variable))
    if head is None or head.centroids is not variable:
        return variable.shape[0]
    return head.num_classes
