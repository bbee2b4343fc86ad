"""How a head gives a loss its scores: what its argument `scores` may be."""

from typing import Any, Self, TypeAlias

import keras

from keras_pedcc.common.checks import check_positive, check_whole
from keras_pedcc.scores.blockwise import BLOCK_SIZE


@keras.saving.register_keras_serializable("keras_pedcc")
class Blockwise:
    """Scores by blocks of classes, for a head with very many of them.

    The head returns its features alone. The loss computes the cosines block by block
    and never holds all of them: memory is that of the features and of one block,
    `batch * block_size` cosines.

    Args:
        block_size: int, at least 1. Classes per block. Defaults to 4096.

    Raises:
        TypeError: `block_size` is not a whole number.
        ValueError: `block_size` is below 1.

    Example:

    >>> head = keras_pedcc.PEDCCDense(1000, scores=keras_pedcc.Blockwise(256))
    >>> sorted(head(keras.ops.ones((2, 64))))
    ['features']
    """

    sample_rate: float | None = None

    def __init__(self, block_size: int = BLOCK_SIZE) -> None:
        check_whole(1, block_size=block_size)
        self.block_size = int(block_size)

    def get_config(self) -> dict[str, Any]:
        """The arguments, as a dict."""
        return {"block_size": self.block_size}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Makes the object again from `get_config`."""
        return cls(**config)

    def __repr__(self) -> str:
        arguments = ", ".join(f"{k}={v!r}" for k, v in self.get_config().items())
        return f"{type(self).__name__}({arguments})"

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and vars(other) == vars(self)

    def __hash__(self) -> int:
        return hash(repr(self))


@keras.saving.register_keras_serializable("keras_pedcc")
class Sampled(Blockwise):
    """Scores of a random part of the classes in training, as in Partial FC.

    Each training step computes the cosines to the classes of its batch and to a random
    part of the others, see `keras_pedcc.scores.sampled.SampledScores`. The training
    loss is lower in the mean than the exact one, and the training accuracy is that
    among the classes of the step. Evaluation takes all classes, by blocks.

    Args:
        sample_rate: Float in (0, 1]. The part of all classes that each training step
            draws, beside those of its batch.
        block_size: int, at least 1. Classes per block in evaluation. Defaults to 4096.

    Raises:
        TypeError: `block_size` is not a whole number.
        ValueError: An argument is out of range.

    Example:

    >>> head = keras_pedcc.PEDCCDense(1000, scores=keras_pedcc.Sampled(0.1))
    >>> head.scores
    Sampled(sample_rate=0.1, block_size=4096)

    Reference: An et al., "Partial FC: Training 10 Million Identities on a Single
    Machine", 2021.
    """

    def __init__(self, sample_rate: float, block_size: int = BLOCK_SIZE) -> None:
        super().__init__(block_size)
        check_positive(1, sample_rate=sample_rate)
        self.sample_rate = float(sample_rate)

    def get_config(self) -> dict[str, Any]:
        return {"sample_rate": self.sample_rate, **super().get_config()}


Choice: TypeAlias = str | Blockwise | dict[str, Any]  # a dict in a config


def check_scores(scores: Choice) -> str | Blockwise:
    """Returns "dense", a `Blockwise` or a `Sampled`, or raises a `ValueError`."""
    if isinstance(scores, dict):  # of a config
        scores = keras.saving.deserialize_keras_object(scores)
    if isinstance(scores, str) and scores == "blockwise":
        return Blockwise()
    if isinstance(scores, Blockwise) or (isinstance(scores, str) and scores == "dense"):
        return scores
    raise ValueError(
        '`scores` must be "dense", "blockwise", a `keras_pedcc.Blockwise` or a '
        f"`keras_pedcc.Sampled`. Received: scores={scores!r}. Leave it out for what "
        "suits the number of classes."
    )
