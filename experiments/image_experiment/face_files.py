"""Faces as they lie on the disk: folders of people, LFW's lists, `.npz` files."""

import dataclasses
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from image_experiment.data import BadInputError, read_arrays

# The official LFW images: most of the 250 x 250 pixels are not the face.
LFW_SIDE, LFW_FACE = 250, 128


@dataclasses.dataclass
class Pairs:
    """Images, and which of them are compared.

    Attributes:
        images: uint8, shape `(n, height, width, 3)`.
        pairs: Indices into them, shape `(pairs, 2)`.
        same: Whether both show one person, shape `(pairs,)`.
        folds: The fold of each pair, or `None`.
    """

    images: np.ndarray
    pairs: np.ndarray
    same: np.ndarray
    folds: np.ndarray | None = None


@dataclasses.dataclass
class People:
    """Images of people, with the number of each in `names`."""

    images: np.ndarray
    labels: np.ndarray
    names: tuple


def read_people(path, size, unreadable):
    """People from a folder with one sub-folder each, or from an `.npz`.

    Args:
        path: Folder, or file with `images` (uint8, square, RGB) and `labels`.
        size: Images of a folder are resized to this side.
        unreadable: The largest share of files that may be no readable images.
    """
    if path.is_dir():
        return _read_folder(path, size, unreadable)
    arrays = _arrays(path, ("images", "labels"))
    images = _checked_images(arrays["images"], path)
    names, labels = np.unique(arrays["labels"], return_inverse=True)
    if arrays["labels"].shape != (len(images),):
        raise BadInputError(
            f"labels in {path} must be of shape ({len(images)},), one for each image; "
            f"they are of shape {arrays['labels'].shape}."
        )
    return People(images, labels.astype("int32"), tuple(map(str, names)))


def read_lfw(path, *, development):
    """The test pairs of LFW, and the people of its development part for training.

    Args:
        path: The official folder with `pairs.txt` (`pairsDevTest.txt` and
            `peopleDevTrain.txt`) and the images, or an `.npz`.
        development: Whether to take the development split. Without it there are ten
            folds, and nobody to train on.

    Returns:
        `Pairs`, and `People` or `None`.
    """
    if (path / "lfw.npz").is_file():
        path = path / "lfw.npz"
    if path.is_dir():
        return _read_lfw_folder(path, development)
    if not development:
        arrays = _arrays(path, ("images", "pairs"))
        images = _checked_images(arrays["images"], path)
        return _pairs_of(images, arrays["pairs"], path, folds=True), None
    arrays = _arrays(
        path, ("images", "labels", "person_dev_split", "pairs_dev_test", "people")
    )
    images = _checked_images(arrays["images"], path)
    labels, people, split = (
        arrays[name] for name in ("labels", "people", "person_dev_split")
    )
    numbers = labels.dtype.kind in "iu" and labels.shape == (len(images),)
    if not numbers or labels.min(initial=0) < 0 or labels.max() >= len(people):
        raise BadInputError(f"labels in {path} do not fit its images and people.")
    if len(split) != len(people):
        raise BadInputError(f"person_dev_split in {path} does not fit its people.")
    chosen = split[labels] == 1
    used = _checked_rows(arrays["pairs_dev_test"], len(images), path, width=3)[:, :2]
    if chosen[used].any():
        raise BadInputError(
            f"pairs_dev_test in {path} shows people of DevTrain, who are trained on: "
            f"{people[labels[used[chosen[used]]]][0]} for one."
        )
    names, labels = np.unique(people[labels[chosen]], return_inverse=True)
    trained = People(images[chosen], labels.astype("int32"), tuple(map(str, names)))
    return _pairs_of(images, arrays["pairs_dev_test"], path, folds=False), trained


def relabelled(people, kept):
    """Part of the images; the people who are in it, numbered from 0."""
    present, labels = np.unique(people.labels[kept], return_inverse=True)
    names = tuple(people.names[i] for i in present)
    return People(people.images[kept], labels.astype("int32"), names)


