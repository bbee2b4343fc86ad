"""Where the images come from: plain `.npz` files, or tensorflow-datasets."""

import collections.abc
import dataclasses
import zipfile
import zlib

import numpy as np

ARRAYS = ("x_train", "y_train", "x_test", "y_test")


class BadInputError(Exception):
    """Something the user can put right: told in one message, exit code 2."""


@dataclasses.dataclass(frozen=True)
class Source:
    """Where a data set is found, and what it must look like.

    Attributes:
        title: Name in messages and figures.
        files: Names of the `.npz` file, the first that exists is taken.
        tfds_name: Name in tensorflow-datasets.
        shape: Shape of an image, `(height, width, channels)`.
        num_classes: Number of classes.
        tfds_transposed: Whether tensorflow-datasets stores the images transposed.
        unofficial: Names of files that hold other images than the official ones.
        loader: Function that gives the `Images`, where there is neither.
    """

    title: str
    files: tuple
    tfds_name: str
    shape: tuple
    num_classes: int
    tfds_transposed: bool = False
    unofficial: tuple = ()
    loader: collections.abc.Callable | None = None


@dataclasses.dataclass
class Images:
    """Training and scored part: uint8 images and int32 labels."""

    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    origin: str
    class_names: tuple = ()
    num_classes: int = 0
    crop: int | None = None  # the side of what the network takes, if not all

    def fingerprint(self):
        """Changes with any byte of the data."""
        value = 0
        for name in ARRAYS:
            value = zlib.crc32(np.ascontiguousarray(getattr(self, name)), value)
        return f"{value:08x}"


def load(source, data_dir=None, *, held_out=0, limit=None, imbalance=1.0):
    """Loads a data set, whole or in part.

    Args:
        source: `Source`.
        data_dir: Folder with the `.npz` file; `None` for tensorflow-datasets.
        held_out: If not 0, this many training images, evenly over the classes,
            take the place of the test images and are not trained on.
        limit: Number of training images to keep, drawn evenly over the classes.
        imbalance: Number of images of the first class for each of the last, in what
            is left of them; see `long_tail`.

    Returns:
        `Images`.

    Raises:
        BadInputError: The data cannot be had, or are not as they must be.
    """
    if source.loader:
        images = source.loader()
    else:
        images = _from_npz(source, data_dir) if data_dir else _from_tfds(source)
    images = _checked(source, images)
    if held_out:
        images = _hold_out(images, held_out)
    if limit is not None:
        kept = _evenly(images.y_train, limit, "--limit")
        images.x_train, images.y_train = images.x_train[kept], images.y_train[kept]
    if imbalance > 1:
        kept = _thinned(images.y_train, source.num_classes, imbalance)
        images.x_train, images.y_train = images.x_train[kept], images.y_train[kept]
    return images


def load_digits():
    """The 1,797 handwritten digits of scikit-learn, 30 % of them for the test."""
    from sklearn import datasets, model_selection

    x, y = datasets.load_digits(return_X_y=True)
    x = np.rint(x * (255 / 16)).astype("uint8").reshape(-1, 8, 8, 1)
    parts = model_selection.train_test_split(
        x, y, test_size=0.3, stratify=y, random_state=0
    )
    x_train, x_test, y_train, y_test = parts
    return Images(x_train, y_train, x_test, y_test, "scikit-learn's digits")


def _from_npz(source, data_dir):
    found = [data_dir / name for name in source.files if (data_dir / name).is_file()]
    if not found:
        names = " or ".join(source.files)
        raise BadInputError(f"no {names} in {data_dir}. {_both_ways(source)}")
    arrays = read_arrays(found[0], ARRAYS, ("class_names",))
    names = tuple(map(str, np.atleast_1d(arrays.pop("class_names", ()))))
    return Images(**arrays, origin=found[0].name, class_names=names)


def read_arrays(path, names, optional=()):
    """Arrays of an `.npz` file by their names, those that may be missing if there."""
    try:
        with path.open("rb") as stream, _load(stream) as file:
            missing = [name for name in names if name not in file.files]
            if missing:
                raise BadInputError(f"{path} has no array {missing[0]!r}.")
            there = [name for name in optional if name in file.files]
            return {name: file[name] for name in (*names, *there)}
    except _UNREADABLE as error:
        raise BadInputError(
            f"{path} cannot be read: it is truncated or no .npz file ({error})."
        ) from error


def _load(stream):
    file = np.load(stream, allow_pickle=False)
    if not isinstance(file, np.lib.npyio.NpzFile):
        raise ValueError("it holds one array without a name")
    return file


# Whatever a damaged file can make NumPy and zipfile raise.
_UNREADABLE = (
    OSError,
    ValueError,
    EOFError,
    NotImplementedError,
    RuntimeError,
    zipfile.BadZipFile,
    zlib.error,
)


