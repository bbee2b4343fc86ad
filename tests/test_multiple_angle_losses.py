import keras
import numpy as np
import pytest
import reference
from tensors import (
    FEW_STEPS,
    KINDS,
    assert_allclose,
    gradient_of,
    make_cosines,
    numpy_of,
    slope_of,
)

import keras_pedcc
from keras_pedcc import ASoftmaxLoss, CosineDense, LSoftmaxLoss, ProductDense
from keras_pedcc.losses import a_softmax_loss, annealing_lambda, l_softmax_loss

LOSSES = {a_softmax_loss: ASoftmaxLoss, l_softmax_loss: LSoftmaxLoss}


def outputs_of(loss, cosines, norms, iterations=0):
    """What the head of a loss returns; `norms` of shape (batch, num_classes)."""
    outputs = {"features": cosines, "logits": cosines, "norm": norms[:, 0]}
    if loss is l_softmax_loss:
        outputs |= {"logits": cosines * norms, "norm": norms}
    return outputs | {"iterations": np.full(len(cosines), iterations, "int32")}


def norms_of(loss, rng, cosines):
    norms = rng.uniform(0.5, 20, cosines.shape).astype("float32")
    return norms if loss is l_softmax_loss else np.tile(norms[:, :1], cosines.shape[1])


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_classes", [2, 47])
def test_loss_agrees_with_float64(rng, loss, kind, num_classes):
    cosines, labels = make_cosines(rng, num_classes, kind)
    norms = norms_of(loss, rng, cosines)
    for multiple in (1, 2, 3, 4, 8):
        for annealing in (0.0, 5.0):
            outputs = outputs_of(loss, cosines, norms)
            found = loss(labels, outputs, margin=multiple, annealing=annealing)
            expected = reference.multiple_angle(
                labels, cosines, norms, multiple, annealing
            )
            # The polynomial of degree 8 multiplies rounding by up to 64.
            assert_allclose(found, expected, rtol=5e-5, atol=1e-6)


