"""PEDCC-Loss: pure functions of labels and cosines, and a thin Keras loss."""

import numbers

import keras
import numpy as np
from keras import ops

from keras_pedcc.labels import logits_of, prepare


@keras.saving.register_keras_serializable("keras_pedcc")
def am_softmax_loss(y_true, y_pred, *, scale=15.0, margin=0.5):
    """Additive-margin softmax loss of each sample, eq. 8.

    `L = -log(e^{s (cos_y - m)} / (e^{s (cos_y - m)} + sum_{j != y} e^{s cos_j}))`,
    with s = `scale`, m = `margin` and `cos_j` the logits. For soft labels t, whose
    rows sum to 1: `z_j = s (cos_j - m t_j)`, `L = logsumexp(z) - sum_j t_j z_j`,
    which is the same for one-hot t. With `margin=0` it is the softmax cross
    entropy of `scale * logits`.

    Computed in float32 (float64 for float64 logits), accurate to 1e-5 relative
    also where it is tiny.

    Args:
        y_true: Labels, whole numbers in [0, num_classes) of any dtype, shape
            `(batch,)` or `(batch, 1)`; or one-hot or soft labels, shape
            `(batch, num_classes)`, rows that are not negative and sum to 1.
        y_pred: Cosines in [-1, 1], shape `(batch, num_classes)`; or the dict of
            `"features"` and `"logits"` that the heads of this package return.
        scale: Positive float s; the paper takes 15.
        margin: Float m in [0, 2], in units of cosine; the paper takes 0.5.

    Returns:
        Tensor of shape `(batch,)`, not negative. NaN where the label is not
        valid or a logit is NaN.

    Raises:
        ValueError: A shape, `scale` or `margin` does not fit.

    Example:

    >>> loss = am_softmax_loss([0], [[1.0, -1.0]], scale=1.0, margin=0.0)
    >>> round(float(loss[0]), 4)  # log(1 + exp(-2))
    0.1269

    Reference: Zhu et al., IEEE Access 2020, eq. 8; Wang et al., "Additive Margin
    Softmax for Face Verification", 2018.
    """
    _check_range("scale", scale, 0.0, float("inf"), open_below=True)
    _check_range("margin", margin, 0.0, 2.0)
    return _loss(*prepare(y_true, y_pred), scale, margin, mse_weight=0.0)


@keras.saving.register_keras_serializable("keras_pedcc")
def centroid_distance(y_true, y_pred):
    """Half the squared distance of unit features to their centroid, eq. 9.

    `d = 1/2 |x - c_y|^2 = 1 - cos_y`, because x and c_y are unit vectors; for
    soft labels t, `d = sum_j t_j (1 - cos_j)`. Arguments, dtypes and errors are
    those of `am_softmax_loss`.

    Returns:
        Tensor of shape `(batch,)`, in [0, 2].

    Example:

    >>> float(centroid_distance([1], [[0.0, 0.25]])[0])
    0.75

    Reference: Zhu et al., IEEE Access 2020, eq. 9.
    """
    return _distance(*prepare(y_true, y_pred))


@keras.saving.register_keras_serializable("keras_pedcc")
def pedcc_loss(
    y_true,
    y_pred,
    *,
    scale=15.0,
    margin=0.5,
    mse_weight=10.0,
    mse_root=1,
    sample_weight=None,
):
    """PEDCC-Loss, eq. 10, as a vector whose mean over the batch is the loss.

    `L = mean_i(w_i L_AM,i) + lambda * mean_i(w_i d_i)^(1/n)`, with `L_AM` of eq. 8
    (`am_softmax_loss`), `d` of eq. 9 (`centroid_distance`), lambda = `mse_weight`,
    n = `mse_root`, w = `sample_weight` and the means over the batch size. Where
    the paper leaves it open whether eq. 9 is a sum or a mean over the batch, this
    is the mean, and the root is taken of it.

    For n = 1 entry i is `w_i (L_AM,i + lambda d_i)`. For n > 1 it is
    `w_i L_AM,i + lambda mean(w d)^(1/n)`: the second term is common to the batch.
    Its gradient is zero where the mean distance is exactly zero. Inside a
    `tf.distribute` replica the mean is over the batches of all replicas.

    Args:
        y_true: Labels, see `am_softmax_loss`.
        y_pred: Cosines, see `am_softmax_loss`.
        scale: Positive float s; the paper takes 15.
        margin: Float m in [0, 2], in units of cosine; the paper takes 0.5.
        mse_weight: Float lambda, not negative; the paper takes 10.
        mse_root: Whole number n, at least 1; the paper compares 1, 2 and 3.
        sample_weight: Weights, shape `(batch,)` or `(batch, 1)`, or `None`.

    Returns:
        Tensor of shape `(batch,)`; NaN as in `am_softmax_loss`.

    Raises:
        ValueError: A shape or one of the constants does not fit.

    Example:

    >>> loss = pedcc_loss([0], [[1.0, -1.0]], margin=0.0, scale=1.0)
    >>> round(float(loss[0]), 4)  # on its centroid: log(1 + exp(-2)) alone
    0.1269

    Reference: Zhu et al., IEEE Access 2020, eq. 10.
    """
    check_constants(scale, margin, mse_weight, mse_root)
    prepared = prepare(y_true, y_pred)
    # Without a root both terms are a sum over samples, and one pass gives both.
    inside = mse_weight if mse_root == 1 else 0.0
    loss = _weighted(_loss(*prepared, scale, margin, inside), sample_weight)
    if mse_root == 1:
        return loss
    distance = _weighted(_distance(*prepared), sample_weight)
    return loss + mse_weight * _root(_mean_over_replicas(distance), mse_root)


