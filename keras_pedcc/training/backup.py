"""Backups of training that survive a kill at any moment."""

import json
import os
import pathlib
import random
from collections.abc import Iterable
from typing import Any, TypeAlias

import keras
import numpy as np
from keras import ops

from keras_pedcc.centroids.files import storable
from keras_pedcc.common import Array, Logs, processes
from keras_pedcc.common.atomic import write_file
from keras_pedcc.common.internals import start_fit_at
from keras_pedcc.common.replicas import strategy_scope

# What Keras' own callbacks find out during training, and `fit` would reset.
KEPT = {
    keras.callbacks.EarlyStopping: (
        "best",
        "best_epoch",
        "best_weights",
        "stopped_epoch",
        "wait",
    ),
    keras.callbacks.ModelCheckpoint: ("best",),
    keras.callbacks.ReduceLROnPlateau: ("best", "cooldown_counter", "wait"),
}
ARRAY = "array of the backup"  # in JSON, the key before the number of an array
State: TypeAlias = dict[str, Any]  # of a backup, or what is random of a process


class AtomicBackup(keras.callbacks.Callback):
    """Backs up training at each epoch so that a killed run resumes where it was.

    Like `keras.callbacks.BackupAndRestore`, but weights, optimizer, random states,
    epoch and the state of other callbacks are in one file, which appears by one
    rename: a kill at any moment leaves the old backup or the new one. Run the same
    script again, and `fit` goes on from the last epoch of which a batch was begun.
    With fixed seeds and data whose order depends on seed and epoch only, it ends with
    the same weights as a run that was never killed. The random states are those of
    Keras' seed generators, and the global ones of Python, NumPy and PyTorch, from
    which `keras.layers.Dropout` without a seed draws on PyTorch.

    The callback may stand anywhere in the list. It stores the model before the first
    batch of an epoch, after all callbacks have seen the epoch begin, and restores it at
    the same moment. What other callbacks do to the model before that moment, a resumed
    run overwrites; what they do after it, it does again. `SwapEMAWeights`, for one, has
    put the trained weights back by then. Only the random states of Python, NumPy and
    PyTorch are stored when the epoch begins, because Keras shuffles right after that.

    With `delete_checkpoint=False` the model is stored once more when training ends, as
    the callbacks before this one have left it: put it after
    `EarlyStopping(restore_best_weights=True)`.

    Processes that train one model under `keras.distribution` share one folder: the
    first writes, with the weights gathered and the random states of each process, and
    all read. The state of `callbacks` is that of the first.

    Args:
        backup_dir: Folder for `backup.npz`, made if missing. Each `fit` of a script
            needs a folder of its own. Of two runs in one folder, the last one to write
            wins, and neither leaves half a file.
        callbacks: Callbacks whose state is kept too. A callback of your own needs two
            methods: `get_state()`, which returns numbers, strings, flags, `None` and
            arrays in lists and dicts with string keys, and `set_state(state)`. Of
            Keras' own, and their subclasses without these methods, the attributes are
            kept: `best`, `best_epoch`, `best_weights`, `stopped_epoch` and `wait` of
            `EarlyStopping`; `best`, `cooldown_counter` and `wait` of
            `ReduceLROnPlateau`; `best` of `ModelCheckpoint`. Defaults to `()`.
        delete_checkpoint: bool. Whether to delete the backup when training ends.
            Else it is left with the state at the end: the same `fit` does nothing more,
            and one with more epochs goes on from there. Defaults to `True`.

    Raises:
        TypeError: A callback has no state to keep, or `get_state` returns an object of
            another kind.
        ValueError: In `fit`, the model is not built; the backup is damaged, or of
            another model or other callbacks; or the processes see different backups.
        OSError: In `fit`, the backup cannot be written. The last one is still there.

    Example:

    >>> backup = keras_pedcc.AtomicBackup("run1")
    >>> history = model.fit(x, y, epochs=3, callbacks=[backup], verbose=0)
    """

    _due: tuple[int, State] | None  # to be stored before the next batch
    _restored: Any  # `State` or `None`

    def __init__(
        self,
        backup_dir: str | os.PathLike[str],
        *,
        callbacks: Iterable[keras.callbacks.Callback] = (),
        delete_checkpoint: bool = True,
    ) -> None:
        super().__init__()
        self.path = pathlib.Path(backup_dir) / "backup.npz"
        self.callbacks = list(callbacks)
        self.delete_checkpoint = delete_checkpoint
        for callback in self.callbacks:
            _check_has_state(callback)

    def on_train_begin(self, logs: Logs = None) -> None:
        if not self.model.built:
            raise ValueError(
                "`AtomicBackup` needs a model that is built. Received: model "
                f"{self.model.name!r} without weights. Start the model with "
                "`keras.Input`, or call it on a batch before `fit`."
            )
        self._begun, self._due, self._restored = False, None, self._read()
        if self._restored is not None:
            self._set_variables()
            start_fit_at(self.model, self._restored["epoch"])

    def on_epoch_begin(self, epoch: int, logs: Logs = None) -> None:
        # Keras has read it by now; it would start every later `fit` there.
        start_fit_at(self.model, None)
        if self._restored is not None:
            # Not before: in `on_train_begin` other callbacks set themselves back.
            self._set_callbacks()
            _set_random_states(processes.own(self._restored["random"]))
        self._due = (epoch, _random_states())

    def on_train_batch_begin(self, batch: int, logs: Logs = None) -> None:
        if self._due is None:
            return
        # At the end of training the next epoch had not begun: nothing to overwrite.
        if self._restored is not None and not self._restored["ended"]:
            self._set_variables()
            self._set_callbacks()
        self._save(*self._due)
        self._begun, self._due, self._restored = True, None, None

    def on_train_end(self, logs: Logs = None) -> None:
        start_fit_at(self.model, None)
        if self._restored is not None:
            # No epoch was left. Keras may have finalized the weights once more.
            self._set_variables()
            self._set_callbacks()
            _set_random_states(processes.own(self._restored["random"]))
        if self.delete_checkpoint:
            if processes.is_first():
                self.path.unlink(missing_ok=True)
            processes.wait()
        elif self._begun:
            self._save(self.params["epochs"], _random_states(), ended=True)

    def _save(self, epoch: int, random_states: State, ended: bool = False) -> None:
        arrays = [storable(v) for v in self._variables()]
        state = {
            "epoch": epoch,
            "ended": ended,
            "variables": len(arrays),
            "callbacks": [[type(c).__name__, _state_of(c)] for c in self.callbacks],
            "random": processes.exchange(random_states),
        }
        text = np.array(_to_json(state, arrays))
        if processes.is_first():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_file(self.path, lambda file: np.savez(file, *arrays, state=text))
        # No process may read or go on before the backup is there.
        processes.wait()

    def _read(self) -> State | None:
        """The state and arrays of the backup, or `None` if there is none."""
        found = _read_backup(self.path) if self.path.exists() else None
        epochs = processes.exchange(found and found["epoch"])
        if any(epoch != epochs[0] for epoch in epochs):
            raise ValueError(
                "All processes must see the same backup. Received: backups of the "
                f"epochs {epochs}, by process, in {self.path.parent}. Pass a "
                "`backup_dir` that all machines share, or delete it on each."
            )
        if found is not None:
            self._check_fits(found)
        return found

    def _check_fits(self, found: State) -> None:
        shapes = [tuple(v.shape) for v in self._variables()]
        fits = [a.shape for a in found["arrays"]] == shapes
        kept = [name for name, _ in found["callbacks"]]
        names = [type(callback).__name__ for callback in self.callbacks]
        if not fits or kept != names:
            raise ValueError(
                "The backup must be of the same model, optimizer and callbacks. "
                f"Received: {self.path} with {len(found['arrays'])} variables and "
                f"callbacks={kept}, for {len(shapes)} and {names}. Call `fit` with the "
                "same callbacks (`FinetuneCallback` too), take another `backup_dir`, "
                "or delete it."
            )

    def _set_variables(self) -> None:
        variables, arrays = self._variables(), self._restored["arrays"]
        with strategy_scope(self.model):
            for variable, array in zip(variables, arrays, strict=True):
                variable.assign(array)

    def _set_callbacks(self) -> None:
        pairs = zip(self.callbacks, self._restored["callbacks"], strict=True)
        for callback, (_, state) in pairs:
            _set_state(callback, state)

    def _variables(self) -> list[keras.Variable]:
        """Weights, random seeds and the optimizer's state, but no metrics."""
        optimizer = self.model.optimizer
        if not optimizer.built:
            with strategy_scope(self.model):
                optimizer.build(self.model.trainable_variables)
        metrics = {id(v) for v in self.model.metrics_variables}
        own = [v for v in self.model.variables if id(v) not in metrics]
        return [*own, *optimizer.variables]


