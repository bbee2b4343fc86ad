import contextlib
import errno
import json
import os
import random

import keras
import numpy as np
import pytest
from tensors import draw_alike
from test_callbacks import BACKEND, assert_same, fit, make_model, numpy_of
from test_sharding import FOLDER, on_jax, together

from keras_pedcc import AtomicBackup, FinetuneCallback, PEDCCDense, PEDCCLoss
from keras_pedcc.common.replicas import strategy_scope


class Stop(keras.callbacks.Callback):
    """Interrupts training in the third batch of an epoch."""

    def __init__(self, epoch):
        super().__init__()
        self.epoch = self.current = epoch

    def on_epoch_begin(self, epoch, logs=None):
        self.current = epoch

    def on_train_batch_end(self, batch, logs=None):
        if self.epoch == self.current and batch >= 2:
            raise KeyboardInterrupt


def test_backup_resumes_to_the_same_weights(tmp_path):
    whole = make_model()
    fit(whole, 4, [FinetuneCallback(2)])
    for epoch in (0, 2, 3):  # 2 is that of the unfreezing
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


def make_other_model(optimizer, make_layer=lambda: keras.layers.Dense(4), **kwargs):
    """A head after another layer."""
    draw_alike(0)
    head = PEDCCDense(3, return_features=False)
    model = keras.Sequential([keras.Input((4,)), make_layer(), head])
    model.compile(optimizer, PEDCCLoss(), **kwargs)
    model.optimizer.build(model.trainable_variables)
    return model


def check_resumed(model, folder, others=lambda: [], first=True):
    """Fails unless a run killed in epoch 2 of 3 ends as the whole one.

    Each run starts anew: from the same weights, with `others()`.
    """
    variables = [*model.variables, *model.optimizer.variables]
    start = [np.copy(numpy_of(v)) for v in variables]

    def run(*extra):
        with strategy_scope(model):
            for variable, array in zip(variables, start, strict=True):
                variable.assign(array)
        fit(model, 3, [*extra, *others()] if first else [*others(), *extra])
        return [np.copy(numpy_of(v)) for v in variables]

    whole = run()
    with pytest.raises(KeyboardInterrupt):
        run(AtomicBackup(folder), Stop(2))
    assert_same(whole, run(AtomicBackup(folder)))


class Shake(keras.callbacks.Callback):
    """Writes a weight whenever an epoch begins and ends."""

    def on_epoch_begin(self, epoch, logs=None):
        self.model.layers[0].kernel.assign(0.7 * self.model.layers[0].kernel)

    def on_epoch_end(self, epoch, logs=None):
        self.model.layers[0].kernel.assign(self.model.layers[0].kernel + 0.1)


OTHERS = {
    "swap": lambda: [keras.callbacks.SwapEMAWeights(swap_on_epoch=True)],
    "shake": lambda: [Shake()],
    "rate": lambda: [keras.callbacks.LearningRateScheduler(lambda _, rate: rate / 2)],
}


@pytest.fixture(scope="module")
def averaged():
    return make_other_model(keras.optimizers.SGD(0.1, use_ema=True, ema_momentum=0.9))


@pytest.mark.parametrize("first", [True, False], ids=["backup_first", "backup_last"])
@pytest.mark.parametrize("others", OTHERS.values(), ids=OTHERS)
def test_backup_may_stand_before_and_after_what_writes_weights(
    tmp_path, averaged, others, first
):
    check_resumed(averaged, tmp_path, others, first)


def accumulating():
    # Four batches an epoch: an epoch ends in the middle of an accumulation.
    adam = keras.optimizers.Adam(0.1, gradient_accumulation_steps=3)
    return make_other_model(adam)


def scaled():
    sgd = keras.optimizers.SGD(0.1, momentum=0.9)
    return make_other_model(
        keras.optimizers.LossScaleOptimizer(sgd, 8.0, dynamic_growth_steps=5)
    )


def two_steps_at_once():
    if BACKEND == "torch":
        pytest.skip("Keras takes single steps there")
    return make_other_model("adam", steps_per_execution=2)


