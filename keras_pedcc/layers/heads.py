"""The heads of this package in a model."""

import keras

from keras_pedcc.common.sublayers import layers_of
from keras_pedcc.layers.center_dense import CenterDense
from keras_pedcc.layers.cosine_dense import CosineDense


def heads_of(model: keras.layers.Layer) -> list[CosineDense | CenterDense]:
    """All heads of this package in a model."""
    return [x for x in layers_of(model) if isinstance(x, CosineDense | CenterDense)]
