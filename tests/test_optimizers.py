import keras
import numpy as np
import pytest
from keras import ops

from keras_pedcc import FinetuneOptimizer, PEDCCDense
from keras_pedcc.layers.centroid_variables import is_centroids, mark_centroids

BACKEND = keras.backend.backend()
SGD = keras.optimizers.SGD
SETTINGS = {
    "weight_decay": 0.5,
    "clipnorm": 2.0,
    "clipvalue": 3.0,
    "global_clipnorm": 4.0,
    "use_ema": True,
    "ema_momentum": 0.5,
    "ema_overwrite_frequency": 7,
    "gradient_accumulation_steps": 2,
    "loss_scale_factor": 8.0,
}


def numpy_of(tensor):
    return ops.convert_to_numpy(tensor)


def make_variables():
    """A weight of a backbone, and centroids."""
    plain = keras.Variable(np.ones(3, "float32"), name="kernel")
    centroids = keras.Variable(np.ones((2, 3), "float32"), name="centroids")
    mark_centroids(centroids)
    return [plain, centroids]


def make_gradients(variables):
    return [ops.ones(v.shape, v.dtype) for v in variables]


def make_optimizer(backbone=None, centroids=None, built=True):
    optimizer = FinetuneOptimizer(backbone or SGD(0.5), centroids or SGD(0.25))
    variables = make_variables()
    if built:
        optimizer.build(variables)
    return optimizer, variables


def assert_values(variables, *expected):
    for variable, value in zip(variables, expected, strict=True):
        np.testing.assert_allclose(numpy_of(variable), np.full(variable.shape, value))


def test_mark_is_of_the_variable_and_not_of_its_name():
    head = PEDCCDense(3)
    head.build((None, 4))
    assert is_centroids(head.centroids)
    assert not is_centroids(keras.Variable(0.0, name="centroids"))


@pytest.mark.parametrize("built", [False, True])
def test_apply_hands_each_variable_to_its_optimizer(built):
    optimizer, variables = make_optimizer(built=built)
    optimizer.apply(make_gradients(variables), variables)
    assert_values(variables, 0.5, 0.75)


def test_apply_without_variables_takes_those_that_are_trainable():
    optimizer, variables = make_optimizer()
    optimizer.apply(make_gradients(variables))
    variables[1].trainable = False
    optimizer.apply(make_gradients(variables[:1]))
    assert_values(variables, 0.0, 0.75)


def test_apply_refuses_another_number_of_gradients():
    optimizer, variables = make_optimizer()
    with pytest.raises(ValueError, match="Received: 1 values for 2 variables"):
        optimizer.apply(make_gradients(variables[:1]))


def test_apply_without_variables_needs_a_built_optimizer():
    optimizer, variables = make_optimizer(built=False)
    with pytest.raises(ValueError, match=r"must be built before.*2 gradients"):
        optimizer.apply(make_gradients(variables))


def test_apply_refuses_unknown_variables():
    optimizer, _ = make_optimizer()
    others = make_variables()
    with pytest.raises(ValueError, match="Unknown variable"):
        optimizer.apply(make_gradients(others), others)


def test_apply_of_nothing_does_nothing():
    optimizer, variables = make_optimizer()
    optimizer.apply([])
    assert_values([*variables, optimizer.iterations], 1.0, 1.0, 0)


def test_apply_gradients_returns_the_step():
    optimizer, variables = make_optimizer()
    for step in (1, 2):
        pairs = zip(make_gradients(variables), variables, strict=True)
        assert int(optimizer.apply_gradients(pairs)) == step


@pytest.mark.skipif(BACKEND != "tensorflow", reason="the others have no variables")
def test_apply_takes_the_variables_of_tensorflow_itself():
    optimizer, variables = make_optimizer()
    native = [v.value for v in variables]
    optimizer.apply_gradients(zip(make_gradients(variables), native, strict=True))
    assert_values(variables, 0.5, 0.75)


@pytest.mark.parametrize("missing", [0, 1])
def test_share_without_a_gradient_stays_as_it_is(missing):
    optimizer, variables = make_optimizer()
    gradients = make_gradients(variables)
    gradients[missing] = None
    with pytest.warns(UserWarning, match=f"not exist for.*{variables[missing].name}"):
        optimizer.apply(gradients, variables)
    expected = [0.5, 0.75]
    expected[missing] = 1.0
    assert_values(variables, *expected)


