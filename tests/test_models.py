import copy
import functools
import pickle

import keras
import numpy as np
import pytest
from keras import ops
from tensors import FEW_STEPS, assert_allclose

from keras_pedcc import (
    CosineDense,
    IntraClassDistance,
    PEDCCDense,
    PEDCCLoss,
    PEDCCModel,
    pedcc_loss,
)
from keras_pedcc.training import label_checks
from keras_pedcc.training.functional import functional_kind

BACKEND = keras.backend.backend()


@pytest.fixture
def data(rng):
    return rng.standard_normal((32, 4)).astype("float32"), np.arange(32) % 3


def make_model(loss=None, cls=PEDCCModel, **kwargs):
    inputs = keras.Input((4,))
    model = cls(inputs, PEDCCDense(3)(keras.layers.Dense(8)(inputs)))
    loss = PEDCCLoss() if loss is None else loss
    model.compile("sgd", loss, **FEW_STEPS | kwargs)
    return model


def test_plain_metrics_are_logged_under_their_plain_name(data):
    metrics = ["accuracy", "sparse_categorical_accuracy"]
    model = make_model(metrics=metrics, run_eagerly=False)
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
    plain.compile("sgd", PEDCCLoss(), metrics=["accuracy"], **FEW_STEPS)
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
    model = make_model(metrics=["accuracy"], run_eagerly=False)
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
    model.compile("adam", PEDCCLoss(), **FEW_STEPS)
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
    model.compile("sgd", PEDCCLoss(), **FEW_STEPS)
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
    with pytest.warns(UserWarning, match="loss=nan in epoch 1"):
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
    model = make_model(PEDCCLoss(mse_root=root), run_eagerly=False)
    before = [np.array(weight) for weight in model.weights]
    assert model.train_on_batch(data[0][:0], data[1][:0]) == 0
    for weight, value in zip(model.weights, before, strict=True):
        np.testing.assert_array_equal(weight, value)


class Subclassed(PEDCCModel):
    """A model with a `call` of its own, which may return anything."""

    def __init__(self, answer=None, **kwargs):
        super().__init__(**kwargs)
        self.dense, self.head = keras.layers.Dense(8), PEDCCDense(3)
        self.answer = answer or (lambda outputs: outputs)

    def call(self, x):
        return self.answer(self.head(self.dense(x)))


def subclassed(answer=None, **kwargs):
    model = Subclassed(answer)
    model.compile("sgd", PEDCCLoss(), **FEW_STEPS, **kwargs)
    return model


@keras.saving.register_keras_serializable("tests")
class Wide(PEDCCModel):
    """A functional model that makes its own graph."""

    def __init__(self, width=5, **kwargs):
        inputs = keras.Input((4,))
        outputs = PEDCCDense(3)(keras.layers.Dense(width)(inputs))
        super().__init__(inputs, outputs, **kwargs)
        self.width = width

    def get_config(self):
        return {"width": self.width, "name": self.name}


class Unregistered(PEDCCModel):
    pass


def test_functional_models_leave_the_bases_of_their_classes(data, tmp_path):
    bases = [cls.__bases__ for cls in (PEDCCModel, Wide, Unregistered)]
    before = subclassed()
    before.fit(*data, verbose=0)
    make_model(cls=Unregistered).fit(*data, verbose=0)
    Wide()
    before.fit(*data, verbose=0)
    before.save(tmp_path / "model.keras")
    subclassed().fit(*data, verbose=0)
    assert [cls.__bases__ for cls in (PEDCCModel, Wide, Unregistered)] == bases


@pytest.mark.parametrize(
    "make", [make_model, Wide, lambda: make_model(cls=Unregistered)]
)
def test_functional_models_survive_files_and_configs(data, tmp_path, make):
    model = make()
    model.save(tmp_path / "model.keras")
    custom = {"Unregistered": Unregistered}
    loaded = keras.saving.load_model(tmp_path / "model.keras", custom_objects=custom)
    for copied in (loaded, type(model).from_config(model.get_config())):
        assert type(copied) is type(model)
        copied.set_weights(model.get_weights())
        assert_allclose(
            copied(data[0])["logits"], ops.convert_to_numpy(model(data[0])["logits"])
        )


