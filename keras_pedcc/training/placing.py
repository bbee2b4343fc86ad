"""Centroids of some classes, moved where their features are."""

from collections.abc import Sequence

import keras
import numpy as np
from keras import ops

from keras_pedcc.common import Array, ArrayLike
from keras_pedcc.common.checks import check_features, unit_rows
from keras_pedcc.layers.cosine_dense import CosineDense
from keras_pedcc.layers.heads import heads_of
from keras_pedcc.layers.kerdock_dense import KerdockDense


def place_classes(
    model: keras.Model, classes: Sequence[int] | Array, directions: ArrayLike
) -> None:
    """Moves the centroids of some classes to given directions: `c_j = v_j / |v_j|`.

    For classes that came later than the index or the training of the others: at the
    mean of their features, which `keras_pedcc.embed` returns, they are recognised
    without training, less often than classes that were trained. The centroids of other
    classes, what is frozen, and the state of the optimizer stay as they are. The
    fingerprint of the centroids changes.

    Args:
        model: `keras.Model` with one `PEDCCDense` or `CosineDense` that is built, in
            nested models and layers, too.
        classes: Whole numbers, different ones, from 0 to one below the classes in use,
            shape `(n,)`. See `keras_pedcc.grow_classes` to take more in use.
        directions: Array or tensor of any real dtype, shape `(n, dim)`: a row for each
            of the classes, of any length but 0.

    Raises:
        ValueError: The model has no such head, or several; a class is out of range or
            twice there; `directions` has another shape, a NaN, or a row of zeros.

    Example:

    >>> head = keras_pedcc.PEDCCDense(3, return_features=False)
    >>> model = keras.Sequential([keras.Input((4,)), head])
    >>> keras_pedcc.place_classes(model, [2], [[0.0, 0.0, 5.0, 0.0]])
    >>> [float(x) for x in keras.ops.convert_to_numpy(head.centroids)[2]]
    [0.0, 0.0, 1.0, 0.0]
    """
    head = _head_of(model)
    index = np.asarray(classes)
    _check_classes(index, head.num_classes)
    rows = check_features(directions=directions)
    if rows.shape != (len(index), head.centroids.shape[1]):
        raise ValueError(
            "`directions` must have a row for each class and a column for each "
            f"feature. Received: directions.shape={rows.shape}, for {len(index)} "
            f"classes and {head.centroids.shape[1]} features. Pass the mean of the "
            "features of each class."
        )
    centroids = np.array(ops.convert_to_numpy(head.centroids))
    centroids[index] = unit_rows(rows)
    head.centroids.assign(centroids)


def _head_of(model: keras.Model) -> CosineDense:
    own = {id(v) for v in model.variables}
    heads = [
        head
        for head in heads_of(model)
        if isinstance(head, CosineDense) and not isinstance(head, KerdockDense)
    ]
    # A layer may know another one that is no part of the model, such as a teacher.
    heads = [head for head in heads if head.built and id(head.centroids) in own]
    if len(heads) != 1 or heads[0].centroids.shape[0] != heads[0].capacity:
        raise ValueError(
            "`place_classes` needs a model with one `PEDCCDense` or `CosineDense` that "
            f"is built. Received: model {model.name!r} with heads "
            f"{[head.name for head in heads]}. Pass the model with the head that is "
            "meant, after its first call."
        )
    return heads[0]


def _check_classes(index: Array, num_classes: int) -> None:
    whole = index.ndim == 1 and index.size and index.dtype.kind in "iu"
    inside = whole and index.min() >= 0 and index.max() < num_classes
    if not inside or len(np.unique(index)) < len(index):
        raise ValueError(
            "`classes` must be different whole numbers from 0 to "
            f"{num_classes - 1}, the classes in use. Received: classes="
            f"{index.tolist()}. Call `keras_pedcc.grow_classes` first if the head has "
            "room for more."
        )