def _pairs_of(images, rows, path, *, folds):
    """Pairs from rows of two indices, same or not, and perhaps the fold."""
    rows = _checked_rows(rows, len(images), path, width=4 if folds else 3)
    used, index = np.unique(rows[:, :2], return_inverse=True)
    index = index.reshape(-1, 2)
    fold = rows[:, 3] if folds else None
    if folds and len(np.unique(fold)) < 2:
        raise BadInputError(f"pairs in {path} must lie in two folds or more.")
    return Pairs(images[used], index, rows[:, 2].astype(bool), fold)


def _checked_rows(rows, number, path, width):
    if rows.ndim != 2 or rows.shape[1] < width or rows.dtype.kind not in "iu":
        raise BadInputError(
            f"pairs in {path} must be whole numbers in {width} columns: two indices, "
            f"whether they show one person{', the fold' if width == 4 else ''}. They "
            f"are {rows.dtype} of shape {rows.shape}."
        )
    outside = ((rows[:, :2] < 0) | (rows[:, :2] >= number)).any(axis=1)
    if outside.any():
        raise BadInputError(
            f"pairs in {path} point past the {number} images: "
            f"{rows[outside][0, :2].tolist()}, {outside.sum()} of {len(rows)} pairs."
        )
    counts = [int((rows[:, 2] == kind).sum()) for kind in (0, 1)]
    if sum(counts) != len(rows) or min(counts) < 2:
        raise BadInputError(
            f"pairs in {path} must be marked 0 or 1 in their third column, at least "
            f"two of them each. There are {counts[0]} and {counts[1]} of {len(rows)}."
        )
    return rows


def _arrays(path, names):
    if not path.is_file():
        raise BadInputError(f"{path} is neither a folder nor a file. {_forms(names)}")
    return read_arrays(path, names)


def _forms(names):
    if "pairs" in names or "pairs_dev_test" in names:
        return (
            "LFW comes as its official folder, with pairs.txt (without --train: "
            "pairsDevTest.txt and peopleDevTrain.txt) and the images, or as an .npz "
            f"with {', '.join(names)}."
        )
    return (
        "People to train on come as a folder with a sub-folder of images for each, or "
        f"as an .npz with {', '.join(names)}."
    )


def _checked_images(images, path):
    square = images.ndim == 4 and images.shape[1] == images.shape[2]
    if images.dtype != np.uint8 or not square or images.shape[3] != 3:
        raise BadInputError(
            f"images in {path} must be uint8 of shape (n, side, side, 3); they are "
            f"{images.dtype} of shape {images.shape}."
        )
    return images


def _read_folder(folder, size, unreadable):
    people = sorted(child for child in folder.iterdir() if child.is_dir())
    files = [sorted(f for f in person.iterdir() if f.is_file()) for person in people]
    paths = [file for own in files for file in own]
    if not paths:
        raise BadInputError(
            f"{folder} has no sub-folder with images: there must be one for each "
            "person."
        )
    _tell(
        "people without a file",
        [p.name for p, own in zip(people, files, strict=True) if not own],
    )
    images, readable = _decode(paths, size)
    bad = [
        str(p.relative_to(folder))
        for p, good in zip(paths, readable, strict=True)
        if not good
    ]
    if len(bad) > unreadable * len(paths):
        raise BadInputError(
            f"{len(bad)} of {len(paths)} files in {folder} are no readable images, and "
            f"--unreadable allows a share of {unreadable:g}. {_some(bad)}"
        )
    _tell("files that are no readable images", bad)
    labels = np.repeat(np.arange(len(people)), [len(own) for own in files])
    names = tuple(person.name for person in people)
    return relabelled(People(images, labels, names), readable)


def _decode(paths, size):
    """Images of files, `(n, size, size, 3)`, and which could be read."""
    images = np.zeros((len(paths), size, size, 3), "uint8")

    def decode(number):
        image = _open(paths[number])
        if image is None:
            return False
        images[number] = np.asarray(image.resize((size, size)))
        return True

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return images, np.array(list(pool.map(decode, range(len(paths)))), bool)