def test_no_gradient_at_all_is_refused_as_by_keras():
    optimizer, variables = make_optimizer()
    with pytest.raises(ValueError, match="No gradients provided for any variable"):
        optimizer.apply([None, None], variables)


@pytest.mark.skipif(BACKEND == "tensorflow", reason="Keras has none there")
@pytest.mark.parametrize("trained", [False, True])
def test_stateless_apply_gives_what_apply_does(trained):
    optimizer, variables = make_optimizer(SGD(0.5, momentum=0.9))
    variables[1].trainable = trained
    trained = variables[: 1 + trained]
    gradients = make_gradients(trained)
    # Copies: PyTorch's optimizers write into the tensors that they are given.
    given, state = ([v + 0 for v in each] for each in (trained, optimizer.variables))
    values, state = optimizer.stateless_apply(state, gradients, given)
    assert_values(variables, 1.0, 1.0)
    optimizer.apply(gradients, trained)
    for variable, value in zip(
        [*trained, *optimizer.variables], [*values, *state], strict=True
    ):
        np.testing.assert_array_equal(numpy_of(variable), numpy_of(value))


@pytest.mark.skipif(BACKEND == "tensorflow", reason="Keras has none there")
def test_stateless_apply_refuses_another_number_of_values():
    optimizer, variables = make_optimizer()
    state = [v.value for v in optimizer.variables]
    with pytest.raises(ValueError, match="`trainable_variables` must have one value"):
        optimizer.stateless_apply(state, make_gradients(variables), [variables[0]])
    with pytest.raises(ValueError, match="`optimizer_variables` must have one value"):
        optimizer.stateless_apply(state[1:], make_gradients(variables), variables)


def test_stateless_apply_raises_as_in_keras():
    if BACKEND == "tensorflow":
        optimizer, message = make_optimizer()[0], "not supported with the TensorFlow"
    else:
        optimizer, message = make_optimizer(built=False)[0], "must be built"
    with pytest.raises(ValueError, match=message):
        optimizer.stateless_apply([], [], [])


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_are_those_of_the_backbone(name):
    optimizer, _ = make_optimizer(SGD(0.5, **{name: SETTINGS[name]}), built=False)
    assert getattr(optimizer, name) == SETTINGS[name]
    other = not SETTINGS[name] if name == "use_ema" else 2 * SETTINGS[name]
    setattr(optimizer, name, other)
    assert getattr(optimizer.optimizer, name) == other
    restored = FinetuneOptimizer.from_config(optimizer.get_config())
    assert getattr(restored, name) == other


def test_loss_is_scaled_and_gradients_are_scaled_back():
    optimizer, variables = make_optimizer(SGD(0.5, loss_scale_factor=4.0))
    assert float(optimizer.scale_loss(ops.ones(()))) == 4.0
    optimizer.apply([4 * g for g in make_gradients(variables)], variables)
    assert_values(variables, 0.5, 0.75)


@pytest.mark.parametrize("by", ["var_names", "var_list"])
def test_what_is_excluded_from_weight_decay_does_not_decay(by):
    def adamw():
        return keras.optimizers.AdamW(0.5, weight_decay=0.5)

    optimizer, variables = make_optimizer(adamw(), adamw(), built=False)
    variables += [keras.Variable(np.ones(2, "float32"), name=n) for n in ("b", "c")]
    mark_centroids(variables[3])
    excluded = variables[1:3]
    if by == "var_names":
        excluded = [v.name for v in excluded]
    optimizer.exclude_from_weight_decay(**{by: excluded})
    optimizer.apply([0 * g for g in make_gradients(variables)], variables)
    assert_values(variables, 0.75, 1.0, 1.0, 0.75)


def test_weight_decay_may_be_excluded_for_a_whole_share():
    adamw = keras.optimizers.AdamW(0.5, weight_decay=0.5)
    optimizer, variables = make_optimizer(centroids=adamw, built=False)
    optimizer.exclude_from_weight_decay(var_names=["centroids"])
    optimizer.apply([0 * g for g in make_gradients(variables)], variables)
    assert_values(variables, 1.0, 1.0)


def test_all_may_be_excluded_after_the_build_too():
    optimizer, variables = make_optimizer(SGD(0.5, weight_decay=0.5))
    try:
        optimizer.exclude_from_weight_decay(var_list=variables[:1])
    except ValueError:
        pytest.skip("from Keras 3.16 on, no optimizer takes exclusions once built")
    optimizer.apply([0 * g for g in make_gradients(variables)], variables)
    assert_values(variables, 1.0, 1.0)


