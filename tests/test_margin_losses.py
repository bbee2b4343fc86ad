import keras
import numpy as np
import pytest
import reference
from keras import ops
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
from keras_pedcc import AMSoftmaxLoss, ArcFaceLoss, CosineDense, PEDCCDense, PEDCCLoss
from keras_pedcc.losses import am_softmax_loss, arcface_loss, pedcc_loss

LOSSES = {am_softmax_loss: AMSoftmaxLoss, arcface_loss: ArcFaceLoss}
MARGINS = (0.0, 0.2, 0.5, 1.0, 3.0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_classes", [2, 47])
def test_arcface_agrees_with_float64(rng, num_classes, kind):
    cosines, labels = make_cosines(rng, num_classes, kind)
    for scale in (1, 15, 64):
        for margin in MARGINS:
            loss = arcface_loss(labels, cosines, scale=scale, margin=margin)
            expected = reference.arcface(labels, cosines, scale, margin)
            # A float32 cosine is good to 6e-8, which the scale multiplies.
            assert_allclose(loss, expected, rtol=1e-5, atol=1e-36)


@pytest.mark.parametrize("sign", [1, -1])
def test_arcface_agrees_with_float64_next_to_the_centroid(sign):
    steps = np.append(np.geomspace(1e-7, 1e-3, 100), 0.0)
    own = (sign * (1 - steps)).astype("float32")
    row = np.stack([own, np.zeros_like(own)], axis=1)
    for margin in (0.5, 3.0):
        loss = arcface_loss(np.zeros(101), row, scale=64.0, margin=margin)
        expected = reference.arcface(np.zeros(101), row, 64, margin)
        assert_allclose(loss, expected, rtol=1e-5, atol=1e-36)


def test_arcface_is_its_formula():
    cosines = [[np.cos(1.0), np.cos(0.7), np.cos(2.0)]]
    loss = arcface_loss([1], np.float32(cosines), scale=2.0, margin=0.5)
    own, others = np.exp(2 * np.cos(1.2)), np.exp(2 * np.cos([1.0, 2.0])).sum()
    assert_allclose(loss, [-np.log(own / (own + others))])


@pytest.mark.parametrize("margin", [0.0, 0.5, np.pi / 2, 3.0, np.pi])
def test_arcface_falls_with_the_angle_from_0_to_180_degrees(margin):
    cosines = np.cos(np.linspace(0, np.pi, 361)).astype("float32")
    row = np.stack([cosines, np.zeros_like(cosines)], axis=1)
    loss = numpy_of(arcface_loss(np.zeros(361), row, scale=1.0, margin=margin))
    assert (np.diff(loss) > -2e-7).all()
    assert loss[-1] > loss[180] > loss[0]


@pytest.mark.parametrize("margin", [0.5, 1.5, 3.0])
def test_arcface_is_continuous_where_the_angle_reaches_180_degrees(margin):
    around = np.cos(np.pi - margin + np.array([-1e-4, 1e-4])).astype("float32")
    row = np.stack([around, np.zeros(2, "float32")], axis=1)
    before, after = numpy_of(arcface_loss([0, 0], row, scale=1.0, margin=margin))
    assert abs(after - before) < 2e-4


@pytest.mark.parametrize("margin", [0.3, 0.5, 2.5])
@pytest.mark.parametrize("soft", [False, True])
def test_arcface_gradient_agrees_with_finite_differences(rng, margin, soft):
    cosines = rng.uniform(-0.99, 0.99, (8, 5)).astype("float32")
    targets = rng.dirichlet(np.ones(5), 8).astype("float32")
    labels = targets if soft else targets.argmax(axis=1)

    def twin(cosines):
        if not soft:
            return reference.arcface(labels, cosines, 15, margin)
        lower = lambda cosine, _: reference.turned(cosine, margin)  # noqa: E731
        return reference.soft_margin_entropy(targets, cosines, lower, 15)

    found = gradient_of(lambda c: arcface_loss(labels, c, margin=margin), cosines)
    assert_allclose(arcface_loss(labels, cosines, margin=margin), twin(cosines))
    assert_allclose(found, slope_of(twin, cosines), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("one_hot", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_gradient_is_finite_and_pulls_to_the_own_class(rng, loss, one_hot, kind):
    cosines, labels = make_cosines(rng, 10, kind)
    given = np.eye(10, dtype="float32")[labels] if one_hot else labels
    own = np.eye(10, dtype=bool)[labels]
    for scale in (1.0, 64.0):
        gradient = gradient_of(lambda c, s=scale: loss(given, c, scale=s), cosines)
        assert np.isfinite(gradient).all()
        assert (gradient[own] <= 0).all()
        assert (gradient[~own] >= 0).all()


@pytest.mark.parametrize("margin", [3.1, 3.1411, np.pi])
def test_arcface_never_pushes_from_the_own_class(margin):
    own = np.cos(np.geomspace(1e-5, np.pi, 50)).astype("float32")
    row = np.stack([np.append(own, 1), np.zeros(51)], axis=1).astype("float32")
    found = gradient_of(lambda c: arcface_loss(np.zeros(51), c, margin=margin), row)
    assert (found[:, 0] <= 0).all()


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("soft", [False, True])
def test_margin_zero_is_scaled_cross_entropy(rng, loss, soft):
    cosines, labels = make_cosines(rng, 10, "random")
    targets = rng.dirichlet(np.ones(10), 32) if soft else np.eye(10)[labels]
    entropy = keras.losses.categorical_crossentropy(targets, 15 * cosines, True)
    found = loss(targets if soft else labels, cosines, scale=15, margin=0)
    # Keras adds up one-hot logits; near 0 that loses digits.
    assert_allclose(found, numpy_of(entropy), rtol=1e-4, atol=1e-6)


def test_am_softmax_is_pedcc_without_distance(rng):
    cosines, labels = make_cosines(rng, 10, "random")
    expected = numpy_of(pedcc_loss(labels, cosines, mse_weight=0.0))
    assert_allclose(am_softmax_loss(labels, cosines), expected, rtol=0)


@pytest.mark.parametrize("loss", LOSSES)
def test_permuting_classes_changes_nothing(rng, loss):
    cosines, labels = make_cosines(rng, 10, "random")
    margin, order = rng.uniform(0, 1, 10), rng.permutation(10)
    permuted = loss(np.argsort(order)[labels], cosines[:, order], margin=margin[order])
    assert_allclose(permuted, numpy_of(loss(labels, cosines, margin=margin)))


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dtype", ["uint8", "int64", "float32"])
def test_labels_of_every_shape_and_dtype_agree(rng, loss, dtype):
    cosines, labels = make_cosines(rng, 47, "random")
    expected = numpy_of(loss(labels, cosines))
    assert_allclose(loss(labels[:, None].astype(dtype), cosines), expected)
    assert_allclose(loss(np.eye(47, dtype=dtype)[labels], cosines), expected)
    assert_allclose(LOSSES[loss]()(labels.astype(dtype), cosines), expected.mean())


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("label", [-1, 10, 3.7, float("nan")])
def test_label_that_is_no_class_gives_nan(loss, label):
    both = loss(np.array([1, label]), np.zeros((2, 10), "float32"))
    np.testing.assert_array_equal(np.isnan(numpy_of(both)), [False, True])


@pytest.mark.parametrize("loss", [*LOSSES, pedcc_loss])
@pytest.mark.parametrize("soft", [False, True])
def test_margins_of_classes_count_for_their_class(rng, loss, soft):
    cosines, labels = make_cosines(rng, 10, "random")
    margins = [0.1 * j for j in range(10)]
    given = np.eye(10)[labels] if soft else labels
    found = numpy_of(loss(given, cosines, margin=margins))
    for i, label in enumerate(labels):
        alone = loss([label], cosines[i : i + 1], margin=margins[label])
        assert_allclose(found[i : i + 1], numpy_of(alone))


@pytest.mark.parametrize("loss", [*LOSSES, pedcc_loss])
def test_margin_may_be_a_tensor(rng, loss):
    cosines, labels = make_cosines(rng, 10, "random")
    given = loss(labels, cosines, margin=ops.convert_to_tensor(0.25))
    assert_allclose(given, numpy_of(loss(labels, cosines, margin=0.25)))


@pytest.mark.parametrize("loss", LOSSES)
def test_short_logits_are_computed_in_float32(rng, loss):
    cosines, labels = make_cosines(rng, 300, "random")
    short = ops.cast(cosines, "float16")
    expected = numpy_of(loss(labels, ops.cast(short, "float32")))
    assert_allclose(LOSSES[loss]()(labels, short), expected.mean())


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_functions_compute_short_logits_in_float32(rng, loss, dtype):
    cosines, labels = make_cosines(rng, 300, "random")
    short = ops.cast(cosines, dtype)
    found = loss(labels, short)
    assert keras.backend.standardize_dtype(found.dtype) == "float32"
    assert_allclose(found, numpy_of(loss(labels, ops.cast(short, "float32"))))


@pytest.mark.parametrize("kind", LOSSES.values())
def test_class_is_its_function_with_weights_and_dict(rng, kind):
    cosines, labels = make_cosines(rng, 10, "random")
    weight = rng.uniform(0, 3, 32).astype("float32")
    outputs = {"features": np.zeros((32, 4), "float32"), "logits": cosines}
    function = {value: key for key, value in LOSSES.items()}[kind]
    vector = numpy_of(function(labels, cosines, scale=8, margin=0.3))
    expected = (weight * vector).mean()
    assert_allclose(kind(8, 0.3)(labels, outputs, weight), expected)


@pytest.mark.parametrize("kind", LOSSES.values())
@pytest.mark.parametrize("margin", [0.25, [0.25, 0.5]])
def test_config_survives_a_round_trip(kind, margin):
    loss = kind(30.0, margin, name="mine", dtype="float64")
    config = keras.saving.serialize_keras_object(loss)
    restored = keras.saving.deserialize_keras_object(config)
    assert config["registered_name"] == f"keras_pedcc>{kind.__name__}"
    assert isinstance(restored, kind)
    assert restored.get_config() == loss.get_config()
    assert restored.margin == margin


@pytest.mark.parametrize("kind", LOSSES.values())
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scale": 0}, r"`scale` must be a number in \(0, inf\)"),
        ({"margin": -0.1}, r"`margin` must be a number in \[0, "),
        ({"margin": 28.6}, "Received: margin=28.6"),
        ({"margin": [0.5, -1.0]}, r"Received: margin=-1.0"),
        ({"margin": "0.5"}, "Received: margin='0.5'"),
        ({"margin": []}, r"one number, or one per class. Received: margin=\[\]"),
        ({"margin": np.array([])}, "Pass as many as there are classes"),
        ({"dtype": "float16"}, "`dtype` must be"),
    ],
)
def test_loss_refuses_constants(kind, arguments, message):
    with pytest.raises(ValueError, match=message):
        kind(**arguments)


def test_arcface_says_why_its_margin_has_an_end():
    with pytest.raises(ValueError, match=r"3.14159\] radians: above pi the loss would"):
        arcface_loss([0], np.zeros((1, 2)), margin=4.0)


@pytest.mark.parametrize("loss", [am_softmax_loss, AMSoftmaxLoss, PEDCCLoss])
def test_margin_of_cosines_says_why_it_has_an_end(loss):
    given = ([0], np.zeros((1, 2))) if loss is am_softmax_loss else ()
    with pytest.raises(ValueError, match=r"2\] in units of cosine: .* could never win"):
        loss(*given, margin=2.1)


def test_margin_of_2_lets_the_own_class_draw_at_best():
    best = np.float32([[1.0, -1.0]])  # as far apart as cosines can be
    wins = [am_softmax_loss([0], best, margin=margin) for margin in (1.9, 2.0)]
    assert numpy_of(wins[0]) < np.log(2)
    assert_allclose(wins[1], [np.log(2)])  # it only draws


@pytest.mark.parametrize("loss", [*LOSSES, pedcc_loss])
def test_margins_must_be_one_per_class(loss):
    with pytest.raises(ValueError, match=r"shape \(2,\), num_classes=3"):
        loss([0], np.zeros((1, 3)), margin=[0.1, 0.2])


@pytest.mark.parametrize(
    ("head", "kind", "policy"),
    [
        (CosineDense, ArcFaceLoss, "float32"),
        (PEDCCDense, AMSoftmaxLoss, "float32"),
        (PEDCCDense, ArcFaceLoss, "mixed_float16"),
    ],
)
def test_models_train_save_and_load(tmp_path, rng, policy, kind, head):
    keras.mixed_precision.set_global_policy(policy)
    inputs = keras.Input((8,))
    outputs = head(3)(keras.layers.Dense(16)(inputs))
    model = keras_pedcc.PEDCCModel(inputs, outputs)
    sgd = keras.optimizers.SGD(0.05)
    model.compile(sgd, kind(), metrics=["accuracy"], **FEW_STEPS)
    x, y = rng.standard_normal((24, 8)).astype("float32"), np.arange(24) % 3
    history = model.fit(x, y, epochs=4, class_weight={0: 1, 1: 2, 2: 1}, verbose=0)
    assert history.history["loss"][-1] < history.history["loss"][0]
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    expected = model.evaluate(x, y, verbose=0)
    np.testing.assert_allclose(loaded.evaluate(x, y, verbose=0), expected, rtol=1e-6)


def test_class_weights_are_sample_weights(rng):
    cosines, labels = make_cosines(rng, 3, "random")
    inputs = keras.Input((3,))
    dense = keras.layers.Dense(3, kernel_initializer="identity")
    model = keras.Model(inputs, dense(inputs))
    model.compile("sgd", AMSoftmaxLoss())
    history = model.fit(
        cosines, labels, class_weight={0: 1, 1: 5, 2: 0}, batch_size=32, verbose=0
    )
    vector = numpy_of(am_softmax_loss(labels, cosines))
    expected = (np.array([1, 5, 0])[labels] * vector).mean()
    assert_allclose(history.history["loss"][0], expected)


def test_pedcc_keeps_a_margin_for_each_class():
    loss = PEDCCLoss(margin=(0.1, 0.2))
    assert loss.get_config()["margin"] == [0.1, 0.2]
    assert PEDCCLoss.from_config(loss.get_config()).margin == [0.1, 0.2]
