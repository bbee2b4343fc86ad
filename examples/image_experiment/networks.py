"""The VGG networks of the paper, up to the features."""

import keras
from keras import layers

BATCH_NORM_EPSILON = 1e-5


def vgg(shape, stem, blocks, dim, *, statistics, weight_decay, feature_norm=True):
    """Images in, features out: convolutions in blocks, then one linear layer.

    Each convolution is 3x3 with padding 1, followed by batch normalisation and
    PReLU; each block ends with 2x2 max-pooling. The input is raw uint8 pixels:
    scaling and normalisation belong to the model.

    Args:
        shape: Shape of an image, `(height, width, channels)`.
        stem: Filters of the convolution before the first block.
        blocks: `(convolutions, filters)` of each block.
        dim: Length of the features.
        statistics: Mean and variance of each channel, of pixels in [0, 1].
        weight_decay: Factor d of the penalty `d / 2 |w|^2` on each kernel.
        feature_norm: Whether batch normalisation without scale and shift follows
            the linear layer, in the place of a bias.

    Returns:
        Input and output tensor.
    """
    penalty = keras.regularizers.L2(weight_decay / 2) if weight_decay else None
    # In float32 whatever the policy: half precision would round the pixels.
    inputs = keras.Input(shape, dtype="uint8")
    x = layers.Rescaling(1 / 255, dtype="float32")(inputs)
    x = layers.Normalization(mean=statistics[0], variance=statistics[1])(x)
    x = _convolution(x, stem, penalty)
    for convolutions, filters in blocks:
        for _ in range(convolutions):
            x = _convolution(x, filters, penalty)
        x = layers.MaxPooling2D()(x)
    x = layers.Flatten()(x)
    x = layers.Dense(
        dim,
        use_bias=not feature_norm,
        kernel_initializer="he_normal",
        kernel_regularizer=penalty,
        name="fc1",
    )(x)
    if feature_norm:
        x = layers.BatchNormalization(
            center=False, scale=False, epsilon=BATCH_NORM_EPSILON, name="fc1_norm"
        )(x)
    return inputs, x


def _convolution(x, filters, penalty):
    x = layers.Conv2D(
        filters,
        3,
        padding="same",
        use_bias=False,  # the batch normalisation has one
        kernel_initializer="he_normal",
        kernel_regularizer=penalty,
    )(x)
    x = layers.BatchNormalization(momentum=0.9, epsilon=BATCH_NORM_EPSILON)(x)
    # One slope per channel, 0.25 at first, as in the paper on PReLU.
    slope = keras.initializers.Constant(0.25)
    return layers.PReLU(slope, shared_axes=[1, 2])(x)
