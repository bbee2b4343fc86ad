"""Outputs of a model for inputs in any form, also if devices share every batch."""

import itertools
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import keras
import numpy as np
from keras import ops

from keras_pedcc.common import Array, ArrayLike
from keras_pedcc.common.checks import check_whole
from keras_pedcc.common.replicas import number_of_replicas, strategy_scope

T = TypeVar("T")


def predict_all(model: keras.Model, images: Any, *, batch_size: int = 32) -> Any:
    """`model.predict` for any number of rows on any number of devices.

    `DataParallel` of JAX needs batches that divide evenly, and a TensorFlow replica
    without a row may fail in batch normalisation. So each batch is padded with copies
    of its first row, whose outputs are dropped.

    Args:
        model: `keras.Model`.
        images: As in `keras_pedcc.embed`.
        batch_size: int, at least 1. Rows of an array per batch, rounded up to a
            multiple of the number of devices.

    Returns:
        NumPy array, or a structure of them like the outputs of `model`, with one row
        for each image.

    Raises:
        TypeError: `batch_size` is not a whole number.
        ValueError: `images` are not arrays, differ in length, are more than the inputs
            of `model`, or yield no batch.

    Example:

    >>> keras_pedcc.evaluation.prediction.predict_all(model, x)["logits"].shape
    (20, 10)
    """
    check_whole(1, batch_size=batch_size)
    _check_number_of_arrays(model, images)
    parts = _parts_of_batch(model)
    rows: list[int] = []  # of each batch: its own, then its copies
    size: int | None
    if _are_arrays(images) or not isinstance(images, Iterable):
        inputs = _padded(images, parts, rows)
        size = batch_size + -batch_size % parts
    else:
        inputs = _check_not_empty(_padded_batches(images, parts, rows))
        size = None  # batches keep their own
    with warnings.catch_warnings():
        # Keras expects infinite generators, and warns if one ends.
        warnings.filterwarnings("ignore", "Your input ran out of data", UserWarning)
        outputs = model.predict(inputs, batch_size=size, verbose=0)
    return keras.tree.map_structure(
        lambda values: _without_copies(values, rows), outputs
    )


def _check_number_of_arrays(model: keras.Model, images: Any) -> None:
    """Raises an error for a list of batches, of which JAX would use only the first."""
    inputs = getattr(model, "inputs", None)  # of a subclassed model there are none
    if inputs and isinstance(images, list | tuple) and len(images) > len(inputs):
        raise ValueError(
            "`images` must be one array for each input of the model. Received: a "
            f"{type(images).__name__} of {len(images)}, for {len(inputs)} inputs. Pass "
            "np.concatenate(images), or iter(images) if these are batches."
        )


def _parts_of_batch(model: keras.Model) -> int:
    """Number of devices that share each batch of a model."""
    distribution = keras.distribution.distribution()
    if distribution is not None:
        return distribution.device_mesh.devices.size
    with strategy_scope(model):
        return number_of_replicas()


def _are_arrays(images: Any) -> bool:
    """Whether these are arrays, not an iterable of batches."""
    arrays = _arrays_in(images)
    return bool(arrays) and all(hasattr(each, "shape") for each in arrays)


def _arrays_in(images: Any) -> list[Any]:
    # An optional input may be `None`.
    return [each for each in keras.tree.flatten(images) if each is not None]


def number_of_rows(images: Any) -> int:
    """Returns the length of an array, or of all arrays in a structure, or raises."""
    if not _are_arrays(images):
        raise ValueError(
            "`images` must be an array, or one for each input of the model. Received: "
            f"{type(images).__name__} without a shape. Pass NumPy arrays or tensors."
        )
    shapes = [tuple(each.shape) for each in _arrays_in(images)]
    if () in shapes or len({shape[0] for shape in shapes}) > 1:
        raise ValueError(
            "`images` must have one row for each image, in all inputs. Received: "
            f"shapes {shapes}. Pass arrays of shape (batch, ...), all of one length."
        )
    return shapes[0][0]


def _padded(images: Any, parts: int, rows: list[int]) -> Any:
    """Arrays whose length is a multiple of `parts`, not 0; adds to `rows`."""
    number = number_of_rows(images)
    more = -number % parts if number else parts
    rows += [number, more]
    if not more:
        return images
    return map_arrays(lambda values: _with_copies(values, more), images)


def _with_copies(values: Array, more: int) -> Array:
    first = (
        values[:1] if len(values) else np.zeros((1, *values.shape[1:]), values.dtype)
    )
    return np.concatenate([values, first.repeat(more, axis=0)])


def map_arrays(function: Callable[[Array], Array], images: Any) -> Any:
    """Applies a function of a NumPy array to each array of a structure."""
    return keras.tree.map_structure(
        lambda each: None if each is None else function(to_numpy(each)), images
    )


def to_numpy(array: ArrayLike) -> Array:
    """`ops.convert_to_numpy`, without a copy of NumPy arrays."""
    return array if isinstance(array, np.ndarray) else ops.convert_to_numpy(array)


def _padded_batches(
    batches: Iterable[Any], parts: int, rows: list[int]
) -> Iterator[tuple[Any]]:
    for batch in batches:
        images, _, _ = keras.utils.unpack_x_y_sample_weight(batch)
        yield (_padded(images, parts, rows),)


def _check_not_empty(batches: Iterator[T]) -> Iterator[T]:
    """A generator of the same batches, of which there is at least one."""
    first = next(batches, None)
    if first is None:
        raise ValueError(
            "`images` must yield at least one batch. Received: none. Pass a generator "
            "that was not read before, or a data set with images."
        )
    return (batch for batch in itertools.chain([first], batches))


def _without_copies(values: Array, rows: list[int]) -> Array:
    own = (np.arange(len(rows)) % 2 == 0).repeat(rows)
    if len(values) != len(own):
        raise ValueError(
            "The model must give one row for each image. Received: an output of shape "
            f"{values.shape} for {len(own)} images. Pass keras_pedcc.embedder(model)."
        )
    return values if own.all() else values[own]
