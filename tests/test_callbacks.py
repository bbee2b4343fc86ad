import keras
import numpy as np
import pytest
from keras import ops
from tensors import FEW_STEPS, draw_alike

from keras_pedcc import (
    AtomicBackup,
    FinetuneCallback,
    FinetuneOptimizer,
    PEDCCDense,
    PEDCCLoss,
    PEDCCModel,
)

BACKEND = keras.backend.backend()
COMPILED = {"run_eagerly": False}
# Each policy and each way to run, the harder ones together: float16 scales the loss.
CASES = [
    ("mixed_float16", COMPILED),
    ("float32", {"run_eagerly": True}),
    pytest.param("mixed_bfloat16", COMPILED, marks=pytest.mark.slow),
]
if BACKEND == "tensorflow":
    two = COMPILED | {"steps_per_execution": 2}
    xla = COMPILED | {"jit_compile": True}
    CASES += [
        ("float32", two),
        pytest.param("mixed_float16", xla, marks=pytest.mark.slow),
    ]
SCALED = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD())
WRAPPED = FinetuneOptimizer(keras.optimizers.SGD(), keras.optimizers.SGD())


def numpy_of(tensor):
    return ops.convert_to_numpy(tensor)


def make_data():
    rng = np.random.default_rng(0)
    return rng.standard_normal((32, 4)).astype("float32"), np.arange(32) % 3


def make_model(optimizer=None, **kwargs):
    draw_alike(0)
    inputs = keras.Input((4,))
    dense = keras.layers.Dense(8, name="backbone")
    model = PEDCCModel(inputs, PEDCCDense(3, name="head")(dense(inputs)))
    optimizer = optimizer or keras.optimizers.SGD(0.05, momentum=0.9)
    model.compile(optimizer, PEDCCLoss(), **{**FEW_STEPS, **kwargs})
    return model


def fit(model, epochs, callbacks=(), batch_size=8, **kwargs):
    return model.fit(
        *make_data(),
        batch_size=batch_size,
        epochs=epochs,
        shuffle=False,
        verbose=0,
        callbacks=list(callbacks),
        **kwargs,
    )


def state_of(variables):
    return [numpy_of(v).astype("float64") for v in variables]


def assert_same(first, second):
    for a, b in zip(state_of(first), state_of(second), strict=True):
        np.testing.assert_array_equal(a, b)


def backbone_optimizer(model):
    optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)
    return getattr(optimizer, "optimizer", optimizer)


@pytest.mark.filterwarnings("ignore:The centroids will not be fine-tuned")
@pytest.mark.parametrize("mode", [COMPILED, {"run_eagerly": True}], ids=str)
def test_centroids_stay_bit_identical_and_then_move(mode):
    model = make_model(**mode)
    start = numpy_of(model.get_layer("head").centroids)
    fit(model, 2, [FinetuneCallback(2)], initial_epoch=1)
    np.testing.assert_array_equal(numpy_of(model.get_layer("head").centroids), start)
    fit(model, 3, [FinetuneCallback(2)], initial_epoch=2)
    assert np.abs(numpy_of(model.get_layer("head").centroids) - start).max() > 1e-5


@pytest.mark.filterwarnings("ignore:The centroids will not be fine-tuned")
@pytest.mark.parametrize(("policy", "mode"), CASES, ids=str)
def test_backbone_and_its_optimizer_do_not_notice_the_callback(policy, mode):
    keras.mixed_precision.set_global_policy(policy)
    plain, wrapped = make_model(**mode), make_model(**mode)
    fit(plain, 2)
    fit(wrapped, 2, [FinetuneCallback(2)])
    assert_same(plain.weights, wrapped.weights)
    assert_same(
        backbone_optimizer(plain).variables, backbone_optimizer(wrapped).variables
    )