@pytest.mark.parametrize("make", [make_model, Wide])
def test_functional_models_survive_pickle_and_copy(make):
    model = make()
    for copied in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        assert type(copied) is type(model)
        for ours, theirs in zip(copied.get_weights(), model.get_weights(), strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_clone_of_a_functional_model_is_compiled_and_of_its_class(data):
    clone = keras.models.clone_model(make_model(cls=Unregistered))
    assert isinstance(clone, Unregistered)
    clone.fit(*data, verbose=0)


def test_functional_kind_takes_nothing_from_its_class():
    kind = functional_kind(Wide)
    assert kind is functional_kind(Wide) is functional_kind(kind)
    assert (kind.__name__, kind.__module__) == ("Wide", Wide.__module__)
    assert keras.saving.get_registered_name(kind) == "tests>Wide"
    assert keras.saving.get_registered_object("tests>Wide") is Wide


class Batches(keras.utils.PyDataset):
    """Batches that are counted, the labels of the last of them replaced."""

    def __init__(self, images, labels, last=None, number=3, **kwargs):
        super().__init__(**kwargs)
        self.images, self.labels, self.last = images, labels, last
        self.number, self.fetched = number, 0

    def __len__(self):
        return self.number

    def __getitem__(self, index):
        self.fetched += 1
        last = self.last is not None and index == self.number - 1
        return self.images, self.last if last else self.labels


def test_validation_fetches_each_batch_once_an_epoch(data):
    counts = []
    for model in (make_model(), plain_model()):
        batches = Batches(*data)
        model.fit(*data, validation_data=batches, epochs=3, verbose=0)
        counts.append(batches.fetched)
    extra = 2 * (BACKEND == "tensorflow")  # Keras looks at their shapes
    assert counts == [9 + extra] * 2


def plain_model():
    inputs = keras.Input((4,))
    head = PEDCCDense(3, return_features=False)
    model = keras.Model(inputs, head(keras.layers.Dense(8)(inputs)))
    model.compile("sgd", PEDCCLoss(), **FEW_STEPS)
    return model


def test_steps_are_traced_as_often_as_those_of_a_plain_model(data):
    counts = []
    for plain in (False, True):
        calls = []

        class Counting(PEDCCLoss):
            def call(self, *args, calls=calls):
                calls.append(1)
                return super().call(*args)

        model = plain_model() if plain else make_model()
        model.compile("sgd", Counting())
        for _ in range(2):
            model.train_on_batch(*data)
            model.fit(*data, batch_size=32, verbose=0)
        counts.append(len(calls))
    assert counts[0] == counts[1]


def test_model_is_whole_after_an_error_in_its_loss(data):
    def wrong(y_true, y_pred):
        raise ValueError("wrong loss")

    model = make_model(wrong)
    before = model.get_weights()
    with pytest.raises(ValueError, match="wrong loss"):
        model.fit(*data, verbose=0)
    for ours, theirs in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_model_shows_the_loss_it_was_given(data):
    loss = PEDCCLoss()
    model = make_model(loss)
    assert model.loss is loss
    config = model.get_compile_config()["loss"]
    assert config == keras.saving.serialize_keras_object(loss)
    assert isinstance(make_model(PEDCCLoss).loss, PEDCCLoss)


class CallableLoss:
    def __call__(self, y_true, y_pred):
        return 1 - y_pred["logits"][:, 0]


@pytest.mark.parametrize(
    "loss",
    [
        lambda y_true, y_pred: 1 - y_pred["logits"][:, 0],
        functools.partial(lambda at, y_true, y_pred: 1 - y_pred["logits"][:, at], 0),
        CallableLoss(),
    ],
    ids=["lambda", "partial", "object"],
)
def test_loss_may_be_anything_that_is_called(data, loss):
    model = make_model(loss, run_eagerly=False)
    expected = np.mean(1 - model.predict(data[0], verbose=0)["logits"][:, 0])
    assert model.evaluate(*data, verbose=0) == pytest.approx(expected, rel=1e-5)
    model.fit(*data, verbose=0)


class Doubled(keras.losses.SparseCategoricalCrossentropy):
    def call(self, y_true, y_pred):
        return 2 * super().call(y_true, y_pred)


def test_subclasses_of_losses_of_keras_see_the_logits(data):
    loss = Doubled(from_logits=True)
    model = make_model(loss)
    expected = float(loss(data[1], model.predict(data[0], verbose=0)["logits"]))
    assert model.evaluate(*data, verbose=0) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    "loss", [Doubled(), keras.losses.KLDivergence(name="divergence"), "Poisson"]
)
def test_losses_of_probabilities_are_refused_whatever_their_name(loss):
    with pytest.raises(ValueError, match="logits are cosines and not probabilities"):
        make_model(loss)