@pytest.mark.parametrize("loss", LOSSES)
def test_loss_is_its_formula(loss):
    cosines = np.cos([[np.pi / 3, 1.2, 2.0]]).astype("float32")
    outputs = outputs_of(loss, cosines, np.full((1, 3), 2.0, "float32"))
    found = loss([0], outputs, margin=4, annealing=1.0)
    psi = -np.cos(4 * np.pi / 3) - 2  # 60 degrees is in the second quarter
    own = np.exp(2 * (0.5 + psi) / 2)
    others = np.exp(2 * np.cos([1.2, 2.0])).sum()
    assert_allclose(found, [-np.log(own / (own + others))])


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("multiple", range(1, 9))
def test_loss_rises_with_the_angle_from_0_to_180_degrees(loss, multiple):
    cosines = np.cos(np.linspace(0, np.pi, 361)).astype("float32")
    row = np.stack([cosines, np.zeros_like(cosines)], axis=1)
    outputs = outputs_of(loss, row, np.ones((361, 2), "float32"))
    found = numpy_of(loss(np.zeros(361), outputs, margin=multiple))
    assert (np.diff(found) > -1e-5).all()
    assert_allclose(found[[0, -1]], np.log1p(np.exp([-1, 2 * multiple - 1])))


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("multiple", [1, 2, 4])
@pytest.mark.parametrize("entry", ["logits", "norm"])
def test_gradient_agrees_with_finite_differences(rng, loss, multiple, entry):
    cosines = rng.uniform(-0.95, 0.95, (6, 4)).astype("float32")
    labels, norms = np.arange(6) % 4, norms_of(loss, rng, cosines)
    outputs = outputs_of(loss, cosines, norms)

    def of_entry(values):
        given = {**outputs, entry: values}
        return loss(labels, given, margin=multiple, annealing=0.5)

    def twin(values):
        given = {**outputs, entry: values}
        norm = given["norm"] if given["norm"].ndim == 2 else given["norm"][:, None]
        cosines = given["logits"] / norm if loss is l_softmax_loss else given["logits"]
        return reference.multiple_angle(labels, cosines, norm, multiple, 0.5)

    found = gradient_of(of_entry, outputs[entry])
    assert_allclose(found, slope_of(twin, outputs[entry]), rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("loss", LOSSES)
def test_soft_labels_agree_with_float64(rng, loss):
    cosines = rng.uniform(-1, 1, (16, 10)).astype("float32")
    targets = rng.dirichlet(np.ones(10), 16).astype("float32")
    norms = norms_of(loss, rng, cosines)
    found = loss(targets, outputs_of(loss, cosines, norms), margin=3)
    expected = reference.soft_margin_entropy(
        targets, cosines, lambda cosine, _: reference.multiplied(cosine, 3), norms
    )
    assert_allclose(found, expected, rtol=2e-5)


@pytest.mark.parametrize("loss", LOSSES)
def test_margin_one_is_cross_entropy(rng, loss):
    cosines, labels = make_cosines(rng, 10, "random")
    norms = norms_of(loss, rng, cosines)
    entropy = keras.losses.sparse_categorical_crossentropy(
        labels, cosines * norms, from_logits=True
    )
    found = loss(labels, outputs_of(loss, cosines, norms), margin=1)
    assert_allclose(found, numpy_of(entropy), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("loss", LOSSES)
def test_permuting_classes_changes_nothing(rng, loss):
    cosines, labels = make_cosines(rng, 10, "random")
    norms, order = norms_of(loss, rng, cosines), rng.permutation(10)
    permuted = outputs_of(loss, cosines[:, order], norms[:, order])
    found = loss(np.argsort(order)[labels], permuted)
    assert_allclose(found, numpy_of(loss(labels, outputs_of(loss, cosines, norms))))


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dtype", ["uint8", "int64", "float32"])
def test_labels_of_every_shape_and_dtype_agree(rng, loss, dtype):
    cosines, labels = make_cosines(rng, 47, "random")
    outputs = outputs_of(loss, cosines, norms_of(loss, rng, cosines))
    expected = numpy_of(loss(labels, outputs))
    assert_allclose(loss(labels[:, None].astype(dtype), outputs), expected)
    one_hot = np.eye(47, dtype=dtype)[labels]
    assert_allclose(loss(one_hot, outputs), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("loss", LOSSES)
def test_label_that_is_no_class_gives_nan(loss):
    outputs = outputs_of(loss, np.zeros((2, 10), "float32"), np.ones((2, 10)))
    both = numpy_of(loss(np.array([1, 10]), outputs))
    np.testing.assert_array_equal(np.isnan(both), [False, True])


def test_lambda_is_the_published_one():
    steps = np.array([1, 1000, 10**5], "int32")
    sphereface = np.maximum(5, 1000 / (1 + 0.12 * steps))
    assert_allclose(annealing_lambda(steps), sphereface)
    l_softmax = 1000 * (1 + 2.5e-5 * steps) ** -35.0
    found = annealing_lambda(steps, gamma=2.5e-5, power=35, least=0)
    assert_allclose(found, l_softmax)


@pytest.mark.parametrize("steps", [-5, [0, -1], np.array([-1]), float("nan")])
def test_lambda_refuses_negative_steps(steps):
    with pytest.raises(ValueError, match="`iterations` must not be neg"):
        annealing_lambda(steps)


@pytest.mark.parametrize("loss", LOSSES)
def test_multiple_may_be_a_whole_float(rng, loss):
    cosines, labels = make_cosines(rng, 10, "random")
    outputs = outputs_of(loss, cosines, norms_of(loss, rng, cosines))
    expected = numpy_of(loss(labels, outputs, margin=4))
    assert_allclose(loss(labels, outputs, margin=4.0), expected)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("iterations", [0, 7, 10**6])
def test_class_takes_lambda_from_the_steps(rng, loss, iterations):
    cosines, labels = make_cosines(rng, 10, "random")
    norms = norms_of(loss, rng, cosines)
    outputs = outputs_of(loss, cosines, norms, iterations)
    constants = {"base": 100.0, "gamma": 0.5, "power": 2.0, "least": 1.0}
    given = {f"annealing_{name}": value for name, value in constants.items()}
    annealing = max(1.0, 100.0 * (1 + 0.5 * iterations) ** -2.0)
    expected = numpy_of(loss(labels, outputs, margin=2, annealing=annealing))
    found = LOSSES[loss](2, **given)(labels, outputs)
    assert_allclose(found, expected.mean())


@pytest.mark.parametrize("kind", LOSSES.values())
def test_config_survives_a_round_trip(kind):
    loss = kind(2, annealing_base=9.0, annealing_least=1.0, name="mine")
    config = keras.saving.serialize_keras_object(loss)
    restored = keras.saving.deserialize_keras_object(config)
    assert isinstance(restored, kind)
    assert restored.get_config() == loss.get_config()
    assert restored.annealing_base == 9.0


@pytest.mark.parametrize("kind", LOSSES.values())
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"margin": 0}, "`margin` must be a whole number from 1 to 8"),
        ({"margin": 1.5}, "Received: margin=1.5"),
        ({"margin": 9}, "only whole multiples fall with the angle"),
        ({"margin": True}, "Received: margin=True"),
        ({"margin": np.array([1, 2])}, r"Received: margin=array\(\[1, 2\]\)"),
        ({"annealing_base": -1.0}, "`annealing_base` must be a number"),
        ({"annealing_gamma": float("inf")}, "`annealing_gamma` must be"),
        ({"annealing_power": "1"}, "`annealing_power` must be"),
        ({"annealing_least": -1}, "`annealing_least` must be"),
        ({"dtype": "bfloat16"}, "`dtype` must be"),
    ],
)
def test_loss_refuses_constants(kind, arguments, message):
    with pytest.raises(ValueError, match=message):
        kind(**arguments)


