"""Images in files, with the class of each."""

import os
import pathlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import keras
import numpy as np

from keras_pedcc.common import Array, ArrayLike
from keras_pedcc.common.checks import check_whole

ENDINGS = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".webp")
THREADS = 8  # Pillow decodes without Python's lock


class ImageFiles:
    """List of image files and their classes, which reads images on demand.

    `files[rows]` reads the images of these rows, with `keras.utils.load_img`, several
    at a time; `files[0]` reads one, `files[:]` all. Needs Pillow.

    Args:
        paths: Path of each file, shape `(files,)`.
        labels: Class of each file, names or numbers, shape `(files,)`.
        size: `(height, width)` in pixels, to which all images are resized (bilinear).
        color_mode: `"rgb"`, `"grayscale"` or `"rgba"`.
        class_names: Names of the classes in the order of their numbers. For held-out
            images, which may lack some classes, pass those of the training images.
            Defaults to the sorted classes in `labels`.

    Attributes:
        labels: Class numbers, indices into `class_names`: int64, shape `(files,)`.
        class_names: List of str.
        paths: List of str.

    Raises:
        TypeError: A side of `size` is not a whole number.
        ValueError: A shape or value does not fit; a label is missing, or not one of
            `class_names`; on reading, an image cannot be read.

    Example:

    >>> files = keras_pedcc.ImageFiles(["a.png", "b.png"], ["cat", "dog"], size=(8, 8))
    >>> len(files), files.class_names, files.labels.tolist()
    (2, ['cat', 'dog'], [0, 1])
    """

    def __init__(
        self,
        paths: Sequence[str | os.PathLike[str]],
        labels: ArrayLike,
        *,
        size: tuple[int, int],
        color_mode: str = "rgb",
        class_names: Sequence[str] | None = None,
    ) -> None:
        given = np.asarray(labels)
        if given.shape != (len(paths),) or not len(given):
            raise ValueError(
                "There must be one label for each path, and at least one. Received: "
                f"{len(paths)} paths, labels.shape={given.shape}. Pass both in one "
                "order."
            )
        self.paths = [str(path) for path in paths]
        self.size = _check_size(size)
        self.color_mode = _check_color_mode(color_mode)
        self.class_names, self.labels = _numbered(given, class_names)

    @classmethod
    def from_folder(cls, folder: str | os.PathLike[str], **kwargs: Any) -> "ImageFiles":
        """Lists the images of a folder that has one subfolder for each class.

        The names of the subfolders are the classes. Images in nested folders are
        included. Files of other types and hidden files are ignored.

        Args:
            folder: Path of the folder.
            **kwargs: `size`, `color_mode` and `class_names`, as in the class.

        Returns:
            `ImageFiles`, sorted by class and path.

        Raises:
            ValueError: `folder` is not a folder, or has no subfolder, or one without
                images.
        """
        found = {each.name: _images_in(each) for each in _subfolders(folder)}
        empty = [name for name, paths in found.items() if not paths]
        if empty or not found:
            raise ValueError(
                "`folder` must have a sub-folder for each class, with images "
                f"({', '.join(ENDINGS)}). Received: folder={os.fspath(folder)!r} with "
                f"{len(found)} sub-folders, {len(empty)} of them without images "
                f"{empty[:3]}. Remove the empty ones, or pass the folder above them."
            )
        paths = [path for each in found.values() for path in each]
        labels = [name for name, each in found.items() for _ in each]
        return cls(paths, labels, **kwargs)

    @classmethod
    def from_table(
        cls,
        table: Any,
        *,
        paths: str = "path",
        labels: str = "label",
        folder: str | os.PathLike[str] = "",
        **kwargs: Any,
    ) -> "ImageFiles":
        """Lists the images of a table, such as a `pandas.DataFrame`.

        Args:
            table: Data frame, or dict of columns.
            paths: Name of the column of paths.
            labels: Name of the column of classes.
            folder: Folder of relative paths. Defaults to the current folder.
            **kwargs: `size`, `color_mode` and `class_names`, as in the class.

        Returns:
            `ImageFiles`, in the order of the table.

        Raises:
            ValueError: The table has no such column.
        """
        columns = list(getattr(table, "columns", table))
        unknown = [name for name in (paths, labels) if name not in columns]
        if unknown:
            raise ValueError(
                f"`table` must have the columns {paths!r} and {labels!r}. Received: a "
                f"table with the columns {columns}, without {unknown}. Pass "
                "paths=... and labels=..., the names of the columns."
            )
        start = pathlib.Path(folder)
        files = [start / str(path) for path in table[paths]]
        return cls(files, np.asarray(table[labels]), **kwargs)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, rows: Any) -> Array:
        """The images of some rows, float32 in [0, 255], shape `(rows, ...)`."""
        chosen = np.arange(len(self))[rows]
        if chosen.ndim == 0:
            return self[[rows]][0]
        paths = [self.paths[i] for i in chosen]
        images = self._read(paths)
        failed = [i for i, image in enumerate(images) if isinstance(image, Exception)]
        if failed:
            raise ValueError(
                f"The files must be images. Received: {len(failed)} of {len(paths)} "
                f"that cannot be read, the first {paths[failed[0]]!r} "
                f"({images[failed[0]]}). `unreadable()` lists all of them: remove "
                "them."
            )
        return np.stack(images)

    def unreadable(self) -> list[str]:
        """Returns the paths of all images that cannot be read. Reads all images."""
        size = 64 * THREADS  # images in memory at a time
        found: list[str] = []
        for start in range(0, len(self), size):
            paths = self.paths[start : start + size]
            pairs = zip(paths, self._read(paths), strict=True)
            found += [path for path, image in pairs if isinstance(image, Exception)]
        return found

    def _read(self, paths: list[str]) -> list[Any]:
        """The image of each path, or the exception that reading it raised."""
        with ThreadPoolExecutor(THREADS) as pool:
            return list(pool.map(_tried(self._image), paths))

    def _image(self, path: str) -> Array:
        image = keras.utils.load_img(
            path, self.color_mode, target_size=self.size, interpolation="bilinear"
        )
        return keras.utils.img_to_array(image, dtype="float32")


