"""Which variables are class centroids, for an optimizer, which sees variables alone."""

import weakref

import keras

# Beside the variables, not on them: they belong to Keras.
_marked: weakref.WeakValueDictionary[int, keras.Variable] = (
    weakref.WeakValueDictionary()
)


def mark_centroids(variable: keras.Variable) -> None:
    """Gives a variable to the second optimizer of a `FinetuneOptimizer`."""
    _marked[id(variable)] = variable


def is_centroids(variable: keras.Variable) -> bool:
    """Whether a variable is the centroids of a head that can be fine-tuned."""
    return _marked.get(id(variable)) is variable
