"""The signs of the features that a head with predefined centroids is trained on."""

import warnings

from keras import ops

from keras_pedcc.common import Tensor
from keras_pedcc.common.values import has_values, smallest

# Weights that are drawn give features of one sign with a probability of 2^-dim or less.
LEAST_DIM, LEAST_ROWS = 16, 8


class Signs:
    """What is known of the signs of the features that a head is trained on.

    Without a negative number they lie in one of the 2^dim orthants of the space,
    whereas predefined centroids lie all around.

    Attributes:
        known: Whether a batch was enough to tell.
        warned: Whether a warning has told of it.
    """

    def __init__(self) -> None:
        self.known = False
        self.warned = False

    def look(self, inputs: Tensor, name: str) -> None:
        """Warns if no feature of a batch is negative.

        A graph has no values to look at. A few features may have one sign by chance:
        then the next batch is looked at.

        Args:
            inputs: Tensor, shape `(batch, dim)`.
            name: Name of the head, for the message.
        """
        if not _tells(inputs):
            return
        if smallest(inputs) >= 0:
            if smallest(-ops.abs(inputs - inputs[:1])) == 0:  # all rows are the same
                return
            self.warn(
                f"a batch of shape {tuple(inputs.shape)} without a negative number, in "
                f"head {name!r}"
            )
        self.known = True

    def warn(self, received: str) -> None:
        """Warns, once, of features of one sign; `received` says where."""
        if self.warned:
            return
        self.warned = True
        warnings.warn(
            "The features before predefined centroids must take both signs. Received: "
            f"{received}. Put a linear layer of its own before the head, "
            "keras.layers.Dense(dim) without an activation: after ReLU, softmax, or a "
            "pooling of them, most centroids are out of reach.",
            stacklevel=4,
        )


def _tells(inputs: Tensor) -> bool:
    rows, dim = inputs.shape
    enough = rows is not None and rows >= LEAST_ROWS and dim >= LEAST_DIM
    return enough and has_values(inputs)
