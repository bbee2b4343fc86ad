"""Functional models of a class beside subclasses with a `call` of their own.

Given inputs and outputs, `keras.Model.__init__` puts its functional class among the
bases of every subclass, for good: a subclass with a `call` of its own then breaks.
A functional model here is of a class made for it, and the bases stay as they are.
"""

import copyreg
import functools
from typing import Any

import keras


class _FunctionalKind(type(keras.Model)):  # type: ignore[misc]  # Keras has no types
    """Metaclass of the classes made here, by which pickle tells them."""


@functools.cache
def functional_kind(cls: type[keras.Model]) -> type[keras.Model]:
    """Returns the class of functional models of `cls`, a subclass of it.

    It has the name of `cls`, and is saved and loaded as `cls`.

    Example:

    >>> from keras_pedcc.training.functional import functional_kind
    >>> functional_kind(keras_pedcc.PEDCCModel).__name__
    'PEDCCModel'
    """
    if issubclass(cls, _keras_functional()):
        return cls
    names = ("__module__", "__qualname__", "__doc__")
    attributes = {name: getattr(cls, name) for name in names}
    kind = _FunctionalKind(cls.__name__, (cls, _keras_functional()), attributes)
    _register_as(kind, keras.saving.get_registered_name(cls))
    return kind


def takes_graph(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether these arguments of a model are the inputs and outputs of a graph."""
    if len(args) == 2:
        return True
    return "outputs" in kwargs and (len(args) == 1 or "inputs" in kwargs)


@functools.cache
def _keras_functional() -> type[keras.Model]:
    # With names, or it would use up the first of those that Keras gives by itself.
    inputs = keras.Input((1,), name="inputs")
    outputs = keras.layers.Identity(name="outputs")(inputs)
    return type(keras.Model(inputs, outputs, name="functional"))


def _register_as(kind: type[keras.Model], name: str) -> None:
    package, separator, class_name = name.rpartition(">")
    if separator:
        registered = keras.saving.get_custom_objects()
        loaded = registered[name]
        keras.saving.register_keras_serializable(package, class_name)(kind)
        registered[name] = loaded  # files hold models of either kind


def _reduced(kind: _FunctionalKind) -> tuple[Any, ...]:
    return functional_kind, kind.__bases__[:1]


copyreg.pickle(_FunctionalKind, _reduced)
