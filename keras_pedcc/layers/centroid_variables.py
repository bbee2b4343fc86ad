"""Which variables are class centroids, for an optimizer, which sees variables alone."""

import weakref

# Beside the variables, not on them: they belong to Keras.
_marked = weakref.WeakValueDictionary()


def mark_centroids(variable):
    """Gives a variable to the second optimizer of a `FinetuneOptimizer`."""
    _marked[id(variable)] = variable


def is_centroids(variable):
    """Whether a variable is the centroids of a head that can be fine-tuned."""
    return _marked.get(id(variable)) is variable
