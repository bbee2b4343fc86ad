"""Cosines to frozen centroids, whatever wrote the weight and how long its rows are."""

import keras
import numpy as np
import pytest
from keras import ops
from tensors import assert_allclose, gradient_of, numpy_of, slope_of

from keras_pedcc import PEDCCDense, PEDCCLoss, PEDCCModel
from keras_pedcc.common import vectors

CLASSES, DIM = 14, 12


def built(**arguments):
    head = PEDCCDense(CLASSES, **arguments)
    head.build((None, DIM))
    return head


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


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("factor", [1.0, 3.0])
def test_logits_are_cosines(rng, factor, training):
    head, features = built(), rows(rng)
    head.set_weights([factor * numpy_of(head.centroids)])
    logits = head(features, training=training)["logits"]
    assert_allclose(logits, cosines_of(features, head.centroids), atol=3e-7)


def test_row_of_zeros_gives_cosines_of_zero(rng):
    head, features = built(), rows(rng)
    weight = numpy_of(head.centroids).copy()
    weight[2] = 0
    head.set_weights([weight])
    logits = numpy_of(head(features, training=True)["logits"])
    np.testing.assert_array_equal(logits[:, 2], np.zeros(5))
    assert np.isfinite(logits).all()


@pytest.mark.parametrize("factor", [1.0, 3.0])
def test_gradient_over_features_is_that_of_a_trained_head(rng, factor):
    head, features = built(), rows(rng)
    trained = built(trainable=True)
    for each in (head, trained):
        each.set_weights([factor * numpy_of(built().centroids)])
    weights = ops.convert_to_tensor(rng.standard_normal((5, CLASSES)).astype("float32"))
    found, expected = (
        gradient_of(lambda x, h=h: weights * h(x, training=True)["logits"], features)
        for h in (head, trained)
    )
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert np.abs(found).max() > 0.1


def test_gradient_over_trained_centroids_is_the_slope(rng):
    features, weights = rows(rng).astype("float64"), rng.standard_normal((5, CLASSES))
    centroids = rng.standard_normal((CLASSES, DIM))
    found = gradient_of(
        lambda c: (
            ops.convert_to_tensor(weights.astype("float32"))
            * vectors.cosines(ops.convert_to_tensor(features.astype("float32")), c)
        ),
        centroids.astype("float32"),
    )
    expected = slope_of(
        lambda c: weights * (features @ (c / np.linalg.norm(c, axis=1)[:, None]).T),
        centroids,
    )
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def scale_by_set_weights(model):
    *others, centroids = model.get_weights()
    model.set_weights([*others, 3 * centroids])


def scale_by_variables(model):
    for variable in model.variables:
        factor = 3 if variable.path.endswith("centroids") else 1
        variable.assign(factor * numpy_of(variable))


def scale_past_assign(model):
    value = model.layers[-1].centroids.value
    if keras.backend.backend() == "tensorflow":
        value.assign(3 * value)
    elif keras.backend.backend() == "torch":
        value.data.mul_(3)
    else:
        pytest.skip("JAX's arrays cannot be written to")


def scale_by_state_of_pytorch(model):
    if keras.backend.backend() != "torch":
        pytest.skip("PyTorch's own way")
    state = model.state_dict()
    centroids = (CLASSES, DIM)
    model.load_state_dict(
        {name: v * 3 if v.shape == centroids else v for name, v in state.items()}
    )


@pytest.fixture
def trained_model(rng):
    """A model with a compiled step, the batch it saw, and its loss."""
    inputs = keras.Input((DIM,))
    model = PEDCCModel(inputs, PEDCCDense(CLASSES)(keras.layers.Dense(DIM)(inputs)))
    model.compile(keras.optimizers.SGD(0.0), PEDCCLoss())
    batch = rows(rng, 14), np.arange(14) % CLASSES
    return model, batch, model.train_on_batch(*batch)


@pytest.mark.parametrize(
    "scale",
    [
        scale_by_set_weights,
        scale_by_variables,
        scale_past_assign,
        scale_by_state_of_pytorch,
    ],
)
def test_longer_rows_leave_the_compiled_steps_alone(trained_model, scale):
    model, batch, loss = trained_model
    scale(model)
    lengths = np.linalg.norm(numpy_of(model.layers[-1].centroids), axis=1)
    np.testing.assert_allclose(lengths, 3, rtol=1e-5)
    assert model.train_on_batch(*batch) == pytest.approx(loss, rel=1e-5)
    assert model.test_on_batch(*batch) == pytest.approx(loss, rel=1e-5)


def test_step_with_a_large_head_compiles_with_xla(rng):
    inputs = keras.Input((DIM,))
    head = PEDCCDense(5000)
    model = PEDCCModel(inputs, head(keras.layers.Dense(256)(inputs)))
    on_torch = keras.backend.backend() == "torch"
    model.compile(
        keras.optimizers.SGD(0.0),
        PEDCCLoss(scale="auto"),
        jit_compile=not on_torch,
    )
    loss = model.train_on_batch(rows(rng), np.arange(5))
    assert np.isfinite(loss)


def test_head_has_no_weight_but_the_centroids():
    head = built()
    assert [weight.name for weight in head.weights] == ["centroids"]
    assert head.count_params() == CLASSES * DIM


def test_loaded_head_divides_by_the_lengths(trained_model, tmp_path):
    model, batch, loss = trained_model
    scale_by_set_weights(model)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.train_on_batch(*batch) == pytest.approx(loss, rel=1e-5)