def test_metrics_keep_a_name_that_begins_as_an_output(data):
    class Shown(PEDCCModel):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.shown = keras.metrics.Mean("features_shown")

    metric = keras.metrics.SparseCategoricalAccuracy("logits_hits")
    model = make_model(cls=Shown, metrics=[metric])
    logs = model.evaluate(*data, return_dict=True, verbose=0)
    assert set(logs) == {"loss", "logits_hits", "features_shown"}


def test_fit_takes_its_arguments_by_position(data):
    model = make_model()
    history = model.fit(*data, 16, 3, 0, None, 0.0, data, False, None, None, 1)
    assert len(history.history["val_loss"]) == 2


@pytest.mark.parametrize(
    ("answer", "received"),
    [
        (lambda outputs: outputs["logits"], "Tensor|Tracer"),
        (lambda outputs: (outputs["features"], outputs["logits"]), "tuple"),
        (lambda outputs: {"scores": outputs["logits"]}, r"\['scores'\]"),
    ],
    ids=["logits", "tuple", "keys"],
)
@pytest.mark.parametrize("method", ["fit", "evaluate", "train_on_batch"])
def test_model_refuses_outputs_of_its_call(data, answer, received, method):
    model = subclassed(answer, metrics=["accuracy"])
    rule = r"`Subclassed.call` must return a dict with the keys"
    with pytest.raises(ValueError, match=rf"{rule}.* Received: .*{received}"):
        getattr(model, method)(*data)


def as_tensor(labels):
    return ops.convert_to_tensor(labels.astype("int32"))


@pytest.mark.parametrize("make", [make_model, subclassed])
@pytest.mark.parametrize(
    "method", ["fit", "evaluate", "train_on_batch", "test_on_batch"]
)
@pytest.mark.parametrize("form", [np.ndarray.tolist, as_tensor], ids=["list", "tensor"])
def test_labels_of_every_form_are_checked(data, make, method, form):
    labels = data[1].copy()
    labels[5] = 3
    with pytest.raises(ValueError, match=r"whole numbers from 0 to 2.* 3 at index 5"):
        getattr(make(), method)(data[0], form(labels))


def test_labels_beyond_int32_are_refused_in_every_batch(data):
    labels = data[1] + 2**32
    for method in ("train_on_batch", "test_on_batch"):
        with pytest.raises(ValueError, match="whole numbers from 0 to 2"):
            getattr(make_model(), method)(data[0], labels)


def test_float_labels_that_round_classes_are_refused():
    inputs = keras.Input((2,))
    head = CosineDense(2049)
    model = PEDCCModel(inputs, head(inputs))
    model.compile("sgd", PEDCCLoss())
    images = np.ones((3, 2))
    with pytest.raises(ValueError, match=r"tells all classes apart.*dtype=float16"):
        model.fit(images, np.arange(3, dtype="float16"), verbose=0)
    model.fit(images, np.arange(3, dtype="float32"), verbose=0)


def generator_of(batches):
    yield from (batches[i] for i in range(len(batches)))


def loader_of(batches):
    torch = pytest.importorskip("torch")
    samples = torch.utils.data.TensorDataset(
        torch.tensor(np.concatenate([batches[i][0] for i in range(3)])),
        torch.tensor(np.concatenate([batches[i][1] for i in range(3)])),
    )
    return torch.utils.data.DataLoader(samples, batch_size=len(batches.labels))


# Inside of `tf.data`, what Python raises becomes an error of TensorFlow.
ERRORS = (ValueError,)
if BACKEND == "tensorflow":
    import tensorflow as tf

    ERRORS = (ValueError, tf.errors.OpError)


@pytest.mark.parametrize(
    ("form", "which"),
    [
        (lambda batches: batches, "batch 2"),
        (generator_of, "batch 2"),
        (loader_of, "a batch"),
    ],
    ids=["PyDataset", "generator", "DataLoader"],
)
@pytest.mark.parametrize("method", ["fit", "evaluate"])
def test_labels_of_batches_are_checked(data, form, which, method):
    wrong = data[1] + 2**32
    batches = form(Batches(*data, wrong))
    options = {"shuffle": False} if method == "fit" else {}
    with pytest.raises(ERRORS, match=f"labels of {which} must be whole numbers"):
        getattr(make_model(), method)(batches, verbose=0, **options)


