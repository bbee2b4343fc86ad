"""The head whose class centroids are predefined and frozen."""

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_pedcc.centroids.generate import DTYPES, generate_pedcc
from keras_pedcc.centroids.methods import METHODS
from keras_pedcc.common import Array, ArrayLike, Shape, Tensor
from keras_pedcc.common.checks import check_dim, check_whole, unit_centroids
from keras_pedcc.common.internals import let_tapes_watch
from keras_pedcc.common.vectors import with_fixed_mean
from keras_pedcc.layers.centroid_variables import mark_centroids
from keras_pedcc.layers.cosine_dense import CosineDense
from keras_pedcc.layers.dtypes import float_dtype
from keras_pedcc.layers.signs import Signs
from keras_pedcc.scores.blockwise import BLOCKWISE_FROM
from keras_pedcc.scores.choice import Choice


@keras.saving.register_keras_serializable("keras_pedcc")
class PEDCCDense(CosineDense):
    """Classification head whose class centroids are predefined and frozen.

    `logits[i, j] = cos(theta_ij) = x_i . c_j / |x_i|`, with `x` the input and
    `c_j` the rows of the weight `centroids`: unit vectors spread as far apart as
    geometry allows, see `keras_pedcc.generate_pedcc`. Shapes, dtypes and the
    meaning of the outputs are those of `CosineDense`.

    The centroids are frozen until `layer.frozen = False`, or until
    `keras_pedcc.FinetuneCallback` unfreezes them late in training and gives them a
    learning rate of their own. `trainable` stays Keras' flag, which models and layers
    hand down: `layer.trainable = True`, on the head or around it, never unfreezes, and
    the centroids are `trained` while `trainable` is True on the head and `frozen` is
    False. Both survive saving and cloning, whatever is around the head. As after
    any change of `trainable`, call `compile` after setting `frozen`;
    `FinetuneCallback` needs no `compile`. The forward pass divides the centroids by
    their length, which fine-tuning changes; the weight itself is not projected.

    Args:
        num_classes: int, at least 2.
        capacity: int, at least `num_classes`. Rows of the weight, spread together: room
            for classes that come later, see `CosineDense` and
            `keras_pedcc.grow_classes`. Reserved rows are never predicted, and training
            does not turn them. Defaults to `num_classes`.
        seed: int, at least 0. Draws the centroids: same seed, same centroids.
        centroids: Method of `keras_pedcc.generate_pedcc`, `None` for `"auto"`, or an
            array of shape `(capacity, dim)`, whose rows are normalized. The config
            stores an array as `"saved"`; its values are in the weight. A saved model
            therefore loads (from JSON with NaN until its weights are loaded), but
            `keras.models.clone_model` raises.
        return_features: bool. Whether to return the unit features beside the
            logits.
        return_norm: bool. Whether to return, beside the features, what A-Softmax and
            AdaFace need, which is counted in three more weights, see `CosineDense`.
        scores: How a loss gets the cosines: `"dense"`, `"blockwise"`, or a
            `keras_pedcc.Blockwise` or `keras_pedcc.Sampled`, see `CosineDense`.
            Defaults to `"blockwise"` from a capacity of 100,000 on, unless
            `return_features` or `return_norm` say otherwise, else to `"dense"`.
        keep_mean: bool. Whether training keeps the mean of the centroids in use fixed.
            The layer then subtracts the mean over these classes from the gradients of
            their centroids. Without it, eq. 9 can pull all centroids and features into
            one direction. With strongly unbalanced classes, the frequent ones may still
            cluster. It acts in calls with `training=True`, takes memory of the size of
            the centroids, and is exact for float32 centroids and SGD without clipping.
            Defaults to True with `trainable=True` and dense scores: not where
            centroids are trained late, as in the paper. Not with `Sampled`.
        **kwargs: `name`, `dtype`, see `keras.layers.Layer`; `trainable=True` or
            `frozen=False` for centroids that are trained from the start. Defaults to
            frozen ones.

    Call arguments:
        inputs: Float tensor, shape `(batch, dim)`.

    Returns:
        With `return_features=True` a dict of `"features"`, shape `(batch, dim)`,
        unit vectors, and `"logits"`, shape `(batch, num_classes)`, cosines in
        [-1, 1]; else the logits alone. With `return_norm=True` also `"norm"`,
        `"standard_norm"`, and `"iterations"`, int32, all of shape `(batch,)`. With
        scores that are not `"dense"`, a dict of `"features"` alone.

    Attributes:
        frozen: Whether the centroids are held fixed. Settable.
        trained: Whether they learn: `trainable`, and not `frozen`.
        fine_tuned: Whether `FinetuneCallback` unfroze them, which waits for its epoch
            again in the next `fit`. Settable.

    Raises:
        TypeError: `num_classes`, `capacity` or `seed` is not a whole number.
        ValueError: A size is below 2, `capacity` below `num_classes`; `centroids` is no
            method, or has another shape, a NaN, or a row of zeros; a norm is asked for
            without features; `scores` as in `CosineDense`, or a `Sampled` with
            `keep_mean`.

    Example:

    >>> head = keras_pedcc.PEDCCDense(10)
    >>> outputs = head(keras.ops.ones((2, 64)))
    >>> {name: keras.ops.shape(output) for name, output in outputs.items()}
    {'features': (2, 64), 'logits': (2, 10)}

    Reference: Zhu et al., IEEE Access 2020, sections III-B and III-C.
    """

    _frozen = True  # until the constructor says more
    fine_tuned = False  # True where it was `FinetuneCallback` that unfroze them
    _blockwise_from = BLOCKWISE_FROM
    _source: Any  # a method of `generate_pedcc`, "saved", or an array

    def __init__(
        self,
        num_classes: int,
        *,
        capacity: int | None = None,
        seed: int = 0,
        centroids: str | ArrayLike | None = None,
        return_features: bool = True,
        return_norm: bool = False,
        scores: Choice | None = None,
        keep_mean: bool | None = None,
        **kwargs: Any,
    ) -> None:
        if "kernel_initializer" in kwargs:
            raise ValueError(
                "`PEDCCDense` has predefined centroids. Received: kernel_initializer="
                f"{kwargs['kernel_initializer']!r}. Leave it out, pass `centroids`, or "
                "use `CosineDense`."
            )
        trained = kwargs.get("trainable", False)
        frozen = kwargs.pop("frozen", None)
        fine_tuned = kwargs.pop("fine_tuned", False)
        super().__init__(
            num_classes,
            capacity=capacity,
            return_features=return_features,
            return_norm=return_norm,
            scores=scores,
            **kwargs,
        )
        if frozen is None:
            # `trainable` alone speaks of the centroids, not of Keras' flag.
            frozen, self.trainable = not trained, True
        self.frozen, self.fine_tuned = frozen, fine_tuned
        check_whole(0, seed=seed)
        self.seed = int(seed)
        if keep_mean is None:
            keep_mean = not self.frozen and not self.streams
        self.keep_mean = _check_keep_mean(keep_mean, self.scores)
        self._source = _check_source(centroids, self.capacity, self.variable_dtype)
        self._restoring = False
        self.feature_signs = Signs()

    @property
    def frozen(self) -> bool:
        """Whether the centroids are held fixed. Settable; see the class."""
        return self._frozen

    @frozen.setter
    def frozen(self, value: bool) -> None:
        self._frozen = bool(value)
        if value:
            self.fine_tuned = False
        self._hand_down()

    @keras.layers.Layer.trainable.setter
    def trainable(self, value: bool) -> None:
        keras.layers.Layer.trainable.fset(self, value)
        self._hand_down()

    def _hand_down(self) -> None:
        if self.built:
            self.centroids.trainable = self.trained
            if self.trained:
                let_tapes_watch(self.centroids)

    def build(self, input_shape: Sequence[int | None]) -> None:
        dim = check_dim(input_shape)
        self._add_weights(dim, self._initializer(dim))
        self.centroids.trainable = self.trained
        mark_centroids(self.centroids)
        if not isinstance(self._source, str):
            self._source = "saved"

    def build_from_config(self, config: dict[str, Any]) -> None:
        # The weights come from the file: nothing is generated for them.
        self._restoring = True
        try:
            super().build_from_config(config)
        finally:
            self._restoring = False

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        del config["kernel_initializer"]
        config["frozen"] = self.frozen
        config["fine_tuned"] = self.fine_tuned
        config["seed"] = self.seed
        config["keep_mean"] = self.keep_mean
        config["centroids"] = self._source if isinstance(self._source, str) else "saved"
        return config

    def _centroids_for(self, training: bool | None) -> Tensor:
        values = ops.convert_to_tensor(self.centroids)
        if not self.trained:
            return ops.stop_gradient(values)
        if training and self.keep_mean:
            # Of the classes in use alone: reserved rows would be moved with them.
            return with_fixed_mean(ops.cast(self._in_use(values), float_dtype(self)))
        return values

    def _initializer(self, dim: int) -> keras.initializers.Initializer:
        if self._restoring:
            # Processes compare what each places, and NaN equals nothing. The cosines
            # to infinity are NaN, too.
            alone = keras.distribution.distribution() is None
            return keras.initializers.Constant(float("nan" if alone else "inf"))
        if isinstance(self._source, str) and self._source == "saved":
            raise ValueError(
                "A layer with given `centroids` cannot be made again from its config "
                f'alone. Received: centroids="saved" in layer {self.name!r}. Pass the '
                "array; to copy a model, save and load it, or give `clone_model` a "
                "`clone_function`."
            )
        if isinstance(self._source, str):
            return _Made(self, self._generated)
        given = self._source
        if given.shape[1] != dim:
            raise ValueError(
                "`centroids` must have one column for each input feature. "
                f"Received: centroids.shape={given.shape}, with an input of "
                f"{dim} features. Make the layer before the head {given.shape[1]} "
                "wide, or pass other centroids."
            )
        return _Made(self, lambda shape, dtype: ops.convert_to_tensor(given, dtype))

    def _generated(self, shape: Shape, dtype: str | None) -> Tensor:
        # Short from the start: a long copy beside it may be most of the memory.
        made = dtype if dtype in DTYPES else "float32"
        try:
            centroids = generate_pedcc(
                *shape, method=self._source, seed=self.seed, dtype=made
            )
        except ValueError as error:  # in the words of this head
            told = str(error).replace("`method`", "`centroids`")
            raise ValueError(told.replace("method=", "centroids=")) from error
        return ops.cast(centroids, dtype)


