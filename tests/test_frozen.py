"""Frozen centroids that are known to be unit vectors: the same cosines, sooner."""

import keras
import numpy as np
import pytest
from keras import ops
from tensors import assert_allclose, gradient_of, numpy_of

import keras_pedcc
from keras_pedcc import PEDCCDense, PEDCCLoss, PEDCCModel, frozen

CLASSES, DIM = 7, 12


@pytest.fixture(autouse=True)
def _always_asked(monkeypatch):
    monkeypatch.setattr(frozen, "WORTH_ASKING", 1)


def built(**arguments):
    head = PEDCCDense(CLASSES, **arguments)
    head.build((None, DIM))
    return head


def knows(head):
    rows = ops.convert_to_tensor(head.centroids)
    # Of trained ones it is not asked.
    return not head.trainable and bool(head.unit_rows.know(rows))


def rows(rng, batch=5):
    return rng.standard_normal((batch, DIM)).astype("float32")


def cosines_of(features, centroids):
    unit = [
        x / np.linalg.norm(x, axis=1, keepdims=True)
        for x in (
            np.asarray(features, "float64"),
            numpy_of(centroids).astype("float64"),
        )
    ]
    return unit[0] @ unit[1].T


@pytest.mark.parametrize("factor", [1.0, 3.0])
def test_training_logits_are_cosines(rng, factor):
    head, features = built(), rows(rng)
    head.set_weights([factor * numpy_of(head.centroids)])
    assert knows(head) == (factor == 1)
    logits = head(features, training=True)["logits"]
    assert_allclose(logits, cosines_of(features, head.centroids), atol=3e-7)


@pytest.mark.parametrize("factor", [1.0, 3.0])
def test_gradient_over_features_is_that_of_cosines(rng, factor):
    head, features = built(), rows(rng)
    head.set_weights([factor * numpy_of(head.centroids)])
    weights = rng.standard_normal((5, CLASSES)).astype("float32")
    weights = ops.convert_to_tensor(weights)

    def weighted(training):
        return lambda x: weights * head(x, training=training)["logits"]

    found = gradient_of(weighted(True), features)
    np.testing.assert_allclose(
        found, gradient_of(weighted(False), features), rtol=1e-5, atol=1e-6
    )
    assert np.abs(found).max() > 0.1


def trained_model(rng):
    """A model with a compiled step, and what it was trained on."""
    inputs = keras.Input((DIM,))
    model = PEDCCModel(inputs, PEDCCDense(CLASSES)(keras.layers.Dense(DIM)(inputs)))
    model.compile(keras.optimizers.SGD(0.0), PEDCCLoss())
    batch = rows(rng, 14), np.arange(14) % CLASSES
    return model, batch, model.train_on_batch(*batch)


def test_weights_that_come_after_compiling_are_divided_by_their_length(rng):
    model, batch, loss = trained_model(rng)
    weights = model.get_weights()
    model.set_weights([*weights[:-1], 3 * weights[-1]])
    assert model.train_on_batch(*batch) == pytest.approx(loss, rel=1e-5)
    model.set_weights(weights)
    assert model.train_on_batch(*batch) == pytest.approx(loss, rel=1e-5)
    assert knows(model.layers[-1])


@pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="Keras refuses the step elsewhere"
)
def test_a_step_compiled_while_frozen_is_right_once_unfrozen(rng):
    model, batch, loss = trained_model(rng)
    head = model.layers[-1]
    head.trainable = True
    assert not knows(head)
    head.centroids.assign(2 * numpy_of(head.centroids))
    assert model.train_on_batch(*batch) == pytest.approx(loss, rel=1e-5)


def test_frozen_again_it_looks_again():
    head = built()
    assert knows(head)
    head.trainable = True
    assert not knows(head)
    head.trainable = False
    assert knows(head)
    head.trainable = True
    head.centroids.assign(2 * numpy_of(head.centroids))
    head.trainable = False
    assert not knows(head)