@pytest.mark.parametrize(("method", "number"), [("fit", 1), ("evaluate", 3)])
def test_model_is_whole_after_wrong_labels_in_a_batch(data, method, number):
    model = make_model()
    model.fit(*data, verbose=0)
    before = model.get_weights()
    with pytest.raises(ERRORS, match=f"labels of batch {number - 1} must be"):
        getattr(model, method)(Batches(*data, data[1] + 1, number), verbose=0)
    for ours, theirs in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(ours, theirs)


class Interrupt(keras.callbacks.Callback):
    """Ctrl+C in the second epoch, after weights that are set as a backup does."""

    def on_train_begin(self, logs=None):
        for variable in self.model.variables:
            variable.assign(variable)

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch
        self.model.optimizer.learning_rate = 0.1 / (1 + epoch)

    def on_train_batch_begin(self, batch, logs=None):
        if (self.epoch, batch) == (1, self.batch):
            raise KeyboardInterrupt


# On JAX, Keras holds the weights elsewhere while a compiled step trains.
@pytest.mark.parametrize(
    ("jit_compile", "batch"), [("auto", 0), ("auto", 1), (False, 1)]
)
def test_interrupted_training_is_kept(data, jit_compile, batch):
    model = make_model(jit_compile=jit_compile)
    before, interrupt = model.get_weights(), Interrupt()
    interrupt.batch = batch
    with pytest.raises(KeyboardInterrupt):
        model.fit(*data, batch_size=16, epochs=3, callbacks=[interrupt], verbose=0)
    assert int(model.optimizer.iterations) == 2 + batch
    assert np.isclose(float(model.optimizer.learning_rate), 0.05)
    assert not np.allclose(model.get_weights()[0], before[0])


@pytest.mark.skipif(BACKEND != "tensorflow", reason="makes a TensorFlow data set")
def test_wide_labels_of_a_tf_dataset_stay_out_of_range():
    labels = np.array([2**32 + 3, -(2**32), 2], "int64")
    dataset = tf.data.Dataset.from_tensor_slices((labels, labels)).batch(3)
    ((_, narrow),) = label_checks._narrowed(dataset)
    np.testing.assert_array_equal(narrow, [2**31 - 1, -1, 2])
    assert narrow.dtype == "int32"


def test_labels_of_validation_batches_are_checked(data):
    batches = Batches(*data, data[1] + 1)
    with pytest.raises(ERRORS, match="validation labels of batch 2 must be"):
        make_model().fit(*data, validation_data=batches, verbose=0)


def test_checked_batches_keep_the_workers_and_the_ends_of_epochs(data):
    epochs = []

    class Counting(Batches):
        def on_epoch_end(self):
            epochs.append(1)

    batches = Counting(*data, workers=2, max_queue_size=3)
    make_model().fit(batches, epochs=2, verbose=0)
    assert len(epochs) >= 2


def test_labels_of_a_tf_dataset_that_are_no_class_give_nan_and_a_warning(data):
    tf = pytest.importorskip("tensorflow")
    labels = np.where(np.arange(32) == 7, 2**32 + 1, data[1])
    dataset = tf.data.Dataset.from_tensor_slices((data[0], labels)).batch(16)
    with pytest.warns(UserWarning, match="label that is no class gives NaN") as caught:
        history = make_model().fit(dataset, epochs=2, shuffle=False, verbose=0).history
    assert np.isnan(history["loss"]).all()
    assert sum("loss=nan" in str(each.message) for each in caught) == 1


def test_model_with_a_loss_of_its_own_may_go_without_labels(data):
    class Alone(PEDCCModel):
        def compute_loss(self, x=None, y=None, y_pred=None, *args, **kwargs):
            return ops.mean(y_pred["logits"])

    make_model(cls=Alone).fit(data[0], verbose=0)


def test_bfloat16_labels_that_round_classes_are_refused():
    labels = ops.convert_to_tensor([0.0, 1.0, 2.0], "bfloat16")
    label_checks.check_own_labels(labels, 256)
    with pytest.raises(ValueError, match="bfloat16, num_classes=1000"):
        label_checks.check_own_labels(labels, 1000)
