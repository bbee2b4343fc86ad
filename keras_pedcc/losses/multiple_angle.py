"""Losses that multiply the angle: A-Softmax (SphereFace) and L-Softmax."""

import math
from typing import Any

import keras
from keras import ops

from keras_pedcc.common import ArrayLike, Tensor
from keras_pedcc.common.vectors import nan_unless
from keras_pedcc.losses.annealing import annealing_lambda, check_annealing
from keras_pedcc.losses.arguments import check_dtype, check_range, is_number, is_tensor
from keras_pedcc.losses.targets import Outputs, check_held, prepare
from keras_pedcc.scores.dense import DenseScores
from keras_pedcc.scores.protocol import Lower, Scores

_CONSTANTS = ("base", "gamma", "power", "least")  # of `annealing_lambda`


@keras.saving.register_keras_serializable("keras_pedcc")
def a_softmax_loss(
    y_true: ArrayLike,
    y_pred: Outputs,
    *,
    margin: int = 4,
    annealing: float | Tensor = 0.0,
) -> Tensor:
    """Angular softmax loss (SphereFace) of each sample.

    `L = -log(e^{f_y} / (e^{f_y} + sum_{j != y} e^{|x| cos_j}))`, with
    `f_y = |x| (lambda cos_y + psi(theta_y)) / (1 + lambda)` and
    `psi(theta) = (-1)^k cos(m theta) - 2 k` for theta in [k pi/m, (k+1) pi/m];
    m = `margin`, lambda = `annealing`, `cos_j = cos(theta_j)` the logits and |x|
    the norm of the features. The weights are unit vectors. For soft labels t class j
    gets the share t_j of the lowering, as in `arcface_loss`. With `margin=1` it is
    the softmax cross entropy of `|x| cos_j`.

    Args:
        y_true: Labels, see `am_softmax_loss`.
        y_pred: Dict of `CosineDense(return_norm=True)`: `"features"`, `"logits"`
            (cosines, shape `(batch, num_classes)`) and `"norm"`, shape `(batch,)`.
        margin: Whole number m from 1 to 8, how many times the angle is taken;
            the paper takes 4.
        annealing: Float lambda, not negative, or a tensor of shape `()` or `(batch,)`:
            how much of the plain softmax is left, see `annealing_lambda`.

    Returns:
        Tensor of shape `(batch,)`, not negative; NaN as in `am_softmax_loss`.

    Raises:
        ValueError: A shape or constant does not fit, or `y_pred` has no norm.

    Example:

    >>> outputs = {"features": [[3.0]], "logits": [[0.5, 0.0]], "norm": [3.0]}
    >>> loss = keras_pedcc.losses.a_softmax_loss([0], outputs, margin=2)
    >>> round(float(loss[0]), 4)  # 3 cos(2 * 60 degrees) = -1.5: log(1 + exp(1.5))
    1.7014

    Reference: Liu et al., "SphereFace: Deep Hypersphere Embedding for Face
    Recognition", 2017, eq. 7, lambda in its appendix.
    """
    scores, target, valid = prepare(y_true, y_pred)
    cosines = DenseScores(scores.logits)
    norm = ops.expand_dims(_norm_of(y_pred, (None,), scores), 1)
    lower = _lowering(margin, annealing, scores)
    return nan_unless(valid, cosines.entropy(target, lower, norm))


@keras.saving.register_keras_serializable("keras_pedcc")
def l_softmax_loss(
    y_true: ArrayLike,
    y_pred: Outputs,
    *,
    margin: int = 4,
    annealing: float | Tensor = 0.0,
) -> Tensor:
    """Large-margin softmax loss of each sample.

    `L = -log(e^{f_y} / (e^{f_y} + sum_{j != y} e^{|w_j||x| cos_j}))`, with
    `f_y = |w_y||x| (lambda cos_y + psi(theta_y)) / (1 + lambda)`, and m = `margin`,
    lambda = `annealing` and psi as in `a_softmax_loss`. Unlike there the weights w_j
    keep their length. With `margin=1` it is the softmax cross entropy of `w_j . x`.

    Args:
        y_true: Labels, see `am_softmax_loss`.
        y_pred: Dict of `ProductDense`: `"features"`, `"logits"` (`w_j . x`) and
            `"norm"` (`|w_j||x|`), both of shape `(batch, num_classes)`.
        margin: Whole number m from 1 to 8, how many times the angle is taken;
            the paper takes 2 to 4.
        annealing: Float lambda, not negative, or a tensor of shape `()` or `(batch,)`.

    Returns:
        Tensor of shape `(batch,)`, not negative; NaN as in `am_softmax_loss`.

    Raises:
        ValueError: A shape or constant does not fit, or `y_pred` has no norm.

    Example:

    >>> outputs = {"features": [[1.0]], "logits": [[1.5, 0.0]], "norm": [[3.0, 2.0]]}
    >>> loss = keras_pedcc.losses.l_softmax_loss([0], outputs, margin=2)
    >>> round(float(loss[0]), 4)  # 3 cos(2 * 60 degrees) = -1.5: log(1 + exp(1.5))
    1.7014

    Reference: Liu et al., "Large-Margin Softmax Loss for Convolutional Neural
    Networks", 2016, eqs. 4 to 6.
    """
    scores, target, valid = prepare(y_true, y_pred)
    norm = _norm_of(y_pred, (None, scores.shape[1]), scores)
    lower = _lowering(margin, annealing, scores)
    cosines = DenseScores(scores.logits / norm)
    return nan_unless(valid, cosines.entropy(target, lower, norm))


