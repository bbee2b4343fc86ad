import h5py
import keras
import numpy as np
import pytest
from tensors import FEW_STEPS, assert_allclose, draw_alike, numpy_of, only_once

import keras_pedcc
from keras_pedcc import (
    AMSoftmaxLoss,
    ArcFaceLoss,
    AtomicBackup,
    HingeLoss,
    MarginWarmup,
    PEDCCDense,
    PEDCCLoss,
    PEDCCModel,
)
from keras_pedcc.losses import am_softmax_loss, arcface_loss, pedcc_loss

FUNCTIONS = {
    AMSoftmaxLoss: am_softmax_loss,
    ArcFaceLoss: arcface_loss,
    PEDCCLoss: pedcc_loss,
}
BACKEND = keras.backend.backend()


@pytest.fixture
def data(rng):
    return rng.standard_normal((16, 6)).astype("float32"), np.arange(16) % 3


def model_of(loss, rate=0.0, **compile_arguments):
    """A model that stands still unless it gets a rate, so that losses are known."""
    inputs = keras.Input((6,))
    outputs = PEDCCDense(3)(keras.layers.Dense(4)(inputs))
    model = PEDCCModel(inputs, outputs)
    model.compile(keras.optimizers.SGD(rate), loss, **FEW_STEPS | compile_arguments)
    return model


COMPILED = {"run_eagerly": False}


@pytest.mark.parametrize("kind", [AMSoftmaxLoss, ArcFaceLoss, PEDCCLoss])
def test_margin_grows_by_the_epoch(data, kind):
    x, y = data
    model = model_of(kind(margin=0.8), **COMPILED)
    warmup = MarginWarmup(epochs=2, start=0.5)
    fitted = model.fit(
        x, y, epochs=4, validation_data=data, callbacks=[warmup], verbose=0
    )
    outputs = model(x)
    margins = (0.4, 0.6, 0.8, 0.8)
    expected = [numpy_of(FUNCTIONS[kind](y, outputs, margin=m)).mean() for m in margins]
    assert_allclose(fitted.history["loss"], expected)
    assert_allclose(fitted.history["val_loss"], expected)


def test_warmup_reaches_a_step_that_was_traced_without_it(data):
    model = model_of(AMSoftmaxLoss(margin=0.8), **COMPILED)
    model.fit(*data, verbose=0)
    fitted = model.fit(*data, epochs=2, callbacks=[MarginWarmup(2)], verbose=0)
    outputs = model(data[0])
    for loss, margin in zip(fitted.history["loss"], (0.0, 0.4), strict=True):
        expected = am_softmax_loss(data[1], outputs, margin=margin)
        assert_allclose(loss, numpy_of(expected).mean())


def test_margins_of_classes_grow_together(data):
    model = model_of(AMSoftmaxLoss(margin=[0.2, 0.4, 0.8]))
    fitted = model.fit(*data, epochs=2, callbacks=[MarginWarmup(2)], verbose=0)
    outputs = model(data[0])
    expected = am_softmax_loss(data[1], outputs, margin=[0.1, 0.2, 0.4])
    assert_allclose(fitted.history["loss"][1], numpy_of(expected).mean())


class Shares(keras.callbacks.Callback):
    """Notes the share of the margin, and what else is asked for, in each epoch."""

    def __init__(self, warmup, ask=None):
        super().__init__()
        self.callbacks = [warmup, self]
        self.seen, self.answers = [], []
        self.warmup, self.ask = warmup, ask

    def on_epoch_end(self, epoch, logs=None):
        self.seen.append(self.warmup.share)
        if self.ask is not None:
            self.answers.append(self.ask(epoch))


def test_late_start_has_the_margin_of_its_epoch(data):
    model = model_of(AMSoftmaxLoss(margin=0.8))
    shares = Shares(MarginWarmup(4))
    model.fit(*data, epochs=4, initial_epoch=3, callbacks=shares.callbacks, verbose=0)
    assert shares.seen == [0.75]


