"""Fine-tuning of the centroids late in training, and backups that survive kills."""

import contextlib
import json
import numbers
import os
import pathlib
import random
import warnings
import zipfile

import keras
import numpy as np
from keras import ops

from keras_pedcc.centroids import check_whole
from keras_pedcc.layers import PEDCCDense
from keras_pedcc.optimizers import FinetuneOptimizer


class FinetuneCallback(keras.callbacks.Callback):
    """Trains the centroids too, from a given epoch on.

    At the start of that epoch every `PEDCCDense` of the model, in nested models
    too, is unfrozen (`layer.trainable = True`), and its centroids are trained by
    plain SGD at their own learning rate, without momentum, decay or clipping.
    When training starts later than that epoch (`initial_epoch`, or a restored
    backup) they are unfrozen at once. The backbone's optimizer, with its state,
    schedule, clipping and loss scale, goes on as if nothing had happened.

    The optimizer of the model is wrapped in a `FinetuneOptimizer` as soon as
    `fit` gets the callback, so that checkpoints made before and after the
    unfreezing have the same layout.

    Args:
        epoch: int, at least 0. First epoch, counted from 0 as Keras does, in
            which the centroids are trained; the paper takes 70 of 120.
        learning_rate: Positive float; the paper takes 1e-3. It stays the same
            to the end of training.
        optimizer: `keras.optimizers.Optimizer` for the centroids instead of
            plain SGD; `learning_rate` is then not used.
        verbose: 0 or 1. Whether to print a line at the unfreezing.

    Raises:
        TypeError: `epoch` is not a whole number, or `optimizer` no optimizer.
        ValueError: `epoch` or `learning_rate` is out of range; in `fit`, the
            model has no `PEDCCDense`, or is not built.

    Example:

    >>> finetune = keras_pedcc.FinetuneCallback(epoch=2)
    >>> history = model.fit(x, y, epochs=3, callbacks=[finetune], verbose=0)
    >>> model.layers[-1].trainable
    True

    Reference: Zhu et al., IEEE Access 2020, section IV-A.
    """

    def __init__(self, epoch=70, learning_rate=1e-3, *, optimizer=None, verbose=0):
        super().__init__()
        check_whole(0, epoch=epoch)
        if not isinstance(learning_rate, numbers.Real) or not (
            0 < learning_rate < float("inf")
        ):
            raise ValueError(
                "`learning_rate` must be a positive number. Received: learning_rate="
                f"{learning_rate!r}. For a schedule, pass `optimizer`."
            )
        if not isinstance(optimizer, keras.optimizers.Optimizer | None):
            raise TypeError(
                "`optimizer` must be a `keras.optimizers.Optimizer`. Received: "
                f"optimizer={optimizer!r}. Pass one, as keras.optimizers.Adam(1e-3), "
                "or leave it out for plain SGD."
            )
        self.epoch = epoch
        self.learning_rate = float(learning_rate)
        self.optimizer = optimizer
        self.verbose = verbose

    def set_model(self, model):
        # Before any `on_train_begin`: the order of callbacks does not matter.
        super().set_model(model)
        if getattr(self.model, "optimizer", None) is not None:
            self._heads = _find_heads(self.model)
            with _strategy_scope(self.model):
                self._wrap_optimizer()

    def on_train_begin(self, logs=None):
        epochs = self.params.get("epochs")
        if epochs is not None and self.epoch >= epochs:
            warnings.warn(
                "The centroids will not be fine-tuned: `epoch` must be below the "
                f"number of epochs. Received: epoch={self.epoch}, with fit(epochs="
                f"{epochs}). Pass a smaller `epoch`.",
                stacklevel=2,
            )

    def on_epoch_begin(self, epoch, logs=None):
        frozen = [head for head in self._heads if not head.trainable]
        if epoch < self.epoch or not frozen:
            return
        for head in frozen:
            head.trainable = True
        if not self._all_trained():
            self._stay_frozen(frozen)
            return
        with _strategy_scope(self.model):
            _rebuild_functions(self.model)
        if self.verbose:
            print(f"\nEpoch {epoch + 1}: the centroids are trained from here on.")

    def _all_trained(self):
        trained = {id(v) for v in self.model.trainable_variables}
        return all(id(head.centroids) in trained for head in self._heads)

    def _stay_frozen(self, heads):
        for head in heads:
            head.trainable = False
        warnings.warn(
            "The centroids stay frozen: every model and layer around them must be "
            f"trainable. Received: model {self.model.name!r} with a part that is "
            "not. Set its `trainable` to True before `compile`.",
            stacklevel=3,
        )

    def _wrap_optimizer(self):
        outer = self.model.optimizer
        scaled = isinstance(outer, keras.optimizers.LossScaleOptimizer)
        inner = outer.inner_optimizer if scaled else outer
        centroids = [head.centroids for head in self._heads]
        if isinstance(inner, FinetuneOptimizer) and self._fits(inner, centroids):
            self._set_rate(inner)
            return
        wrapped = self._wrapped(inner, centroids)
        if scaled:
            wrapped = _with_loss_scale(outer, wrapped)
        self.model.optimizer = wrapped
        # What a saved model is compiled with when it is loaded.
        self.model._compile_config.config["optimizer"] = wrapped
        _rebuild_functions(self.model)

    def _wrapped(self, inner, centroids):
        previous = inner if isinstance(inner, FinetuneOptimizer) else None
        backbone = previous.optimizer if previous else inner
        wrapped = FinetuneOptimizer(backbone, self._centroid_optimizer(backbone))
        ids = {id(v) for v in centroids}
        wrapped.build([v for v in self.model.variables if v.trainable or id(v) in ids])
        if previous and self._same_kind(previous):
            _copy_state(previous.centroid_optimizer, wrapped.centroid_optimizer)
            self._set_rate(wrapped)
        return wrapped

    def _centroid_optimizer(self, backbone):
        if self.optimizer is not None:
            # A copy: made inside the strategy's scope, and not shared by models.
            return type(self.optimizer).from_config(self.optimizer.get_config())
        return keras.optimizers.SGD(
            self.learning_rate,
            gradient_accumulation_steps=backbone.gradient_accumulation_steps,
        )

    def _same_kind(self, wrapped):
        wanted = (
            keras.optimizers.SGD if self.optimizer is None else type(self.optimizer)
        )
        return isinstance(wrapped.centroid_optimizer, wanted)

    def _fits(self, wrapped, centroids):
        return wrapped.built and wrapped.covers(centroids) and self._same_kind(wrapped)

    def _set_rate(self, wrapped):
        if self.optimizer is None:
            wrapped.centroid_optimizer.learning_rate = self.learning_rate


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
        callbacks: Callbacks whose numbers, strings and flags are kept too, e.g.
            `ReduceLROnPlateau` or `EarlyStopping`.
        delete_checkpoint: bool. Whether to delete the backup when training ends.

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
        if self.path.exists():
            with _strategy_scope(self.model):
                self._restore()

    def on_epoch_begin(self, epoch, logs=None):
        self._save(epoch)

    def on_train_end(self, logs=None):
        # Keras would start every later `fit` of this model there.
        self.model._initial_epoch = None
        if self.delete_checkpoint:
            self.path.unlink(missing_ok=True)

    def _save(self, epoch):
        state = {
            "epoch": epoch,
            "callbacks": [_plain(c) for c in self.callbacks],
            "random": _random_states(),
        }
        arrays = [_to_numpy(v) for v in self._variables()]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = self.path.with_suffix(".unfinished")
        with unfinished.open("wb") as file:
            np.savez(file, *arrays, state=np.array(json.dumps(state)))
        os.replace(unfinished, self.path)

    def _restore(self):
        state, arrays = _read_backup(self.path)
        variables = self._variables()
        shapes = [tuple(v.shape) for v in variables]
        if [a.shape for a in arrays] != shapes or len(state["callbacks"]) != len(
            self.callbacks
        ):
            raise ValueError(
                "The backup must be of the same model, optimizer and callbacks. "
                f"Received: {self.path} with {len(arrays)} variables and "
                f"{len(state['callbacks'])} callbacks, for {len(variables)} and "
                f"{len(self.callbacks)}. Call `fit` with the same callbacks "
                "(`FinetuneCallback` too), take another `backup_dir`, or delete it."
            )
        for variable, array in zip(variables, arrays, strict=True):
            variable.assign(array)
        for callback, values in zip(self.callbacks, state["callbacks"], strict=True):
            vars(callback).update(values)
        _set_random_states(state["random"])
        self.model._initial_epoch = state["epoch"]

    def _variables(self):
        optimizer = self.model.optimizer
        if not optimizer.built:
            optimizer.build(self.model.trainable_variables)
        return [*self.model.variables, *optimizer.variables]