def _open(path):
    """The RGB image in a file, the face of an official LFW image; `None` if none."""
    try:
        from PIL import Image
    except ImportError as error:
        raise BadInputError(
            f'Image files need Pillow ({error}): pip install "keras-pedcc[examples]".'
        ) from error
    try:
        with Image.open(path) as file:
            image = file.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    if image.size == (LFW_SIDE, LFW_SIDE):
        edge = (LFW_SIDE - LFW_FACE) // 2
        return image.crop((edge, edge, edge + LFW_FACE, edge + LFW_FACE))
    return image


def _read_lfw_folder(folder, development):
    names = "pairsDevTest.txt" if development else "pairs.txt"
    rows, in_fold = parse_pairs(_text(folder / names), folder / names)
    paths = sorted({_file_of(image) for row in rows for image in row[:2]})
    place = {path: number for number, path in enumerate(paths)}
    table = np.array(
        [
            [place[_file_of(a)], place[_file_of(b)], same, number // in_fold]
            for number, (a, b, same) in enumerate(rows)
        ]
    )
    root = _image_root(folder, paths[0])
    images = _decode_all([root / path for path in paths])
    test = _pairs_of(images, table, folder, folds=not development)
    return test, _development_people(folder, root) if development else None


def parse_pairs(text, path):
    """Rows of LFW's lists of pairs, and how many there are in a fold.

    A row holds `(name, number)` twice and whether both are of one person.
    """
    lines = [line.split() for line in text.splitlines() if line.strip()]
    try:
        in_half = int(lines[0][-1])
        rows = []
        for line in lines[1:]:
            if len(line) == 3:
                name, a, b = line
                rows.append(((name, int(a)), (name, int(b)), True))
            else:
                first, a, second, b = line
                rows.append(((first, int(a)), (second, int(b)), False))
    except (IndexError, ValueError) as error:
        raise BadInputError(
            f"{path} is no list of pairs as LFW has them ({error})."
        ) from error
    if not rows or in_half < 1:
        raise BadInputError(f"{path} holds no pairs.")
    return rows, 2 * in_half


def _file_of(image):
    name, number = image
    return f"{name}/{name}_{number:04d}.jpg"


def _image_root(folder, example):
    """Where the folders of people are: in `folder` itself or one below."""
    children = sorted(child for child in folder.iterdir() if child.is_dir())
    for root in (folder, *children):
        if (root / example).is_file():
            return root
    raise BadInputError(
        f"{folder} has no {example}, neither in it nor one level below."
    )


def _decode_all(paths):
    """Every one of the images, of the size of the first."""
    first = _open(paths[0])
    size = LFW_FACE if first is None else first.size[0]
    images, readable = _decode(paths, size)
    if not readable.all():
        bad = [
            str(path) for path, good in zip(paths, readable, strict=True) if not good
        ]
        raise BadInputError(f"Images of pairs cannot be read. {_some(bad)}")
    return images


def _development_people(folder, root):
    path = folder / "peopleDevTrain.txt"
    lines = [line.split() for line in _text(path).splitlines() if line.strip()]
    try:
        counts = {name: int(count) for name, count in lines[1:]}
    except ValueError as error:
        raise BadInputError(
            f"{path} is no list of people as LFW has them ({error})."
        ) from error
    files = [
        _file_of((name, number + 1))
        for name, count in counts.items()
        for number in range(count)
    ]
    images = _decode_all([root / file for file in files])
    labels = np.repeat(np.arange(len(counts)), list(counts.values()))
    return People(images, labels.astype("int32"), tuple(counts))


def _text(path):
    try:
        return path.read_text()
    except OSError as error:
        raise BadInputError(
            f"{path} cannot be read ({error.strerror}). " + _forms(("images", "pairs"))
        ) from error


def _tell(what, names):
    if names:
        print(f"Skipped {len(names)} {what}. {_some(names)}")


def _some(names, most=5):
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"They are: {', '.join(names[:most])}{more}."
