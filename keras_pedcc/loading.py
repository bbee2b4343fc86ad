"""Saved models, loaded if their files are whole."""

import pathlib
import zipfile

import keras


def load_model(path, **kwargs):
    """`keras.saving.load_model` of a `.keras` file that is checked to be whole.

    On Python 3.12 and later Keras itself passes over a checksum that does not match: a
    file with a changed bit among its weights gives a model with other weights, without
    an error. Here every part of the file is read and compared with its CRC-32 first. As
    there, no code of the file is run unless `safe_mode=False` is passed.

    Args:
        path: Name of a file that `model.save` wrote, ending in `.keras`.
        **kwargs: See `keras.saving.load_model`.

    Returns:
        The model, compiled as it was saved.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The name ends otherwise, or the file is damaged; and what
            `keras.saving.load_model` raises.

    Example:

    >>> model.save("classifier.keras")
    >>> keras_pedcc.load_model("classifier.keras").name == model.name
    True
    """
    path = pathlib.Path(path)
    if path.suffix != ".keras":
        raise ValueError(
            f"`path` must end in .keras. Received: path={str(path)!r}. Pass a file "
            "that `model.save` wrote under such a name."
        )
    _check_whole_file(path)
    return keras.saving.load_model(path, **kwargs)


def _check_whole_file(path):
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise ValueError(f"the checksum of {damaged} does not match")
    except FileNotFoundError:
        raise
    except Exception as error:  # whatever damaged bytes make Python raise
        raise ValueError(
            "`path` must be a whole file of `model.save`. Received: "
            f"path={str(path)!r}, which is damaged ({error}). Take a copy of it, or "
            "save the model again."
        ) from error
