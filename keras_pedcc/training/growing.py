"""More classes in a model whose head has room for them."""

import keras

from keras_pedcc.common.replicas import strategy_scope
from keras_pedcc.layers.center_dense import CenterDense
from keras_pedcc.layers.cosine_dense import CosineDense
from keras_pedcc.layers.heads import heads_of
from keras_pedcc.training.tracing import trace_anew


def grow_classes(model: keras.Model, num_classes: int) -> None:
    """Takes more classes in use, in a model whose head has room: see `capacity`.

    Everything trained stays: the weights, the optimizer with its state and schedule,
    and what `compile` was given. Only the compiled steps are made anew, so that the
    next `fit`, `evaluate` or `predict` traces once more. Call it between two of them.

    Saving and loading keep the number in use. Weights alone do not tell it:
    `load_weights` takes those of a model of the same capacity, whatever number it had
    in use.

    What was made for the old number must be replaced. A margin for each class: by
    `model.loss.margin = ...`, before this call. Priors, and metrics that hold a number
    for each class: in the place of this call, by `head.grow(num_classes)` and
    `model.compile(model.optimizer, loss, metrics)`, which keeps the state of the
    optimizer.

    Args:
        model: `keras.Model` with a `PEDCCDense`, `CosineDense` or `KerdockDense` made
            with `capacity`, in nested models and layers, too. Several heads must have
            the same number of classes in use, and grow together.
        num_classes: int, from the number in use to `capacity`.

    Raises:
        TypeError: `num_classes` is not a whole number.
        ValueError: `num_classes` is out of range; the model has no head, one without
            room, or heads that differ; a compiled metric holds as many numbers as there
            were classes.

    Example:

    >>> head = keras_pedcc.PEDCCDense(6, capacity=10, return_features=False)
    >>> model = keras.Sequential([keras.Input((64,)), head])
    >>> keras_pedcc.grow_classes(model, 8)
    >>> model.predict(np.ones((1, 64)), verbose=0).shape
    (1, 8)
    """
    heads = _own_heads(model)
    if num_classes != heads[0].num_classes:
        _check_metrics(model, heads[0].num_classes)
    # The one with the least room first, which raises if any does: all grow, or none.
    for head in sorted(heads, key=lambda head: head.capacity):
        head.grow(num_classes)
    with strategy_scope(model):
        trace_anew(model)


def _own_heads(model: keras.Model) -> list[CosineDense]:
    own = {id(v) for v in model.variables}
    # A layer may know another one that is no part of the model, such as a teacher.
    heads = [
        head for head in heads_of(model) if all(id(v) in own for v in head.variables)
    ]
    used = {head.name: head.num_classes for head in heads}
    received = f"Received: model {model.name!r} with classes in use {used}."
    if not heads or any(isinstance(head, CenterDense) for head in heads):
        raise ValueError(
            "`grow_classes` needs a model whose head can have room for more classes: "
            "`PEDCCDense`, `CosineDense`, `ProductDense` or `KerdockDense`. "
            f"{received} Make it with one, as in PEDCCDense(6, capacity=10)."
        )
    if len({head.num_classes for head in heads}) > 1:
        raise ValueError(
            f"`grow_classes` needs heads of the same classes. {received} Call `grow` "
            "of the head that is meant, then `compile` with model.optimizer."
        )
    return heads


def _check_metrics(model: keras.Model, number: int) -> None:
    """Raises if a metric holds a number for each class: its shape cannot change."""
    metrics = [m for each in model.metrics for m in getattr(each, "metrics", [each])]
    fixed = [
        metric.name
        for metric in metrics
        if any(tuple(v.shape[:1]) == (number,) for v in metric.variables)
    ]
    if fixed:
        raise ValueError(
            "`grow_classes` needs metrics that do not hold a number for each class. "
            f"Received: metrics {fixed}, with {number} numbers each, as for {number} "
            "classes. Call `grow` of the head, then model.compile(model.optimizer, "
            "loss, metrics) with new ones."
        )