@pytest.mark.parametrize("loss", LOSSES)
def test_loss_refuses_outputs_without_a_norm(loss):
    plain = {"features": np.zeros((1, 2)), "logits": np.zeros((1, 2))}
    with pytest.raises(ValueError, match=r"the key \"norm\". Received: \['features'"):
        loss([0], plain)
    with pytest.raises(ValueError, match="Received: logits alone"):
        loss([0], np.zeros((1, 2)))
    with pytest.raises(ValueError, match=r"norm.shape=\(1, 3\)"):
        loss([0], {**plain, "norm": np.ones((1, 3))})
    with pytest.raises(ValueError, match="`annealing` must be a number"):
        loss([0], outputs_of(loss, *np.ones((2, 1, 2))), annealing=-1.0)
    with pytest.raises(ValueError, match='needs a dict `y_pred` with the key "iter'):
        LOSSES[loss]()([0], {**plain, "norm": np.ones(1)})


@pytest.mark.parametrize(
    ("head", "kind", "policy"),
    [
        (CosineDense, ASoftmaxLoss, "mixed_float16"),
        (ProductDense, LSoftmaxLoss, "float32"),
    ],
)
def test_annealing_goes_on_after_save_and_load(tmp_path, rng, head, kind, policy):
    keras.mixed_precision.set_global_policy(policy)
    inputs = keras.Input((8,))
    extra = {"return_norm": True} if head is CosineDense else {}
    outputs = head(3, **extra)(keras.layers.Dense(16)(inputs))
    model = keras_pedcc.PEDCCModel(inputs, outputs)
    sgd = keras.optimizers.SGD(0.05)
    model.compile(sgd, kind(2), metrics=["accuracy"], **FEW_STEPS)
    x, y = rng.standard_normal((24, 8)).astype("float32"), np.arange(24) % 3
    history = model.fit(x, y, batch_size=8, epochs=4, verbose=0)
    assert history.history["loss"][-1] < history.history["loss"][0]
    assert set(history.history) == {"accuracy", "loss"}
    expected = model.evaluate(x, y, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(loaded.evaluate(x, y, verbose=0), expected, rtol=1e-6)
    loaded.fit(x, y, batch_size=8, verbose=0)
    assert (numpy_of(loaded(x)["iterations"]) == 15).all()
    assert (numpy_of(model(x)["iterations"]) == 12).all()


def test_weaker_annealing_changes_what_a_compiled_step_computes(rng):
    inputs = keras.Input((8,))
    model = keras_pedcc.PEDCCModel(inputs, ProductDense(3)(inputs))
    loss = LSoftmaxLoss(2, annealing_gamma=1.0, annealing_power=2.0)
    model.compile(keras.optimizers.SGD(0.0), loss)
    x, y = rng.standard_normal((24, 8)).astype("float32"), np.arange(24) % 3
    history = model.fit(x, y, batch_size=24, epochs=3, verbose=0)
    outputs = model(x)
    for epoch, found in enumerate(history.history["loss"]):
        annealing = 1000 / (2.0 + epoch) ** 2
        expected = l_softmax_loss(y, outputs, margin=2, annealing=annealing)
        assert_allclose(found, numpy_of(expected).mean())
