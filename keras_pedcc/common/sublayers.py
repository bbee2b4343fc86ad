"""The layers inside a model, at any depth."""

import keras


def layers_of(model: keras.layers.Layer) -> list[keras.layers.Layer]:
    """All layers in a model, also in nested models and custom layers.

    Args:
        model: `keras.Model` or `keras.layers.Layer`.

    Returns:
        List of layers, without `model`, each once, outer layers before inner ones.
    """
    found: dict[int, keras.layers.Layer] = {}
    for layer in _attributes(vars(model)):
        _collect(layer, found)
    found.pop(id(model), None)
    return list(found.values())


def _collect(layer: keras.layers.Layer, found: dict[int, keras.layers.Layer]) -> None:
    if id(layer) not in found:
        found[id(layer)] = layer
        for inner in _attributes(vars(layer)):
            _collect(inner, found)


def _attributes(value: object) -> list[keras.layers.Layer]:
    """The layers in an attribute, or in the containers that Keras tracks."""
    if isinstance(value, keras.layers.Layer):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    elif not isinstance(value, list | tuple | set):
        return []
    return [layer for each in value for layer in _attributes(each)]