def test_killed_run_resumes_as_if_never_killed(data, tmp_path):
    class Killed(Exception):
        pass

    class Kill(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                raise Killed

    def run(*extra):
        draw_alike(0)
        model = model_of(AMSoftmaxLoss(), rate=0.1)
        callbacks = [AtomicBackup(tmp_path), MarginWarmup(4), *extra]
        model.fit(*data, epochs=4, callbacks=callbacks, verbose=0)
        return [numpy_of(w) for w in model.weights]

    whole = run()
    with pytest.raises(Killed):
        run(Kill())
    for resumed, expected in zip(run(), whole, strict=True):
        assert_allclose(resumed, expected)


@pytest.mark.skipif(BACKEND == "torch", reason="PyTorch runs without tracing")
def test_step_is_traced_once_for_all_epochs(data):
    def traces(epochs):
        seen = []

        class Counting(AMSoftmaxLoss):
            def call(self, y_true, y_pred):
                seen.append(0)
                return super().call(y_true, y_pred)

        model = model_of(Counting(), **COMPILED)
        model.fit(*data, epochs=epochs, callbacks=[MarginWarmup(6)], verbose=0)
        return len(seen)

    assert traces(3) == traces(1)


def test_files_do_not_know_the_warmup(data, tmp_path):
    model = model_of(AMSoftmaxLoss(margin=0.8))
    model.fit(*data, callbacks=[MarginWarmup(2)], verbose=0)
    model.save(tmp_path / "model.keras")
    model.save_weights(tmp_path / "model.weights.h5")
    names = []
    with h5py.File(tmp_path / "model.weights.h5") as file:
        file.visit(names.append)
    assert not [name for name in names if "margin_share/vars/" in name]
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert len(loaded.weights) == len(model.weights)
    expected = loss_with(0.8, model, data)
    assert_allclose(loaded.evaluate(*data, verbose=0), expected)
    model_of(AMSoftmaxLoss()).load_weights(tmp_path / "model.weights.h5")


def test_warmup_and_finetuning_go_together(data):
    model = model_of(PEDCCLoss(margin=0.8), rate=0.1)
    before = numpy_of(model.layers[-1].centroids)
    shares = Shares(MarginWarmup(2))
    callbacks = [*shares.callbacks, keras_pedcc.FinetuneCallback(1, 0.1)]
    model.fit(*data, epochs=2, callbacks=callbacks, verbose=0)
    assert shares.seen == [0.0, 0.5]
    assert np.abs(numpy_of(model.layers[-1].centroids) - before).max() > 1e-4


def test_mixed_precision_and_steps_per_execution(data):
    keras.mixed_precision.set_global_policy("mixed_float16")
    steps = 1 if BACKEND == "torch" else 2  # PyTorch runs single steps only
    model = model_of(ArcFaceLoss(), 0.1, steps_per_execution=steps, **COMPILED)
    fitted = model.fit(
        *data, batch_size=8, epochs=3, callbacks=[MarginWarmup(2)], verbose=0
    )
    assert np.isfinite(fitted.history["loss"]).all()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"epochs": 0}, ValueError, "`epochs` must be at least 1"),
        ({"epochs": 1.5}, TypeError, "`epochs` must be a whole number"),
        ({"start": 1.5}, ValueError, r"`start` must be a number in \[0, 1\]"),
    ],
)
def test_warmup_refuses_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        MarginWarmup(**arguments)


def test_warmup_refuses_models(data):
    with pytest.raises(ValueError, match="needs a loss with a margin"):
        model_of(HingeLoss()).fit(*data, callbacks=[MarginWarmup()], verbose=0)
    inputs = keras.Input((6,))
    outputs = PEDCCDense(3, return_features=False)(keras.layers.Dense(4)(inputs))
    model = keras.Model(inputs, outputs)
    model.compile("sgd", AMSoftmaxLoss())
    with pytest.raises(ValueError, match=r"needs a `PEDCCModel`.*Functional"):
        model.fit(*data, callbacks=[MarginWarmup()], verbose=0)


def loss_with(margin, model, data):
    outputs = model(data[0])
    return numpy_of(am_softmax_loss(data[1], outputs, margin=margin)).mean()


def evaluated(model, data):
    return model.evaluate(*data, verbose=0)


def test_margin_is_full_outside_of_fit(data):
    model = model_of(AMSoftmaxLoss(margin=0.8), **COMPILED)
    for _ in range(2):
        model.fit(*data, epochs=2, callbacks=[MarginWarmup(3)], verbose=0)
        assert_allclose(evaluated(model, data), loss_with(0.8, model, data))


def test_other_model_with_the_same_loss_keeps_its_margin(data):
    loss = AMSoftmaxLoss(margin=0.8)
    model, other = model_of(loss, **COMPILED), model_of(loss, **COMPILED)
    shares = Shares(MarginWarmup(3), lambda epoch: evaluated(other, data))
    model.fit(*data, epochs=2, callbacks=shares.callbacks, verbose=0)
    expected = loss_with(0.8, other, data)
    assert_allclose([*shares.answers, evaluated(other, data)], expected)


