"""The parts of a `FinetuneOptimizer`: who has which variables, and what may be one."""

import re
import warnings
from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

import keras

from keras_pedcc.common import Shape

# An optimizer, and the places of its variables among all.
Share: TypeAlias = tuple[keras.optimizers.Optimizer, list[int]]


def take(
    variables: list[keras.Variable], path: str, shape: Shape, dtype: str
) -> keras.Variable:
    """Takes the first variable of this path out of a list, or makes a stand-in."""
    for variable in variables:
        if variable.path == path:
            variables[:] = [v for v in variables if v is not variable]
            return variable
    name = path.split("/")[-1]
    return keras.Variable("zeros", shape, dtype, trainable=False, name=name)


class Untracked:
    """Holds variables of a model where Keras does not take them for an optimizer's.

    And parts of names, as `exclude_from_weight_decay` takes them.
    """

    def __init__(
        self, variables: Iterable[keras.Variable], names: Iterable[str] = ()
    ) -> None:
        self.variables = list(variables)
        self.names = list(names)

    def matches(self, variable: keras.Variable) -> bool:
        found = any(re.search(name, variable.name) for name in self.names)
        return found or any(variable is each for each in self.variables)


def check_inner(name: str, optimizer: object) -> None:
    """Raises unless it is an optimizer that may be inside a `FinetuneOptimizer`."""
    if not isinstance(optimizer, keras.optimizers.Optimizer):
        raise TypeError(
            f"`{name}` must be a `keras.optimizers.Optimizer`. Received: {name}="
            f"{optimizer!r}. Pass one, such as keras.optimizers.Adam(1e-3)."
        )
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        raise ValueError(
            f"`{name}` must not be a `LossScaleOptimizer`: the loss has one scale for "
            f"all variables. Received: {name}={optimizer!r}. Pass its "
            "`inner_optimizer`; a `LossScaleOptimizer` goes around both."
        )


def check_number(
    name: str, values: Sequence[Any], variables: list[keras.Variable]
) -> None:
    """Raises unless there is one value for each variable."""
    if len(values) != len(variables):
        raise ValueError(
            f"`{name}` must have one value for each variable. Received: {len(values)} "
            f"values for {len(variables)} variables. Pass those that are trainable "
            "at the time, in the order in which the optimizer was built."
        )


def warn_of_no_gradient(
    shares: list[Share], some: list[Share], variables: list[keras.Variable]
) -> None:
    """Warns as Keras does, of the share that one optimizer has to leave out."""
    missing = next(places for each, places in shares if (each, places) not in some)
    warnings.warn(
        "Gradients do not exist for variables "
        f"{[variables[i].name for i in missing]}: the loss does not depend on them. "
        "They stay as they are. Choose a loss that does, or freeze them.",
        stacklevel=4,
    )