@pytest.mark.parametrize(("policy", "mode"), CASES, ids=str)
def test_one_step_moves_the_centroids_by_rate_times_gradient(policy, mode):
    keras.mixed_precision.set_global_policy(policy)
    moved = {}
    for rate in (1e-3, 2e-3):
        optimizer = keras.optimizers.SGD(1e-30)
        if policy == "mixed_float16":  # from 32768 the first steps would overflow
            optimizer = keras.optimizers.LossScaleOptimizer(optimizer, 8.0)
        model = make_model(optimizer, **mode)
        start = numpy_of(model.get_layer("head").centroids).astype("float64")
        fit(model, 1, [FinetuneCallback(0, rate)], batch_size=32)
        moved[rate] = numpy_of(model.get_layer("head").centroids) - start
    expected = -1e-3 * centroid_gradient(make_model())
    # The backbone computes in the policy's dtype, with 8 to 11 bits.
    close = 1e-5 if policy == "float32" else 3e-2
    scale = np.abs(expected).max()
    np.testing.assert_allclose(moved[1e-3], expected, atol=close * scale + 1e-7)
    np.testing.assert_allclose(moved[2e-3], 2 * moved[1e-3], atol=4e-7)


def centroid_gradient(model):
    """Gradient of the loss with respect to the centroids, by central differences."""
    images, labels = make_data()
    kernel, bias = (numpy_of(w).astype("float64") for w in model.layers[1].weights)
    features = images @ kernel + bias
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    centroids = numpy_of(model.get_layer("head").centroids).astype("float64")

    def loss(centroids):
        unit = centroids / np.linalg.norm(centroids, axis=1, keepdims=True)
        cosines = features @ unit.T
        own = cosines[np.arange(32), labels]
        z = 15 * (cosines - 0.5 * np.eye(3)[labels])
        am = np.log(np.exp(z).sum(axis=1)) - 15 * (own - 0.5)
        return np.mean(am + 10 * (1 - own))

    gradient = np.zeros_like(centroids)
    for at in np.ndindex(*centroids.shape):
        step = np.zeros_like(centroids)
        step[at] = 1e-6
        gradient[at] = (loss(centroids + step) - loss(centroids - step)) / 2e-6
    return gradient


@pytest.mark.parametrize(("policy", "mode"), CASES, ids=str)
def test_momenta_and_iterations_survive_the_unfreezing(policy, mode):
    keras.mixed_precision.set_global_policy(policy)
    model = make_model(**mode)
    seen = {}

    class Watch(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            seen[epoch] = state_of(backbone_optimizer(model).variables)

    fit(model, 2, [Watch(), FinetuneCallback(1), Watch()])
    reference = make_model(**mode)
    fit(reference, 1)
    expected = state_of(backbone_optimizer(reference).variables)
    assert np.abs(expected[-1]).max() > 0
    for a, b in zip(seen[1], expected, strict=True):
        np.testing.assert_array_equal(a, b)


def test_schedulers_act_on_the_backbone_before_and_after():
    model = make_model()
    rates = {"backbone": [], "centroids": []}

    class Watch(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            rates["backbone"].append(float(model.optimizer.learning_rate))
            optimizer = model.optimizer.centroid_optimizer
            rates["centroids"].append(float(optimizer.learning_rate))

    schedule = keras.callbacks.LearningRateScheduler(lambda epoch, rate: 0.5 * rate)
    fit(model, 3, [FinetuneCallback(1), schedule, Watch()])
    assert rates["backbone"] == pytest.approx([0.025, 0.0125, 0.00625])
    assert rates["centroids"] == pytest.approx([1e-3] * 3)
    plateau = keras.callbacks.ReduceLROnPlateau("loss", 0.1, 0, min_delta=1e9)
    fit(model, 2, [FinetuneCallback(0), plateau])
    assert float(model.optimizer.learning_rate) < 0.001


def test_iterations_are_those_of_the_backbone():
    model = make_model()
    fit(model, 3, [FinetuneCallback(2)])
    assert int(model.optimizer.iterations) == 3 * 4
    assert int(model.optimizer.centroid_optimizer.iterations) < 3 * 4


def test_loss_scale_factor_does_not_change_the_steps():
    found = []
    # A power of two changes no digit, but how a compiler joins operations may.
    for factor in (None, 8.0):
        sgd = keras.optimizers.SGD(0.05, loss_scale_factor=factor)
        model = make_model(sgd, run_eagerly=True)
        fit(model, 1, [FinetuneCallback(0, 0.1)])
        wrapped = model.optimizer
        fit(model, 1, [FinetuneCallback(0, 0.1)])
        assert model.optimizer is wrapped
        found.append(model.weights)
    assert_same(*found)


def test_loss_scale_factor_reaches_both_optimizers():
    sgd = keras.optimizers.SGD
    optimizer = FinetuneOptimizer(sgd(0.1, loss_scale_factor=8.0), sgd(0.2))
    assert optimizer.centroid_optimizer.loss_scale_factor == 8.0
    optimizer.loss_scale_factor = 4.0
    assert optimizer.optimizer.loss_scale_factor == 4.0
    assert optimizer.centroid_optimizer.loss_scale_factor == 4.0


def test_late_start_unfreezes_at_once():
    model = make_model()
    fit(model, 5, [FinetuneCallback(1)], initial_epoch=4)
    assert model.get_layer("head").trained


def test_several_heads_and_nested_models():
    inputs = keras.Input((4,))
    inner = keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(8), PEDCCDense(3, return_features=False)]
    )
    other = PEDCCDense(3, return_features=False)(keras.layers.Dense(6)(inputs))
    model = keras.Model(inputs, {"a": inner(inputs), "b": other})
    model.compile("sgd", {"a": PEDCCLoss(), "b": PEDCCLoss()}, **FEW_STEPS)
    images, labels = make_data()
    heads = [h for h in model._flatten_layers() if isinstance(h, PEDCCDense)]
    start = state_of([h.centroids for h in heads])
    labels = {"a": labels, "b": labels}
    model.fit(images, labels, epochs=2, verbose=0, callbacks=[FinetuneCallback(1)])
    assert len(heads) == 2
    for head, before in zip(heads, start, strict=True):
        assert head.trained
        assert np.abs(numpy_of(head.centroids) - before).max() > 1e-5