class _Made(keras.initializers.Initializer):
    """Makes the centroids of a head whole, and cuts them over the devices.

    An initializer with `layout` is not compiled by Keras, which it would be when they
    are large, with the whole array as a constant of the program.
    """

    def __init__(
        self, head: CosineDense, make: Callable[[Shape, str | None], Tensor]
    ) -> None:
        self.head, self.make = head, make

    def __call__(
        self, shape: Shape, dtype: str | None = None, layout: Any = None
    ) -> Tensor:
        made = self.make(shape, dtype)
        if layout is None:
            return made
        return self.head._layout.spread(made, self.head._layout.axes)


def _check_keep_mean(keep_mean: bool, scores: Any) -> bool:
    if keep_mean and scores != "dense" and scores.sample_rate is not None:
        raise ValueError(
            "`keep_mean` moves all centroids at each step, `Sampled` those of a few "
            f"classes. Received: keep_mean={keep_mean}, scores={scores!r}. Leave one "
            "out."
        )
    return bool(keep_mean)


def _check_source(
    centroids: str | ArrayLike | None, capacity: int, dtype: str
) -> str | Array:
    if centroids is None:
        return "auto"
    if isinstance(centroids, str):
        if centroids not in (*METHODS, "saved"):
            raise ValueError(
                f"`centroids` must be an array or one of {METHODS}. Received: "
                f"centroids={centroids!r}. Leave it out for the best one."
            )
        return centroids
    if not isinstance(centroids, np.ndarray):
        centroids = ops.convert_to_numpy(centroids)
    unit = unit_centroids(centroids, dtype if dtype in DTYPES else "float64")
    if len(unit) != capacity:
        raise ValueError(
            "`centroids` must have one row per class. Received: centroids.shape="
            f"{unit.shape}, for {capacity} classes. Make the two agree, or pass "
            f"capacity={len(unit)} to keep rows for later classes."
        )
    return unit
