"""Retrieval on held-out images, at the end of each epoch of `fit`."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from keras_pedcc.common import Array, ArrayLike, Logs
from keras_pedcc.common.checks import (
    check_classes,
    check_whole,
    rows_without_direction,
)
from keras_pedcc.evaluation.embedding import check_images, embed, embedder
from keras_pedcc.evaluation.prediction import map_arrays, number_of_rows
from keras_pedcc.evaluation.retrieval import check_ranks, retrieval_report


class RetrievalCallback(keras.callbacks.Callback):
    """Searches among held-out images at the end of each epoch and logs the result.

    Embeds the images and adds the numbers of `retrieval_report` to the logs and the
    history: `val_retrieval_recall_at_1` (the accuracy of the nearest neighbour) and so
    on for each k, and `val_retrieval_mean_average_precision_at_r`. Callbacks later in
    the list can monitor them. Keras infers `mode` for the metrics of `compile` only and
    raises an error for others, so pass it: `ModelCheckpoint(path,
    monitor="val_retrieval_recall_at_1", mode="max")`. The same holds for
    `EarlyStopping` and `ReduceLROnPlateau`.

    If features become NaN, infinite or zero, all values are NaN and training continues.

    Args:
        images: Array or tensor, shape `(images, ...)`; or a list or dict of them, one
            for each input of the model.
        labels: Class of each image, any labels, shape `(images,)` or `(images, 1)`.
        gallery: Images to search among, in the form of `images`. Defaults to `images`,
            each without itself.
        gallery_labels: Class of each image of `gallery`.
        k: int, at least 1, or a sequence of them.
        subset: int, at least 2. Number of images to use, drawn once. They are the
            queries and, without a gallery, the items. The cost grows with its square.
            Defaults to all images.
        batch_size: int, at least 1. Images per step. Defaults to 32.
        flip: bool. Whether to add the features of the mirror image, see `embed`.
            Defaults to `False`.
        name: Name between `val_` and `_recall_at_1`, to tell several sets apart.
            Defaults to `"retrieval"`.

    Raises:
        TypeError: `k`, `subset` or `batch_size` is not a whole number.
        ValueError: A shape or value does not fit; no image has a match; in `fit`, the
            model has no `features`, see `embedder`.

    Example:

    >>> search = keras_pedcc.RetrievalCallback(x, y, k=1)
    >>> history = model.fit(x, y, epochs=2, callbacks=[search], verbose=0)
    >>> len(history.history["val_retrieval_recall_at_1"])
    2
    """

    def __init__(
        self,
        images: Any,
        labels: ArrayLike,
        *,
        gallery: Any = None,
        gallery_labels: ArrayLike | None = None,
        k: int | Sequence[int] = (1, 5),
        subset: int | None = None,
        batch_size: int = 32,
        flip: bool = False,
        name: str = "retrieval",
    ) -> None:
        super().__init__()
        check_whole(1, batch_size=batch_size)
        self.ranks = check_ranks(k)
        images = check_images(images) if flip else images
        labels = _labels_of("images", images, labels)
        self.images, self.labels = _drawn(images, labels, subset)
        if (gallery is None) != (gallery_labels is None):
            raise ValueError(
                "`gallery` and `gallery_labels` must come together. Received: one of "
                "them alone. Pass both, or neither to search among `images`."
            )
        self.gallery, self.gallery_labels = gallery, None
        if gallery is not None:
            self.gallery = check_images(gallery) if flip else gallery
            self.gallery_labels = _labels_of("gallery", gallery, gallery_labels)
        _check_matches(self.labels, self.gallery_labels)
        self.keys = [f"recall_at_{each}" for each in self.ranks]
        self.keys.append("mean_average_precision_at_r")
        self.batch_size = batch_size
        self.flip = flip
        self.name = name

    def set_model(self, model: keras.Model) -> None:
        super().set_model(model)
        # Once, because each new model would be traced again.
        self._embedder = embedder(self.model)

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        found = self._report()
        if logs is not None:
            logs.update({f"val_{self.name}_{key}": found[key] for key in self.keys})

    def _report(self) -> dict[str, float]:
        features = [self._embedded(self.images)]
        if self.gallery is not None:
            features.append(self._embedded(self.gallery))
        if any(rows_without_direction(each).any() for each in features):
            return dict.fromkeys(self.keys, float("nan"))
        report = retrieval_report(
            features[0],
            self.labels,
            gallery=None if self.gallery is None else features[1],
            gallery_labels=self.gallery_labels,
            k=self.ranks,
        )
        return {key: report[key] for key in self.keys}

    def _embedded(self, images: Any) -> Array:
        return embed(self._embedder, images, batch_size=self.batch_size, flip=self.flip)


def _labels_of(name: str, images: Any, labels: ArrayLike | None) -> Array:
    """Returns the class of each image, or raises."""
    rows = np.empty((number_of_rows(images), 0))
    of_labels = "labels" if name == "images" else f"{name}_labels"
    return check_classes(**{of_labels: labels, name: rows})


def _drawn(images: Any, labels: Array, subset: int | None) -> tuple[Any, Array]:
    """A fixed random subset of the images, in their order."""
    if subset is None:
        return images, labels
    check_whole(2, subset=subset)
    size, rng = min(subset, len(labels)), np.random.default_rng(0)
    rows = np.sort(rng.choice(len(labels), size, replace=False))
    return map_arrays(lambda each: each[rows], images), labels[rows]


def _check_matches(labels: Array, gallery_labels: Array | None) -> None:
    if gallery_labels is None:
        matched = np.unique(labels, return_counts=True)[1].max() > 1
    else:
        matched = np.isin(labels, gallery_labels).any()
    if not matched:
        raise ValueError(
            "There must be an image that shares its label with another one to be "
            f"found. Received: {len(labels)} images without one. Pass more images, or "
            "look at the labels."
        )
