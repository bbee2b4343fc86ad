"""Backups of training that survive a kill at any moment."""

import inspect
import json
import os
import pathlib
import random

import keras
import numpy as np

from keras_pedcc.optimizers import strategy_scope
from keras_pedcc.storage import to_numpy


class AtomicBackup(keras.callbacks.Callback):
    """Backs training up at each epoch so that a killed run resumes where it was.

    Like `keras.callbacks.BackupAndRestore`, but weights, optimizer, random states,
    epoch and the state of other callbacks appear in one file by one rename: a
    kill at any moment leaves the old backup or the new one. Run the same script
    again, and `fit` goes on from the last epoch that was begun. With fixed seeds
    and data whose order depends on seed and epoch only, it ends with the same
    weights as a run that was never killed. The random states are those of Keras'
    seed generators, and the global ones of Python, NumPy and PyTorch, from which
    `keras.layers.Dropout` without a seed draws on PyTorch.

    The backup is made at the start of an epoch, after every other callback has
    seen the end of the last: its place in the list does not matter.

    Args:
        backup_dir: Folder for `backup.npz`, made if missing. One run, one folder.
        callbacks: Callbacks whose state is kept too, e.g. `ReduceLROnPlateau` or
            `EarlyStopping`: attributes that are numbers, strings, flags or lists of
            arrays, except those that are arguments of the callback.
        delete_checkpoint: bool. Whether to delete the backup when training ends.
            Else it is left at the end of training, and the same `fit` does nothing.

    Raises:
        ValueError: In `fit`, the model is not built, or the backup is damaged or
            of another model.

    Example:

    >>> backup = keras_pedcc.AtomicBackup("run1")
    >>> history = model.fit(x, y, epochs=3, callbacks=[backup], verbose=0)
    """

    def __init__(self, backup_dir, *, callbacks=(), delete_checkpoint=True):
        super().__init__()
        self.path = pathlib.Path(backup_dir) / "backup.npz"
        self.callbacks = list(callbacks)
        self.delete_checkpoint = delete_checkpoint

    def on_train_begin(self, logs=None):
        if not self.model.built:
            raise ValueError(
                "`AtomicBackup` needs a model that is built. Received: model "
                f"{self.model.name!r} without weights. Start the model with "
                "`keras.Input`, or call it on a batch before `fit`."
            )
        self._begun, self._restored = False, None
        if self.path.exists():
            with strategy_scope(self.model):
                self._restored = self._restore()

    def on_epoch_begin(self, epoch, logs=None):
        if self._restored is not None:
            # Not before: in `on_train_begin` other callbacks set themselves back.
            pairs = zip(self.callbacks, self._restored, strict=True)
            for callback, state in pairs:
                vars(callback).update(state)
            self._restored = None
        # Keras has read it by now; it would start every later `fit` there.
        self.model._initial_epoch = None
        self._begun = True
        self._save(epoch)

    def on_train_end(self, logs=None):
        self.model._initial_epoch = None
        if self.delete_checkpoint:
            self.path.unlink(missing_ok=True)
        elif self._begun:
            self._save(self.params["epochs"])

    def _save(self, epoch):
        states, arrays = [], [to_numpy(v) for v in self._variables()]
        number = len(arrays)
        for callback in self.callbacks:
            plain, lists = _state_of(callback)
            states.append({"plain": plain, "lists": {n: len(v) for n, v in lists}})
            arrays += [array for _, values in lists for array in values]
        state = {"epoch": epoch, "variables": number, "callbacks": states}
        state["random"] = _random_states()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = self.path.with_suffix(".unfinished")
        with unfinished.open("wb") as file:
            np.savez(file, *arrays, state=np.array(json.dumps(state)))
            file.flush()
            os.fsync(file.fileno())  # else a loss of power may leave an empty file
        os.replace(unfinished, self.path)

    def _restore(self):
        """Sets weights, random states and epoch; returns the callbacks' states."""
        state, arrays = _read_backup(self.path)
        variables, kept = self._variables(), state["callbacks"]
        number = state["variables"]
        shapes = [a.shape for a in arrays[:number]]
        fits = shapes == [tuple(v.shape) for v in variables]
        if not fits or len(kept) != len(self.callbacks):
            raise ValueError(
                "The backup must be of the same model, optimizer and callbacks. "
                f"Received: {self.path} with {number} variables and {len(kept)} "
                f"callbacks, for {len(variables)} and {len(self.callbacks)}. Call "
                "`fit` with the same callbacks (`FinetuneCallback` too), take another "
                "`backup_dir`, or delete it."
            )
        for variable, array in zip(variables, arrays[:number], strict=True):
            variable.assign(array)
        _set_random_states(state["random"])
        self.model._initial_epoch = state["epoch"]
        rest = iter(arrays[number:])
        return [
            each["plain"]
            | {n: [next(rest) for _ in range(k)] for n, k in each["lists"].items()}
            for each in kept
        ]

    def _variables(self):
        optimizer = self.model.optimizer
        if not optimizer.built:
            optimizer.build(self.model.trainable_variables)
        # What a head knows of its weights follows from them.
        own = [v for v in self.model.variables if "/unit_rows/" not in v.path]
        return [*own, *optimizer.variables]


def _state_of(callback):
    """What a callback has found out: its plain values, and its lists of arrays.

    Not what it was made with, which is the script's to change.
    """
    given = inspect.signature(type(callback).__init__).parameters
    plain, lists = {}, []
    for name, value in vars(callback).items():
        value = value.item() if isinstance(value, np.generic) else value
        if name in given:
            continue
        if isinstance(value, bool | int | float | str | None):
            plain[name] = value
        elif isinstance(value, list) and all(isinstance(v, np.ndarray) for v in value):
            lists.append((name, value))
    return plain, lists


def _random_states():
    """The global random states that JSON can hold: Python, NumPy, PyTorch."""
    # Keras shuffles arrays with NumPy's legacy state.
    name, key, *rest = np.random.get_state()  # noqa: NPY002
    states = {"python": random.getstate(), "numpy": [name, key.tolist(), *rest]}
    if keras.backend.backend() == "torch":
        import torch

        states["torch"] = torch.get_rng_state().tolist()
        states["cuda"] = [s.tolist() for s in torch.cuda.get_rng_state_all()]
    return states


def _set_random_states(states):
    version, key, gauss = states["python"]
    random.setstate((version, tuple(key), gauss))
    np.random.set_state(tuple(states["numpy"]))  # noqa: NPY002
    if keras.backend.backend() == "torch" and "torch" in states:
        import torch

        torch.set_rng_state(torch.tensor(states["torch"], dtype=torch.uint8))
        cuda = [torch.tensor(s, dtype=torch.uint8) for s in states["cuda"]]
        torch.cuda.set_rng_state_all(cuda[: torch.cuda.device_count()])


def _read_backup(path):
    try:
        # NumPy leaves a damaged file open that it has opened itself.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            found = json.loads(str(arrays["state"]))
            names = ("epoch", "variables", "callbacks", "random")
            state = {name: found[name] for name in names}
            return state, [arrays[f"arr_{i}"] for i in range(len(arrays.files) - 1)]
    except Exception as error:  # whatever damaged bytes make NumPy raise
        raise ValueError(
            f"The backup must be a file of `AtomicBackup`. Received: {path}, which "
            f"cannot be read ({error}). Delete it to start over."
        ) from error
