"""The loss of `PEDCCModel.compile`: what it may be, and what it is called with."""

import inspect
from collections.abc import Callable
from typing import Any

import keras

from keras_pedcc.common import Tensor

# What the loss is called with: the dict of the head, or the logits alone.
_CLASSES = tuple(
    kind
    for kind in vars(keras.losses).values()
    if inspect.isclass(kind) and kind is not keras.losses.Loss
)
_FUNCTIONS = [f for f in vars(keras.losses).values() if inspect.isfunction(f)]
# Of probabilities, without a `from_logits` to change it.
_OF_PROBABILITIES = (
    keras.losses.CategoricalGeneralizedCrossEntropy,
    keras.losses.Dice,
    keras.losses.KLDivergence,
    keras.losses.Poisson,
    keras.losses.Tversky,
)
_FUNCTIONS_OF_PROBABILITIES = (
    keras.losses.categorical_generalized_cross_entropy,
    keras.losses.dice,
    keras.losses.kl_divergence,
    keras.losses.poisson,
    keras.losses.tversky,
)


class FunctionLoss(keras.losses.Loss):
    """A function of labels and outputs, reduced and weighted as Keras does.

    Without a name, which Keras makes from the class: that of a lambda function, or of
    an object, may be none that TensorFlow takes.
    """

    def __init__(self, function: Callable[[Any, Any], Tensor]) -> None:
        super().__init__()
        self.function = function

    def call(self, y_true: Any, y_pred: Any) -> Tensor:
        return self.function(y_true, y_pred)


def check_one_loss(loss: Any, loss_weights: Any) -> None:
    """Raises a `ValueError` unless there is one loss for all outputs together."""
    if loss_weights is not None:
        raise ValueError(
            "`loss_weights` has no use with one loss. Received: "
            f"loss_weights={loss_weights}. Leave it out, or weight inside the "
            "loss (`mse_weight`)."
        )
    if isinstance(loss, dict | list | tuple):
        raise ValueError(
            "`loss` must be one loss over the whole dict of outputs. Received: "
            f"loss={loss}. Pass loss=keras_pedcc.PEDCCLoss()."
        )


def resolve_loss(loss: Any) -> Callable[[Any, Any, Any], Tensor] | None:
    """Returns `f(y, outputs, sample_weight)`, or `None` for no loss."""
    if loss is None:
        return None
    given = keras.losses.get(loss)
    resolved = given if isinstance(given, keras.losses.Loss) else FunctionLoss(given)
    if not _is_of_keras(given):
        return resolved
    if _takes_probabilities(given):
        raise ValueError(
            "The loss must take scores, because the logits are cosines and not "
            f"probabilities. Received: loss={loss!r}, which takes probabilities. Pass "
            "loss=keras_pedcc.PEDCCLoss(), or a loss with from_logits=True."
        )
    return lambda y, outputs, weight: resolved(y, outputs["logits"], weight)


def _is_of_keras(loss: Any) -> bool:
    """Whether a loss is one of Keras, or of a subclass of one: it takes an array."""
    function = getattr(loss, "func", loss)  # of a functools.partial
    return isinstance(loss, _CLASSES) or any(function is f for f in _FUNCTIONS)


def _takes_probabilities(loss: Any) -> bool:
    if isinstance(loss, keras.losses.Loss):
        unscored = isinstance(loss, _OF_PROBABILITIES)
        # Keras 3.16 has it in the config alone.
        given = getattr(loss, "from_logits", loss.get_config().get("from_logits"))
        return unscored or given is False
    if any(getattr(loss, "func", loss) is f for f in _FUNCTIONS_OF_PROBABILITIES):
        return True
    parameter = inspect.signature(loss).parameters.get("from_logits")
    return parameter is not None and parameter.default is False
