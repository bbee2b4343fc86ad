"""Mistakes around a head or a loss that once trained to plausible, wrong numbers."""

import warnings

import keras
import numpy as np
import pytest
import reference
from keras import layers, ops
from tensors import assert_allclose, gradient_of, numpy_of

import keras_pedcc
from keras_pedcc import CosineDense, KerdockDense, PEDCCDense, PEDCCLoss, PEDCCModel
from keras_pedcc.losses import (
    am_softmax_loss,
    arcface_loss,
    centroid_distance,
    pedcc_loss,
)
from keras_pedcc.training.activations import warn_of_activations

BACKEND = keras.backend.backend()
LABELS = np.array([0, 1, 2, 0, 1])
# Rows 1 to 3 have a logit that is no cosine: of the own class, or of another.
NO_COSINES = np.array([False, True, True, True, False])


@pytest.fixture
def logits(rng):
    rows = rng.uniform(-0.9, 0.9, (5, 3)).astype("float32")
    rows[0, 0] = 1.0001  # rounded
    rows[1, 1], rows[2, 0], rows[3, 2] = 3.0, 1.2, -1.5
    return rows


@pytest.fixture
def images(rng):
    return rng.uniform(0, 1, (32, 20)).astype("float32"), np.arange(32) % 3


def compiled(function):
    if BACKEND == "tensorflow":
        import tensorflow as tf

        return tf.function(function)
    if BACKEND == "jax":
        import jax

        return jax.jit(function)
    return function  # torch.compile needs a C++ compiler