def _find_heads(model):
    heads = [
        layer for layer in model._flatten_layers() if isinstance(layer, PEDCCDense)
    ]
    if not heads:
        raise ValueError(
            "`FinetuneCallback` needs a model with a `PEDCCDense` layer. Received: "
            f"model {model.name!r} without one. Add the layer, or leave the callback "
            "out."
        )
    unbuilt = [head.name for head in heads if not head.built]
    if unbuilt:
        raise ValueError(
            "`FinetuneCallback` needs a model that is built. Received: model "
            f"{model.name!r}, in which {unbuilt} have no weights yet. Start the model "
            "with `keras.Input`, or call it on a batch before `fit`."
        )
    return list({id(head): head for head in heads}.values())


def _strategy_scope(model):
    strategy = getattr(model, "distribute_strategy", None)  # TensorFlow only
    return strategy.scope() if strategy is not None else contextlib.nullcontext()


def _rebuild_functions(model):
    """Makes Keras trace anew: a traced function keeps what it was traced with."""
    for name in ("train", "test", "predict"):
        if getattr(model, f"{name}_function") is not None:
            getattr(model, f"make_{name}_function")(force=True)


def _with_loss_scale(old, inner):
    """A loss-scale optimizer around `inner`, with the scale that `old` has found."""
    new = keras.optimizers.LossScaleOptimizer(
        inner, old.initial_scale, old.dynamic_growth_steps, name=old.name
    )
    new.build(inner._trainable_variables)
    if old.built:
        new.step_counter.assign(old.step_counter)
        new.dynamic_scale.assign(old.dynamic_scale)
    return new


def _copy_state(source, target):
    for old, new in zip(source.variables, target.variables, strict=True):
        new.assign(old)


def _plain(callback):
    """The attributes of a callback that JSON can hold."""
    values = {
        name: value.item() if isinstance(value, np.generic) else value
        for name, value in vars(callback).items()
    }
    kept = (bool, int, float, str, type(None))
    return {name: v for name, v in values.items() if isinstance(v, kept)}


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


def _to_numpy(variable):
    array = ops.convert_to_numpy(variable)
    # `.npz` knows no bfloat16; float32 holds it exactly.
    return array.astype("float32") if array.dtype.kind == "V" else array


def _read_backup(path):
    try:
        with np.load(path, allow_pickle=False) as file:
            state = json.loads(str(file["state"]))
            return state, [file[f"arr_{i}"] for i in range(len(file.files) - 1)]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"The backup must be a file of `AtomicBackup`. Received: {path}, which "
            f"cannot be read ({error}). Delete it to start over."
        ) from error
