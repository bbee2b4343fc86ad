"""Order and augmentation of the training images, as functions of seed and epoch."""

from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import keras
import numpy as np


class Plan(NamedTuple):
    """What happens in one epoch; rows by image, for each pass, but for `order`."""

    order: np.ndarray  # which images, in turn
    offsets: np.ndarray  # (n, 2), row and column where each crop starts
    flips: np.ndarray  # (n,), whether to mirror
    partners: np.ndarray  # (n,), which other image to mix in
    shares: np.ndarray  # (n,), how much of itself remains


class TrainingBatches(keras.utils.PyDataset):
    """Shuffled, augmented batches that any run can make again.

    Everything drawn for an image is a function of the seed, the epoch and the
    image's index, so that a run that was killed goes on as if it had not been,
    with any number of workers. Images that do not fill a batch are left out; with
    the next epoch's order they are others.

    Args:
        images: uint8, shape `(n, height, width, channels)`.
        labels: int32, shape `(n,)`.
        batch_size: Images per batch.
        seed: int.
        size: Side in pixels of the crop that is taken of square images at random;
            `None` for the size of the images, whatever their shape.
        pad: Pixels of black around each image, before the crop.
        flip: Whether to mirror half of the images, left to right.
        num_classes: Number of classes, for soft labels.
        label_smoothing: Share of the label that goes to all classes evenly.
        mixup: Parameter of the beta distribution from which the share of an image
            in its mixture with another is drawn; 0 for no mixing.
        passes: How often each image comes in an epoch.
        workers: Threads that make batches ahead, if more than 1. They are this class's
            own: those of Keras hand batches of one epoch over to the next.

    Labels come as `(batch,)`, or with smoothing or mixing as `(batch, num_classes)`.
    """

    def __init__(
        self,
        images,
        labels,
        batch_size,
        *,
        seed,
        size=None,
        pad=0,
        flip=False,
        num_classes=None,
        label_smoothing=0.0,
        mixup=0.0,
        passes=1,
        workers=1,
    ):
        super().__init__()
        self.ahead = workers if workers > 1 else 0
        self.pool = ThreadPoolExecutor(workers) if self.ahead else None
        self.labels = labels
        self.number = passes * len(images)
        self.batch_size = min(batch_size, self.number)
        self.seed, self.flip = seed, flip
        self.num_classes = num_classes
        self.label_smoothing, self.mixup = label_smoothing, mixup
        self.padded = images
        if pad:
            self.padded = np.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
        height, width, channels = images.shape[1:]
        self.shape = (size or height, size or width, channels)
        # How far a crop can lie from the top or the left.
        self.room = 2 * pad + (height - size if size else 0)
        self.set_epoch(0)

    def set_epoch(self, epoch):
        """Draws what happens in an epoch, counted from 0."""
        n = self.number
        draw = np.random.default_rng([self.seed, epoch])
        plan = Plan(
            order=draw.permutation(n),
            offsets=draw.integers(0, self.room + 1, (n, 2)),
            flips=draw.random(n) < (0.5 if self.flip else 0.0),
            partners=draw.permutation(n),
            shares=draw.beta(self.mixup, self.mixup, n) if self.mixup else np.ones(n),
        )
        # Together: whoever still asks for the last epoch gets nothing of this one.
        self.plan_and_made = plan, {}

    def __len__(self):
        return self.number // self.batch_size

    @property
    def plan(self):
        return self.plan_and_made[0]

    def __getitem__(self, number):
        plan, made = self.plan_and_made
        if self.pool is None:
            return self._make(plan, number)
        for following in range(number, min(number + self.ahead + 1, len(self))):
            if following not in made:
                made[following] = self.pool.submit(self._make, plan, following)
        return made.pop(number).result()

    def _make(self, plan, number):
        at = plan.order[number * self.batch_size : (number + 1) * self.batch_size]
        images, labels = self._crop(at, plan), self._labels(at)
        if not (self.mixup or self.label_smoothing):
            return images, labels
        labels = soft_labels(labels, self.num_classes, self.label_smoothing)
        return self._mix(images, labels, at, plan) if self.mixup else (images, labels)

    def _labels(self, at):
        # From the second pass on, numbers go on beyond that of the images.
        return self.labels[at % len(self.labels)]

    def _crop(self, at, plan):
        height, width, channels = self.shape
        windows = np.lib.stride_tricks.sliding_window_view(
            self.padded, (height, width, channels), axis=(1, 2, 3)
        )
        top, left = plan.offsets[at].T
        images = windows[at % len(self.labels), top, left, 0]
        mirrored = plan.flips[at]
        images[mirrored] = images[mirrored, :, ::-1]
        return images

    def _mix(self, images, labels, at, plan):
        others, shares = plan.partners[at], plan.shares[at, None]
        other_labels = soft_labels(
            self._labels(others), self.num_classes, self.label_smoothing
        )
        labels = shares * labels + (1 - shares) * other_labels
        shares = shares[:, None, None]
        mixed = shares * images + (1 - shares) * self._crop(others, plan)
        return np.rint(mixed).astype("uint8"), labels.astype("float32")


class FollowEpoch(keras.callbacks.Callback):
    """Tells the training batches which epoch it is, also after a resumption."""

    def __init__(self, batches):
        super().__init__()
        self.batches = batches

    def on_epoch_begin(self, epoch, logs=None):
        self.batches.set_epoch(epoch)


def soft_labels(labels, num_classes, smoothing=0.0):
    """`(1 - smoothing) one_hot + smoothing / num_classes`, shape `(n, num_classes)`."""
    soft = np.full((len(labels), num_classes), smoothing / num_classes, "float32")
    soft[np.arange(len(labels)), labels] += 1 - smoothing
    return soft
