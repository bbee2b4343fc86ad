"""Activations next to a head, which it cannot be trained with: seen in the graph."""

from typing import Any

import keras

from keras_pedcc.common.sublayers import layers_of
from keras_pedcc.layers.cosine_dense import CosineDense

# Their values are above 0, or hardly below.
_ONE_SIGN = (
    keras.activations.exponential,
    keras.activations.gelu,
    keras.activations.hard_sigmoid,
    keras.activations.hard_silu,
    keras.activations.mish,
    keras.activations.relu,
    keras.activations.relu6,
    keras.activations.sigmoid,
    keras.activations.silu,
    keras.activations.softmax,
    keras.activations.softplus,
)
_LAYERS = (
    keras.layers.Activation,
    keras.layers.ELU,
    keras.layers.LeakyReLU,
    keras.layers.PReLU,
    keras.layers.ReLU,
    keras.layers.Softmax,
)
# They apply their activation last.
_WITH_ACTIVATION = (
    keras.layers.Activation,
    keras.layers.Conv1D,
    keras.layers.Conv2D,
    keras.layers.Conv3D,
    keras.layers.Dense,
    keras.layers.DepthwiseConv1D,
    keras.layers.DepthwiseConv2D,
    keras.layers.EinsumDense,
    keras.layers.SeparableConv1D,
    keras.layers.SeparableConv2D,
)
# What comes out of them has the signs of what goes in.
_KEEP_SIGNS = (
    keras.layers.AveragePooling1D,
    keras.layers.AveragePooling2D,
    keras.layers.AveragePooling3D,
    keras.layers.Dropout,
    keras.layers.Flatten,
    keras.layers.GlobalAveragePooling1D,
    keras.layers.GlobalAveragePooling2D,
    keras.layers.GlobalAveragePooling3D,
    keras.layers.GlobalMaxPooling1D,
    keras.layers.GlobalMaxPooling2D,
    keras.layers.GlobalMaxPooling3D,
    keras.layers.Identity,
    keras.layers.MaxPooling1D,
    keras.layers.MaxPooling2D,
    keras.layers.MaxPooling3D,
    keras.layers.Permute,
    keras.layers.Reshape,
    keras.layers.SpatialDropout1D,
    keras.layers.SpatialDropout2D,
    keras.layers.SpatialDropout3D,
    keras.layers.UnitNormalization,
)


def warn_of_activations(model: keras.Model) -> None:
    """Warns, once for each head, of features that an activation keeps at one sign.

    Only graphs of layers can be looked at: a functional model, a `Sequential` one that
    is built, and such models inside of it.

    Args:
        model: `keras.Model`.
    """
    for graph in (model, *layers_of(model)):
        if isinstance(graph, keras.Model):
            for head in graph.layers:
                _warn_of_activation(graph, head)


def _warn_of_activation(graph: keras.Model, head: keras.layers.Layer) -> None:
    if not isinstance(head, CosineDense) or head.feature_signs is None:
        return
    layer = _activated(graph, _tensor(head, "input"))
    if layer is not None:
        head.feature_signs.warn(
            f"the output of layer {layer.name!r} ({type(layer).__name__}), in head "
            f"{head.name!r}"
        )


def check_logits(model: keras.Model) -> None:
    """Raises a `ValueError` if an activation changes the logits of a head.

    Args:
        model: Functional model with the output `"logits"`.
    """
    layer = _source(model, model.output["logits"])
    if (
        not isinstance(layer, _LAYERS)
        or _activation_of(layer) is keras.activations.linear
    ):
        return
    taken = _tensor(layer, "input")
    heads = [each for each in model.layers if isinstance(each, CosineDense)]
    given = [x for each in heads for x in keras.tree.flatten(_tensor(each, "output"))]
    if any(taken is each for each in given):
        raise ValueError(
            "The logits must be the cosines of the head, unchanged. Received: layer "
            f"{layer.name!r} ({type(layer).__name__}) after the head. Remove it: the "
            "loss contains the softmax, and the class of largest cosine is predicted."
        )


def _activated(model: Any, tensor: Any) -> Any:
    """The layer whose activation leaves `tensor` with one sign, or `None`."""
    while (layer := _source(model, tensor)) is not None:
        if isinstance(layer, keras.Model):
            model, tensor = layer, _inner_output(layer)
            continue
        activation = _activation_of(layer)
        if any(activation is each for each in _ONE_SIGN):
            return layer
        if not isinstance(layer, _KEEP_SIGNS):
            return None
        tensor = _tensor(layer, "input")
    return None


def _source(model: Any, tensor: Any) -> Any:
    """The operation of a graph that a tensor comes from, or `None`."""
    if not isinstance(tensor, keras.KerasTensor):
        return None
    operations = getattr(model, "operations", model.layers)
    outputs = [(each, _tensor(each, "output")) for each in operations]
    found = [each for each, output in outputs if output is tensor]
    if found:
        return found[0]
    # The `output` of a functional model is that of its own graph, not of a call.
    models = [each for each in operations if isinstance(each, keras.Model)]
    fitting = [
        each
        for each in models
        if getattr(_inner_output(each), "shape", None) == tensor.shape
    ]
    return fitting[0] if len(fitting) == 1 else None


def _inner_output(model: Any) -> Any:
    """The one output of a model in its own graph, or `None`."""
    outputs = _tensor(model, "outputs")
    return outputs[0] if isinstance(outputs, list) and len(outputs) == 1 else None


def _tensor(layer: Any, name: str) -> Any:
    """`layer.input`, `output` or `outputs`; `None` for a layer without a graph."""
    try:
        return getattr(layer, name)
    except (AttributeError, ValueError):
        return None


def _activation_of(layer: Any) -> Any:
    """The function of an activation that takes no number to set it, or `None`."""
    if isinstance(layer, keras.layers.Softmax):
        return keras.activations.softmax
    if isinstance(layer, keras.layers.ReLU):
        return None if layer.negative_slope else keras.activations.relu
    return layer.activation if isinstance(layer, _WITH_ACTIVATION) else None
