"""Centroids on disk: files, and a cache of those that took long to compute."""

import hashlib
import json
import os
import pathlib
import time
import warnings
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_pedcc.common import Array, ArrayLike, Tensor
from keras_pedcc.common.atomic import write_file
from keras_pedcc.common.checks import check_centroids
from keras_pedcc.common.processes import whole

# Of the cache: increase it when the same arguments give different centroids.
VERSION = 1
WORTH_KEEPING = 1.0  # seconds


def save_centroids(path: str | os.PathLike[str], centroids: ArrayLike) -> None:
    """Writes centroids to a `.npy` or `.npz` file, atomically.

    The array is stored unchanged (bfloat16 as float32), without pickle. A `.npz` file
    also has its SHA-256, which `load_centroids` checks. Centroids that `class_parallel`
    divides among processes are gathered: every process must call this function, and all
    may pass the same name.

    Args:
        path: File name ending in `.npy` or `.npz`. Its folder must exist.
        centroids: Array or tensor, shape `(num_classes, dim)`, finite, without a
            row of zeros.

    Raises:
        ValueError: The name has another ending, or `centroids` are not valid.

    Example:

    >>> keras_pedcc.save_centroids("c.npz", keras_pedcc.generate_pedcc(10, 64))
    >>> keras_pedcc.load_centroids("c.npz").shape
    (10, 64)
    """
    path = _checked_path(path)
    array = storable(centroids)
    check_centroids(array)
    if path.suffix == ".npy":
        write_file(path, lambda file: np.save(file, array, allow_pickle=False))
    else:
        digest = np.array(_digest(array))
        write_file(path, lambda file: np.savez(file, centroids=array, sha256=digest))


def load_centroids(path: str | os.PathLike[str]) -> Array:
    """Reads centroids that `save_centroids` wrote, or any `.npy` of that shape.

    Args:
        path: File name ending in `.npy` or `.npz`.

    Returns:
        NumPy array, shape `(num_classes, dim)`, as it was saved, for
        `PEDCCDense(centroids=...)`.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file cannot be read, is damaged, or contains no centroids.
    """
    path = _checked_path(path)
    try:
        array, _ = _read(path)
    except FileNotFoundError:
        raise
    except Exception as error:  # whatever damaged bytes make NumPy raise
        raise ValueError(
            "`path` must be a file of `save_centroids`. Received: "
            f"path={str(path)!r}, which cannot be read ({error}). Save it again."
        ) from error
    check_centroids(array)
    return array


def storable(tensor: ArrayLike | keras.Variable) -> Array:
    """The centroids as a NumPy array of a dtype that files support."""
    array = whole(tensor)
    # `.npy` does not support bfloat16; float32 represents it exactly.
    return array.astype("float32") if array.dtype.kind == "V" else array


def cached(key: dict[str, Any], make: Callable[[], Tensor]) -> Tensor:
    """Returns the centroids of `key` from the cache, or computes and caches them.

    Files are written atomically. Several processes that start together may each compute
    the same centroids, but none reads an incomplete file.

    Args:
        key: JSON-compatible dict of everything that the centroids depend on.
        make: Function that computes them. If it takes less than a second, the result is
            not cached.
    """
    text = json.dumps({"version": VERSION} | key, sort_keys=True)
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:24]
    name = f"{key['num_classes']}x{key['dim']}-{name}.npz"
    found = _from_cache(name, text)
    if found is not None:
        return ops.convert_to_tensor(found)
    begun = time.monotonic()
    made = make()
    array = ops.convert_to_numpy(made)
    if time.monotonic() - begun > WORTH_KEEPING:
        _to_cache(name, array, text)
    return made


def cache_folder() -> pathlib.Path:
    """The folder of the cache."""
    if folder := os.environ.get("KERAS_PEDCC_CACHE"):
        return pathlib.Path(folder).expanduser()
    caches = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(caches) / "keras_pedcc"


def _read(path: pathlib.Path) -> tuple[Array, str | None]:
    """The centroids in a file, and the key if it is a cache file."""
    with path.open("rb") as file:
        loaded = np.load(file, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return loaded, None
        array = loaded["centroids"]
        if str(loaded["sha256"]) != _digest(array):
            raise ValueError("its checksum does not match")
        return array, str(loaded["key"]) if "key" in loaded else None


def _from_cache(name: str, text: str) -> Array | None:
    try:
        path = cache_folder() / name
        array, key = _read(path)
        if key != text:
            raise ValueError("it is of another version")
        return array
    except (FileNotFoundError, NotADirectoryError):
        return None
    except Exception as error:  # whatever damaged bytes make NumPy raise
        warnings.warn(
            f"The cached centroids in {name} are not used and made again ({error}).",
            stacklevel=4,
        )
        return None


def _to_cache(name: str, array: Array, text: str) -> None:
    digest, key = np.array(_digest(array)), np.array(text)
    try:
        path = cache_folder() / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(
            path,
            lambda file: np.savez(file, centroids=array, sha256=digest, key=key),
        )
    except (OSError, RuntimeError) as error:  # no such folder, or no home
        warnings.warn(
            f"The centroids are not kept in the cache ({error}). Set the environment "
            "variable KERAS_PEDCC_CACHE to a folder that can be written, or pass "
            "cache=False.",
            stacklevel=4,
        )


def _checked_path(path: str | os.PathLike[str]) -> pathlib.Path:
    path = pathlib.Path(path)
    if path.suffix not in (".npy", ".npz"):
        raise ValueError(
            f"`path` must end in .npy or .npz. Received: path={str(path)!r}. Rename it."
        )
    return path


def _digest(array: Array) -> str:
    array = np.ascontiguousarray(array)
    head = f"{array.dtype} {array.shape} ".encode()
    return hashlib.sha256(head + array.tobytes()).hexdigest()
