"""Weights that an error in `fit` or `evaluate` leaves in the model on JAX.

Keras takes them out of the model while it runs. After an error before the first step of
an epoch is done, of a data set for example, initial values would stand in their place.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import keras

from keras_pedcc.common import Logs, Tensor


class KeptWeights(keras.callbacks.Callback):
    """Remembers the state of each epoch's begin until a step of it is done."""

    def __init__(self) -> None:
        super().__init__()
        self._values: list[tuple[keras.Variable, Tensor]] = []

    def on_epoch_begin(self, epoch: int, logs: Logs = None) -> None:
        self._steps = _steps_of(self.model)
        self._values = _values_of(self.model)

    def give_back(self) -> None:
        """After an error: the state of the last step, or that of the epoch's begin."""
        self.model.jax_state_sync()
        if self._values and _steps_of(self.model) <= self._steps:
            _assign(self._values)


@contextlib.contextmanager
def kept_in_fit(model: keras.Model, callbacks: Any) -> Iterator[Any]:
    """Gives the callbacks for `fit`, and the model its weights back after an error."""
    if not _takes_weights(model) or isinstance(callbacks, keras.callbacks.CallbackList):
        yield callbacks
        return
    kept = KeptWeights()
    try:
        yield [*callbacks, kept]
    except BaseException:
        if kept.model is not None:  # else nothing was taken yet
            kept.give_back()
        raise


@contextlib.contextmanager
def kept_in_evaluate(model: keras.Model) -> Iterator[None]:
    """Gives a model the weights back that it had, after an error."""
    if not _takes_weights(model):
        yield
        return
    values = _values_of(model)
    try:
        yield
    except BaseException:
        model.jax_state_sync()
        _assign(values)
        raise


def _takes_weights(model: keras.Model) -> bool:
    return keras.backend.backend() == "jax" and not model.run_eagerly


def _values_of(model: keras.Model) -> list[tuple[keras.Variable, Tensor]]:
    optimizer = getattr(model, "optimizer", None)
    own = [] if optimizer is None else optimizer.variables
    variables = [*model.variables, *model.metrics_variables, *own]
    return [(variable, variable.value) for variable in variables]


def _steps_of(model: keras.Model) -> int:
    try:
        return int(model.optimizer.iterations)
    except TypeError:  # of a variable whose value is not in the model
        return 0


def _assign(values: list[tuple[keras.Variable, Tensor]]) -> None:
    for variable, value in values:
        # A step that ran deletes what it was given.
        if not value.is_deleted():
            variable.assign(value)
