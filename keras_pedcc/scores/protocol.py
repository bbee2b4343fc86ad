"""What a loss asks of the cosines of a batch, however they are computed."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

from keras_pedcc.common import Tensor
from keras_pedcc.common.vectors import nan_unless

Lower: TypeAlias = Callable[[Tensor], Tensor]  # takes a margin off cosines


class Shift(NamedTuple):
    """What a loss adds to the scaled score of each class: the logarithm of its prior.

    Attributes:
        values: Shape `(num_classes,)`, as far above 0 as below. A constant of all
            classes is left out, which softmax cancels.
        spread: Float, the largest value minus the smallest.
    """

    values: Tensor
    spread: float


class Scores:
    """Cosines between a batch and all classes, as a loss asks for them.

    A loss asks for entropies and distances, and never how the cosines are computed:
    all at once (`DenseScores`), by blocks of classes (`BlockwiseScores`), of a random
    part of the classes (`SampledScores`), or by a fast transform (`KerdockScores`).

    The target of a method is the class index of each sample, shape `(batch,)`; where
    `takes_soft_labels`, it may be a distribution over the classes instead, shape
    `(batch, num_classes)`.

    Attributes:
        shape: `(batch, num_classes)`.
        dtype: Float dtype of the cosines, as a string.
        takes_soft_labels: Whether a target may be a distribution.
        rank: Number of other classes whose cosine is at least that of the own class,
            shape `(batch,)`. Set when an entropy is computed; `DenseScores` leaves it
            `None`.
    """

    shape: tuple[Any, int]  # the batch is `None` in a graph
    dtype: str
    takes_soft_labels = False
    rank: Tensor | None = None

    @property
    def logits(self) -> Tensor:
        """All cosines, shape `(batch, num_classes)`; raises where they are not held."""
        raise ValueError(
            "This loss needs all logits at once. Received: "
            f"{type(self).__name__}, which computes them by parts. Make the head with "
            'scores="dense", or take PEDCCLoss, AMSoftmaxLoss or ArcFaceLoss.'
        )

    def own(self, target: Tensor) -> Tensor:
        """Cosine to the own class, shape `(batch,)`."""
        raise NotImplementedError

    def only_cosines(self, valid: Tensor) -> Tensor:
        """`valid`, false for each sample with a score that is no cosine."""
        return valid

    def distance(self, target: Tensor) -> Tensor:
        """Eq. 9, `1 - cos_y`, shape `(batch,)`."""
        return 1 - self.own(target)

    def entropy(
        self,
        target: Tensor,
        lower: Lower,
        scale: float | Tensor = 1.0,
        shift: Shift | None = None,
    ) -> Tensor:
        """`log(1 + sum_{j != y} exp(z_j - z_y))`, shape `(batch,)`.

        With `z_j = s_j cos_j + b_j` and `z_y = s_y lower(cos_y) + b_y`. For soft labels
        t class j gets the share t_j of the lowering:
        `z_j = s_j (cos_j + t_j (lower(cos_j) - cos_j)) + b_j`,
        `L = logsumexp(z) - sum_j t_j z_j`.

        Args:
            target: See above.
            lower: Function of cosines, shape `(batch, 1)` or `(batch, num_classes)`.
            scale: Positive float s; for `DenseScores` also a tensor of shape
                `(batch, 1)` or `(batch, num_classes)`.
            shift: `Shift` b, or `None` for zeros. `rank` does not depend on it.
        """
        return self._entropy(target, self.own(target), lower, scale, shift)

    def additive_entropy(
        self,
        target: Tensor,
        valid: Tensor,
        scale: float,
        margin: float | Tensor,
        mse_weight: float = 0.0,
        shift: Shift | None = None,
    ) -> Tensor:
        """Eq. 8 plus `mse_weight` times eq. 9, shape `(batch,)`; NaN where not valid.

        Args:
            target: See above.
            valid: Which samples have a valid label, shape `(batch,)`.
            scale: Positive float.
            margin: Float, or tensor of shape `()`, `(batch, 1)`, or for soft labels
                `(num_classes,)`.
            mse_weight: Float.
            shift: See `entropy`.
        """
        own = self.own(target)
        loss = self._entropy(target, own, lambda cos: cos - margin, scale, shift)
        return nan_unless(valid, loss + mse_weight * (1 - own))

    def _entropy(
        self,
        target: Tensor,
        own: Tensor,
        lower: Lower,
        scale: float | Tensor,
        shift: Shift | None,
    ) -> Tensor:
        """`entropy`, given the cosines to the own classes."""
        raise NotImplementedError
