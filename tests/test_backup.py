import contextlib
import random

import keras
import numpy as np
import pytest
from test_callbacks import BACKEND, assert_same, fit, make_model

from keras_pedcc import AtomicBackup, FinetuneCallback


class Stop(keras.callbacks.Callback):
    """Interrupts training in the third batch of an epoch."""

    def __init__(self, epoch):
        super().__init__()
        self.epoch = self.current = epoch

    def on_epoch_begin(self, epoch, logs=None):
        self.current = epoch

    def on_train_batch_end(self, batch, logs=None):
        if self.epoch == self.current and batch == 2:
            raise KeyboardInterrupt


def test_backup_resumes_to_the_same_weights(tmp_path):
    whole = make_model()
    fit(whole, 4, [FinetuneCallback(2)])
    for epoch in range(4):
        folder = tmp_path / str(epoch)
        killed = make_model()
        with pytest.raises(KeyboardInterrupt):
            fit(killed, 4, [FinetuneCallback(2), AtomicBackup(folder), Stop(epoch)])
        resumed = make_model()
        resumed.layers[1].kernel.assign(0 * resumed.layers[1].kernel)
        fit(resumed, 4, [AtomicBackup(folder), FinetuneCallback(2)])
        assert_same(whole.weights, resumed.weights)
        assert_same(whole.optimizer.variables, resumed.optimizer.variables)
        assert not (folder / "backup.npz").exists()


class Seen(keras.callbacks.Callback):
    """Notes the state of another callback at the start of each epoch."""

    def __init__(self, other, names):
        super().__init__()
        self.other, self.names, self.states = other, names, {}

    def on_epoch_begin(self, epoch, logs=None):
        self.states[epoch] = [getattr(self.other, name) for name in self.names]


@pytest.mark.parametrize("first", [True, False], ids=["backup_first", "backup_last"])
def test_backup_keeps_the_state_of_callbacks(tmp_path, first):
    def run(epochs, patience=7):
        plateau = keras.callbacks.ReduceLROnPlateau("loss", patience=patience)
        backup = AtomicBackup(tmp_path, callbacks=[plateau], delete_checkpoint=False)
        seen = Seen(plateau, ["best", "wait", "patience"])
        both = [backup, plateau] if first else [plateau, backup]
        fit(make_model(), epochs, [*both, seen])
        return plateau, seen.states

    plateau, _ = run(2)
    _, states = run(3, patience=3)
    assert states == {2: [plateau.best, plateau.wait, 3]}
    assert plateau.best < 20


def test_backup_keeps_the_best_weights(tmp_path):
    def run(folder, stop=None):
        model = make_model()
        best = keras.callbacks.EarlyStopping(
            "loss", mode="max", patience=9, restore_best_weights=True
        )
        backup = AtomicBackup(folder, callbacks=[best])
        fit(model, 3, [backup, best, *([Stop(stop)] if stop else [])])
        return model

    whole = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", stop=2)
    assert_same(whole.weights, run(tmp_path / "killed").weights)


def test_fit_that_is_done_does_nothing_more(tmp_path):
    backup = AtomicBackup(tmp_path, delete_checkpoint=False)
    done = make_model()
    fit(done, 2, [backup])
    again = make_model()
    assert fit(again, 2, [backup]).epoch == []
    assert_same(done.weights, again.weights)
    assert fit(again, 3, [backup]).epoch == [2]


def test_backup_leaves_no_trace_when_another_callback_raises(tmp_path):
    fit(make_model(), 2, [AtomicBackup(tmp_path, delete_checkpoint=False)])
    model = make_model()
    with pytest.raises(KeyboardInterrupt):
        fit(model, 4, [AtomicBackup(tmp_path), Stop(2)])
    assert fit(model, 2).epoch == [0, 1]


def test_interrupted_backup_leaves_the_last_one(tmp_path, monkeypatch):
    def interrupted(file, *args, **kwargs):
        file.write(b"half")
        raise KeyboardInterrupt

    fit(make_model(), 2, [AtomicBackup(tmp_path, delete_checkpoint=False)])
    whole = (tmp_path / "backup.npz").read_bytes()
    monkeypatch.setattr(np, "savez", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fit(make_model(), 3, [AtomicBackup(tmp_path)])
    assert (tmp_path / "backup.npz").read_bytes() == whole


def test_backup_keeps_the_global_random_states(tmp_path):
    drawn = {}

    class Draw(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            drawn[name] = [random.random(), np.random.rand()]  # noqa: NPY002
            if BACKEND == "torch":
                import torch

                drawn[name].append(float(torch.rand(())))
            if name == "first":
                raise KeyboardInterrupt

    for name in ("first", "resumed"):
        model = make_model()
        keras.utils.set_random_seed(len(name))
        with contextlib.suppress(KeyboardInterrupt):
            fit(model, 1, [AtomicBackup(tmp_path), Draw()], batch_size=32)
    assert drawn["first"] == drawn["resumed"]


def test_backup_refuses_damage_and_other_models(tmp_path):
    (tmp_path / "backup.npz").write_bytes(b"half a file")
    with pytest.raises(ValueError, match=r"cannot be read .* Delete it to start over"):
        fit(make_model(), 1, [AtomicBackup(tmp_path)])
    (tmp_path / "backup.npz").unlink()
    fit(make_model(), 1, [AtomicBackup(tmp_path, delete_checkpoint=False)])
    with pytest.raises(ValueError, match="must be of the same model"):
        fit(make_model("adam"), 1, [AtomicBackup(tmp_path)])