class _AnnealedLoss(keras.losses.Loss):
    """A loss with a whole margin, annealed by the training steps of the head."""

    def __init__(self, margin: int, annealing: dict[str, float], **kwargs: Any) -> None:
        super().__init__(**{**kwargs, "dtype": check_dtype(kwargs["dtype"])})
        self.margin = _check_multiple(margin)
        check_annealing(**annealing, prefix="annealing_")
        for name, value in annealing.items():
            setattr(self, f"annealing_{name}", float(value))

    def __call__(
        self, y_true: ArrayLike, y_pred: Outputs, sample_weight: ArrayLike | None = None
    ) -> Tensor:
        check_held(y_pred)
        return super().__call__(y_true, y_pred, sample_weight)

    def annealing_of(self, y_pred: Outputs) -> float | Tensor:
        """Lambda of each sample, from the steps the head has counted."""
        constants = {name: getattr(self, f"annealing_{name}") for name in _CONSTANTS}
        if constants["base"] <= constants["least"]:
            return constants["least"]
        if not isinstance(y_pred, dict) or "iterations" not in y_pred:
            keys = sorted(y_pred) if isinstance(y_pred, dict) else "logits alone"
            raise ValueError(
                'Annealing needs a dict `y_pred` with the key "iterations". Received: '
                f"{keys}. Make the head `CosineDense(num_classes, return_norm=True)` "
                "or `ProductDense`, or pass annealing_base=0, annealing_least=0."
            )
        return annealing_lambda(y_pred["iterations"], **constants)

    def get_config(self) -> dict[str, Any]:
        names = ("margin", "dtype", *(f"annealing_{name}" for name in _CONSTANTS))
        own = {name: getattr(self, name) for name in names}
        return {**super().get_config(), **own}


@keras.saving.register_keras_serializable("keras_pedcc")
class ASoftmaxLoss(_AnnealedLoss):
    """Angular softmax loss (SphereFace). Class form of `a_softmax_loss`.

    For `CosineDense(num_classes, return_norm=True)` in a `PEDCCModel`. Lambda is
    `annealing_lambda` of the training steps that the head has counted; the
    count is a weight of the head, so that a loaded model goes on where it was.
    `annealing_base=0, annealing_least=0` is the loss without annealing.

    Args:
        margin: Whole number m from 1 to 8.
        annealing_base: Float, not negative. Lambda before the first step.
        annealing_gamma: Float, not negative, per step.
        annealing_power: Float, not negative.
        annealing_least: Float, not negative. What lambda stays at.
        reduction: See `keras.losses.Loss`.
        name: Name of the loss.
        dtype: `"float32"` (default) or `"float64"`.

    Raises:
        ValueError: An argument is out of range.

    Example:

    >>> head = keras_pedcc.CosineDense(10, return_norm=True)
    >>> loss = keras_pedcc.ASoftmaxLoss()
    >>> bool(loss([3], head(keras.ops.ones((1, 64)))) > 0)
    True

    Reference: Liu et al., "SphereFace: Deep Hypersphere Embedding for Face
    Recognition", 2017.
    """

    def __init__(
        self,
        margin: int = 4,
        *,
        annealing_base: float = 1000.0,
        annealing_gamma: float = 0.12,
        annealing_power: float = 1.0,
        annealing_least: float = 5.0,
        reduction: str | None = "sum_over_batch_size",
        name: str = "a_softmax_loss",
        dtype: str = "float32",
    ) -> None:
        given = (annealing_base, annealing_gamma, annealing_power, annealing_least)
        annealing = dict(zip(_CONSTANTS, given, strict=True))
        super().__init__(margin, annealing, reduction=reduction, name=name, dtype=dtype)

    def call(self, y_true: ArrayLike, y_pred: Any) -> Tensor:
        annealing = self.annealing_of(y_pred)
        return a_softmax_loss(y_true, y_pred, margin=self.margin, annealing=annealing)