@keras.saving.register_keras_serializable("keras_pedcc")
class PEDCCLoss(keras.losses.Loss):
    """PEDCC-Loss, eq. 10. Class form of `pedcc_loss`.

    Takes the dict of `PEDCCDense` (in a `PEDCCModel`) or the logits alone
    (`return_features=False`, in any Keras model): by eq. 9 it needs nothing but
    the cosines. At the end of training the loss does not go to zero: with C
    classes, every sample on its centroid and a regular simplex it is
    `log(1 + (C - 1) exp(-s (1 - m + 1 / (C - 1))))`.

    Args:
        scale: Positive float s; the paper takes 15.
        margin: Float m in [0, 2], in units of cosine; the paper takes 0.5.
        mse_weight: Float lambda, not negative; the paper takes 10.
        mse_root: Whole number n, at least 1; the paper compares 1, 2 and 3.
        reduction: See `keras.losses.Loss`. With `mse_root` above 1 only
            `"sum_over_batch_size"` (or `"mean"`, the same): eq. 10 takes the
            root of a mean.
        name: Name of the loss.
        dtype: `"float32"` (default) or `"float64"`; nothing shorter, which would
            also round the labels.

    Raises:
        ValueError: An argument is out of range.

    Example:

    >>> loss = keras_pedcc.PEDCCLoss(scale=1.0, margin=0.0)
    >>> round(float(loss([0], [[1.0, -1.0]])), 4)
    0.1269

    Reference: Zhu et al., IEEE Access 2020, eqs. 8-10.
    """

    def __init__(
        self,
        scale=15.0,
        margin=0.5,
        mse_weight=10.0,
        mse_root=1,
        *,
        reduction="sum_over_batch_size",
        name="pedcc_loss",
        dtype="float32",
    ):
        if dtype not in (None, "float32", "float64"):
            raise ValueError(
                '`dtype` must be "float32" or "float64": a shorter one rounds the '
                f"labels. Received: dtype={dtype!r}. Leave it out."
            )
        super().__init__(name=name, reduction=reduction, dtype=dtype or "float32")
        check_constants(scale, margin, mse_weight, mse_root)
        if mse_root > 1 and reduction not in ("sum_over_batch_size", "mean"):
            raise ValueError(
                "`mse_root` above 1 takes the root of a mean over the batch and "
                f"needs a mean as reduction. Received: reduction={reduction!r}, "
                f'mse_root={mse_root}. Pass reduction="sum_over_batch_size".'
            )
        self.scale = float(scale)
        self.margin = float(margin)
        self.mse_weight = float(mse_weight)
        self.mse_root = int(mse_root)

    def __call__(self, y_true, y_pred, sample_weight=None):
        logits = logits_of(y_pred)
        if self.mse_root == 1 or sample_weight is None:
            return super().__call__(y_true, logits, sample_weight)
        # The weights belong under the root, where Keras would not put them.
        return super().__call__(y_true, (logits, sample_weight))

    def call(self, y_true, y_pred):
        y_pred, weight = y_pred if isinstance(y_pred, tuple) else (y_pred, None)
        return pedcc_loss(
            y_true,
            y_pred,
            scale=self.scale,
            margin=self.margin,
            mse_weight=self.mse_weight,
            mse_root=self.mse_root,
            sample_weight=weight,
        )

    def get_config(self):
        config = super().get_config()
        for name in ("scale", "margin", "mse_weight", "mse_root", "dtype"):
            config[name] = getattr(self, name)
        return config


def check_constants(scale, margin, mse_weight, mse_root):
    """Raises a `ValueError` unless the constants of eq. 10 are in range."""
    _check_range("scale", scale, 0.0, float("inf"), open_below=True)
    _check_range("margin", margin, 0.0, 2.0)
    _check_range("mse_weight", mse_weight, 0.0, float("inf"))
    if isinstance(mse_root, bool) or mse_root not in range(1, 1000):
        raise ValueError(
            "`mse_root` must be a whole number from 1 up (the paper compares 1, 2 "
            f"and 3). Received: mse_root={mse_root!r}. Pass an int."
        )


