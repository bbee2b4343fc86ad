"""The head that gives the cosine between features and class centroids."""

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_pedcc.common import Tensor
from keras_pedcc.common.checks import check_dim, check_whole
from keras_pedcc.common.gradients import full_precision
from keras_pedcc.common.vectors import cosines, lengths, unit_vectors
from keras_pedcc.layers.dtypes import check_float, float_dtype
from keras_pedcc.layers.normal_rows import by_blocks
from keras_pedcc.layers.room import check_capacity, check_growth, with_open_width
from keras_pedcc.layers.running_norm import standardized, updated
from keras_pedcc.layers.signs import Signs
from keras_pedcc.scores.blockwise import BlockwiseScores
from keras_pedcc.scores.choice import Blockwise, Choice, check_scores
from keras_pedcc.scores.sampled import SampledScores, number_of_samples
from keras_pedcc.scores.sharding import (
    check_divisible,
    check_layout,
    class_layout,
    refuse_room,
)


@keras.saving.register_keras_serializable("keras_pedcc")
class CosineDense(keras.layers.Layer):
    """Classification head with trainable class centroids on the unit sphere.

    `logits[i, j] = cos(theta_ij) = x_i . c_j / (|x_i| |c_j|)`, with `x` the input
    and `c_j` the rows of the weight `centroids`. The logits are cosines, without
    a scale: the scale belongs to the loss. This is the head of AM-Softmax and
    ArcFace, and with `return_norm=True` of A-Softmax; `PEDCCDense` is the one with
    predefined, frozen centroids.

    The layer computes in float32 under every dtype policy (under `"float64"` in float64
    on TensorFlow), because the square of a float16 feature overflows. Its weight has
    the variable dtype of the policy: `dtype="bfloat16"` halves its memory, and loses
    fine-tuning at a small rate in rounding.

    Args:
        num_classes: int, at least 2.
        capacity: int, at least `num_classes`. Rows of the weight: room for classes that
            come later. Outputs, losses and predictions know the first `num_classes`
            alone, until `grow`, or `keras_pedcc.grow_classes` for a whole model, takes
            more of them in use. Defaults to `num_classes`.
        return_features: bool. Whether to return the unit features beside the
            logits.
        return_norm: bool. Whether to return, beside the features, what A-Softmax and
            AdaFace need: their length before the division, also in standard
            deviations from its mean, and the training steps that the layer has seen.
            Three more weights hold what it counts: `iterations`, `norm_mean` and
            `norm_deviation`, averages over the first 100 training batches, and
            exponential averages of rate 0.01 from then on.
        kernel_initializer: Initializer of the centroids; only their direction
            matters.
        scores: How a loss gets the cosines. `"dense"`: the head returns all of them
            as `"logits"`. `"blockwise"`, or a `keras_pedcc.Blockwise`: it returns the
            features alone, and the loss computes the cosines by blocks of classes.
            A `keras_pedcc.Sampled`: training takes a random part of the classes. The
            latter two need a `PEDCCModel` (or `for_loss`), a loss with a margin, and
            class indices as labels. Defaults to `"dense"`.
        **kwargs: `name`, `dtype`, `trainable`, see `keras.layers.Layer`.

    Call arguments:
        inputs: Float tensor, shape `(batch, dim)`.

    Returns:
        With `return_features=True` a dict of `"features"`, shape `(batch, dim)`,
        unit vectors, and `"logits"`, shape `(batch, num_classes)`, cosines in
        [-1, 1]; else the logits alone. With `return_norm=True` also `"norm"`,
        `"standard_norm"`, and `"iterations"`, int32, all of shape `(batch,)`. With
        scores that are not `"dense"`, a dict of `"features"` alone.

    Raises:
        TypeError: `num_classes` or `capacity` is not a whole number.
        ValueError: `num_classes` or the last dimension of the input is below 2;
            `capacity` is below `num_classes`; a norm is asked for without features;
            `scores` is none of the above, or leaves the logits to the loss in a head
            that shall return them or a norm.

    Example:

    >>> head = keras_pedcc.CosineDense(10, return_features=False)
    >>> keras.ops.shape(head(keras.ops.ones((2, 64))))
    (2, 10)

    Reference: Wang et al., "Additive Margin Softmax for Face Verification",
    2018, section 3.
    """

    _standardizes = True  # the norm, where it is returned
    # Heads with so many classes compute by blocks unless `scores` says otherwise.
    _blockwise_from = float("inf")
    # Heads whose centroids lie all around, wherever the features are, have one.
    feature_signs: Signs | None = None
    _frozen = False
    _layout: Any  # `ClassLayout` or `None`, once the layer is built
    scores: Any  # "dense", a `Blockwise` or a `Sampled`

    def __init__(
        self,
        num_classes: int,
        *,
        capacity: int | None = None,
        return_features: bool = True,
        return_norm: bool = False,
        kernel_initializer: Any = "random_normal",
        scores: Choice | None = None,
        **kwargs: Any,
    ) -> None:
        # Inputs and weights are cast here, to float32 whatever the policy computes in.
        super().__init__(**{**kwargs, "autocast": False})
        check_float(self.variable_dtype)
        check_whole(2, num_classes=num_classes)
        self.num_classes = int(num_classes)
        self.capacity = check_capacity(self.num_classes, capacity)
        if return_norm and not return_features:
            raise ValueError(
                "`return_norm` needs the features. Received: return_norm=True, "
                "return_features=False. Leave `return_features` out."
            )
        self.return_features = return_features
        self.return_norm = return_norm
        self.scores = self._choose(scores)
        # Whether the head returns features alone, and the loss computes the scores.
        self.streams = self.scores != "dense"
        if self.streams and self.scores.sample_rate is not None:
            self.seed_generator = keras.random.SeedGenerator()
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.input_spec = keras.layers.InputSpec(ndim=2)

    @property
    def trained(self) -> bool:
        """Whether training changes the centroids."""
        return self.trainable and not self._frozen

    def _choose(self, scores: Choice | None) -> str | Blockwise:
        plain = self.return_features and not self.return_norm
        if scores is None:
            many = self.capacity >= self._blockwise_from
            return Blockwise() if many and plain else "dense"
        scores = check_scores(scores)
        if scores != "dense" and not plain:
            raise ValueError(
                "A head whose `scores` the loss computes returns the features alone. "
                f"Received: scores={scores!r}, return_features={self.return_features}, "
                f"return_norm={self.return_norm}. Leave `scores` out, or the others."
            )
        return scores

    def build(self, input_shape: Sequence[int | None]) -> None:
        self._add_weights(check_dim(input_shape), by_blocks(self.kernel_initializer))

    def grow(self, num_classes: int) -> None:
        """Takes more of the `capacity` classes in use. The weights stay as they are.

        Compiled training steps go on with the old number: use
        `keras_pedcc.grow_classes`, which makes them anew, or call `compile` afterwards.

        Args:
            num_classes: int, from the number in use to `capacity`.

        Raises:
            TypeError: `num_classes` is not a whole number.
            ValueError: `num_classes` is out of range.
        """
        check_growth(self, num_classes)
        self.num_classes = int(num_classes)

    def compute_output_spec(self, *args: Any, **kwargs: Any) -> Any:
        outputs = super().compute_output_spec(*args, **kwargs)
        # A graph would record a number that growing makes wrong.
        return outputs if self._is_full else with_open_width(outputs)

    @property
    def _rows(self) -> int:
        """Rows of the weight."""
        return self.capacity

    @property
    def _is_full(self) -> bool:
        return self.num_classes == self.capacity

    def for_loss(
        self,
        outputs: Tensor | dict[str, Tensor],
        training: bool = True,
        ranked: bool = False,
    ) -> Tensor | dict[str, Any]:
        """What a loss takes: the outputs, with `Scores` where there are no logits.

        `PEDCCModel` calls it. In a training loop of your own:
        `loss(y, head.for_loss(head(x, training=True)))`. On JAX call both inside one
        `keras.StatelessScope`: the scores read the centroids, which outside of it
        are constants without a gradient.

        Args:
            outputs: What the head returned.
            training: bool. Whether the loss needs gradients. Defaults to `True`.
            ranked: bool. Whether `Scores.rank` counts the nearer classes; else it
                tells only whether there are any.
        """
        if not self.streams:
            return outputs
        scores = self._scores_of(outputs["features"], training, ranked)
        return {**outputs, "logits": scores}

    def _scores_of(
        self, features: Tensor, training: bool, ranked: bool
    ) -> BlockwiseScores:
        if training and self.scores.sample_rate is not None:
            return SampledScores(
                features,
                ops.convert_to_tensor(self.centroids),
                num_classes=self.num_classes,
                trained=self.trained,
                number=number_of_samples(self.num_classes, self.scores.sample_rate),
                seed=self.seed_generator,
            )
        return BlockwiseScores(
            features,
            self._centroids_for(training),
            num_classes=self.num_classes,
            trained=self.trained,
            block_size=self.scores.block_size,
            training=training,
            ranked=ranked,
            layout=self._layout,
        )

    def call(
        self, inputs: Tensor, training: bool | None = None
    ) -> Tensor | dict[str, Tensor]:
        self._check_place()
        if training and self.feature_signs is not None and not self.feature_signs.known:
            self.feature_signs.look(inputs, self.name)
        inputs = ops.cast(inputs, float_dtype(self))
        with full_precision(inputs):
            return self._outputs(inputs, training)

    def _outputs(
        self, inputs: Tensor, training: bool | None
    ) -> Tensor | dict[str, Tensor]:
        features = unit_vectors(inputs)
        if self.streams:
            return {"features": features}
        logits = self._logits(features, training)
        if not self.return_features:
            return logits
        outputs = {"features": features, "logits": logits}
        if self.return_norm:
            outputs |= self._norms(inputs, training)
        return outputs

    def save_own_variables(self, store: Any) -> None:
        values: dict[str, Any] = {}
        super().save_own_variables(values)
        for key, value in values.items():
            store[key] = value if self._layout is None else self._layout.whole(value)

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        config["num_classes"] = self.num_classes
        config["capacity"] = self.capacity
        config["return_features"] = self.return_features
        config["return_norm"] = self.return_norm
        config["scores"] = keras.saving.serialize_keras_object(self.scores)
        config["kernel_initializer"] = keras.initializers.serialize(
            self.kernel_initializer
        )
        return config

    def _add_weights(self, dim: int, initializer: Any) -> None:
        self._layout = class_layout(f"{self.path}/centroids")
        refuse_room(self.num_classes, self.capacity, self._layout)
        check_divisible(self.num_classes, self._layout)
        self.centroids = self.add_weight(
            shape=(self._rows, dim),
            initializer=initializer,
            autocast=False,
            name="centroids",
        )
        self._add_counter(dim)

    def _add_counter(self, dim: int) -> None:
        if self.return_norm:
            self.iterations = self._add_state("iterations", "int32")
        if self.return_norm and self._standardizes:
            self.norm_mean = self._add_state("norm_mean", float_dtype(self))
            self.norm_deviation = self._add_state("norm_deviation", float_dtype(self))
        self.input_spec = keras.layers.InputSpec(ndim=2, axes={-1: dim})

    def _add_state(self, name: str, dtype: str) -> keras.Variable:
        return self.add_weight(
            shape=(),
            initializer="zeros",
            dtype=dtype,
            trainable=False,
            autocast=False,
            aggregation="only_first_replica",
            name=name,
        )

    def _check_place(self) -> None:
        if keras.distribution.distribution() is not None:
            check_layout(self, self._layout)

    def _logits(self, features: Tensor, training: bool | None) -> Tensor:
        centroids = self._in_use(self._centroids_for(training))
        centroids = ops.cast(centroids, features.dtype)
        return cosines(features, centroids, self.trained)

    def _centroids_for(self, training: bool | None) -> Tensor:
        """The centroids as a tensor, of which the first `num_classes` are in use."""
        return ops.convert_to_tensor(self.centroids)

    def _in_use(self, rows: Tensor) -> Tensor:
        """The rows of the classes in use."""
        return rows if rows.shape[0] == self.num_classes else rows[: self.num_classes]

    def _norms(self, inputs: Tensor, training: bool | None) -> dict[str, Tensor]:
        """Lengths, and the training steps so far, this one included."""
        if training:
            self.iterations.assign_add(1)
        steps, norm = ops.convert_to_tensor(self.iterations), lengths(inputs)
        outputs = {"norm": norm, "iterations": ops.broadcast_to(steps, ops.shape(norm))}
        if self._standardizes:
            fixed = ops.stop_gradient(norm)
            outputs["standard_norm"] = self._standard_norm(fixed, steps, training)
        return outputs

    def _standard_norm(
        self, norm: Tensor, steps: Tensor, training: bool | None
    ) -> Tensor:
        mean = ops.convert_to_tensor(self.norm_mean)
        deviation = ops.convert_to_tensor(self.norm_deviation)
        if training:
            mean, deviation = updated(mean, deviation, norm, steps)
            self.norm_mean.assign(mean)
            self.norm_deviation.assign(deviation)
        return standardized(norm, mean, deviation)