def test_schedule_of_the_learning_rate_is_the_backbones():
    schedule = keras.optimizers.schedules.ExponentialDecay(0.5, 1, 0.5)
    optimizer, variables = make_optimizer(SGD(schedule))
    optimizer.apply(make_gradients(variables), variables)
    assert float(optimizer.learning_rate) == 0.25
    with pytest.raises(TypeError, match="learning rate is not settable"):
        optimizer.learning_rate = 0.1


def test_building_twice_changes_nothing():
    optimizer, variables = make_optimizer(SGD(0.5, momentum=0.9, use_ema=True))
    before = [v.path for v in optimizer.variables]
    optimizer.build(variables)
    assert [v.path for v in optimizer.variables] == before
    assert all(
        a is b for a, b in zip(optimizer.model_variables, variables, strict=True)
    )


def test_weights_that_are_set_are_those_of_all_variables():
    optimizer, variables = make_optimizer(
        SGD(0.5, momentum=0.9), SGD(0.1, momentum=0.9)
    )
    optimizer.apply(make_gradients(variables), variables)
    weights = [numpy_of(v) for v in optimizer.variables]
    other, _ = make_optimizer(SGD(0.5, momentum=0.9), SGD(0.1, momentum=0.9))
    other.set_weights(weights)
    for variable, weight in zip(other.variables, weights, strict=True):
        np.testing.assert_array_equal(numpy_of(variable), weight)
    with pytest.raises(ValueError, match="`weights` must have one value for each"):
        other.set_weights(weights[1:])
    with pytest.raises(ValueError, match="not yet been built"):
        make_optimizer(built=False)[0].set_weights(weights)


def test_state_of_another_optimizer_is_left_out_with_a_warning():
    optimizer, _ = make_optimizer()
    with pytest.warns(UserWarning, match="Received: 1 variables of optimizer 'fine"):
        optimizer.load_own_variables({"0": np.array(5)})


def test_final_values_are_the_averages_of_each():
    optimizer, variables = make_optimizer(SGD(0.5, use_ema=True, ema_momentum=0.5))
    for _ in range(2):
        optimizer.apply(make_gradients(variables), variables)
    optimizer.finalize_variable_values(variables)
    assert_values(variables, 0.25, 0.5)  # the mean of 0.5 and 0; 1 - 2 / 4


def test_optimizer_is_made_of_two_plain_ones():
    sgd = SGD(0.1)
    scaled = keras.optimizers.LossScaleOptimizer(SGD(0.1))
    with pytest.raises(TypeError, match=r"`optimizer` must be .*optimizer='sgd'"):
        FinetuneOptimizer("sgd", sgd)
    with pytest.raises(TypeError, match=r"`centroid_optimizer` must be .*=None"):
        FinetuneOptimizer(sgd, None)
    with pytest.raises(ValueError, match="goes around both"):
        FinetuneOptimizer(scaled, sgd)
    with pytest.raises(ValueError, match="need an optimizer each"):
        FinetuneOptimizer(sgd, sgd)


def test_stand_ins_take_the_places_of_centroids_that_are_missing():
    _, first = make_variables()
    _, second = make_variables()  # of the same path
    optimizer, sgd = FinetuneOptimizer(SGD(), SGD()), SGD(0.1, momentum=0.9)
    optimizer.build([first, second])
    specs = [*optimizer.centroid_specs, ["b/centroids", [4, 3], "float32"]]
    restored = FinetuneOptimizer(SGD(), sgd, specs)
    restored.build([first, second])
    assert len(sgd.variables) == 2 + 3
    restored.apply(make_gradients([first, second]), [first, second])
    assert_values([first, second], 0.9, 0.9)


def test_exclusion_of_a_share_stays_out_of_the_config():
    adamw = keras.optimizers.AdamW(0.1, weight_decay=0.5)
    optimizer, variables = make_optimizer(adamw, built=False)
    optimizer.exclude_from_weight_decay(variables)
    optimizer.build(variables)
    optimizer.apply(make_gradients(variables), variables)
    restored = FinetuneOptimizer.from_config(optimizer.get_config())
    assert restored.optimizer.weight_decay == 0.5