def messages_of(function):
    """What our warnings say; those of others are errors as anywhere."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("error")
        warnings.filterwarnings("always", "The features before|The logits must")
        # PyTorch tensors through NumPy's older protocol, see pyproject.toml.
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        function()
    return [str(each.message) for each in caught]


# Logits that are no cosines.


@pytest.mark.parametrize("one_hot", [False, True])
@pytest.mark.parametrize("scale", [15, 64])
@pytest.mark.parametrize("run", [lambda function: function, compiled])
def test_logits_that_are_no_cosines_give_nan_and_only_they(logits, run, scale, one_hot):
    labels = np.eye(3, dtype="float32")[LABELS] if one_hot else LABELS
    found = run(lambda x: am_softmax_loss(labels, x, scale=scale))(logits)
    np.testing.assert_array_equal(np.isnan(numpy_of(found)), NO_COSINES)
    expected = reference.am_softmax(LABELS, logits, scale, 0.5)
    # XLA fuses products and sums of one-hot labels, which rounds a tiny loss otherwise.
    assert_allclose(numpy_of(found)[~NO_COSINES], expected[~NO_COSINES], atol=1e-6)


@pytest.mark.parametrize("loss", [pedcc_loss, arcface_loss, centroid_distance])
def test_every_loss_of_cosines_gives_nan_for_other_logits(logits, loss):
    found = numpy_of(loss(LABELS, logits))
    np.testing.assert_array_equal(np.isnan(found), NO_COSINES)


def test_root_of_a_mean_is_nan_with_one_logit_that_is_no_cosine(logits):
    assert np.isnan(numpy_of(pedcc_loss(LABELS, logits, mse_root=2))).all()


def test_other_samples_keep_their_gradient(logits):
    def slope(rows):
        return gradient_of(lambda x: pedcc_loss(LABELS, x), rows)

    right = logits.copy()
    right[NO_COSINES] = 0.5
    assert_allclose(slope(logits)[~NO_COSINES], slope(right)[~NO_COSINES])
    assert np.isfinite(slope(logits)[~NO_COSINES]).all()


@pytest.mark.parametrize(
    "loss", [PEDCCLoss, keras_pedcc.AMSoftmaxLoss, keras_pedcc.ArcFaceLoss]
)
def test_first_logits_that_are_no_cosines_are_refused(loss):
    loss = loss()
    with pytest.raises(ValueError, match=r"must be cosines.*Received: logits from -3 "):
        loss(np.array([0]), np.array([[3.0, -3.0]], "float32"))
    assert float(loss([0], [[1.0, -1.0]])) < 1e-3
    assert np.isnan(float(loss([0], [[3.0, -3.0]])))  # found by the step alone


@pytest.mark.parametrize("eager", [False, True])
def test_loss_on_the_output_of_a_dense_layer(images, eager):
    x, y = images
    dense = layers.Dense(3, kernel_initializer="ones")
    model = keras.Sequential([keras.Input((20,)), dense])
    model.compile("sgd", PEDCCLoss(), run_eagerly=eager)
    if BACKEND == "torch" or (eager and BACKEND == "tensorflow"):
        with pytest.raises(ValueError, match=r"The logits must be cosines"):
            model.fit(x, y, verbose=0)
    else:  # JAX differentiates a trace also then
        assert np.isnan(model.fit(x, y, verbose=0).history["loss"]).all()


# An activation after the head.


@pytest.mark.parametrize(
    "after", [layers.Softmax(), layers.Activation("tanh"), layers.LeakyReLU()]
)
def test_model_refuses_an_activation_after_the_head(after):
    inputs = keras.Input((20,))
    outputs = PEDCCDense(3)(layers.Dense(16)(inputs))
    outputs = {**outputs, "logits": after(outputs["logits"])}
    with pytest.raises(ValueError, match=f"layer '{after.name}' .* after the head"):
        PEDCCModel(inputs, outputs)


def test_other_outputs_and_a_cast_are_no_mistake(images):
    x, y = images
    inputs = keras.Input((20,))
    outputs = PEDCCDense(3)(layers.Dense(16)(inputs))
    outputs = {**outputs, "probabilities": layers.Softmax()(15 * outputs["logits"])}
    outputs["logits"] = layers.Activation("linear", dtype="float32")(outputs["logits"])
    model = PEDCCModel(inputs, outputs)
    model.compile("sgd", PEDCCLoss())
    assert messages_of(lambda: model.compute_loss(x, y, model(x))) == []


def test_loss_warns_once_of_probabilities(rng):
    rows = numpy_of(ops.softmax(rng.uniform(-1, 1, (4, 3)).astype("float32")))
    loss = PEDCCLoss()
    [message] = messages_of(lambda: [loss([0, 1, 2, 0], rows) for _ in range(2)])
    assert "sum to 1, as softmax gives. Remove the activation" in message


@pytest.mark.parametrize(
    "rows", [np.eye(4)[:, :3], np.full((4, 2), 0.5), np.full((3, 4), 0.25)]
)
def test_a_few_rows_may_sum_to_one(rows):
    labels = np.zeros(len(rows))
    assert messages_of(lambda: PEDCCLoss()(labels, rows.astype("float32"))) == []


# An activation before the head.


def nested(*inner):
    return keras.Sequential([keras.Input((20,)), *inner])


def functional_relu6():
    inputs = keras.Input((20,))
    return keras.Model(inputs, layers.Dense(16, "relu6")(inputs))


ONE_SIGN = {
    "activation of a layer": lambda x: layers.Dense(16, activation="relu")(x),
    "softmax": lambda x: layers.Softmax()(layers.Dense(16)(x)),
    "hard swish": lambda x: layers.Activation("hard_silu")(layers.Dense(16)(x)),
    "dropout": lambda x: layers.Dropout(0.1)(layers.ReLU()(layers.Dense(16)(x))),
    "pooling": lambda x: layers.GlobalAveragePooling1D()(
        layers.ReLU()(layers.Dense(16)(layers.Reshape((2, 10))(x)))
    ),
    "sequential": lambda x: nested(layers.Dense(16), layers.ReLU())(x),
    "functional": lambda x: layers.Dropout(0.1)(functional_relu6()(x)),
}
BOTH_SIGNS = {
    "linear": lambda x: layers.Dense(16)(layers.ReLU()(x)),
    "tanh": lambda x: layers.Dense(16, activation="tanh")(x),
    "leaky": lambda x: layers.ReLU(negative_slope=0.1)(layers.Dense(16)(x)),
    "centred": lambda x: layers.BatchNormalization()(layers.Dense(16, "relu")(x)),
    "nested": lambda x: layers.Dense(16)(nested(layers.Dense(16, "relu"))(x)),
    "operation": lambda x: functional_relu6()(x) - 0.5,
    "given": lambda x: x,
}


def model_of(features, head=PEDCCDense, num_classes=3):
    inputs = keras.Input((20,))
    model = PEDCCModel(inputs, head(num_classes)(features(inputs)))
    model.compile("sgd", PEDCCLoss())
    return model


@pytest.mark.parametrize("name", ONE_SIGN)
def test_model_warns_of_features_of_one_sign(images, name):
    x, y = images
    model = model_of(ONE_SIGN[name])
    [message] = messages_of(lambda: model.compute_loss(x, y, model(x)))
    assert message.startswith("The features before predefined centroids must take both")
    assert "Received: the output of layer" in message
    model.compile("sgd", PEDCCLoss())
    assert messages_of(lambda: model.compute_loss(x, y, model(x))) == []


@pytest.mark.parametrize("name", BOTH_SIGNS)
def test_model_does_not_warn_of_features_of_both_signs(images, name):
    x, y = images
    model = model_of(BOTH_SIGNS[name])
    assert messages_of(lambda: model.compute_loss(x, y, model(x))) == []


def test_fit_warns_once(images):
    model = model_of(ONE_SIGN["dropout"])
    finetune = keras_pedcc.FinetuneCallback(epoch=1)

    def fit():
        model.fit(*images, epochs=2, callbacks=[finetune], verbose=0)

    [message] = messages_of(fit)
    assert "layer 're_lu" in message
    assert messages_of(fit) == []


def test_finetuning_warns_of_a_plain_model():
    head = PEDCCDense(3, return_features=False)
    model = keras.Sequential([keras.Input((20,)), layers.Dense(16, "relu"), head])
    model.compile("sgd", PEDCCLoss())
    finetune = keras_pedcc.FinetuneCallback(epoch=1)
    [message] = messages_of(lambda: finetune.set_model(model))
    assert f"(Dense), in head '{head.name}'" in message


@pytest.mark.parametrize("loop", ["fit", "own"])
def test_plain_model_that_runs_eagerly_warns_once(images, loop):
    if (BACKEND, loop) == ("jax", "fit"):
        pytest.skip("JAX differentiates a trace, without values")
    x, y = images
    head = PEDCCDense(3, return_features=False)
    model = keras.Sequential([keras.Input((20,)), layers.Dense(16, "relu"), head])
    model.compile("sgd", PEDCCLoss(), run_eagerly=True)
    if loop == "fit":
        [message] = messages_of(lambda: model.fit(x, y, epochs=2, verbose=0))
    else:
        [message] = messages_of(lambda: [model(x, training=True) for _ in range(2)])
    assert "without a negative number" in message
    assert f"'{head.name}'. Put a linear layer" in message


def test_head_without_an_array_of_centroids_warns_too(rng):
    head = KerdockDense(100)
    features = rng.uniform(0, 1, (8, 16)).astype("float32")
    assert len(messages_of(lambda: head(features, training=True))) == 1


@pytest.mark.parametrize(
    ("shape", "head", "training"),
    [
        ((8, 15), PEDCCDense(3), True),
        ((7, 16), PEDCCDense(3), True),
        ((8, 16), PEDCCDense(3), False),
        ((8, 16), CosineDense(3), True),
    ],
)
def test_features_that_tell_nothing_give_no_warning(rng, shape, head, training):
    features = rng.uniform(0, 1, shape).astype("float32")
    assert messages_of(lambda: head(features, training=training)) == []


def test_equal_rows_wait_for_others(rng):
    head, features = PEDCCDense(3), rng.uniform(0, 1, (8, 16)).astype("float32")
    for rows in (np.ones((8, 16), "float32"), np.zeros((8, 16), "float32")):
        assert messages_of(lambda rows=rows: head(rows, training=True)) == []
    assert len(messages_of(lambda: head(features, training=True))) == 1


def test_one_negative_feature_is_enough(rng):
    head, features = PEDCCDense(3), rng.uniform(0, 1, (8, 16)).astype("float32")
    negative = features.copy()
    negative[3, 5] = -1e-3
    assert messages_of(lambda: head(negative, training=True)) == []
    # Known from here on: nothing is read again.
    assert messages_of(lambda: head(features, training=True)) == []


def inner_head(activation):
    """A model that holds the head, behind a linear layer or an activation."""
    inputs = keras.Input((16,))
    outputs = PEDCCDense(5)(layers.Dense(16, activation=activation)(inputs))
    return keras.Model(inputs, outputs)


@pytest.mark.parametrize(("activation", "told"), [(None, 0), ("relu", 1)])
def test_head_inside_a_model_is_judged_by_what_it_takes(activation, told):
    inputs = keras.Input((8,))
    backbone = keras.Model(inputs, layers.ReLU()(layers.Dense(16)(inputs)))
    taken = keras.Input((8,))
    model = keras.Model(taken, inner_head(activation)(backbone(taken)))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_of_activations(model)
    assert len(caught) == told


class Block(layers.Layer):
    """Has an activation, and a linear layer after it."""

    def __init__(self):
        super().__init__()
        self.activation, self.dense = keras.activations.relu, layers.Dense(16)

    def call(self, inputs):
        return self.dense(self.activation(inputs))


def test_layer_of_the_users_own_is_not_judged():
    inputs = keras.Input((8,))
    model = PEDCCModel(inputs, PEDCCDense(5)(Block()(inputs)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_activations(model)