def _check_range(name, value, low, high, open_below=False):
    number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    above = number and (value > low if open_below else value >= low)
    if not (above and value <= high and value != float("inf")):
        left, right = "(" if open_below else "[", ")" if high == float("inf") else "]"
        raise ValueError(
            f"`{name}` must be a number in {left}{low:g}, {high:g}{right}. "
            f"Received: {name}={value!r}. Pass a float in that range."
        )


def _loss(logits, target, valid, scale, margin, mse_weight):
    """The losses of eq. 8 plus `mse_weight` times eq. 9, shape `(batch,)`."""
    if len(target.shape) == 1:
        return _hard_loss(logits, target, valid, scale, margin, mse_weight)
    loss = ops.where(valid, _soft_am_softmax(logits, target, scale, margin), np.nan)
    return loss + mse_weight * _distance(logits, target, valid)


def _distance(logits, target, valid):
    if len(target.shape) == 2:
        distance = ops.sum(target * (1 - logits), axis=1)
    else:
        own = ops.take_along_axis(logits, ops.expand_dims(target, 1), axis=1)
        distance = 1 - own[:, 0]
    return ops.where(valid, distance, np.nan)


def _hard_loss(logits, index, valid, scale, margin, mse_weight):
    """`log(1 + sum_{j != y} exp(u_j)) + lambda (1 - cos_y)`.

    With `u_j = s (cos_j - cos_y + m)`, and with the gradient written out: as few
    operations and passes over `(batch, num_classes)` as there can be. The class y
    is masked inside the sum, because subtracting it afterwards would cancel;
    `top = max(0, max_j u_j)` keeps exp in range.
    """
    rows = ops.arange(ops.shape(logits)[0], dtype=index.dtype)
    at = ops.stack([rows, index], axis=1)

    @ops.custom_gradient
    def loss(logits):
        own = ops.take_along_axis(logits, at[:, 1:], axis=1)
        own = ops.where(ops.expand_dims(valid, 1), own, np.nan)
        lowered = own - margin
        others = ops.scatter_update(logits, at, ops.full_like(own[:, 0], -np.inf))
        nearest = ops.max(others, axis=1, keepdims=True)
        top = ops.relu(scale * (nearest - lowered))
        powers = ops.exp(scale * (others - ops.maximum(nearest, lowered)))
        total = ops.sum(powers, axis=1, keepdims=True)
        value = top + ops.log1p(ops.expm1(-top) + total) + mse_weight * (1 - own)

        def gradient(*args, upstream=None):
            upstream = ops.expand_dims(args[0] if upstream is None else upstream, 1)
            rate = upstream * (scale / (ops.exp(-top) + total))
            at_own = -(rate * total + upstream * mse_weight)[:, 0]
            return ops.scatter_update(powers * rate, at, at_own)

        return value[:, 0], gradient

    return loss(logits)


def _soft_am_softmax(logits, target, scale, margin):
    """`log(sum_j exp(u_j))` with `u_j = z_j - sum_k t_k z_k`.

    The entry of the largest target is kept apart: for one-hot labels it is
    exp(0), and a plain logsumexp would lose the rest of the sum beside it.
    """
    shifted = logits - margin * target
    mean = ops.sum(target * shifted, axis=1, keepdims=True)
    exponent = scale * (shifted - mean)
    largest = ops.expand_dims(ops.argmax(target, axis=1), 1)
    itself = ops.equal(ops.arange(logits.shape[1], dtype=largest.dtype), largest)
    top = ops.stop_gradient(ops.max(exponent, axis=1, keepdims=True))
    top = ops.maximum(top, 0.0)
    exponent = exponent - top
    terms = ops.where(itself, ops.expm1(exponent), ops.exp(exponent))
    return top[:, 0] + ops.log1p(ops.sum(terms, axis=1))


def _weighted(values, sample_weight):
    if sample_weight is None:
        return values
    weight = ops.cast(ops.convert_to_tensor(sample_weight), values.dtype)
    if len(weight.shape) > 2 or (len(weight.shape) == 2 and weight.shape[1] != 1):
        raise ValueError(
            "`sample_weight` must have shape (batch,) or (batch, 1). Received: "
            f"sample_weight.shape={tuple(weight.shape)}. Pass one weight per sample."
        )
    return values * ops.reshape(weight, (-1,))


def _mean_over_replicas(values):
    # Sum and count apart: a replica may hold none of the last batch.
    sums = ops.stack([ops.sum(values), ops.cast(ops.size(values), values.dtype)])
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        context = tf.distribute.get_replica_context()
        if context is not None and context.num_replicas_in_sync > 1:
            sums = context.all_reduce("SUM", sums)
    return sums[0] / ops.maximum(sums[1], 1)


def _root(mean, degree):
    """`mean ** (1 / degree)`, with gradient 0 where the mean is 0."""
    positive = ops.where(mean <= 0, ops.ones_like(mean), mean)
    root = positive ** (1 / degree)
    return ops.where(mean <= 0, ops.zeros_like(mean), root)
