"""What the old and the new network are trained on, and the images both embed."""

import dataclasses

import numpy as np
from image_experiment import data, face_data, face_files

KNOWN_SHARE = 30 / 47  # of the classes
PROBES = 100  # images of a class, at most, for means, thresholds and galleries
TESTED = 100  # test images of a class, at most


@dataclasses.dataclass
class Task:
    """Images whose classes are numbered so that the old network knows the first ones.

    Attributes:
        x: uint8 training images, shape `(n, height, width, channels)`.
        y: Classes of these.
        first_half: Which training images the old network may see, bool.
        x_test: Images that both networks embed, of all classes.
        y_test: Classes of these.
        num_classes: Number of all classes.
        num_known: Number of classes of the old network.
    """

    x: np.ndarray
    y: np.ndarray
    first_half: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    num_classes: int
    num_known: int

    @property
    def for_old(self):
        """Indices of the training images of the old network."""
        return np.flatnonzero(self.first_half & (self.y < self.num_known))

    def probes(self, first_half):
        """Indices of up to 100 training images a class, of one half."""
        labels = np.where(self.first_half == first_half, self.y, -1)
        return first_of_each(labels, self.num_classes, PROBES)


def make_task(images, seed):
    """The task of a seed, which draws the known classes and the halves of the images.

    Args:
        images: `image_experiment.data.Images`.
        seed: int.
    """
    draw = np.random.default_rng(seed)
    number = images.num_classes
    new_class = draw.permutation(number)
    y = new_class[images.y_train]
    first_half = np.zeros(len(y), bool)
    for k in range(number):
        members = draw.permutation(np.flatnonzero(y == k))
        first_half[members[: -(-len(members) // 2)]] = True
    y_test = new_class[images.y_test]
    tested = first_of_each(y_test, number, TESTED)
    return Task(
        images.x_train,
        y,
        first_half,
        images.x_test[tested],
        y_test[tested],
        number,
        num_known=round(KNOWN_SHARE * number),
    )


def first_of_each(labels, number, most):
    """Indices of the first images of each class, at most so many."""
    members = [np.flatnonzero(labels == k)[:most] for k in range(number)]
    return np.concatenate(members)


def load(args):
    """The images of `--data`, whatever the seed."""
    return load_faces(args) if args.data == "lfw" else load_characters(args)


def load_characters(args):
    from emnist import EMNIST

    return data.load(EMNIST.source, args.data_dir)


def load_faces(args):
    """The people of LFW with enough images; every fifth image is for the test."""
    people = face_files.read_people(args.data_dir / "lfw.npz", 64, 0)
    counts = np.bincount(people.labels)
    enough = counts[people.labels] >= args.min_images
    people = face_files.relabelled(people, enough)
    order = np.random.default_rng(0).permutation(len(people.labels))
    order = order[np.argsort(people.labels[order], kind="stable")]
    x, y = face_data.centre(people.images[order], 48), people.labels[order]
    test = (np.arange(len(y)) - np.searchsorted(y, y)) % 5 == 0
    parts = (x[~test], y[~test], x[test], y[test])
    return data.Images(*parts, "lfw.npz", num_classes=len(people.names))