def _from_tfds(source):
    """Both official splits; downloads them at the first time."""
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise BadInputError(
            f"tensorflow-datasets cannot be imported ({error}). {_both_ways(source)}"
        ) from error
    _leave_gpus_to_keras()
    try:
        builder = tfds.builder(source.tfds_name)
        builder.download_and_prepare()
        parts = builder.as_dataset(split=["train", "test"], batch_size=-1)
        (x_train, y_train), (x_test, y_test) = [
            (part["image"], part["label"]) for part in tfds.as_numpy(parts)
        ]
    except Exception as error:  # whatever stands between here and the files
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        raise BadInputError(
            f"tensorflow-datasets cannot give {source.tfds_name} ({reason}). "
            f"{_both_ways(source)}"
        ) from error
    if source.tfds_transposed:
        x_train, x_test = (x.transpose(0, 2, 1, 3) for x in (x_train, x_test))
    origin = f"tensorflow-datasets {builder.info.full_name}"
    return Images(x_train, y_train, x_test, y_test, origin)


def _leave_gpus_to_keras():
    """Keeps TensorFlow, which only reads here, from taking their memory."""
    import keras

    if keras.backend.backend() != "tensorflow":
        import tensorflow as tf

        tf.config.set_visible_devices([], "GPU")


def _both_ways(source):
    return (
        f"{source.title} comes in two ways. Without --data-dir the first run downloads "
        'it: pip install "keras-pedcc[tensorflow,examples]", and be online. With '
        f"--data-dir FOLDER it is {' or '.join(source.files)} there, with arrays "
        f"{', '.join(ARRAYS)} "
        f"(images uint8, shape (n, {', '.join(map(str, source.shape))}); labels from "
        f"0 to {source.num_classes - 1}). That needs no TensorFlow."
    )


def _checked(source, images):
    """The same data in one form: channels last, contiguous, int32 labels."""
    images.num_classes = source.num_classes
    for part in ("train", "test"):
        x, y = getattr(images, f"x_{part}"), getattr(images, f"y_{part}")
        if x.ndim == 3:
            x = x[..., None]
        if x.dtype != np.uint8 or x.shape[1:] != source.shape or not len(x):
            raise BadInputError(
                f"x_{part} in {images.origin} must be uint8 of shape "
                f"{('n', *source.shape)}; it is {x.dtype} of shape {x.shape}."
            )
        if y.shape not in ((len(x),), (len(x), 1)) or y.dtype.kind not in "iu":
            raise BadInputError(
                f"y_{part} in {images.origin} must be whole numbers of shape "
                f"({len(x)},); it is {y.dtype} of shape {y.shape}."
            )
        bad = (y < 0) | (y >= source.num_classes)
        if bad.any():
            raise BadInputError(
                f"y_{part} in {images.origin} must lie between 0 and "
                f"{source.num_classes - 1}; it has {y[bad][0]} ({bad.sum()} of "
                f"{len(y)} are outside)."
            )
        setattr(images, f"x_{part}", np.ascontiguousarray(x))
        setattr(images, f"y_{part}", y.reshape(-1).astype("int32"))
    return images


def _hold_out(images, number):
    held = np.zeros(len(images.y_train), bool)
    held[_evenly(images.y_train, number, "--held-out")] = True
    if held.all():
        raise BadInputError(f"--held-out {number} leaves no image to train on.")
    return dataclasses.replace(
        images,
        x_train=images.x_train[~held],
        y_train=images.y_train[~held],
        x_test=images.x_train[held],
        y_test=images.y_train[held],
    )


def _evenly(labels, number, flag):
    """Indices of `number` samples, as even over the classes as can be.

    The same for every seed of training: the data are part of the question, not
    of the chance.
    """
    if not 0 < number <= len(labels):
        raise BadInputError(
            f"{flag} must lie between 1 and {len(labels)}, the number of training "
            f"images. Received: {number}."
        )
    order = np.random.default_rng(0).permutation(len(labels))
    by_class = order[np.argsort(labels[order], kind="stable")]
    sorted_labels = labels[by_class]
    first = np.searchsorted(sorted_labels, sorted_labels)
    rank = np.arange(len(labels)) - first  # of each sample within its class
    rounds = np.argsort(rank, kind="stable")
    return np.sort(by_class[rounds[:number]])


def _thinned(labels, num_classes, imbalance):
    """Indices of a long-tailed part, whose classes have the sizes of `long_tail`.

    With n the size of the smallest class. Which images these are is the same for every
    seed of training.
    """
    order = np.random.default_rng(0).permutation(len(labels))
    smallest = np.bincount(labels, minlength=num_classes).min()
    keep = long_tail(smallest, num_classes, imbalance)
    kept = [order[labels[order] == k][:number] for k, number in enumerate(keep)]
    return np.sort(np.concatenate(kept))


def long_tail(largest, num_classes, imbalance):
    """Sizes of the classes: `n_k = n imbalance^(-k / (num_classes - 1))`, at least 1.

    Args:
        largest: n, number of images of the first class.
        num_classes: int.
        imbalance: Number of images of the first class for each of the last.

    Returns:
        Array of int, shape `(num_classes,)`.
    """
    shares = imbalance ** -np.linspace(0, 1, num_classes)
    return np.maximum(1, np.rint(largest * shares).astype(int))