class Subclassed(keras.Model):
    """A model whose head Keras builds inside `call`."""

    def __init__(self):
        super().__init__()
        self.backbone = keras.layers.Dense(8)
        self.head = PEDCCDense(3, return_features=False)

    def call(self, inputs):
        return self.head(self.backbone(inputs))


@pytest.mark.parametrize("mode", [COMPILED, {"run_eagerly": True}], ids=str)
def test_subclassed_model_unfreezes(mode):
    model = Subclassed()
    model(make_data()[0])
    model.compile("sgd", PEDCCLoss(), **mode)
    head = model.head
    start = numpy_of(head.centroids)
    assert all(v is not head.centroids for v in model.trainable_variables)
    with pytest.warns(UserWarning, match="will not be fine-tuned"):
        fit(model, 1, [FinetuneCallback(1)])
    np.testing.assert_array_equal(numpy_of(head.centroids), start)
    fit(model, 2, [FinetuneCallback(1)], initial_epoch=1)
    assert np.abs(numpy_of(head.centroids) - start).max() > 1e-5


def test_epoch_none_never_unfreezes_and_branches_by_its_backup(tmp_path):
    whole, never, branch = make_model(), make_model(), make_model()
    fit(whole, 4, [FinetuneCallback(2)])
    backup = AtomicBackup(tmp_path, delete_checkpoint=False)
    fit(never, 2, [FinetuneCallback(None), backup])
    assert not never.get_layer("head").trained
    fit(branch, 4, [FinetuneCallback(2), backup])
    assert_same(branch.variables, whole.variables)


@pytest.mark.filterwarnings("ignore:The model does not have any trainable weights")
def test_unfreezing_inside_a_frozen_model_warns():
    model = make_model()
    model.trainable = False
    model.compile("sgd", PEDCCLoss(), **FEW_STEPS)
    with pytest.warns(UserWarning, match="The centroids stay frozen"):
        fit(model, 1, [FinetuneCallback(0)])