def test_a_head_that_trains_from_the_start_knows_nothing():
    head = built(trainable=True)
    assert not knows(head)
    head.centroids.assign(numpy_of(head.centroids))
    assert not knows(head)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_short_floats_are_no_unit_vectors(dtype):
    assert not knows(built(centroids_dtype=dtype))


@pytest.mark.parametrize("epsilon", [-2e-6, 2e-6, np.nan])
def test_a_length_beyond_rounding_is_no_unit_vector(epsilon):
    head = built()
    weight = numpy_of(head.centroids).copy()
    weight[3] *= 1 + epsilon
    head.set_weights([weight])
    assert not knows(head)


@pytest.mark.parametrize(
    ("classes", "dim"), [(2, 2), (100, 512), (600, 512), (999, 64)]
)
@pytest.mark.parametrize("given", [False, True])
def test_centroids_known_to_be_unit_vectors_are(classes, dim, given, rng):
    array = rng.standard_normal((classes, dim)) if given else None
    head = PEDCCDense(classes, centroids=array, method="auto")
    head.build((None, dim))
    assert knows(head)
    assert bool(frozen.are_unit(head.centroids))


def test_what_it_knows_is_no_weight():
    head = built()
    assert [weight.name for weight in head.weights] == ["centroids"]
    assert head.count_params() == CLASSES * DIM
    assert len(head.get_weights()) == 1


@pytest.mark.parametrize("factor", [1.0, 3.0])
def test_a_loaded_head_looks_at_its_weights(rng, tmp_path, factor):
    model, batch, loss = trained_model(rng)
    weights = model.get_weights()
    model.set_weights([*weights[:-1], factor * weights[-1]])
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert knows(loaded.layers[-1]) == (factor == 1)
    assert loaded.train_on_batch(*batch) == pytest.approx(loss, rel=1e-5)


def test_fitting_keeps_what_it_knows(rng):
    model, batch, _ = trained_model(rng)
    model.fit(*batch, epochs=2, verbose=0)
    assert knows(model.layers[-1])


def test_finetuning_forgets_it(rng):
    model, batch, _ = trained_model(rng)
    model.fit(
        *batch, epochs=3, verbose=0, callbacks=[keras_pedcc.FinetuneCallback(epoch=1)]
    )
    assert not knows(model.layers[-1])


@pytest.mark.skipif(
    keras.backend.backend() != "torch", reason="PyTorch's own ways of writing"
)
def test_what_pytorch_writes_is_seen(rng):
    import torch

    model, batch, loss = trained_model(rng)
    head, state = model.layers[-1], model.state_dict()
    state = {
        name: value * 3
        if "centroids" in name or value.shape == (CLASSES, DIM)
        else value
        for name, value in state.items()
    }
    model.load_state_dict(state)
    assert not knows(head)
    assert model.train_on_batch(*batch) == pytest.approx(loss, rel=1e-5)
    with torch.no_grad():
        head.centroids.value.mul_(1 / 3)
    head.set_weights([numpy_of(built().centroids)])
    assert knows(head)
    with torch.no_grad():
        head.centroids.value.mul_(2)
    assert model.train_on_batch(*batch) == pytest.approx(loss, rel=1e-5)


def test_state_that_comes_with_other_centroids_is_seen(rng):
    model, batch, loss = trained_model(rng)
    variables = [
        3 * numpy_of(v) if v.path.endswith("centroids") else numpy_of(v)
        for v in model.variables
    ]
    for variable, value in zip(model.variables, variables, strict=True):
        variable.assign(value)
    assert model.train_on_batch(*batch) == pytest.approx(loss, rel=1e-5)


@pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="writes into TensorFlow's variable"
)
def test_what_passes_assign_by_is_seen_by_the_step(rng):
    model, batch, loss = trained_model(rng)
    head = model.layers[-1]
    head.centroids.value.assign(3 * head.centroids.value)
    assert model.train_on_batch(*batch) == pytest.approx(loss, rel=1e-5)