def test_fit_inside_of_fit_has_its_own_share(data):
    loss = AMSoftmaxLoss(margin=0.8)
    model, other = model_of(loss, **COMPILED), model_of(loss, **COMPILED)

    def fit(epoch):
        warmup = MarginWarmup(1, start=0.25)
        return other.fit(*data, callbacks=[warmup], verbose=0).history["loss"][0]

    shares = Shares(MarginWarmup(2), fit)
    logs = model.fit(*data, epochs=2, callbacks=shares.callbacks, verbose=0).history
    expected = [loss_with(margin, model, data) for margin in (0.0, 0.4)]
    assert_allclose(logs["loss"], expected)
    assert_allclose(shares.answers, loss_with(0.2, other, data))


class Interrupt(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        raise KeyboardInterrupt


def test_interrupted_fit_leaves_the_margin_full(data):
    model = model_of(AMSoftmaxLoss(margin=0.8), **COMPILED)
    with pytest.raises(KeyboardInterrupt):
        model.fit(*data, callbacks=[MarginWarmup(3), Interrupt()], verbose=0)
    assert_allclose(evaluated(model, data), loss_with(0.8, model, data))


def test_share_is_no_weight_and_is_not_logged(data):
    model = model_of(AMSoftmaxLoss(), metrics=["accuracy"])
    names = list(model.metrics_names)

    def ask(epoch):
        return [variable.path for variable in (*model.weights, *model.variables)]

    before = ask(0)
    shares = Shares(MarginWarmup(3), ask)
    logs = model.fit(*data, callbacks=shares.callbacks, verbose=0).history
    assert shares.answers == [before] == [ask(0)]
    assert set(logs) == {"loss", "accuracy"}
    assert model.metrics_names == names
    assert len(model.evaluate(*data, verbose=0)) == 2
    keras.models.clone_model(model).set_weights(model.get_weights())


def test_best_weights_are_restored_without_the_share(data):
    class Quality(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            logs["quality"] = -abs(epoch - 1)

    model = model_of(AMSoftmaxLoss(margin=0.8), rate=0.1)
    best = keras.callbacks.EarlyStopping(
        "quality", mode="max", patience=9, restore_best_weights=True
    )
    shares = Shares(MarginWarmup(2))
    callbacks = [*shares.callbacks, Quality(), best]
    model.fit(*data, epochs=4, callbacks=callbacks, verbose=0)
    assert shares.seen == [0.0, 0.5, 1.0, 1.0]
    assert_allclose(evaluated(model, data), loss_with(0.8, model, data))


@only_once
def test_second_warmup_is_refused(data):
    model = model_of(AMSoftmaxLoss())
    with pytest.raises(ValueError, match=r"takes one `MarginWarmup`.* epochs=5"):
        model.fit(*data, callbacks=[MarginWarmup(2), MarginWarmup(5)], verbose=0)
    model.fit(*data, callbacks=[MarginWarmup(2)], verbose=0)


@only_once
def test_evaluation_with_the_callback_has_the_full_margin(data):
    model = model_of(AMSoftmaxLoss(margin=0.8))
    found = model.evaluate(*data, callbacks=[MarginWarmup(2)], verbose=0)
    assert_allclose(found, loss_with(0.8, model, data))


class Wrapped(keras.layers.Layer):
    """A head inside of a layer of the user's."""

    def __init__(self, **kwargs):
        super().__init__()
        self.head = PEDCCDense(3, **kwargs)

    def build(self, shape):
        self.head.build(shape)

    def call(self, x):
        return self.head(x)


class Subclassed(PEDCCModel):
    def __init__(self):
        super().__init__()
        self.dense, self.wrapped = keras.layers.Dense(4), Wrapped()

    def call(self, x):
        return self.wrapped(self.dense(x))


def nested():
    inputs = keras.Input((6,))
    inner = keras.Sequential([keras.layers.Dense(4), Wrapped()])
    return PEDCCModel(inputs, inner(inputs))


@pytest.mark.parametrize("make", [Subclassed, nested])
def test_margin_grows_in_models_of_every_kind(data, make):
    model = make()
    model.compile(keras.optimizers.SGD(0.0), AMSoftmaxLoss(margin=0.8), **FEW_STEPS)
    logs = model.fit(*data, epochs=2, callbacks=[MarginWarmup(2)], verbose=0).history
    expected = [loss_with(margin, model, data) for margin in (0.0, 0.4)]
    assert_allclose(logs["loss"], expected)
    assert_allclose(evaluated(model, data), loss_with(0.8, model, data))
