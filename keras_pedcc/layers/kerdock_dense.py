"""The head for very many classes whose centroids take no memory."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_pedcc.centroids.closed_forms import (
    kerdock_dim,
    kerdock_signs,
    union_capacity,
)
from keras_pedcc.centroids.kerdock import KerdockCentroids
from keras_pedcc.common import Tensor
from keras_pedcc.common.checks import check_dim, check_whole
from keras_pedcc.layers.cosine_dense import CosineDense
from keras_pedcc.layers.signs import Signs
from keras_pedcc.scores.blockwise import BLOCKWISE_FROM
from keras_pedcc.scores.choice import Choice
from keras_pedcc.scores.kerdock import KerdockScores


@keras.saving.register_keras_serializable("keras_pedcc")
class KerdockDense(CosineDense):
    """Classification head with Kerdock's vectors as centroids, and without their array.

    The same function as `PEDCCDense(num_classes, centroids="kerdock", seed=seed)`, with
    cosines by the fast Walsh-Hadamard transform: for each `2 d` classes, d the largest
    power of two up to `dim`, it holds d bytes instead of `8 d dim`, and multiplies
    `d (r + q)` times for each sample, r q = d, instead of `2 d dim`. Shapes, dtypes and
    the meaning of the outputs are those of `CosineDense`.

    The largest cosine between two centroids is `1 / sqrt(d)` or `sqrt(2 / d)`, or twice
    that, see `keras_pedcc.generate_pedcc`. They cannot be trained: for that, go on with
    `PEDCCDense(num_classes, centroids=np.asarray(head.centroids))`.

    Args:
        num_classes: int, more than `2 d`; at most about `d^3 / 2`, or `2 d^3` if
            d is an odd power of two (d >= 16).
        capacity: int, at least `num_classes`, at most as many. Room for classes that
            come later, as in `PEDCCDense`. Defaults to `num_classes`.
        seed: int, at least 0. Draws the centroids: same seed, same centroids.
        return_features: bool. Whether to return the unit features beside the
            logits.
        return_norm: bool. Whether to return, beside the features, what A-Softmax and
            AdaFace need, which is counted in three more weights, see `CosineDense`.
        scores: `"dense"`, `"blockwise"` or a `keras_pedcc.Blockwise`, see
            `CosineDense`; blocks are rounded up to a multiple of `2 d`. Defaults to
            `"blockwise"` from a capacity of 100,000 on, as in `PEDCCDense`.
        **kwargs: `name`, `dtype`, see `keras.layers.Layer`.

    Call arguments:
        inputs: Float tensor, shape `(batch, dim)`.

    Attributes:
        centroids: The centroids in use as signs, once the layer is built: an argument
            of `nearest_classes`, and for `numpy.asarray` an array of shape
            `(num_classes, dim)`.
        all_centroids: All that there is room for, `capacity` of them, in the same form.

    Returns:
        As `CosineDense`: a dict of `"features"` and `"logits"`, the logits alone, or
        a dict of `"features"` alone.

    Raises:
        TypeError: `num_classes`, `capacity` or `seed` is not a whole number.
        ValueError: `num_classes` or `capacity` is outside the range above, which is
            known once the layer is built, or `capacity` below `num_classes`; a norm is
            asked for without features; `scores` is a `Sampled`, or as in `CosineDense`.

    Example:

    >>> head = keras_pedcc.KerdockDense(1000)
    >>> outputs = head(keras.ops.ones((2, 64)))
    >>> {name: keras.ops.shape(output) for name, output in outputs.items()}
    {'features': (2, 64), 'logits': (2, 1000)}

    Reference: Kerdock, "A class of low-rate nonlinear binary codes", 1972; Calderbank
    et al., "Z4-Kerdock codes, orthogonal spreads, and extremal Euclidean line-sets",
    1997.
    """

    _frozen = True
    _blockwise_from = BLOCKWISE_FROM

    def __init__(
        self,
        num_classes: int,
        *,
        capacity: int | None = None,
        seed: int = 0,
        return_features: bool = True,
        return_norm: bool = False,
        scores: Choice | None = None,
        **kwargs: Any,
    ) -> None:
        kwargs.setdefault("trainable", False)
        _refuse_others(kwargs)
        super().__init__(
            num_classes,
            capacity=capacity,
            return_features=return_features,
            return_norm=return_norm,
            scores=scores,
            **kwargs,
        )
        if self.streams and self.scores.sample_rate is not None:
            _refuse_others({"scores": self.scores})
        check_whole(0, seed=seed)
        self.seed = int(seed)
        self.feature_signs = Signs()

    def build(self, input_shape: Sequence[int | None]) -> None:
        self.dim = check_dim(input_shape)
        _check_numbers(self.dim, num_classes=self.num_classes, capacity=self.capacity)
        self._layout = None  # all devices hold all
        rng = np.random.default_rng(self.seed)
        made = kerdock_signs(self.capacity, self.dim, rng)
        names = "signs", "columns", "flips"
        self._parts = [
            self.add_weight(
                shape=part.shape,
                initializer=lambda shape, dtype, part=part: ops.convert_to_tensor(
                    part, dtype
                ),
                dtype=str(part.dtype),
                trainable=False,
                name=name,
            )
            for name, part in zip(names, made, strict=True)
        ]
        self._add_counter(self.dim)

    @property
    def centroids(self) -> KerdockCentroids:
        return self._first_centroids(self.num_classes)

    @property
    def all_centroids(self) -> KerdockCentroids:
        """All centroids that there is room for."""
        return self._first_centroids(self.capacity)

    def _first_centroids(self, number: int) -> KerdockCentroids:
        if not self.built:
            raise ValueError(
                "`centroids` are there once the layer is built. Received: layer "
                f"{self.name!r}, not built. Call it, or build((None, dim)), before."
            )
        signs, *others = map(ops.convert_to_tensor, self._parts)
        bases = -(-number // (2 * signs.shape[1]))  # the first has no signs
        if bases <= signs.shape[0]:
            signs = signs[: bases - 1]
        return KerdockCentroids(number, self.dim, signs, *others)

    def _scores_of(
        self, features: Tensor, training: bool, ranked: bool
    ) -> KerdockScores:
        return KerdockScores(
            features,
            self.centroids,
            block_size=self.scores.block_size,
            training=training,
            ranked=ranked,
        )

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        del config["kernel_initializer"]
        config["seed"] = self.seed
        return config

    def _check_place(self) -> None:
        pass  # a distribution has nothing to cut

    def _logits(self, features: Tensor, training: bool | None) -> Tensor:
        return self.centroids.cosines(features)


def _refuse_others(kwargs: dict[str, Any]) -> None:
    """Raises for arguments of other heads, which this one would not follow."""
    others = ["kernel_initializer", "centroids", "scores"]
    given = [name for name in others if kwargs.get(name) is not None]
    if given:
        raise ValueError(
            "`KerdockDense` has Kerdock's vectors, frozen, held as signs, and takes "
            f"all classes at every step. Received: {given[0]}={kwargs[given[0]]!r}. "
            f"Leave `{given[0]}` out, or use `PEDCCDense`."
        )


def _check_numbers(dim: int, **numbers: int) -> None:
    if dim < 4:
        raise ValueError(
            "Kerdock's vectors have 4 dimensions or more. Received: an input of "
            f"{dim} features. Make the layer before the head wider."
        )
    least, most = 2 * kerdock_dim(dim), union_capacity(dim)
    for name, number in numbers.items():
        if not least < number <= most:
            raise ValueError(
                f"`{name}` must be more than twice the largest power of two up to "
                "`dim`, and no more than Kerdock's and Gold's sets have vectors. "
                f"Received: {name}={number}, with an input of {dim} features, for "
                f"which it may be from {least + 1} to {most}. Use `PEDCCDense`, which "
                "takes any."
            )
