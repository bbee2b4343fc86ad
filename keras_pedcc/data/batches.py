"""Batches of P classes with K samples each."""

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_pedcc.common import Array, ArrayLike, Logs
from keras_pedcc.common.checks import check_classes, check_whole
from keras_pedcc.data.rounds import Rounds


class ClassBatches(keras.utils.PyDataset):
    """Data set for `fit` whose batches contain P classes with K samples each.

    Losses of pairs and triplets find positives and negatives in every batch, and rare
    classes occur as often as frequent ones. Every batch consists of exactly P classes
    with K samples each, class by class. After any number of batches the counts of all
    classes differ by at most one, and so do the counts of the samples of a class. A
    class with fewer than K samples is repeated as a whole as often as it fits into K,
    and the rest is drawn. With at least K samples, no batch contains a sample twice.

    The batches depend on `seed` and the epoch alone: `fit(batches, shuffle=False,
    callbacks=[batches.callback()])`. The callback passes the epoch of `fit` to the data
    set, also if `fit` starts later, with `initial_epoch` or `AtomicBackup`. Without it
    the data set counts how often Keras starts to read it, which may happen once before
    the first epoch. `shuffle=True`, the default of `fit`, shuffles the batches of an
    epoch with Python's global random state.

    Args:
        images: Array, shape `(n, ...)`, or an object with a length that returns an
            array for an array of row numbers, such as `ImageFiles`.
        labels: Class of each image, whole numbers as for the model, shape `(n,)` or
            `(n, 1)`.
        classes: int, at least 1, at most the number of classes: P.
        samples: int, at least 1: K.
        seed: int, at least 0. Seed of the batches. Defaults to 0.
        steps: int, at least 1. Batches per epoch. Defaults to `n / (P K)`, rounded up.

    Attributes:
        epoch: int. The epoch of the batches `batches[i]`. Settable.

    Raises:
        TypeError: A number is not whole.
        ValueError: A number is below its minimum; there are fewer classes than P; a
            shape does not fit; labels are not whole numbers.

    Example:

    >>> batches = keras_pedcc.ClassBatches(x, y, classes=5, samples=2)
    >>> images, labels = batches[0]
    >>> images.shape, len(batches), len(set(labels.tolist()))
    ((10, 8), 2, 5)

    Reference: Hermans et al., "In Defense of the Triplet Loss for Person
    Re-Identification", 2017, section 2 (P and K); Shen et al., "Relay
    Backpropagation for Effective Learning of Deep Convolutional Neural Networks",
    2016, section 3.4 (class-aware sampling).
    """

    def __init__(
        self,
        images: Any,
        labels: ArrayLike,
        *,
        classes: int,
        samples: int,
        seed: int = 0,
        steps: int | None = None,
    ) -> None:
        super().__init__()
        check_whole(1, classes=classes, samples=samples)
        check_whole(0, seed=seed)
        self.images = ops.convert_to_numpy(images) if ops.is_tensor(images) else images
        self.labels = _check_labels(labels, images)
        self.classes, self.samples, self.seed = int(classes), int(samples), int(seed)
        if steps is None:
            steps = -(-len(self.labels) // (classes * samples))
        check_whole(1, steps=steps)
        self.steps, self.epoch, self._begun = int(steps), 0, False
        self._members = _members_of(self.labels)
        self._draw_classes = Rounds(self._check_enough(), self.classes, (self.seed, 0))
        self._draw_samples = [
            Rounds(len(members), self.samples, (self.seed, 1 + number))
            for number, members in enumerate(self._members)
        ]

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, index: int) -> tuple[Array, Array]:
        return self._batch(self.rows(index))

    def rows(self, index: int) -> Array:
        """Row numbers of batch `index` of the epoch, shape `(P * K,)`."""
        return self._rows(self.epoch, index)

    def callback(self) -> keras.callbacks.Callback:
        """Returns a callback that passes the epoch of `fit` to this data set."""
        return _EpochOf(self)

    def on_epoch_begin(self) -> None:
        self._begun = True

    def on_epoch_end(self) -> None:
        # `fit` calls it before the first epoch, too, even if nothing was read.
        self.epoch += self._begun
        self._begun = False

    def to_tf_dataset(self) -> Any:
        """Returns the same batches in the same order as a `tf.data.Dataset` of one
        epoch.

        It reads ahead on several threads. Each iteration, such as an epoch of `fit`,
        yields the batches of the current `epoch`: pass `callbacks=[batches.callback()]`
        to `fit` to set it.

        Returns:
            `tf.data.Dataset` of `(images, labels)`, `len(self)` batches.
        """
        import tensorflow as tf

        first = self[0]
        size = tf.TensorSpec((len(first[1]),), "int64")
        rows = tf.data.Dataset.from_generator(self._all_rows, output_signature=size)

        def load(rows: Any) -> Any:
            kinds = [each.dtype for each in first]
            batch = tf.numpy_function(self._batch, [rows], kinds)
            for tensor, array in zip(batch, first, strict=True):
                tensor.set_shape(array.shape)
            return tuple(batch)

        known = rows.apply(tf.data.experimental.assert_cardinality(len(self)))
        return known.map(load, tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)

    def _all_rows(self) -> Any:
        epoch = self.epoch  # read once: the pipeline may continue past its end
        return (self._rows(epoch, index) for index in range(len(self)))

    def _rows(self, epoch: int, index: int) -> Array:
        group = epoch * self.steps + index
        drawn = self._draw_classes.group(group)
        places = group * self.classes + np.arange(self.classes)
        turns = places // len(self._members)  # how often each class has occurred before
        return np.concatenate(
            [
                self._members[number][self._draw_samples[number].group(turn)]
                for number, turn in zip(drawn, turns, strict=True)
            ]
        )

    def _batch(self, rows: Array) -> tuple[Array, Array]:
        return self.images[rows], self.labels[rows]

    def _check_enough(self) -> int:
        """Returns the number of classes, or raises if there are fewer than P."""
        number = len(self._members)
        if number < self.classes:
            raise ValueError(
                "`classes` must be at most the number of classes in `labels`. "
                f"Received: classes={self.classes}, with {number} classes. Pass a "
                "smaller number."
            )
        return number


class _EpochOf(keras.callbacks.Callback):
    """Sets the epoch of a data set before Keras reads its first batch."""

    def __init__(self, batches: ClassBatches) -> None:
        super().__init__()
        self.batches = batches

    def on_epoch_begin(self, epoch: int, logs: Logs = None) -> None:
        self.batches.epoch = epoch


def _check_labels(labels: ArrayLike, images: Any) -> Array:
    if not hasattr(images, "__getitem__") or not len(images):
        raise ValueError(
            "`images` must be an array with at least one image, or give one for row "
            f"numbers. Received: images of type {type(images).__name__}. Pass an array "
            "or `ImageFiles`."
        )
    rows = np.empty((len(images), 0))
    found = check_classes(labels=labels, images=rows)
    if found.dtype.kind not in "iu":
        raise ValueError(
            "`labels` must be whole numbers. Received: labels.dtype="
            f"{found.dtype}. Number the classes from 0, or pass the labels of "
            "`ImageFiles`."
        )
    return found


def _members_of(labels: Array) -> list[Array]:
    """The rows of each class."""
    _, codes = np.unique(labels, return_inverse=True)
    bounds = np.cumsum(np.bincount(codes))[:-1]
    return np.split(np.argsort(codes, kind="stable"), bounds)