def test_one_of_two_heads_already_unfrozen_trains():
    inputs = keras.Input((4,))
    heads = [PEDCCDense(3, return_features=False, name=n) for n in "ab"]
    heads[0].frozen = False
    outputs = {h.name: h(keras.layers.Dense(8)(inputs)) for h in heads}
    model = keras.Model(inputs, outputs)
    model.compile("sgd", {"a": PEDCCLoss(), "b": PEDCCLoss()}, **FEW_STEPS)
    images, labels = make_data()
    labels = {"a": labels, "b": labels}
    start = state_of([h.centroids for h in heads])
    seen = {}

    class Watch(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            seen[epoch] = state_of([h.centroids for h in heads])

    callbacks = [FinetuneCallback(1), Watch()]
    model.fit(images, labels, epochs=2, verbose=0, callbacks=callbacks)
    # At the callback's rate of 1e-3, not at the backbone's of 1e-2.
    assert 1e-6 < np.abs(seen[0][0] - start[0]).max() < 2e-2
    np.testing.assert_array_equal(seen[0][1], start[1])
    assert np.abs(seen[1][1] - start[1]).max() > 1e-6


@pytest.mark.filterwarnings("ignore:The centroids will not be fine-tuned")
@pytest.mark.parametrize(
    ("kind", "epoch", "policy"),
    [
        ("momentum", 3, "float32"),
        ("plain", 3, "mixed_float16"),
        ("momentum", 1, "mixed_float16"),
    ],
)
def test_saved_model_keeps_both_optimizers(tmp_path, policy, epoch, kind):
    keras.mixed_precision.set_global_policy(policy)

    def callback():
        own = keras.optimizers.SGD(1e-3, momentum=0.5) if kind == "momentum" else None
        return FinetuneCallback(epoch, optimizer=own)

    model = make_model()
    fit(model, 2, [callback()])
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.get_layer("head").trained is (epoch < 2)
    assert_same(model.optimizer.variables, loaded.optimizer.variables)
    for each in (model, loaded):
        fit(each, 4, [callback()], initial_epoch=2)
    assert_same(model.weights, loaded.weights)
    assert_same(model.optimizer.variables, loaded.optimizer.variables)


def test_clipping_and_accumulation_of_the_backbone_stay_its_own():
    def optimizer():
        return keras.optimizers.SGD(
            0.05, momentum=0.9, gradient_accumulation_steps=2, global_clipnorm=0.1
        )

    plain, wrapped = make_model(optimizer()), make_model(optimizer())
    fit(plain, 1)
    fit(wrapped, 1, [FinetuneCallback(0, 1e-30)])
    assert_same(plain.optimizer.variables, backbone_optimizer(wrapped).variables)
    # Unclipped and with the mean of two halves: the gradient of the whole batch.
    moved = make_model(optimizer())
    start = numpy_of(moved.get_layer("head").centroids).astype("float64")
    fit(moved, 1, [FinetuneCallback(0)], batch_size=16)
    found = numpy_of(moved.get_layer("head").centroids) - start
    expected = -1e-3 * centroid_gradient(make_model())
    np.testing.assert_allclose(
        found, expected, atol=1e-5 * np.abs(expected).max() + 1e-7
    )


def test_each_variable_is_trained_by_one_optimizer():
    # The backbone's optimizer was built while the head was trainable.
    model = make_model(keras.optimizers.SGD(1.0))
    model.get_layer("head").frozen = False
    model.optimizer.build(model.trainable_variables)
    start = numpy_of(model.get_layer("head").centroids).astype("float64")
    expected = -1e-3 * centroid_gradient(model)
    fit(model, 1, [FinetuneCallback(0)], batch_size=32)
    found = numpy_of(model.get_layer("head").centroids) - start
    np.testing.assert_allclose(
        found, expected, atol=1e-5 * np.abs(expected).max() + 1e-7
    )


def test_settings_of_a_second_callback_count():
    model = make_model()
    momentum = keras.optimizers.SGD(1e-2, momentum=0.5)
    schedule = keras.optimizers.SGD(keras.optimizers.schedules.CosineDecay(0.1, 9))
    fit(model, 1, [FinetuneCallback(0, optimizer=momentum)])
    assert model.optimizer.centroid_optimizer.momentum == 0.5
    velocity = state_of(model.optimizer.centroid_optimizer.variables)[2]
    assert np.abs(velocity).max() > 0
    again = keras.optimizers.SGD(1e-5, momentum=0.5)
    fit(model, 0, [FinetuneCallback(0, optimizer=again)])
    same = model.optimizer.centroid_optimizer
    assert float(same.learning_rate) == pytest.approx(1e-5)
    np.testing.assert_array_equal(state_of(same.variables)[2], velocity)
    fit(model, 1, [FinetuneCallback(0, optimizer=schedule)])
    fit(model, 1, [FinetuneCallback(0, 1e-4)])
    plain = model.optimizer.centroid_optimizer
    assert plain.momentum == 0
    assert float(plain.learning_rate) == pytest.approx(1e-4)


@pytest.mark.filterwarnings("ignore:The centroids will not be fine-tuned")
def test_momentum_of_centroids_survives_freezing_and_loading(tmp_path):
    def callback():
        return FinetuneCallback(0, optimizer=keras.optimizers.SGD(1e-2, momentum=0.5))

    model = make_model()
    fit(model, 1, [callback()])
    model.get_layer("head").frozen = True
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    fit(loaded, 0, [callback()])
    velocity = state_of(model.optimizer.centroid_optimizer.variables)[2]
    assert np.abs(velocity).max() > 0
    found = state_of(loaded.optimizer.centroid_optimizer.variables)[2]
    np.testing.assert_array_equal(found, velocity)


def test_nan_stops_training_after_the_unfreezing():
    images, labels = make_data()
    images[5] = np.nan
    callbacks = [FinetuneCallback(0), keras.callbacks.TerminateOnNaN()]
    model = make_model()
    with pytest.warns(UserWarning, match="loss=nan in epoch 1"):
        history = model.fit(images, labels, epochs=3, verbose=0, callbacks=callbacks)
    assert len(history.history["loss"]) == 1


def test_no_warning_when_the_centroids_are_trained_already():
    model = make_model()
    model.get_layer("head").frozen = False
    fit(model, 1, [FinetuneCallback(70)])
    assert model.get_layer("head").trained


class Moves(keras.callbacks.Callback):
    """Notes for each epoch how far the centroids moved in it."""

    def on_epoch_begin(self, epoch, logs=None):
        self.start = numpy_of(self.model.get_layer("head").centroids)
        self.moved = [] if epoch == 0 else self.moved

    def on_epoch_end(self, epoch, logs=None):
        end = numpy_of(self.model.get_layer("head").centroids)
        self.moved.append(bool(np.abs(end - self.start).max() > 1e-6))


@pytest.mark.parametrize("saved", [False, True])
def test_second_fit_waits_for_its_epoch(saved, tmp_path):
    model, callback, moves = make_model(), FinetuneCallback(1), Moves()
    fit(model, 2, [callback, moves])
    if saved:
        model.save(tmp_path / "model.keras")
        model = keras.saving.load_model(tmp_path / "model.keras")
    fit(model, 2, [callback, moves])
    assert moves.moved == [False, True]
    assert not model.get_layer("head").frozen


def test_second_fit_that_goes_on_stays_unfrozen():
    whole, parts = make_model(), make_model()
    fit(whole, 4, [FinetuneCallback(1)])
    fit(parts, 2, [FinetuneCallback(1)])
    fit(parts, 4, [FinetuneCallback(1)], initial_epoch=2)
    assert_same(whole.weights, parts.weights)


@pytest.mark.parametrize("by_hand", [False, True])
def test_head_that_the_user_unfroze_is_trained_from_the_first_epoch(by_hand):
    inputs = keras.Input((4,))
    head = PEDCCDense(3, name="head", trainable=not by_hand, keep_mean=False)
    model = PEDCCModel(inputs, head(keras.layers.Dense(8)(inputs)))
    model.compile("sgd", PEDCCLoss(), **FEW_STEPS)
    moves = Moves()
    if by_hand:
        fit(model, 1, [FinetuneCallback(0)])
        head.fine_tuned = False
    for _ in range(2):
        fit(model, 2, [FinetuneCallback(1), moves])
        assert moves.moved == [True, True]


def test_fit_too_short_for_its_epoch_freezes_and_warns():
    model, moves = make_model(), Moves()
    fit(model, 1, [FinetuneCallback(0)])
    with pytest.warns(UserWarning, match="with fit.epochs=1.*`initial_epoch`"):
        fit(model, 1, [FinetuneCallback(1), moves])
    assert moves.moved == [False]


def test_training_that_ends_before_the_epoch_warns():
    stop = keras.callbacks.EarlyStopping("loss", min_delta=1e9, patience=1)
    message = "training ended before `epoch`.*epoch=5, with a last epoch of 1"
    with pytest.warns(UserWarning, match=message):
        fit(make_model(), 9, [FinetuneCallback(5), stop])


def test_training_that_ends_after_the_epoch_does_not_warn():
    stop = keras.callbacks.EarlyStopping("loss", min_delta=1e9, patience=1)
    fit(make_model(), 9, [FinetuneCallback(1), stop])


def test_one_callback_serves_two_models():
    callback, models = FinetuneCallback(1), [make_model(), make_model()]
    for model in models:
        fit(model, 2, [callback])
    assert_same(models[0].weights, models[1].weights)


def test_head_shared_by_two_models_is_trained_by_each():
    inputs, head = keras.Input((4,)), PEDCCDense(3, name="head")
    denses = [keras.layers.Dense(8), keras.layers.Dense(8)]
    models = [PEDCCModel(inputs, head(dense(inputs))) for dense in denses]
    moves = Moves()
    for model in models:
        model.compile("sgd", PEDCCLoss(), **FEW_STEPS)
        fit(model, 1, [FinetuneCallback(None), moves])
        assert moves.moved == [False]
    for model in models:  # the second finds the head unfrozen
        fit(model, 1, [FinetuneCallback(0), moves])
        assert moves.moved == [True]


class Branches(keras.layers.Layer):
    """A layer of the user's own that keeps a head where no model lists it."""

    def __init__(self, head, **kwargs):
        super().__init__(**kwargs)
        self._parts = {"inner": [keras.layers.Dense(8), head]}

    def call(self, inputs):
        for part in self._parts["inner"]:
            inputs = part(inputs)
        return inputs


def test_head_inside_a_layer_of_the_user_is_found():
    inputs, head = keras.Input((4,)), PEDCCDense(3, return_features=False)
    model = keras.Model(inputs, Branches(head)(inputs))
    model.compile("sgd", PEDCCLoss(), **FEW_STEPS)
    fit(model, 1, [FinetuneCallback(0)])
    assert not head.frozen


def test_head_of_a_frozen_part_does_not_hold_the_others():
    inputs = keras.Input((4,))
    heads = [PEDCCDense(3, return_features=False, name=n) for n in "ab"]
    frozen = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8), heads[0]])
    frozen.trainable = False
    other = heads[1](keras.layers.Dense(8)(inputs))
    model = keras.Model(inputs, {"a": frozen(inputs), "b": other})
    model.compile("sgd", {"a": PEDCCLoss(), "b": PEDCCLoss()}, **FEW_STEPS)
    images, labels = make_data()
    labels = {"a": labels, "b": labels}
    with pytest.warns(UserWarning, match=r"stay frozen.*\['a'\] in model"):
        model.fit(images, labels, verbose=0, callbacks=[FinetuneCallback(0)])
    assert [head.frozen for head in heads] == [True, False]


