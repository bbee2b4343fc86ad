import itertools

import keras
import numpy as np
import pytest
from keras import ops

import keras_pedcc.common.checks
import keras_pedcc.layers.pedcc_dense
from keras_pedcc import CosineDense, PEDCCDense, generate_pedcc
from keras_pedcc.common.vectors import unit_vectors


def numpy_of(tensor):
    return ops.convert_to_numpy(tensor)


def model_of(head, dim=8):
    inputs = keras.Input((4,))
    return keras.Model(inputs, head(keras.layers.Dense(dim)(inputs)))


def test_logits_are_cosines_to_the_generated_centroids(rng):
    features = rng.standard_normal((5, 8)).astype("float32")
    outputs = PEDCCDense(6, seed=3)(features)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    centroids = numpy_of(generate_pedcc(6, 8, seed=3))
    np.testing.assert_allclose(numpy_of(outputs["features"]), unit, atol=1e-6)
    np.testing.assert_allclose(
        numpy_of(outputs["logits"]), unit @ centroids.T, atol=1e-6
    )


@pytest.mark.parametrize("method", ["simplex", "random"])
def test_method_decides_the_centroids(method):
    head = PEDCCDense(6, centroids=method)
    head.build((None, 8))
    expected = numpy_of(generate_pedcc(6, 8, method=method))
    np.testing.assert_array_equal(numpy_of(head.centroids), expected)


def test_cosine_dense_normalises_its_weight(rng):
    features = rng.standard_normal((5, 8)).astype("float32")
    head = CosineDense(6, return_features=False)
    first = numpy_of(head(features))
    head.centroids.assign(7 * head.centroids)
    np.testing.assert_allclose(numpy_of(head(3 * features)), first, atol=1e-6)
    assert len(head.trainable_variables) == 1


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "float16"])
def test_head_computes_in_float32_under_every_policy(policy):
    keras.mixed_precision.set_global_policy(policy)
    head = PEDCCDense(3)
    outputs = head(np.full((1, 512), 3000, "float16"))  # the square is out of range
    assert keras.backend.standardize_dtype(outputs["logits"].dtype) == "float32"
    # Weights have the policy's dtype of variables, as those of every Keras layer.
    assert head.centroids.dtype == ("float16" if policy == "float16" else "float32")
    np.testing.assert_allclose(numpy_of(outputs["features"]), 512**-0.5, rtol=1e-5)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30])
def test_features_that_are_not_finite_give_nan(bad):
    features = np.ones((2, 4), "float32")
    features[0, 1] = bad
    logits = numpy_of(PEDCCDense(3)(features)["logits"])
    np.testing.assert_array_equal(np.isnan(logits).all(axis=1), [True, False])


def test_unit_vectors_of_short_and_zero_rows():
    rows = numpy_of(unit_vectors(ops.convert_to_tensor([[3e-6, 4e-6], [0.0, 0.0]])))
    np.testing.assert_allclose(rows, [[0.6, 0.8], [0, 0]], atol=1e-6)


@pytest.mark.parametrize("scale", [1.0, 1e-8, 0.0])
def test_training_from_a_zero_kernel_stays_finite(rng, scale):
    inputs = keras.Input((4,))
    start = keras.initializers.Constant(scale)
    dense = keras.layers.Dense(8, kernel_initializer=start)
    model = keras.Model(inputs, PEDCCDense(3, return_features=False)(dense(inputs)))
    model.compile("sgd", keras_pedcc.PEDCCLoss())
    model.fit(rng.standard_normal((8, 4)), np.arange(8) % 3, verbose=0)
    assert np.isfinite(numpy_of(dense.kernel)).all()


def test_centroids_are_frozen_until_the_layer_is_unfrozen():
    model = model_of(PEDCCDense(3))
    assert len(model.trainable_variables) == 2
    model.layers[-1].frozen = False
    assert len(model.trainable_variables) == 3