@keras.saving.register_keras_serializable("keras_pedcc")
class LSoftmaxLoss(_AnnealedLoss):
    """Large-margin softmax loss. Class form of `l_softmax_loss`.

    For `ProductDense(num_classes)` in a `PEDCCModel`. Lambda is as in `ASoftmaxLoss`,
    with the constants that L-Softmax was published with.

    Args:
        margin: Whole number m from 1 to 8.
        annealing_base: Float, not negative. Lambda before the first step.
        annealing_gamma: Float, not negative, per step.
        annealing_power: Float, not negative.
        annealing_least: Float, not negative. What lambda stays at.
        reduction: See `keras.losses.Loss`.
        name: Name of the loss.
        dtype: `"float32"` (default) or `"float64"`.

    Raises:
        ValueError: An argument is out of range.

    Example:

    >>> loss = keras_pedcc.LSoftmaxLoss(margin=2)
    >>> outputs = keras_pedcc.ProductDense(10)(keras.ops.ones((1, 64)))
    >>> bool(loss([3], outputs) > 0)
    True

    Reference: Liu et al., "Large-Margin Softmax Loss for Convolutional Neural
    Networks", 2016.
    """

    def __init__(
        self,
        margin: int = 4,
        *,
        annealing_base: float = 1000.0,
        annealing_gamma: float = 2.5e-5,
        annealing_power: float = 35.0,
        annealing_least: float = 0.0,
        reduction: str | None = "sum_over_batch_size",
        name: str = "l_softmax_loss",
        dtype: str = "float32",
    ) -> None:
        given = (annealing_base, annealing_gamma, annealing_power, annealing_least)
        annealing = dict(zip(_CONSTANTS, given, strict=True))
        super().__init__(margin, annealing, reduction=reduction, name=name, dtype=dtype)

    def call(self, y_true: ArrayLike, y_pred: Any) -> Tensor:
        annealing = self.annealing_of(y_pred)
        return l_softmax_loss(y_true, y_pred, margin=self.margin, annealing=annealing)


def _lowering(margin: int, annealing: float | Tensor, scores: Scores) -> Lower:
    """`cos -> (lambda cos + psi) / (1 + lambda)`, with checked constants."""
    multiple = _check_multiple(margin)
    if not is_tensor(annealing):
        check_range("annealing", annealing, 0.0, float("inf"))
    weight = ops.convert_to_tensor(annealing, scores.dtype)
    if len(weight.shape) == 1:
        weight = ops.expand_dims(weight, 1)
    return lambda cos: (weight * cos + _multiplied(cos, multiple)) / (1 + weight)


def _multiplied(cosines: Tensor, multiple: int) -> Tensor:
    """`psi` of `a_softmax_loss`, with cos(m theta) as a polynomial in cos(theta)."""
    before, polynomial = ops.ones_like(cosines), cosines
    sign, turns = ops.ones_like(cosines), ops.zeros_like(cosines)
    for k in range(1, multiple):
        before, polynomial = polynomial, 2 * cosines * polynomial - before
        past = cosines < math.cos(k * math.pi / multiple)
        sign, turns = ops.where(past, -sign, sign), ops.where(past, turns + 1, turns)
    return sign * polynomial - 2 * turns


def _norm_of(y_pred: Outputs, shape: tuple[int | None, ...], scores: Scores) -> Tensor:
    if not isinstance(y_pred, dict) or "norm" not in y_pred:
        keys = sorted(y_pred) if isinstance(y_pred, dict) else "logits alone"
        raise ValueError(
            f'`y_pred` must be a dict with the key "norm". Received: {keys}. Make the '
            "head `CosineDense(num_classes, return_norm=True)` for A-Softmax, "
            "`ProductDense(num_classes)` for L-Softmax."
        )
    norm = ops.cast(ops.convert_to_tensor(y_pred["norm"]), scores.dtype)
    if len(norm.shape) != len(shape) or norm.shape[1:] != shape[1:]:
        wanted = "(batch,)" if len(shape) == 1 else "(batch, num_classes)"
        raise ValueError(
            f"The norm must have shape {wanted}. Received: norm.shape="
            f"{tuple(norm.shape)}. A-Softmax takes it from `CosineDense`, L-Softmax "
            "from `ProductDense`."
        )
    return norm


def _check_multiple(margin: Any) -> int:
    """Returns `margin` as an int, or raises a `ValueError`."""
    if not is_number(margin) or margin not in range(1, 9):
        raise ValueError(
            "`margin` must be a whole number from 1 to 8: the angle is taken that many "
            "times, and only whole multiples fall with the angle throughout. "
            f"Received: margin={margin!r}. Pass an int."
        )
    return int(margin)
