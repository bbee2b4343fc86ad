import functools

import keras
import numpy as np
import pytest
from keras import ops

from keras_pedcc import (
    IntraClassDistance,
    PEDCCDense,
    PEDCCLoss,
    PEDCCModel,
    pedcc_loss,
)


@pytest.fixture
def data(rng):
    return rng.standard_normal((32, 4)).astype("float32"), np.arange(32) % 3


def make_model(loss=None, **kwargs):
    inputs = keras.Input((4,))
    model = PEDCCModel(inputs, PEDCCDense(3)(keras.layers.Dense(8)(inputs)))
    model.compile("sgd", PEDCCLoss() if loss is None else loss, **kwargs)
    return model


def test_plain_metrics_are_logged_under_their_plain_name(data):
    model = make_model(metrics=["accuracy", "sparse_categorical_accuracy"])
    history = model.fit(*data, validation_data=data, verbose=0).history
    names = {"loss", "accuracy", "sparse_categorical_accuracy"}
    assert set(history) == names | {f"val_{name}" for name in names}
    logits = model.predict(data[0], verbose=0)["logits"]
    expected = np.mean(logits.argmax(axis=1) == data[1])
    assert history["val_accuracy"][0] == pytest.approx(expected)


def test_metrics_are_routed_by_output(data):
    metric = IntraClassDistance(3, 8)
    model = make_model(metrics={"logits": ["accuracy"], "features": [metric]})
    logs = model.evaluate(*data, return_dict=True, verbose=0)
    assert set(logs) == {"loss", "accuracy", "intra_class_distance"}


def test_metrics_of_one_name_keep_the_name_of_their_output(data):
    def first(y_true, y_pred):
        return y_pred[:, 0]

    model = make_model(metrics={"logits": [first], "features": [first]})
    logs = model.evaluate(*data, return_dict=True, verbose=0)
    outputs = model.predict(data[0], verbose=0)
    for name in ("logits", "features"):
        expected = outputs[name][:, 0].mean()
        assert logs[f"{name}_first"] == pytest.approx(expected, rel=1e-4)


def test_model_compiled_with_a_function_loads(data, tmp_path):
    model = make_model(pedcc_loss)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    expected = model.evaluate(*data, verbose=0)
    assert loaded.evaluate(*data, verbose=0) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("root", [1, 2, 3])
def test_loss_sees_the_dict_and_the_weights(data, root):
    weights = np.linspace(0, 2, 32)
    model = make_model(PEDCCLoss(mse_root=root))
    logged = model.evaluate(*data, sample_weight=weights, batch_size=32, verbose=0)
    outputs = model.predict(data[0], verbose=0)
    expected = PEDCCLoss(mse_root=root)(data[1], outputs, weights)
    assert logged == pytest.approx(float(expected), rel=1e-5)


def test_model_agrees_with_a_plain_model_on_the_logits(data):
    inputs = keras.Input((4,))
    head = PEDCCDense(3, return_features=False)
    plain = keras.Model(inputs, head(keras.layers.Dense(8)(inputs)))
    plain.compile("sgd", PEDCCLoss(), metrics=["accuracy"])
    model = make_model(metrics=["accuracy"])
    plain.set_weights(model.get_weights())
    ours = model.fit(*data, shuffle=False, epochs=2, verbose=0).history
    theirs = plain.fit(*data, shuffle=False, epochs=2, verbose=0).history
    np.testing.assert_allclose(ours["loss"], theirs["loss"], rtol=1e-5)


def test_class_weights_are_sample_weights(data):
    one, other = make_model(), make_model()
    other.set_weights(one.get_weights())
    class_weight = {0: 1.0, 1: 0.5, 2: 2.0}
    one.fit(*data, class_weight=class_weight, shuffle=False, verbose=0)
    weights = np.array([class_weight[label] for label in data[1]])
    other.fit(*data, sample_weight=weights, shuffle=False, verbose=0)
    for a, b in zip(one.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)


def test_own_loss_functions_see_the_dict(data):
    def mine(y_true, y_pred):
        return ops.sum(ops.square(y_pred["features"]), axis=1)

    assert make_model(mine).evaluate(*data, verbose=0) == pytest.approx(1, rel=1e-5)


def test_losses_of_keras_see_the_logits(data):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model = make_model(loss)
    logits = model.predict(data[0], verbose=0)["logits"]
    logged = model.evaluate(*data, verbose=0)
    assert logged == pytest.approx(float(loss(data[1], logits)), rel=1e-5)


@pytest.mark.parametrize(
    "loss",
    [
        "sparse_categorical_crossentropy",
        keras.losses.sparse_categorical_crossentropy,
        keras.losses.CategoricalCrossentropy(),
        "kl_divergence",
        keras.losses.poisson,
        keras.losses.Dice(),
    ],
)
def test_losses_of_probabilities_are_refused(loss):
    with pytest.raises(ValueError, match="logits are cosines and not probabilities"):
        make_model(loss)