def of_features_alone(y_true, outputs):
    return ops.mean(outputs["features"] ** 4, axis=1)


def test_centroids_without_a_gradient_stay_and_the_rest_is_trained():
    model = make_model()
    model.compile("sgd", of_features_alone, **FEW_STEPS)
    before = state_of(model.weights)
    if BACKEND == "jax":  # where what is missing is zero
        fit(model, 1, [FinetuneCallback(0)])
    else:
        with pytest.warns(UserWarning, match=r"not exist for .*'centroids'"):
            fit(model, 1, [FinetuneCallback(0)])
    kernel, _, centroids = state_of(model.weights)
    assert np.abs(kernel - before[0]).max() > 1e-5
    np.testing.assert_array_equal(centroids, before[2])


def test_averages_that_are_swapped_are_refused():
    keras.mixed_precision.set_global_policy("mixed_float16")
    model = make_model(keras.optimizers.SGD(0.05, use_ema=True))
    callbacks = [FinetuneCallback(0), keras.callbacks.SwapEMAWeights()]
    message = "`SwapEMAWeights` does not work with .*`FinetuneCallback`.*use_ema=True"
    with pytest.raises(ValueError, match=message):
        model.fit(
            *make_data(), verbose=0, validation_data=make_data(), callbacks=callbacks
        )


