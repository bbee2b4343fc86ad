"""A trained network as a classifier: probabilities and names for images."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from keras_pedcc.common import Tensor
from keras_pedcc.common.checks import check_whole
from keras_pedcc.common.replicas import strategy_scope
from keras_pedcc.evaluation.prediction import predict_all
from keras_pedcc.layers.class_probabilities import ClassProbabilities
from keras_pedcc.layers.heads import heads_of


def classifier(
    model: keras.Model,
    *,
    scale: float | None = None,
    class_names: Sequence[str] | None = None,
    name: str = "classifier",
) -> keras.Model:
    """Wraps a model into a `keras.Model` from images to class probabilities.

    `p_j = exp(s cos_j) / sum_k exp(s cos_k)`, with s the scale of the loss: the
    probabilities that the loss trains, without its margin. (Without the scale they
    would be almost equal, because cosines are at most 1.) If the loss has `priors`, the
    probabilities assume equally frequent classes.

    If the head has room, the output covers the classes in use. Create a new classifier
    after `grow_classes`.

    The classifier contains `model` and shares its weights. It saves and exports like
    any Keras model: `classifier(model).export(path, format="onnx")`.

    Args:
        model: Any `keras.Model` whose outputs are cosines: the output `"logits"` of a
            dict, or its only output. A subclassed model must be built, by `fit` or a
            call, and have one input.
        scale: Positive float. Defaults to the scale of the loss that `model` was
            compiled with. Pass 1.0 for scores that are not cosines, such as those of
            `ProductDense` and `CenterDense`.
        class_names: Names of the classes, in the order of the labels, for `identify`.
            They are saved with the model. Defaults to the class numbers.
        name: Name of the new model.

    Returns:
        `keras.Model` with the inputs of `model` and one output, `"probabilities"`,
        shape `(batch, num_classes)`, float32.

    Raises:
        ValueError: `model` has no loss, or one that is not a softmax of scaled cosines
            over the classes; `model` returns no logits or is not built; the number
            of names is not that of the classes, or names repeat.

    Example:

    >>> names = [f"class {i}" for i in range(10)]
    >>> probabilities = keras_pedcc.classifier(model, class_names=names).predict(
    ...     x, verbose=0
    ... )
    >>> probabilities.shape, np.round(probabilities.sum(axis=1)[:2], 5).tolist()
    ((20, 10), [1.0, 1.0])
    """
    with strategy_scope(model):
        inputs = _inputs_like(model)
        logits = _logits_in(model(inputs))
        number = _number_of(model, logits)
        if scale is None:
            scale = _scale_of(model, number)
        _check_number(class_names, number)
        layer = ClassProbabilities(scale, class_names, name="probabilities")
        made = keras.Model(inputs, layer(logits), name=name)
        made(inputs)  # Keras exports no model that was never called
        return made


def identify(
    classifier: keras.Model, images: Any, *, k: int = 1, batch_size: int = 32
) -> list[list[tuple[str, float]]]:
    """Returns the `k` most probable classes of each image, by name.

    Args:
        classifier: Model that `classifier` returned, possibly saved and loaded again.
        images: As in `embed`.
        k: int, at least 1, at most the number of classes.
        batch_size: int, at least 1. Number of images per step.

    Returns:
        For each image, a list of k pairs of name and probability, the most probable
        first. Without class names, the names are the class numbers as strings.

    Raises:
        TypeError: `k` or `batch_size` is not a whole number.
        ValueError: `k` is out of range, or the model does not come from `classifier`.

    Example:

    >>> names = [f"class {i}" for i in range(10)]
    >>> named = keras_pedcc.classifier(model, class_names=names)
    >>> [(name, probability)] = keras_pedcc.identify(named, x)[0]
    >>> name in names
    True
    """
    check_whole(1, k=k)
    last = classifier.layers[-1] if isinstance(classifier, keras.Model) else None
    if not isinstance(last, ClassProbabilities):
        raise ValueError(
            "`classifier` must be a model of `keras_pedcc.classifier`. Received: "
            f"{getattr(classifier, 'name', classifier)!r} (type "
            f"{type(classifier).__name__}). Pass keras_pedcc.classifier(model)."
        )
    probabilities = predict_all(classifier, images, batch_size=batch_size)
    number = probabilities.shape[1]
    if k > number:
        raise ValueError(
            f"`k` must be at most the number of classes. Received: k={k}, with "
            f"{number} classes. Ask for fewer."
        )
    names = last.class_names or [str(i) for i in range(number)]
    if len(names) != number:
        raise ValueError(
            "`classifier` must have a name for each class. Received: "
            f"{len(names)} names, for {number} classes. Make it anew after "
            "`grow_classes`."
        )
    best = np.argsort(-probabilities, axis=1, kind="stable")[:, :k]
    return [
        [(names[i], float(row[i])) for i in columns]
        for row, columns in zip(probabilities, best, strict=True)
    ]


def _inputs_like(model: keras.Model) -> Any:
    """New inputs of the shapes, dtypes and names of those of a model."""
    given = None
    if getattr(model, "inputs", None):
        # Of a `Sequential` model, `input` is no structure.
        given = model.inputs if isinstance(model, keras.Sequential) else model.input
    if given is not None:
        one = isinstance(given, list) and len(given) == 1
        return keras.tree.map_structure(_input_like, given[0] if one else given)
    shape = (model.get_build_config() or {}).get("input_shape") if model.built else None
    if not isinstance(shape, list | tuple):
        raise ValueError(
            "`model` must be built, with one input. Received: model="
            f"{model.name!r} (type {type(model).__name__}), of which the shape of the "
            "input is not known. Call it on a batch, or pass keras.Model(x, model(x)), "
            "with x = keras.Input(shape)."
        )
    return keras.Input(tuple(shape)[1:])


def _input_like(tensor: keras.KerasTensor) -> keras.KerasTensor:
    return keras.Input(batch_shape=tensor.shape, dtype=tensor.dtype, name=tensor.name)


def _logits_in(outputs: Any) -> Tensor:
    logits = outputs.get("logits") if isinstance(outputs, dict) else outputs
    if not isinstance(logits, keras.KerasTensor) or len(logits.shape) != 2:
        found = sorted(outputs) if isinstance(outputs, dict) else type(outputs).__name__
        raise ValueError(
            '`model` must give "logits", or one output of shape (batch, num_classes). '
            f'Received: outputs {found}. Make the head with scores="dense"; for very '
            "many classes use `nearest_classes`."
        )
    return logits


def _check_number(class_names: Sequence[str] | None, number: int | None) -> None:
    if class_names is None or number is None or len(class_names) == number:
        return
    raise ValueError(
        "`class_names` must be one name for each class. Received: "
        f"{len(class_names)} names, for {number} classes. Pass them in the order of "
        "the labels."
    )


def _number_of(model: keras.Model, logits: Tensor) -> int | None:
    """Number of classes in use; `None` if neither logits nor heads determine it."""
    if logits.shape[1] is not None:
        return int(logits.shape[1])
    found = {head.num_classes for head in heads_of(model)}
    return found.pop() if len(found) == 1 else None


def _scale_of(model: keras.Model, number: int | None) -> float:
    """The scale of the loss that a model was compiled with."""
    loss: Any = getattr(model, "loss", None)
    # The scale of other losses need not be that of a softmax over the classes.
    scale = loss.scale if hasattr(loss, "constants") else None
    if scale == "auto" and number is not None:
        return float(loss.constants(keras.KerasTensor((None, number)))[0])
    if scale in (None, "auto"):
        raise ValueError(
            "`scale` must be given where the loss of the model has none. Received: "
            f"scale=None, for a model with loss={loss!r}. Pass the scale of the loss, "
            "or 1.0 if the logits are no cosines."
        )
    return float(scale)