def _has_own_state(callback: keras.callbacks.Callback) -> bool:
    return hasattr(callback, "get_state") and hasattr(callback, "set_state")


def _check_has_state(callback: keras.callbacks.Callback) -> None:
    if not _has_own_state(callback) and not isinstance(callback, tuple(KEPT)):
        raise TypeError(
            "`callbacks` must have the methods `get_state()` and `set_state(state)`, "
            f"or be Keras' own with a state. Received: {callback!r}. Add the methods, "
            "or leave it out of `callbacks`; `fit` takes it all the same."
        )


def _state_of(callback: keras.callbacks.Callback) -> Any:
    if _has_own_state(callback):
        return callback.get_state()
    return {name: getattr(callback, name, None) for name in _kept(callback)}


def _set_state(callback: keras.callbacks.Callback, state: Any) -> None:
    if _has_own_state(callback):
        callback.set_state(state)
        return
    for name in _kept(callback):
        setattr(callback, name, state[name])


def _kept(callback: keras.callbacks.Callback) -> tuple[str, ...]:
    return next(names for kind, names in KEPT.items() if isinstance(callback, kind))


def _random_states() -> State:
    """The global random states that JSON can hold: Python, NumPy, PyTorch."""
    # Keras shuffles arrays with NumPy's legacy state.
    state: Any = np.random.get_state()  # noqa: NPY002
    name, key, *rest = state
    states = {"python": random.getstate(), "numpy": [name, key.tolist(), *rest]}
    if keras.backend.backend() == "torch":
        import torch

        states["torch"] = torch.get_rng_state().tolist()
        states["cuda"] = [s.tolist() for s in torch.cuda.get_rng_state_all()]
    return states


