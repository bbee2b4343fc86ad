"""Checks of the labels that `PEDCCModel` trains on, before any backend casts them."""

import copy
import functools
import sys
import types
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_pedcc.common import Array, Tensor
from keras_pedcc.common.vectors import SUM_TOLERANCE


def check_number(num_classes: int) -> int:
    """Raises a `ValueError` unless a label can name each of so many classes."""
    if num_classes > 2**24:
        raise ValueError(
            "`num_classes` must be at most 16,777,216: Keras gives a loss its labels "
            "in float32, which rounds larger ones. Received: num_classes="
            f"{num_classes}. Split the classes over several models."
        )
    return num_classes


def count_of(
    heads: Sequence[Any],
) -> Callable[[], int | None] | None:
    """A function that counts the classes in use of heads, `None` where they differ.

    `None` without heads: a model with a `call` of its own may not have made them yet.
    """

    def count() -> int | None:
        found = {head.num_classes for head in heads}
        return check_number(found.pop()) if len(found) == 1 else None

    if heads:
        count()
    return count if heads else None


def check_labels(labels: Array, num_classes: int, what: str = "labels") -> None:
    """Raises a `ValueError` unless `labels` are labels of `num_classes` classes.

    Args:
        labels: NumPy array: class indices, shape `(n,)` or `(n, 1)`; or one-hot
            or soft labels, shape `(n, num_classes)`.
        num_classes: int.
        what: What to call them in the message. Defaults to `"labels"`.
    """
    if labels.dtype.kind not in "biuf":
        raise ValueError(
            f"The {what} must be numbers. Received: labels.dtype={labels.dtype}. "
            "Number the classes from 0."
        )
    soft = labels.ndim == 2 and labels.shape[1] == num_classes
    if not (soft or labels.ndim == 1 or (labels.ndim == 2 and labels.shape[1] == 1)):
        raise ValueError(
            f"The {what} must have shape (n,), (n, 1) or (n, num_classes). Received: "
            f"labels.shape={labels.shape}, num_classes={num_classes}. Make the labels "
            "fit the number of classes."
        )
    if not soft:
        _check_precision(labels.dtype, num_classes, what)
    bad, rule = _bad_soft_labels(labels) if soft else _bad_indices(labels, num_classes)
    if bad.any():
        at = int(bad.argmax())
        more = (
            ""
            if soft
            else ", make the head with another num_classes, or call "
            "`keras_pedcc.grow_classes` if it has room for more"
        )
        raise ValueError(
            f"The {what} must be {rule}. Received: {labels[at]} at index {at} "
            f"({int(bad.sum())} of {len(bad)} are not). Correct the labels{more}."
        )


def check_own_labels(y: Any, num_classes: int, what: str = "labels") -> None:
    """`check_labels` for what `fit` takes: arrays, lists, tensors, data frames."""
    labels = _as_array(y)
    if labels is None:
        return
    if labels.dtype.name == "bfloat16":  # which NumPy takes for no number
        if labels.ndim == 1 or labels.shape[1] != num_classes:
            _check_bits(8, labels.dtype, num_classes, what)
        labels = labels.astype("float32")
    check_labels(labels, num_classes, what)


def checked(data: Any, num_classes: int, what: str = "labels") -> Any:
    """Returns a data set that raises at the first batch with labels of no class.

    Args:
        data: What `fit` takes as `x` when it takes no `y`.
        num_classes: int.
        what: What to call the labels in the message. Defaults to `"labels"`.

    Returns:
        A `PyDataset`, generator or PyTorch `DataLoader` in whose place it checks; for
        a `tf.data.Dataset` on JAX one that keeps wide labels out of range; else `data`.
    """
    check = functools.partial(_check_batch, num_classes=num_classes, what=what)
    if isinstance(data, keras.utils.PyDataset):
        return CheckedBatches(data, check)
    if isinstance(data, types.GeneratorType):
        return (check(batch, number) for number, batch in enumerate(data))
    if _is_of(data, "torch", "utils.data.DataLoader"):
        return _checked_loader(data, check)
    if keras.backend.backend() == "jax" and _is_of(data, "tensorflow", "data.Dataset"):
        return _narrowed(data)
    return data


