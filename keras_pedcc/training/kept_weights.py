"""Weights that an error in `fit` or `evaluate` leaves in the model on JAX."""

import contextlib

import keras


@contextlib.contextmanager
def kept_weights(model):
    """Gives a model on JAX its weights back if an error ends what runs inside.

    Keras takes them out of the model while it runs. After an error before the first
    step, of a data set for example, their initial values would stand in their place.
    """
    if keras.backend.backend() != "jax" or model.run_eagerly:
        yield
        return
    values = [(variable, variable.value) for variable in _state_of(model)]
    try:
        yield
    except BaseException:
        model.jax_state_sync()
        for variable, value in values:
            # A step deletes what it was given; Keras has kept what it returned.
            if not value.is_deleted():
                variable.assign(value)
        raise


def _state_of(model):
    optimizer = getattr(model, "optimizer", None)
    own = [] if optimizer is None else optimizer.variables
    return [*model.variables, *model.metrics_variables, *own]
