"""Faces: people to train on, and pairs of images to compare."""

import dataclasses
import zlib

import numpy as np

from image_experiment.data import BadInputError
from image_experiment.face_files import Pairs, read_lfw, read_people, relabelled

# Of one held-out person, so that no one counts for more than this many pairs.
PAIRS_PER_PERSON = 20


@dataclasses.dataclass
class Faces:
    """What one run needs: people to train on, held-out pairs, and test pairs."""

    x_train: np.ndarray
    y_train: np.ndarray
    num_classes: int
    crop: int
    held_out: Pairs | None
    test: Pairs
    origin: str

    def fingerprint(self):
        """Changes with any byte of the data."""
        value = 0
        for pairs in filter(None, (self.held_out, self.test)):
            folds = np.zeros(0) if pairs.folds is None else pairs.folds
            for array in (pairs.images, pairs.pairs, pairs.same, folds):
                value = zlib.crc32(np.ascontiguousarray(array), value)
        for array in (self.x_train, self.y_train):
            value = zlib.crc32(np.ascontiguousarray(array), value)
        return f"{value:08x}"


def load(args):
    """The faces of a run.

    With `--train`, its people are the classes and the ten folds of LFW the test.
    Without, both come from LFW's development split, in which no person is in both.

    Raises:
        BadInputError: The data cannot be had, or are not as they must be.
    """
    if args.held_out is None:
        args.held_out = 0 if args.train else 100
    test, people = read_lfw(args.lfw, development=args.train is None)
    origin = "LFW's development split"
    if args.train is not None:
        people = read_people(args.train, args.image_size, args.unreadable)
        origin = args.train.name
    people = _with_enough(people, args.min_images)
    if len(people.names) < 2:
        raise BadInputError(
            f"{len(people.names)} people have {args.min_images} images or more, and "
            "there must be 2. Lower --min-images."
        )
    people, held_out = hold_out(people, args.held_out)
    if test.folds is None and held_out is None:
        raise BadInputError(
            "The development split takes its threshold from held-out people: "
            "--held-out must not be 0."
        )
    if args.score_held_out:
        if held_out is None:
            raise BadInputError("--score-held-out needs --held-out above 0.")
        test = dataclasses.replace(held_out, folds=fold_evenly(held_out.same))
    side = people.images.shape[1]
    test.images = resized(test.images, side)
    crop = max(8, side * 8 // 9 // 8 * 8) if args.crop is None else args.crop
    if not 1 <= crop <= side:
        raise BadInputError(
            f"--crop must lie between 1 and {side}, the side of the images. Received: "
            f"{crop}."
        )
    num_classes = len(people.names)
    if num_classes < 2:
        raise BadInputError(
            f"{num_classes} people are left to train on, and there must be 2. Lower "
            "--held-out or --min-images."
        )
    return Faces(
        people.images, people.labels, num_classes, crop, held_out, test, origin
    )


def hold_out(people, number):
    """Splits some people off, and makes pairs of their images.

    Which people and pairs is the same for every seed of training. Half of the pairs
    show one person, at most `PAIRS_PER_PERSON` of them the same one.
    """
    if not number:
        return people, None
    if number < 2 or number > len(people.names) - 2:
        raise BadInputError(
            f"--held-out must be 0, or lie between 2 and {len(people.names) - 2}, so "
            f"that two people remain to train on. Received: {number}."
        )
    draw = np.random.default_rng(0)
    away = np.zeros(len(people.names), bool)
    away[draw.choice(len(away), number, replace=False)] = True
    held = away[people.labels]
    pairs = _draw_pairs(people.labels[held], draw)
    kept = relabelled(people, ~held)
    return kept, dataclasses.replace(pairs, images=people.images[held])


def _draw_pairs(labels, draw):
    """As many pairs of two people as of one."""
    one = []
    for person in np.unique(labels):
        own = np.flatnonzero(labels == person)
        first, second = np.triu_indices(len(own), 1)
        some = draw.permutation(len(first))[:PAIRS_PER_PERSON]
        one.append(np.stack([own[first[some]], own[second[some]]], axis=1))
    one = np.concatenate(one)
    if len(one) < 2:
        raise BadInputError(
            f"The held-out people give {len(one)} pairs of one person, and there must "
            "be 2. Raise --held-out, or --min-images to 2."
        )
    two = np.empty((0, 2), int)
    while len(two) < len(one):
        drawn = draw.integers(0, len(labels), (4 * len(one), 2))
        drawn = drawn[labels[drawn[:, 0]] != labels[drawn[:, 1]]]
        two = np.concatenate([two, drawn])
    pairs = np.concatenate([one, two[: len(one)]])
    return Pairs(None, pairs, np.arange(len(pairs)) < len(one))


def fold_evenly(same):
    """One of ten folds for each pair, as even as can be for either kind."""
    folds = min(10, same.sum(), (~same).sum())
    place = np.empty(len(same), int)
    for kind in (True, False):
        at = np.flatnonzero(same == kind)
        place[at] = np.arange(len(at)) % folds
    return place


def centre(images, side):
    """The middle of square images."""
    start = (images.shape[1] - side) // 2
    return images[:, start : start + side, start : start + side]


def resized(images, side):
    """Square images of another size, averaged or interpolated."""
    if images.shape[1] == side:
        return images
    from PIL import Image

    return np.stack(
        [np.asarray(Image.fromarray(i).resize((side, side))) for i in images]
    )


def _with_enough(people, number):
    """Those people who have so many images."""
    counts = np.bincount(people.labels, minlength=len(people.names))
    return relabelled(people, counts[people.labels] >= number)