class CheckedBatches(keras.utils.PyDataset):
    """A `PyDataset` whose batches are checked where they are made.

    Args:
        dataset: `keras.utils.PyDataset`.
        check: Function of a batch and its number that returns the batch.
    """

    def __init__(
        self, dataset: keras.utils.PyDataset, check: Callable[[Any, int], Any]
    ) -> None:
        super().__init__(
            dataset.workers, dataset.use_multiprocessing, dataset.max_queue_size
        )
        self.dataset, self.check = dataset, check

    @property
    def num_batches(self) -> int | None:
        return self.dataset.num_batches

    def __getitem__(self, index: int) -> Any:
        return self.check(self.dataset[index], index)

    def on_epoch_begin(self) -> None:
        self.dataset.on_epoch_begin()

    def on_epoch_end(self) -> None:
        self.dataset.on_epoch_end()


def _check_batch(
    batch: Any, number: int | None = None, *, num_classes: int, what: str
) -> Any:
    if isinstance(batch, tuple | list) and len(batch) > 1:
        which = "a batch" if number is None else f"batch {number}"
        check_own_labels(batch[1], num_classes, f"{what} of {which}")
    return batch


class _CheckedCollate:
    """Collates as a `DataLoader` did, and checks; workers get it by pickle."""

    def __init__(
        self, collate: Callable[[Any], Any], check: Callable[[Any], Any]
    ) -> None:
        self.collate, self.check = collate, check

    def __call__(self, samples: Any) -> Any:
        return self.check(self.collate(samples))


def _checked_loader(loader: Any, check: Callable[[Any], Any]) -> Any:
    loader = copy.copy(loader)
    loader.collate_fn = _CheckedCollate(loader.collate_fn, check)
    return loader


def _narrowed(dataset: Any) -> Any:
    """A `tf.data.Dataset` whose labels JAX casts to int32 without wrapping them."""
    import tensorflow as tf

    spec = dataset.element_spec
    labels = spec[1] if isinstance(spec, tuple) and len(spec) > 1 else None
    if not isinstance(labels, tf.TensorSpec) or not labels.dtype.is_integer:
        return dataset

    def narrow(x: Tensor, y: Tensor, *weight: Tensor) -> tuple[Tensor, ...]:
        y = tf.clip_by_value(tf.cast(y, tf.int64), -1, 2**31 - 1)
        return x, tf.cast(y, tf.int32), *weight

    return dataset.map(narrow)


def _is_of(value: object, module: str, name: str) -> bool:
    """Whether a value is of a class of a module, which nothing here imports."""
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    return found is not None and isinstance(value, found)


def _as_array(y: Any) -> Array | None:
    """Labels as a NumPy array, or `None` for what is none."""
    if isinstance(y, list | tuple):
        return np.asarray(y)
    if ops.is_tensor(y):
        y = ops.convert_to_numpy(y)
    if not hasattr(y, "__array__"):
        return None
    return np.asarray(y)


def _check_precision(dtype: np.dtype[Any], num_classes: int, what: str) -> None:
    """Raises where a float dtype rounds one class to another."""
    if dtype.kind == "f":
        _check_bits(np.finfo(dtype).nmant + 1, dtype, num_classes, what)


def _check_bits(bits: int, dtype: np.dtype[Any], num_classes: int, what: str) -> None:
    if num_classes > 2**bits:
        raise ValueError(
            f"The {what} must be of a dtype that tells all classes apart. Received: "
            f"labels.dtype={dtype}, num_classes={num_classes}. Pass integers."
        )


def _bad_soft_labels(labels: Array) -> tuple[Array, str]:
    """Which rows are no distributions, and what they should be."""
    bad = ~(np.abs(labels.sum(axis=1, dtype="float64") - 1) <= SUM_TOLERANCE)
    bad |= ~(labels >= 0).all(axis=1)
    return bad, "rows of one-hot or soft labels that are not negative and sum to 1"


def _bad_indices(labels: Array, num_classes: int) -> tuple[Array, str]:
    """Which labels are no classes, and what they should be."""
    flat = labels.reshape(-1)
    bad = ~((flat >= 0) & (flat < num_classes) & (flat == np.floor(flat)))
    return bad, f"whole numbers from 0 to {num_classes - 1}"
