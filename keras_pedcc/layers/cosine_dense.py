"""The head that gives the cosine between features and class centroids."""

import keras
from keras import ops

from keras_pedcc.common.checks import check_dim, check_whole
from keras_pedcc.common.gradients import full_precision
from keras_pedcc.common.vectors import cosines, lengths, unit_vectors
from keras_pedcc.layers.margin_share import MarginShare
from keras_pedcc.scores.blockwise import BLOCK_SIZE, StreamedLogits
from keras_pedcc.scores.sampled import SampledLogits, check_sampling, number_of_samples
from keras_pedcc.scores.sharding import check_divisible, check_layout, class_layout


@keras.saving.register_keras_serializable("keras_pedcc")
class CosineDense(keras.layers.Layer):
    """Classification head with trainable class centroids on the unit sphere.

    `logits[i, j] = cos(theta_ij) = x_i . c_j / (|x_i| |c_j|)`, with `x` the input
    and `c_j` the rows of the weight `centroids`. The logits are cosines, without
    a scale: the scale belongs to the loss. This is the head of AM-Softmax and
    ArcFace, and with `return_norm=True` of A-Softmax; `PEDCCDense` is the one with
    predefined, frozen centroids.

    The layer computes in float32 under every dtype policy (under `"float64"` in float64
    on TensorFlow), because the square of a float16 feature overflows.

    Args:
        num_classes: int, at least 2.
        return_features: bool. Whether to return the unit features beside the
            logits.
        return_norm: bool. Whether to return, beside the features, what A-Softmax
            needs: their length before the division, and the training steps that
            the layer has seen, which it counts in one more weight, `iterations`.
        kernel_initializer: Initializer of the centroids; only their direction
            matters.
        streaming: bool. Whether to return the features alone and leave the logits to
            the loss, which takes them by blocks of classes and never holds all of
            them; the loss, with a margin and class indices as labels, must be in a
            `PEDCCModel`. Defaults to `None`, which is False for this head.
        block_size: int, at least 1. Classes per block, when streaming.
        sampling_rate: Float in (0, 1], or `None` for 1. The part of all classes that
            each training step draws, beside those of its batch, for a head that streams
            (`None` as `streaming` is True then); see `SampledLogits`. The loss
            of training is lower in the mean than the exact one, and the accuracy of
            training is that among these classes. Evaluation takes all classes.
        centroids_dtype: Float dtype of the weight, such as `"bfloat16"` to halve its
            memory; `None` for that of the policy's variables. Fine-tuning at a small
            rate is lost in the rounding of a short one.
        **kwargs: `name`, `dtype`, `trainable`, see `keras.layers.Layer`.

    Call arguments:
        inputs: Float tensor, shape `(batch, dim)`.

    Returns:
        With `return_features=True` a dict of `"features"`, shape `(batch, dim)`,
        unit vectors, and `"logits"`, shape `(batch, num_classes)`, cosines in
        [-1, 1]; else the logits alone. With `return_norm=True` also `"norm"`, float,
        and `"iterations"`, int32, both of shape `(batch,)`. Streaming, a dict of
        `"features"` alone.

    Raises:
        TypeError: `num_classes` is not a whole number.
        ValueError: `num_classes` or the last dimension of the input is below 2;
            a norm is asked for without features, or streaming with a norm or without
            features; `block_size` is below 1; `sampling_rate` is outside (0, 1], or
            given to a head that does not stream.

    Example:

    >>> head = keras_pedcc.CosineDense(10, return_features=False)
    >>> keras.ops.shape(head(keras.ops.ones((2, 64))))
    (2, 10)

    Reference: Wang et al., "Additive Margin Softmax for Face Verification",
    2018, section 3.
    """

    def __init__(
        self,
        num_classes,
        *,
        return_features=True,
        return_norm=False,
        kernel_initializer="random_normal",
        streaming=None,
        block_size=BLOCK_SIZE,
        sampling_rate=None,
        centroids_dtype=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        use_full_precision(self)
        check_whole(2, num_classes=num_classes)
        self.num_classes = int(num_classes)
        if return_norm and not return_features:
            raise ValueError(
                "`return_norm` needs the features. Received: return_norm=True, "
                "return_features=False. Leave `return_features` out."
            )
        self.return_features = return_features
        self.return_norm = return_norm
        check_whole(1, block_size=block_size)
        self.streaming = _check_streaming(streaming, return_features, return_norm)
        self.block_size = int(block_size)
        self.sampling_rate = check_sampling(
            sampling_rate, streaming, return_features, return_norm
        )
        if self.sampling_rate is not None:
            self.seed_generator = keras.random.SeedGenerator()
        self.centroids_dtype = _check_float(centroids_dtype)
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.input_spec = keras.layers.InputSpec(ndim=2)
        self.margin_share = MarginShare()

    def build(self, input_shape):
        self._add_weights(check_dim(input_shape), self.kernel_initializer)

    @property
    def metrics(self):
        return [*super().metrics, *self.margin_share.metrics]

    @property
    def streams(self):
        """Whether the logits are left to the loss."""
        return bool(self.streaming) or self.sampling_rate is not None

    def stream(self, features, training, ranked=False):
        """The logits that this head leaves to the loss, as `StreamedLogits`."""
        if training and self.sampling_rate is not None:
            return self._sample(features)
        return StreamedLogits(
            features,
            self._centroids_for(training),
            trained=self.trainable,
            block_size=self.block_size,
            training=training,
            ranked=ranked,
            layout=self._layout,
        )

    def _sample(self, features):
        return SampledLogits(
            features,
            ops.convert_to_tensor(self.centroids),
            trained=self.trainable,
            number=number_of_samples(self.num_classes, self.sampling_rate),
            seed=self.seed_generator,
        )

    def call(self, inputs, training=None):
        self._check_place()
        inputs = ops.cast(inputs, self.compute_dtype)
        with full_precision(inputs):
            return self._outputs(inputs, training)

    def _outputs(self, inputs, training):
        features = unit_vectors(inputs)
        if self.streams:
            return {"features": features}
        logits = self._logits(features, training)
        if not self.return_features:
            return logits
        outputs = {"features": features, "logits": logits}
        if self.return_norm:
            outputs["norm"] = lengths(inputs)
            outputs["iterations"] = self._count(inputs, training)
        return outputs

    def save_own_variables(self, store):
        values = {}
        super().save_own_variables(values)
        for key, value in values.items():
            store[key] = value if self._layout is None else self._layout.whole(value)

    def get_config(self):
        config = super().get_config()
        config["num_classes"] = self.num_classes
        config["return_features"] = self.return_features
        config["return_norm"] = self.return_norm
        # As it was decided here: elsewhere the outputs would be others.
        config["streaming"] = self.streams if self.streaming is None else self.streaming
        config["block_size"] = self.block_size
        config["sampling_rate"] = self.sampling_rate
        config["centroids_dtype"] = self.centroids_dtype
        config["kernel_initializer"] = keras.initializers.serialize(
            self.kernel_initializer
        )
        return config

    def _add_weights(self, dim, initializer):
        self._layout = class_layout(f"{self.path}/centroids")
        check_divisible(self.num_classes, self._layout)
        self.centroids = self.add_weight(
            shape=(self.num_classes, dim),
            initializer=initializer,
            dtype=self.centroids_dtype,
            autocast=self.centroids_dtype is None,
            name="centroids",
        )
        self._add_counter(dim)

    def _add_counter(self, dim):
        if self.return_norm:
            self.iterations = self.add_weight(
                shape=(),
                initializer="zeros",
                dtype="int32",
                trainable=False,
                aggregation="only_first_replica",
                name="iterations",
            )
        self.input_spec = keras.layers.InputSpec(ndim=2, axes={-1: dim})

    def _check_place(self):
        check_layout(self, self._layout)

    def _logits(self, features, training):
        centroids = ops.cast(self._centroids_for(training), features.dtype)
        return self._cosines(features, centroids, training)

    def _centroids_for(self, training):
        """The centroids as a tensor, from which the logits are taken."""
        return ops.convert_to_tensor(self.centroids)

    def _cosines(self, features, centroids, training):
        return cosines(features, centroids)

    def _count(self, inputs, training):
        """The training steps so far, this one included, for each sample."""
        if training:
            self.iterations.assign_add(1)
        steps = ops.convert_to_tensor(self.iterations)
        return ops.broadcast_to(steps, ops.shape(inputs)[:1])


def _check_streaming(streaming, return_features, return_norm):
    if streaming and (return_norm or not return_features):
        raise ValueError(
            "`streaming` returns the features alone. Received: streaming=True in a "
            f"head with return_features={return_features}, return_norm={return_norm}. "
            "Leave `streaming` out, or the others."
        )
    if streaming not in (None, True, False):
        raise ValueError(
            "`streaming` must be True, False or None. Received: streaming="
            f"{streaming!r}. Leave it out for what suits the number of classes."
        )
    return streaming


def _check_float(dtype):
    if dtype is not None and "float" not in keras.backend.standardize_dtype(dtype):
        raise ValueError(
            "`centroids_dtype` must be a float dtype. Received: centroids_dtype="
            f'{dtype!r}. Pass "bfloat16", or leave it out.'
        )
    return dtype


def use_full_precision(layer):
    """Has a layer compute in float32 whatever its policy, but for float64."""
    if keras.backend.standardize_dtype(layer.compute_dtype) != "float64":
        layer.dtype_policy = "float32"