def test_toggling_the_model_never_unfreezes():
    model = model_of(PEDCCDense(3))
    outer = keras.Sequential([keras.Input((4,)), model])
    for container in (model, outer):
        container.trainable = False
        container.trainable = True
        assert not model.layers[-1].trained
        assert len(container.trainable_variables) == 2


def test_toggling_the_model_gives_an_unfrozen_head_back():
    model = model_of(PEDCCDense(3))
    model.layers[-1].frozen = False
    model.trainable = False
    assert not model.trainable_variables
    model.trainable = True
    assert len(model.trainable_variables) == 3


def test_trainable_never_unfreezes_by_itself():
    model = model_of(PEDCCDense(3))
    model.layers[-1].trainable = True
    assert not model.layers[-1].trained
    assert len(model.trainable_variables) == 2


@pytest.mark.parametrize("steps", list(itertools.product([True, False], repeat=3)))
def test_frozen_and_trainable_go_in_any_order(steps):
    first, around, last = steps
    model = model_of(PEDCCDense(3))
    head = model.layers[-1]
    head.frozen = first
    model.trainable = around
    head.frozen = last
    assert head.trained is (around and not last)
    assert head.centroids.trainable is head.trained
    model.trainable = True
    assert head.trained is (not last)
    assert len(model.trainable_variables) == (2 if last else 3)


def saved(model, folder):
    model.save(folder / "model.keras")
    return keras.saving.load_model(folder / "model.keras")


def cloned(model, folder):
    return keras.models.clone_model(model)


def made_again(model, folder):
    return type(model).from_config(model.get_config())


COPIES = [saved, cloned, made_again]


@pytest.mark.parametrize("copy", COPIES)
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("around", [False, True])
@pytest.mark.parametrize("frozen", [False, True])
def test_copies_under_any_parent_keep_what_was_asked(
    copy, nested, around, frozen, tmp_path
):
    model = model_of(PEDCCDense(3, frozen=frozen))
    if nested:
        inputs = keras.Input((4,))
        model = keras.Model(inputs, model(inputs))
    model.trainable = around
    copied = copy(model, tmp_path)
    head = (copied.layers[-1] if nested else copied).layers[-1]
    assert head.frozen is frozen
    copied.trainable = False
    copied.trainable = True
    assert head.trained is not frozen


@pytest.mark.parametrize("copy", COPIES)
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("flag", [False, True])
def test_flag_of_the_head_is_copied_as_that_of_any_layer(copy, frozen, flag, tmp_path):
    model = model_of(PEDCCDense(3, frozen=frozen))
    for layer in model.layers:
        layer.trainable = flag
    dense, head = copy(model, tmp_path).layers[1:]
    head.frozen = False
    assert head.trained is dense.trainable is flag


def test_constructor_takes_its_own_config():
    head = PEDCCDense(3, trainable=True)
    head.trainable = False
    copy = PEDCCDense(**head.get_config())
    assert not copy.trained
    copy.trainable = True
    assert copy.trained
    assert copy.keep_mean


@pytest.mark.parametrize("trainable", [False, True])
def test_configs_without_frozen_speak_of_the_centroids(trainable):
    config = PEDCCDense(3, trainable=trainable).get_config()
    del config["frozen"], config["fine_tuned"]
    config["trainable"] = trainable
    head = PEDCCDense.from_config(config)
    assert head.trained is trainable
    head.frozen = False
    assert head.trained


def test_centroids_off_the_sphere_are_normalised_also_after_freezing(rng):
    features = rng.standard_normal((5, 8)).astype("float32")
    head = PEDCCDense(3, return_features=False)
    first = numpy_of(head(features))
    head.frozen = False
    head.centroids.assign(2 * head.centroids)
    np.testing.assert_allclose(numpy_of(head(features)), first, atol=1e-6)
    head.frozen = True
    np.testing.assert_allclose(numpy_of(head(features)), first, atol=1e-6)


