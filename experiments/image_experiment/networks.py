"""The networks of the paper, up to the features."""

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
    inputs, x = _pixels(shape, statistics)
    x = _convolution(x, stem, penalty)
    for convolutions, filters in blocks:
        for _ in range(convolutions):
            x = _convolution(x, filters, penalty)
        x = layers.MaxPooling2D()(x)
    return inputs, _features(x, dim, penalty, feature_norm)


def ir_resnet(
    shape,
    stem,
    stages,
    dim,
    *,
    statistics,
    weight_decay,
    feature_norm=True,
    dropout=0.0,
):
    """Images in, features out: residual blocks as in the paper on ArcFace.

    Each stage begins with a stride of 2. A block is batch normalisation, 3x3
    convolution, batch normalisation, PReLU, 3x3 convolution with the stride, batch
    normalisation, and is added to its input, or to a strided 1x1 convolution with
    batch normalisation of it where the shape changes. The input is raw uint8 pixels.

    Args:
        shape: Shape of an image, `(height, width, channels)`.
        stem: Filters of the convolution before the first block.
        stages: `(blocks, filters)` of each stage; ResNet18 has 2 in each of four.
        dim: Length of the features.
        statistics: As in `vgg`.
        weight_decay: As in `vgg`.
        feature_norm: As in `vgg`.
        dropout: Share of the values before the linear layer that are dropped.

    Returns:
        Input and output tensor.

    Reference: Deng et al., "ArcFace", 2019, section 3.2.1.
    """
    penalty = keras.regularizers.L2(weight_decay / 2) if weight_decay else None
    inputs, x = _pixels(shape, statistics)
    x = _convolution(x, stem, penalty)
    for blocks, filters in stages:
        for block in range(blocks):
            x = _residual(x, filters, 1 if block else 2, penalty)
    x = _normalised(x)
    if dropout:
        x = layers.Dropout(dropout, seed=0)(x)
    return inputs, _features(x, dim, penalty, feature_norm)


def _residual(x, filters, stride, penalty):
    shortcut = x
    if stride > 1:
        # What a 1x1 convolution with a stride sees. Its gradient crashes on a CPU in
        # TensorFlow 2.21 with oneDNN.
        shortcut = layers.MaxPooling2D(1, strides=stride)(shortcut)
    if stride > 1 or x.shape[-1] != filters:
        shortcut = _normalised(_conv(shortcut, filters, penalty, size=1))
    x = _convolution(_normalised(x), filters, penalty)
    x = _normalised(_conv(x, filters, penalty, stride=stride))
    return layers.Add()([x, shortcut])


def _pixels(shape, statistics):
    """Input of raw pixels, and the same normalised by channel."""
    # In float32 whatever the policy: half precision would round the pixels.
    inputs = keras.Input(shape, dtype="uint8")
    x = layers.Rescaling(1 / 255, dtype="float32")(inputs)
    return inputs, layers.Normalization(mean=statistics[0], variance=statistics[1])(x)


def _features(x, dim, penalty, feature_norm):
    """The linear layer FC1, normalised or with a bias."""
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
            momentum=0.9,
            center=False,
            scale=False,
            epsilon=BATCH_NORM_EPSILON,
            name="fc1_norm",
        )(x)
    return x


def _convolution(x, filters, penalty):
    """3x3 convolution, batch normalisation, PReLU."""
    # One slope per channel, 0.25 at first, as in the paper on PReLU.
    slope = keras.initializers.Constant(0.25)
    x = _normalised(_conv(x, filters, penalty))
    return layers.PReLU(slope, shared_axes=[1, 2])(x)


def _conv(x, filters, penalty, size=3, stride=1):
    return layers.Conv2D(
        filters,
        size,
        strides=stride,
        padding="same",
        use_bias=False,  # the batch normalisation after it has one
        kernel_initializer="he_normal",
        kernel_regularizer=penalty,
    )(x)


def _normalised(x):
    return layers.BatchNormalization(momentum=0.9, epsilon=BATCH_NORM_EPSILON)(x)


def scaled(filters, width):
    """Number of filters of a network `width` times as wide, at least 1."""
    return max(1, round(filters * width))


def pixel_statistics(images):
    """Mean and variance of each channel, of pixels in [0, 1], as lists."""
    pixels = images.reshape(-1, images.shape[-1])
    mean, std = pixels.mean(axis=0) / 255, pixels.std(axis=0) / 255
    return mean.tolist(), (std**2).tolist()