@pytest.mark.parametrize("make", [accumulating, scaled, two_steps_at_once])
def test_backup_keeps_the_whole_state_of_an_optimizer(tmp_path, make):
    check_resumed(make(), tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(BACKEND != "tensorflow", reason="the strategy is TensorFlow's")
def test_backup_resumes_on_two_replicas(tmp_path, two_replicas):
    with two_replicas.scope():
        sgd = keras.optimizers.SGD(0.1, momentum=0.9)
        model = make_other_model(sgd, keras.layers.BatchNormalization)
    check_resumed(model, tmp_path)


def test_backup_keeps_a_layer_of_any_name(tmp_path):
    def make_layer():
        return keras.layers.Dense(4, name="unit_rows")

    check_resumed(make_other_model("sgd", make_layer), tmp_path)


class Counting(keras.layers.Dense):
    """Owns a metric, whose variables are among its own too."""

    def __init__(self):
        super().__init__(4)
        self.seen = keras.metrics.Mean()
        self.seen_variables = self.seen.variables


def test_backup_leaves_metrics_out(tmp_path):
    model = make_other_model("sgd", Counting, metrics=["accuracy"])
    seen = {id(v) for v in model.layers[0].seen.variables}
    assert seen <= {id(v) for v in model.variables}
    fit(model, 1, [AtomicBackup(tmp_path, delete_checkpoint=False)])
    with np.load(tmp_path / "backup.npz") as file:
        arrays = len(file.files) - 1
    assert arrays == len(model.variables) - 2 + len(model.optimizer.variables)


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


@pytest.mark.parametrize("first", [True, False], ids=["backup_first", "backup_last"])
def test_backup_of_a_done_fit_keeps_the_best_weights(tmp_path, first):
    def run():
        model = make_model()
        best = keras.callbacks.EarlyStopping(
            "loss", mode="max", patience=9, restore_best_weights=True
        )
        backup = AtomicBackup(tmp_path, callbacks=[best], delete_checkpoint=False)
        fit(model, 2, [backup, best] if first else [best, backup])
        return model

    assert_same(run().weights, run().weights)


class Noted(keras.callbacks.Callback):
    """Has a state of its own, of every kind."""

    def __init__(self):
        super().__init__()
        self.state = None

    def on_epoch_begin(self, epoch, logs=None):
        rows = keras.ops.convert_to_tensor(np.full(3, epoch, "int32"))
        self.state = {
            "epoch": [np.float32(epoch), {"late": epoch > 0, "none": None}],
            "rows": rows,
            "best": [np.full((2, 2), epoch, "float64")],
        }

    def get_state(self):
        return self.state

    def set_state(self, state):
        self.state = state


def test_backup_calls_get_state_and_set_state(tmp_path):
    for noted in (Noted(), Noted()):
        backup = AtomicBackup(tmp_path, callbacks=[noted], delete_checkpoint=False)
        # The second time nothing is left to do: what it has is from the backup.
        fit(make_model(), 2, [backup, noted])
    assert noted.state["epoch"] == [1.0, {"late": True, "none": None}]
    for name, expected in {"rows": [1, 1, 1], "best": [[[1, 1], [1, 1]]]}.items():
        np.testing.assert_array_equal(noted.state[name], expected)


def test_callback_without_a_state_is_refused():
    with pytest.raises(TypeError, match=r"must have the methods .* Add the methods"):
        AtomicBackup("unused", callbacks=[keras.callbacks.TerminateOnNaN()])


def test_state_that_no_file_holds_is_refused(tmp_path):
    noted = Noted()
    noted.get_state = lambda: {"function": print}
    with pytest.raises(TypeError, match=r"`get_state` must return .* Convert it"):
        fit(make_model(), 1, [AtomicBackup(tmp_path, callbacks=[noted])])
    assert not (tmp_path / "backup.npz").exists()


def test_backup_refuses_callbacks_in_another_order(tmp_path):
    both = [keras.callbacks.EarlyStopping("loss"), Noted()]
    model = make_model()
    kept = AtomicBackup(tmp_path, callbacks=both, delete_checkpoint=False)
    fit(model, 1, [kept, *both])
    with pytest.raises(
        ValueError, match=r"callbacks=\['EarlyStopping', 'Noted'\], for"
    ):
        fit(model, 1, [AtomicBackup(tmp_path, callbacks=both[::-1])])


def test_fit_that_is_done_does_nothing_more(tmp_path):
    backup = AtomicBackup(tmp_path, delete_checkpoint=False)
    done = make_model()
    fit(done, 2, [backup])
    again = make_model()
    assert fit(again, 2, [backup]).epoch == []
    assert_same(done.weights, again.weights)
    assert fit(again, 1).epoch == [0]
    assert fit(again, 3, [backup]).epoch == [2]


def test_done_fit_goes_on_from_its_end(tmp_path):
    """The rate is halved at the start of epoch 2, and not taken back."""
    rates = []
    for epochs in (2, 3):
        model, backup = make_model(), AtomicBackup(tmp_path, delete_checkpoint=False)
        halve = keras.callbacks.LearningRateScheduler(lambda _, rate: rate / 2)
        fit(model, epochs, [backup, halve])
        rates.append(float(model.optimizer.learning_rate))
    assert rates == pytest.approx([0.05 / 4, 0.05 / 8])


def test_backup_leaves_no_trace_when_another_callback_raises(tmp_path):
    fit(make_model(), 2, [AtomicBackup(tmp_path, delete_checkpoint=False)])
    model = make_model()
    with pytest.raises(KeyboardInterrupt):
        fit(model, 4, [AtomicBackup(tmp_path), Stop(2)])
    assert fit(model, 2).epoch == [0, 1]


FAILURES = {
    "interrupted": KeyboardInterrupt(),
    "disk_is_full": OSError(errno.ENOSPC, "No space left on device"),
}


@pytest.mark.parametrize("failure", FAILURES.values(), ids=FAILURES)
def test_interrupted_backup_leaves_the_last_one(tmp_path, monkeypatch, failure):
    def interrupted(file, *args, **kwargs):
        file.write(b"half")
        raise failure

    fit(make_model(), 2, [AtomicBackup(tmp_path, delete_checkpoint=False)])
    whole = (tmp_path / "backup.npz").read_bytes()
    monkeypatch.setattr(np, "savez", interrupted)
    with pytest.raises(type(failure)):
        fit(make_model(), 3, [AtomicBackup(tmp_path)])
    assert (tmp_path / "backup.npz").read_bytes() == whole
    assert os.listdir(tmp_path) == ["backup.npz"]


def begin_epoch(model, folder):
    """What `fit` calls up to the first batch: reads a backup, and makes one."""
    backup = AtomicBackup(folder)
    backup.set_model(model)
    backup.on_train_begin()
    backup.on_epoch_begin(0)
    backup.on_train_batch_begin(0)


def test_backup_that_overtakes_another_stays_whole(tmp_path, monkeypatch):
    model, save = make_model(), np.savez

    def overtaken(file, *args, **kwargs):
        file.write(b"half")
        file.flush()
        monkeypatch.setattr(np, "savez", save)
        begin_epoch(model, tmp_path)
        begin_epoch(model, tmp_path)  # which reads what the last one wrote
        file.seek(0)
        save(file, *args, **kwargs)

    monkeypatch.setattr(np, "savez", overtaken)
    begin_epoch(model, tmp_path)
    begin_epoch(model, tmp_path)
    assert os.listdir(tmp_path) == ["backup.npz"]


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


@on_jax
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["both", "batch"])
def test_processes_resume_from_one_folder(tmp_path, kind):
    """The weights of each process, of a run that was killed and of one that was not."""
    together(FOLDER / "two_backups.py", tmp_path, kind, str(tmp_path))
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    for each in found:
        assert each["resumed"] == each["whole"] == found[0]["whole"]
        assert each["epochs"] == [1, 2]
        assert each["done"] == []
        assert "All processes must see the same backup" in each["error"]
    assert os.listdir(tmp_path / "shared") == ["backup.npz"]
