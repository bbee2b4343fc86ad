"""The dominant sub-centres of classes, to find samples with wrong labels."""

import numpy as np

from keras_pedcc.common import Array, ArrayLike
from keras_pedcc.common.checks import check_classes, check_features, unit_rows
from keras_pedcc.evaluation.prediction import to_numpy
from keras_pedcc.layers.sub_center_dense import SubCenterDense


def dominant_sub_centers(
    head: SubCenterDense, features: ArrayLike, labels: ArrayLike
) -> Array:
    """Returns the sub-centre of each class that is nearest to most of its samples.

    Samples with wrong labels gather at other sub-centres than the majority. The paper
    removes samples more than 75 degrees from the dominant sub-centre of their class,
    and trains again with one centre for each class. In a tie, or for a class without
    samples, the first sub-centre is returned.

    Args:
        head: `SubCenterDense`, built.
        features: Array, shape `(batch, dim)`; need not be unit vectors.
        labels: Class indices, shape `(batch,)` or `(batch, 1)`.

    Returns:
        NumPy array of float64, shape `(num_classes, dim)`, unit vectors.

    Raises:
        ValueError: A shape does not fit, a label is out of range, or a row of features
            is zero or not finite.

    Example:

    >>> head = keras_pedcc.SubCenterDense(10, sub_centers=3)
    >>> features = keras.ops.convert_to_numpy(head(x)["features"])
    >>> centers = keras_pedcc.dominant_sub_centers(head, features, y)
    >>> cosines = np.sum(features * centers[y], axis=1)
    >>> clean = np.degrees(np.arccos(np.clip(cosines, -1, 1))) <= 75

    Reference: Deng et al., "Sub-center ArcFace: Boosting Face Recognition by
    Large-scale Noisy Web Faces", ECCV 2020,
    https://www.ecva.net/papers/eccv_2020/papers_ECCV/html/1445_ECCV_2020_paper.php
    """
    units = unit_rows(check_features(features=features))
    labels = check_classes(labels=labels, features=units)
    number, each = head.num_classes, head.sub_centers
    centers = unit_rows(to_numpy(head.centroids)).reshape(number, each, -1)
    labels = _check_range(labels, number)
    # One sub-centre per class at a time: gathering all takes K times the memory.
    cosines = [np.sum(units * centers[labels, k], axis=1) for k in range(each)]
    counts = np.zeros((number, each), int)
    np.add.at(counts, (labels, np.argmax(cosines, axis=0)), 1)
    return centers[np.arange(number), counts.argmax(axis=1)]


def _check_range(labels: Array, number: int) -> Array:
    good = (labels >= 0) & (labels < number) & (labels == np.floor(labels))
    if not good.all():
        raise ValueError(
            f"`labels` must be whole numbers in [0, {number}). Received: "
            f"labels[{good.argmin()}]={labels[good.argmin()]}. Remove these rows."
        )
    return labels.astype(int)
