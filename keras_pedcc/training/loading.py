"""Saved models, loaded if their files are whole."""

import os
import pathlib
import zipfile
from typing import Any

import keras


def load_model(
    filepath: str | os.PathLike[str],
    custom_objects: dict[str, Any] | None = None,
    compile: bool = True,
    safe_mode: bool = True,
) -> keras.Model:
    """`keras.saving.load_model` of a `.keras` file that is checked to be whole.

    On Python 3.12 and later Keras itself passes over a checksum that does not match: a
    file with a changed bit among its weights gives a model with other weights, without
    an error. Here every part of the file is read and compared with its CRC-32 first. As
    there, no code of the file is run unless `safe_mode=False` is passed.

    Args:
        filepath: `str` or `pathlib.Path`. Name of a file that `model.save` wrote,
            ending in `.keras`.
        custom_objects: Dict from names to classes or functions of your own that are not
            registered with Keras. Defaults to `None`.
        compile: bool. Whether to compile the model as it was saved. Defaults to `True`.
        safe_mode: bool. Whether to refuse files whose loading runs code of their own.
            Defaults to `True`.

    Returns:
        The model.

    Raises:
        TypeError: `filepath` is not a name, but an open file, say.
        FileNotFoundError: There is no such file.
        ValueError: The name ends otherwise, or the file is damaged; and what
            `keras.saving.load_model` raises.

    Example:

    >>> model.save("classifier.keras")
    >>> keras_pedcc.load_model("classifier.keras").name == model.name
    True
    """
    path = _check_name(filepath)
    _check_whole_file(path)
    return keras.saving.load_model(path, custom_objects, compile, safe_mode)


def _check_name(filepath: object) -> pathlib.Path:
    if not isinstance(filepath, str | os.PathLike):
        raise TypeError(
            "`filepath` must be the name of a file. Received: filepath="
            f"{filepath!r} (type {type(filepath).__name__}). Write the bytes to a file "
            "that ends in .keras, and pass its name."
        )
    path = pathlib.Path(filepath)
    if path.suffix != ".keras":
        raise ValueError(
            f"`filepath` must end in .keras. Received: filepath={str(path)!r}. Pass a "
            "file that `model.save` wrote under such a name; for other formats use "
            "`keras.saving.load_model`."
        )
    return path


def _check_whole_file(path: pathlib.Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise ValueError(f"the checksum of {damaged} does not match")
    except (FileNotFoundError, PermissionError):
        raise
    except Exception as error:  # whatever damaged bytes make Python raise
        raise ValueError(
            "`filepath` must be a whole file of `model.save`. Received: "
            f"filepath={str(path)!r}, which is damaged ({error}). Take a copy of it, "
            "or save the model again."
        ) from error