def test_averages_of_the_centroids_by_the_backbone_are_refused():
    model = make_model(keras.optimizers.SGD(0.05, use_ema=True))
    model.get_layer("head").frozen = False
    model.optimizer.build(model.trainable_variables)
    message = r"does not average the centroids.*\['head'\].*FinetuneOptimizer"
    with pytest.raises(ValueError, match=message):
        fit(model, 1, [FinetuneCallback(0)])


@pytest.mark.filterwarnings("ignore:The model does not have any trainable weights")
def test_iterations_count_with_a_frozen_backbone():
    model = make_model()
    model.get_layer("backbone").trainable = False
    model.compile("sgd", PEDCCLoss(), **FEW_STEPS)
    fit(model, 2, [FinetuneCallback(0)])
    assert int(model.optimizer.iterations) == 2 * 4


@pytest.mark.filterwarnings("ignore:The centroids will not be fine-tuned")
@pytest.mark.parametrize("frequency", [None, 3])
def test_averages_of_the_backbone_are_those_without_the_callback(frequency):
    def optimizer():
        return keras.optimizers.SGD(
            0.05, use_ema=True, ema_overwrite_frequency=frequency
        )

    plain, wrapped = (make_model(optimizer(), run_eagerly=True) for _ in range(2))
    fit(plain, 1)
    fit(wrapped, 1, [FinetuneCallback(1)])
    assert_same(plain.weights, wrapped.weights)