@pytest.mark.parametrize("num_classes", [5, 30])
def test_head_is_built_while_keras_traces_the_model(num_classes, rng):
    class Traced(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = keras.layers.Dense(8)
            self.head = PEDCCDense(num_classes, return_features=False)

        def call(self, inputs):
            return self.head(self.dense(inputs))

    model = Traced()
    model.compile("sgd", keras_pedcc.PEDCCLoss())
    x = rng.standard_normal((60, 8)).astype("float32")
    model.fit(x, np.arange(60) % num_classes, verbose=0)
    expected = keras_pedcc.generate_pedcc(num_classes, 8)
    np.testing.assert_array_equal(numpy_of(model.head.centroids), numpy_of(expected))


def test_copy_of_given_centroids_needs_the_array(rng):
    given = rng.standard_normal((3, 8))
    model = model_of(PEDCCDense(3, centroids=given))
    with pytest.raises(ValueError, match=r"cannot be made again from its config alone"):
        keras.models.clone_model(model)
    json = keras.models.model_from_json(model.to_json())
    json.set_weights(model.get_weights())
    x = rng.standard_normal((2, 4))
    np.testing.assert_array_equal(
        json.predict(x, verbose=0)["logits"], model.predict(x, verbose=0)["logits"]
    )


@pytest.mark.parametrize("num_classes", [3, 8, 20])
@pytest.mark.parametrize("head", [PEDCCDense, CosineDense])
def test_logits_are_cosines(head, num_classes, rng):
    layer = head(num_classes)
    layer.build((None, 8))
    centroids = rng.standard_normal((num_classes, 8))
    layer.centroids.assign(centroids)
    x = rng.standard_normal((5, 8))
    unit = [v / np.linalg.norm(v, axis=1, keepdims=True) for v in (x, centroids)]
    found = numpy_of(layer(x.astype("float32"))["logits"])
    np.testing.assert_allclose(found, unit[0] @ unit[1].T, atol=1e-6)


def test_weights_set_after_tracing_count(rng):
    tuned, fresh = (model_of(PEDCCDense(3)) for _ in range(2))
    tuned.layers[-1].centroids.assign(3 * rng.standard_normal((3, 8)))
    x = rng.standard_normal((5, 4))
    fresh.predict(x, verbose=0)
    fresh.set_weights(tuned.get_weights())
    found = fresh.predict(x, verbose=0)["logits"]
    np.testing.assert_allclose(found, tuned.predict(x, verbose=0)["logits"], atol=1e-6)
    assert np.abs(found).max() <= 1 + 1e-6


def test_whole_numbers_are_features_too():
    logits = PEDCCDense(3, return_features=False)(np.ones((2, 8), "int32"))
    expected = PEDCCDense(3, return_features=False)(np.ones((2, 8), "float32"))
    np.testing.assert_array_equal(numpy_of(logits), numpy_of(expected))


def test_given_centroids_are_used_and_saved_as_the_weight(rng, tmp_path):
    given = rng.standard_normal((3, 8))
    model = model_of(PEDCCDense(3, centroids=given))
    unit = given / np.linalg.norm(given, axis=1, keepdims=True)
    np.testing.assert_allclose(numpy_of(model.layers[-1].centroids), unit, atol=1e-6)
    assert model.layers[-1].get_config()["centroids"] == "saved"
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(
        numpy_of(loaded.layers[-1].centroids), numpy_of(model.layers[-1].centroids)
    )


@pytest.mark.parametrize("dtype", [None, "bfloat16", "float16"])
@pytest.mark.parametrize("given", ["float64", "float32"])
def test_given_centroids_are_rounded_once_they_have_length_one(rng, dtype, given):
    given = rng.standard_normal((30, 8)).astype(given)
    head = PEDCCDense(30, centroids=given, dtype=dtype)
    head.build((None, 8))
    unit = (
        given.astype("float64")
        / np.linalg.norm(given.astype("float64"), axis=1)[:, None]
    )
    right = ops.cast(ops.convert_to_tensor(unit, dtype or "float32"), "float32")
    found = numpy_of(ops.cast(head.centroids, "float32"))
    np.testing.assert_array_equal(found, numpy_of(right))


def test_given_centroids_are_checked_by_blocks_of_rows(rng, monkeypatch):
    given = rng.standard_normal((30, 8)).astype("float32")
    whole = keras_pedcc.common.checks.unit_centroids(given)
    monkeypatch.setattr(keras_pedcc.common.checks, "BLOCK_ROWS", 7)
    np.testing.assert_array_equal(
        keras_pedcc.common.checks.unit_centroids(given), whole
    )
    given[16], given[29] = np.nan, 0
    with pytest.raises(ValueError, match="with 2 such rows, the first at index 16"):
        PEDCCDense(30, centroids=given)


@pytest.mark.parametrize("unfrozen", [False, True])
def test_loading_restores_the_state_without_the_generator(
    rng, tmp_path, monkeypatch, unfrozen
):
    model = model_of(PEDCCDense(3, seed=5))
    model.layers[-1].frozen = not unfrozen
    model.save(tmp_path / "model.keras")
    monkeypatch.setattr(keras_pedcc.layers.pedcc_dense, "generate_pedcc", None)
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.layers[-1].trained is unfrozen
    assert loaded.layers[-1].get_config() == model.layers[-1].get_config()
    images = rng.standard_normal((5, 4))
    expected = model.predict(images, verbose=0)["logits"]
    np.testing.assert_array_equal(loaded.predict(images, verbose=0)["logits"], expected)


@pytest.mark.parametrize("layer", [PEDCCDense, CosineDense])
def test_config_survives_a_round_trip(layer):
    config = keras.saving.serialize_keras_object(layer(5, return_features=False))
    assert config["registered_name"] == f"keras_pedcc>{layer.__name__}"
    restored = keras.saving.deserialize_keras_object(config)
    assert restored.get_config() == config["config"] | {
        key: value
        for key, value in restored.get_config().items()
        if key in ("dtype", "kernel_initializer")
    }


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"num_classes": 1}, ValueError, "`num_classes` must be at least 2"),
        ({"num_classes": 2.0}, TypeError, "`num_classes` must be a whole number"),
        ({"seed": -1}, ValueError, "`seed` must be at least 0"),
        ({"centroids": "best"}, ValueError, "`centroids` must be an array or one of"),
        ({"kernel_initializer": "zeros"}, ValueError, "has predefined centroids"),
        ({"centroids": np.ones((4, 8))}, ValueError, "one row per class"),
        ({"centroids": np.full((3, 8), np.nan)}, ValueError, "must be finite"),
        ({"centroids": np.zeros((3, 8))}, ValueError, "without a row of zeros"),
        ({"centroids": np.ones(3)}, ValueError, "must have shape"),
    ],
)
def test_head_refuses(arguments, error, message):
    with pytest.raises(error, match=message):
        PEDCCDense(**{"num_classes": 3} | arguments)


def test_head_refuses_inputs():
    with pytest.raises(ValueError, match="one column for each input feature"):
        PEDCCDense(3, centroids=np.eye(3))(np.ones((2, 8)))
    with pytest.raises(ValueError, match="fixed dim of at least 2"):
        PEDCCDense(3)(np.ones((2, 1)))
    with pytest.raises(ValueError, match="expected ndim=2, found ndim=3"):
        PEDCCDense(3)(np.ones((2, 3, 4)))


def test_failed_restoring_leaves_no_head_of_nan():
    head = PEDCCDense(3)
    with pytest.raises((TypeError, ValueError)):
        head.build_from_config({"input_shape": 5})
    head.build((None, 4))
    assert np.isfinite(numpy_of(head.centroids)).all()


def test_method_that_does_not_reach_is_told_in_the_words_of_the_head():
    with pytest.raises(ValueError, match=r"`centroids` must.*Use centroids=.auto"):
        PEDCCDense(100, centroids="simplex").build((None, 8))