def test_saved_model_loads_compiled_and_trains_on(data, tmp_path):
    model = make_model(metrics=["accuracy"])
    model.fit(*data, shuffle=False, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert isinstance(loaded, PEDCCModel)
    for each in (model, loaded):
        each.fit(*data, shuffle=False, verbose=0)
    logs = [m.evaluate(*data, return_dict=True, verbose=0) for m in (model, loaded)]
    assert logs[0] == logs[1]
    assert set(logs[0]) == {"loss", "accuracy"}


def test_saved_model_keeps_the_state_of_its_optimizer(data, tmp_path):
    model = make_model()
    model.compile("adam", PEDCCLoss())
    model.fit(*data, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    pairs = zip(model.optimizer.variables, loaded.optimizer.variables, strict=True)
    for ours, theirs in pairs:
        np.testing.assert_array_equal(
            keras.ops.convert_to_numpy(ours), keras.ops.convert_to_numpy(theirs)
        )


@pytest.mark.parametrize("bad", [[3], [-1], [1.5], [np.nan], [2**40]])
@pytest.mark.parametrize("where", ["fit", "validation", "evaluate"])
def test_labels_are_checked_before_anything_runs(data, bad, where):
    model = make_model()
    images, labels = data
    wrong = np.concatenate([labels[:-1], bad])
    run = {
        "fit": lambda: model.fit(images, wrong),
        "validation": lambda: model.fit(
            images, labels, validation_data=(images, wrong)
        ),
        "evaluate": lambda: model.evaluate(images, wrong),
    }[where]
    with pytest.raises(ValueError, match=r"whole numbers from 0 to 2.* at index 31"):
        run()
    assert int(model.optimizer.iterations) == 0


def test_soft_labels_are_checked(data):
    model = make_model()
    with pytest.raises(ValueError, match=r"must have shape \(n,\)"):
        model.fit(data[0], np.eye(4)[data[1]], verbose=0)
    with pytest.raises(ValueError, match="not negative and sum to 1"):
        model.fit(data[0], 2 * np.eye(3)[data[1]], verbose=0)
    model.fit(data[0], np.eye(3)[data[1]], verbose=0)


def test_model_refuses_other_outputs_and_arguments():
    inputs = keras.Input((4,))
    with pytest.raises(ValueError, match="`outputs` must be a dict with the keys"):
        PEDCCModel(inputs, keras.layers.Dense(3)(inputs))
    with pytest.raises(ValueError, match="`loss_weights` has no use"):
        make_model(loss_weights=[1.0])
    with pytest.raises(ValueError, match="must be one loss over the whole dict"):
        make_model({"logits": PEDCCLoss()})


def test_extra_losses_are_added(data):
    inputs = keras.Input((4,))
    dense = keras.layers.Dense(8, kernel_regularizer=keras.regularizers.L2(0.5))
    model = PEDCCModel(inputs, PEDCCDense(3)(dense(inputs)))
    model.compile("sgd", PEDCCLoss())
    penalty = 0.5 * np.sum(keras.ops.convert_to_numpy(dense.kernel) ** 2)
    expected = float(PEDCCLoss()(data[1], model.predict(data[0], verbose=0))) + penalty
    assert model.evaluate(*data, verbose=0) == pytest.approx(expected, rel=1e-5)


def test_loss_may_be_a_partial_function(data):
    loss = functools.partial(
        keras.losses.sparse_categorical_crossentropy, from_logits=True
    )
    model = make_model(loss)
    expected = make_model(keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    expected.set_weights(model.get_weights())
    assert model.evaluate(*data, verbose=0) == pytest.approx(
        expected.evaluate(*data, verbose=0), rel=1e-6
    )


def test_a_single_metric_is_left_to_keras():
    with pytest.raises(ValueError, match="Expected `metrics` argument"):
        make_model(metrics="accuracy").fit(np.ones((3, 4)), np.arange(3), verbose=0)


def test_model_without_a_loss_says_so(data):
    model = make_model()
    model.compile("sgd")
    with pytest.raises(ValueError, match="No loss to compute"):
        model.fit(*data, verbose=0)


def test_model_refuses_missing_and_odd_labels(data):
    model = make_model()
    with pytest.raises(ValueError, match=r"one array of labels.* y=None"):
        model.fit(data[0], verbose=0)
    with pytest.raises(ValueError, match=r"one array of labels.* y=\['logits'\]"):
        model.fit(data[0], {"logits": data[1]}, verbose=0)
    with pytest.raises(ValueError, match=r"must be numbers.*dtype=<U1"):
        model.fit(data[0], data[1].astype(str).astype("<U1"), verbose=0)


def test_model_is_whole_after_an_error(data):
    model = make_model()
    model.fit(*data, verbose=0)
    with pytest.raises(ValueError, match="one array of labels"):
        model.fit(data[0], verbose=0)
    model.fit(*data, verbose=0)


def test_nan_features_stop_training(data):
    images = data[0].copy()
    images[5] = np.nan
    stop = keras.callbacks.TerminateOnNaN()
    history = make_model().fit(
        images, data[1], epochs=3, callbacks=[stop], verbose=0, shuffle=False
    )
    assert len(history.history["loss"]) == 1


def test_train_on_batch_builds_nothing_anew(data):
    calls = []

    class Counting(PEDCCModel):
        def compute_loss(self, *args, **kwargs):
            calls.append(1)
            return super().compute_loss(*args, **kwargs)

    inputs = keras.Input((4,))
    model = Counting(inputs, PEDCCDense(3)(keras.layers.Dense(8)(inputs)))
    model.compile("sgd", PEDCCLoss(), metrics=["accuracy"])
    model.train_on_batch(*data)
    before = len(calls)
    model.train_on_batch(*data)
    runs_eagerly = keras.backend.backend() == "torch"
    assert len(calls) - before == runs_eagerly


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="others refuse it")
@pytest.mark.parametrize("root", [1, 2])
def test_batch_of_nothing_changes_no_weight(data, root):
    model = make_model(PEDCCLoss(mse_root=root))
    before = [np.array(weight) for weight in model.weights]
    assert model.train_on_batch(data[0][:0], data[1][:0]) == 0
    for weight, value in zip(model.weights, before, strict=True):
        np.testing.assert_array_equal(weight, value)
