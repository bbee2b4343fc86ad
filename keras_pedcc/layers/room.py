"""Room in a head for classes that come later."""

from typing import Any

import keras

from keras_pedcc.common.checks import check_whole


def check_capacity(num_classes: int, capacity: int | None) -> int:
    """Returns the capacity of a head, `num_classes` for `None`, or raises."""
    if capacity is None:
        return num_classes
    check_whole(2, capacity=capacity)
    if capacity < num_classes:
        raise ValueError(
            "`capacity` must be at least `num_classes`, the classes in use. Received: "
            f"capacity={capacity}, num_classes={num_classes}. Pass a larger capacity, "
            "or leave it out for no room."
        )
    return int(capacity)


def check_growth(head: Any, num_classes: int) -> None:
    """Raises unless a head can have so many of its classes in use."""
    check_whole(2, num_classes=num_classes)
    received = (
        f"Received: num_classes={num_classes}, in layer {head.name!r} with "
        f"num_classes={head.num_classes}, capacity={head.capacity}."
    )
    if num_classes < head.num_classes:
        raise ValueError(
            f"A head can only grow. {received} To have fewer classes, make a head with "
            "fewer and the same capacity, and load the weights of this one."
        )
    if num_classes > head.capacity:
        raise ValueError(
            f"A head can grow up to its capacity. {received} Make a head with more "
            "`capacity`, and train it anew."
        )


def with_open_width(outputs: Any) -> Any:
    """Symbolic outputs of a head, with `None` for the number of classes."""
    if not isinstance(outputs, dict):
        return keras.KerasTensor((outputs.shape[0], None), outputs.dtype)
    # The norm of a `ProductDense` has a column for each class, too.
    wide = [
        key
        for key, value in outputs.items()
        if key != "features" and len(value.shape) == 2
    ]
    return {**outputs, **{key: with_open_width(outputs[key]) for key in wide}}