def test_optimizer_survives_a_round_trip():
    optimizer = FinetuneOptimizer(keras.optimizers.Adam(0.1), keras.optimizers.SGD(0.2))
    config = keras.saving.serialize_keras_object(optimizer)
    restored = keras.saving.deserialize_keras_object(config)
    assert restored.get_config() == optimizer.get_config()
    assert float(restored.learning_rate) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"epoch": -1}, ValueError, "`epoch` must be at least 0"),
        ({"epoch": 1.5}, TypeError, "`epoch` must be a whole number"),
        ({"learning_rate": 0}, ValueError, "`learning_rate` must be a positive"),
        ({"learning_rate": "a"}, ValueError, "Received: learning_rate='a'"),
        ({"optimizer": "sgd"}, TypeError, r"`optimizer` must be a.*Adam\(1e-3\)"),
        ({"optimizer": SCALED}, ValueError, "must not be a `LossScaleOptimizer`"),
        ({"optimizer": WRAPPED}, ValueError, "must have a learning rate of its own"),
    ],
)
def test_callback_refuses(arguments, error, message):
    with pytest.raises(error, match=message):
        FinetuneCallback(**arguments)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="others build the model in fit")
@pytest.mark.parametrize("make", [FinetuneCallback, lambda: AtomicBackup("unused")])
def test_callbacks_refuse_a_model_that_is_not_built(make):
    head = PEDCCDense(3, return_features=False)
    model = keras.Sequential([keras.layers.Dense(8), head])
    model.compile("sgd", PEDCCLoss())
    with pytest.raises(ValueError, match=r"that is built. .* call it on a batch"):
        fit(model, 1, [make()])


def test_callback_refuses_models_without_the_layer_and_late_epochs():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    model.compile("sgd", "mse")
    with pytest.raises(ValueError, match=r"needs a model with a `PEDCCDense`"):
        model.fit(np.ones((2, 4)), np.ones((2, 3)), callbacks=[FinetuneCallback()])
    with pytest.warns(UserWarning, match=r"epoch=2, with fit.epochs=2"):
        fit(make_model(), 2, [FinetuneCallback(2)])