def _set_random_states(states: State) -> None:
    version, key, gauss = states["python"]
    random.setstate((version, tuple(key), gauss))
    np.random.set_state(tuple(states["numpy"]))  # noqa: NPY002
    if keras.backend.backend() == "torch" and "torch" in states:
        import torch

        torch.set_rng_state(torch.tensor(states["torch"], dtype=torch.uint8))
        cuda = [torch.tensor(s, dtype=torch.uint8) for s in states["cuda"]]
        torch.cuda.set_rng_state_all(cuda[: torch.cuda.device_count()])


def _to_json(state: State, arrays: list[Array]) -> str:
    """JSON text of `state`; the arrays in it are appended to `arrays`."""

    def replace(value: Any) -> Any:
        if isinstance(value, np.generic):
            return value.item()
        if not isinstance(value, np.ndarray) and not ops.is_tensor(value):
            raise TypeError(
                "`get_state` must return numbers, strings, flags, `None`, arrays, "
                f"lists and dicts. Received: {value!r} in it. Convert it."
            )
        arrays.append(storable(value))
        return {ARRAY: len(arrays) - 1}

    return json.dumps(state, default=replace)


def _from_json(text: str, arrays: list[Array]) -> Any:
    def replace(found: dict[str, Any]) -> Any:
        return arrays[found[ARRAY]] if ARRAY in found else found

    return json.loads(text, object_hook=replace)


def _read_backup(path: pathlib.Path) -> State:
    """State of a backup; its arrays, but those of callbacks, are under "arrays"."""
    try:
        # NumPy leaves a damaged file open that it has opened itself.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as loaded:
            arrays = [loaded[f"arr_{i}"] for i in range(len(loaded.files) - 1)]
            found = _from_json(str(loaded["state"]), arrays)
        names = ("epoch", "ended", "callbacks", "random")
        state = {name: found[name] for name in names}
        return state | {"arrays": arrays[: found["variables"]]}
    except Exception as error:  # whatever damaged bytes make NumPy raise
        raise ValueError(
            f"The backup must be a file of `AtomicBackup`. Received: {path}, which "
            f"cannot be read ({error}). Delete it to start over."
        ) from error