def _tried(read: Callable[[str], Array]) -> Callable[[str], Array | Exception]:
    def attempt(path: str) -> Array | Exception:
        try:
            return read(path)
        except ImportError:  # Pillow is missing; the file may be good
            raise
        except Exception as error:  # whatever damaged bytes make Pillow raise
            return error

    return attempt


def _subfolders(folder: str | os.PathLike[str]) -> list[pathlib.Path]:
    path = pathlib.Path(folder)
    inside = path.iterdir() if path.is_dir() else []
    return sorted(p for p in inside if p.is_dir() and not p.name.startswith("."))


def _images_in(folder: pathlib.Path) -> list[pathlib.Path]:
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in ENDINGS and not path.name.startswith(".")
    )


def _check_size(size: Any) -> tuple[int, int]:
    if np.shape(size) != (2,):
        raise ValueError(
            f"`size` must be (height, width). Received: size={size!r}. Pass two whole "
            "numbers, such as (224, 224)."
        )
    check_whole(1, height=size[0], width=size[1])
    return int(size[0]), int(size[1])


def _check_color_mode(color_mode: Any) -> str:
    if color_mode not in ("rgb", "grayscale", "rgba"):
        raise ValueError(
            '`color_mode` must be "rgb", "grayscale" or "rgba". Received: '
            f'color_mode={color_mode!r}. Leave it out for "rgb".'
        )
    return str(color_mode)


def _numbered(
    labels: Array, class_names: Sequence[str] | None
) -> tuple[list[str], Array]:
    """Names of the classes, and the number of the class of each label."""
    missing = labels != labels  # only NaN differs from itself
    missing |= np.array([label is None for label in labels])
    if missing.any():
        raise ValueError(
            f"`labels` must be classes. Received: {missing.sum()} that are missing, "
            f"the first labels[{missing.argmax()}]. Remove these rows."
        )
    names = [str(name) for name in np.unique(labels)]
    if class_names is not None:
        given = [str(name) for name in class_names]
        if len(set(given)) < len(given):
            raise ValueError(
                f"`class_names` must be all different. Received: {given}. Name each "
                "class once."
            )
        unknown = sorted(set(names) - set(given))
        if unknown:
            raise ValueError(
                "`class_names` must name all classes. Received: labels of "
                f"{len(unknown)} other classes {unknown[:3]}. Add their names, or "
                "remove these images."
            )
        names = given
    numbers = {name: number for number, name in enumerate(names)}
    return names, np.array([numbers[str(label)] for label in labels], "int64")
