"""Compiled steps of a model, made anew."""

import keras


def trace_anew(model: keras.Model) -> None:
    """Makes Keras trace anew: a traced function keeps what it was traced with."""
    for name in ("train", "test", "predict"):
        if getattr(model, f"{name}_function") is not None:
            getattr(model, f"make_{name}_function")(force=True)
