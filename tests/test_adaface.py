"""AdaFace, and the running statistics of norms that its heads keep."""

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

from keras_pedcc import (
    AdaFaceLoss,
    Blockwise,
    CosineDense,
    KerdockDense,
    MarginWarmup,
    PEDCCDense,
    PEDCCModel,
    ProductDense,
)
from keras_pedcc.losses import adaface_loss, am_softmax_loss, arcface_loss


def outputs_of(cosines, norms):
    return {"features": cosines, "logits": cosines, "standard_norm": norms}


def qualities_of(norms, h=0.333):
    return np.clip(h * np.asarray(norms, "float64"), -1, 1)


def make_batch(rng, num_classes=10, kind="random"):
    cosines, labels = make_cosines(rng, num_classes, kind)
    norms = rng.uniform(-4, 4, len(labels)).astype("float32")
    return cosines, labels, norms


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("scale", "margin", "h"), [(64, 0.4, 0.333), (8, 1.0, 1.0)])
def test_loss_agrees_with_float64(rng, kind, scale, margin, h):
    cosines, labels, norms = make_batch(rng, 10, kind)
    arguments = {"scale": scale, "margin": margin, "h": h}
    found = adaface_loss(labels, outputs_of(cosines, norms), **arguments)
    qualities = qualities_of(norms, h)
    expected = reference.adaface(labels, cosines, qualities, scale, margin)
    assert_allclose(found, expected, rtol=2e-5, atol=1e-30)


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("margin", [0.4, [0.1, 0.2, 0.3, 0.4, 0.5]])
def test_gradient_agrees_with_finite_differences(rng, soft, margin):
    cosines = rng.uniform(-0.99, 0.99, (8, 5)).astype("float32")
    targets = rng.dirichlet(np.ones(5), 8).astype("float32")
    labels = targets if soft else targets.argmax(axis=1)
    norms = np.linspace(-4, 4, 8).astype("float32")
    priors = np.arange(1, 6)

    def value(cosines):
        given = {"scale": 15, "margin": margin, "priors": priors}
        return adaface_loss(labels, outputs_of(cosines, norms), **given)

    def twin(cosines):
        shift = reference.log_priors(priors)
        given = (labels, cosines, qualities_of(norms), 15, margin, shift)
        return reference.adaface(*given)

    assert_allclose(value(cosines), twin(cosines), rtol=2e-5)
    found = gradient_of(value, cosines)
    assert_allclose(found, slope_of(twin, cosines), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("norm", "plain"), [(-9, arcface_loss), (0, am_softmax_loss)])
def test_shortest_and_mean_norms_give_the_losses_without_quality(
    rng, kind, norm, plain
):
    cosines, labels, _ = make_batch(rng, 10, kind)
    norms = np.full(len(labels), norm, "float32")
    found = adaface_loss(labels, outputs_of(cosines, norms), scale=15)
    expected = numpy_of(plain(labels, cosines, scale=15, margin=0.4))
    assert_allclose(found, expected, rtol=2e-5, atol=1e-30)


def test_longest_norms_turn_towards_the_centroid_and_take_off_twice_the_margin():
    cosines = np.cos([[1.0, 0.7, 2.0]]).astype("float32")
    found = adaface_loss([0], outputs_of(cosines, np.ones(1) * 9), scale=2, margin=0.25)
    own, others = np.exp(2 * (np.cos(0.75) - 0.5)), np.exp(2 * np.cos([0.7, 2.0])).sum()
    assert_allclose(found, [-np.log(own / (own + others))])


@pytest.mark.parametrize("norm", [-9.0, -1.0, 1.0, 9.0])
def test_loss_falls_with_the_cosine_from_180_to_0_degrees(norm):
    own = np.cos(np.linspace(0, np.pi, 361)).astype("float32")
    row = np.stack([own, np.zeros_like(own)], axis=1)
    norms, labels = np.full(361, norm, "float32"), np.zeros(361)

    def value(x):
        return adaface_loss(labels, outputs_of(x, norms), scale=4.0)

    assert (np.diff(numpy_of(value(row))) > -1e-6).all()
    gradient = gradient_of(value, row)
    assert np.isfinite(gradient).all()
    assert (gradient[:, 0] <= 0).all()


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_labels_of_every_shape_and_dtype_agree(rng, dtype):
    cosines, labels, norms = make_batch(rng)
    outputs, weight = outputs_of(cosines.astype("float16"), norms), np.arange(32) / 8
    expected = numpy_of(adaface_loss(labels, outputs))
    assert_allclose(adaface_loss(labels[:, None].astype(dtype), outputs), expected)
    one_hot = np.eye(10, dtype=dtype)[labels]
    assert_allclose(adaface_loss(one_hot, outputs), expected, rtol=1e-4)
    found = AdaFaceLoss()(labels.astype(dtype), outputs, weight)
    assert_allclose(found, (weight * expected).mean())
    none = adaface_loss(np.where(labels == 3, 10, labels), outputs)
    np.testing.assert_array_equal(np.isnan(numpy_of(none)), labels == 3)


def statistics_after(batches):
    """Mean and deviation: averages over the batches, for up to 100 of them."""
    return np.mean([[np.mean(b), np.std(b)] for b in batches], axis=0)


@pytest.mark.parametrize("kind", [CosineDense, PEDCCDense, KerdockDense])
def test_head_averages_the_norms_of_the_first_batches(rng, kind):
    head, norms = kind(20, return_norm=True), []
    for step in range(3):
        features = rng.standard_normal((6, 8)).astype("float32") * (1 + step)
        norms.append(np.linalg.norm(features, axis=1))
        outputs = head(features, training=True)
        mean, deviation = statistics_after(norms)
        assert_allclose(head.norm_mean, mean)
        assert_allclose(head.norm_deviation, deviation, rtol=1e-4)
        expected = (norms[-1] - mean) / (deviation + 1e-3)
        assert_allclose(outputs["standard_norm"], expected, rtol=1e-4, atol=1e-5)
    again = head(2 * features)["standard_norm"]  # outside of training: as they are
    expected = (2 * norms[-1] - mean) / (deviation + 1e-3)
    assert_allclose(again, expected, rtol=1e-4, atol=1e-5)


def test_later_batches_count_for_a_hundredth(rng):
    head = CosineDense(3, return_norm=True)
    head.build((None, 8))
    head.iterations.assign(1000)
    head.norm_mean.assign(5.0)
    head.norm_deviation.assign(2.0)
    features = rng.standard_normal((6, 8)).astype("float32")
    head(features, training=True)
    norms = np.linalg.norm(features, axis=1)
    assert_allclose(head.norm_mean, 0.99 * 5 + 0.01 * norms.mean())
    assert_allclose(head.norm_deviation, 0.99 * 2 + 0.01 * norms.std())


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_batch_that_is_not_finite_leaves_the_statistics(rng, bad):
    head = CosineDense(3, return_norm=True)
    features = rng.standard_normal((6, 8)).astype("float32")
    head(features, training=True)
    before = numpy_of(head.norm_mean).copy(), numpy_of(head.norm_deviation).copy()
    features[2, 3] = bad
    head(features, training=True)
    assert (numpy_of(head.norm_mean), numpy_of(head.norm_deviation)) == before


def test_norms_are_standardized_without_a_gradient(rng):
    head = CosineDense(3, return_norm=True)
    features = rng.standard_normal((6, 8)).astype("float32")
    head(features, training=True)

    def value(x):
        outputs = head(x)
        return outputs["standard_norm"] + 0 * outputs["norm"]

    np.testing.assert_array_equal(gradient_of(value, features), np.zeros((6, 8)))


@pytest.mark.parametrize("policy", ["float32", "mixed_float16"])
def test_model_trains_saves_and_goes_on_with_its_statistics(tmp_path, rng, policy):
    keras.mixed_precision.set_global_policy(policy)
    inputs = keras.Input((8,))
    outputs = CosineDense(3, return_norm=True)(keras.layers.Dense(16)(inputs))
    model = PEDCCModel(inputs, outputs)
    sgd = keras.optimizers.SGD(0.05)
    model.compile(sgd, AdaFaceLoss(8.0), metrics=["accuracy"], **FEW_STEPS)
    x, y = rng.standard_normal((24, 8)).astype("float32"), np.arange(24) % 3
    warmup = MarginWarmup(2, start=1.0)
    history = model.fit(x, y, 8, epochs=4, callbacks=[warmup], verbose=0)
    assert history.history["loss"][-1] < history.history["loss"][0]
    assert numpy_of(model.layers[-1].norm_deviation) > 0
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    for each in (model, loaded):
        each.fit(x, y, 8, shuffle=False, verbose=0)
    for ours, theirs in zip(model.weights, loaded.weights, strict=True):
        assert_allclose(theirs, numpy_of(ours), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scale": 0}, r"`scale` must be a number in \(0, inf\)"),
        ({"margin": 1.1}, r"`margin` must be a number in \[0, 1\] in units of cosine"),
        ({"margin": [0.5, -1.0]}, r"Received: margin=-1.0"),
        ({"h": 0}, r"`h` must be a number in \(0, inf\)"),
    ],
)
def test_loss_refuses_constants(arguments, message):
    with pytest.raises(ValueError, match=message):
        AdaFaceLoss(**arguments)
    with pytest.raises(ValueError, match=message):
        adaface_loss([0], outputs_of(np.zeros((1, 2)), [0.0]), **arguments)


def test_h_set_later_is_checked():
    loss = AdaFaceLoss()
    loss.h = 1
    assert loss.get_config()["h"] == 1.0
    with pytest.raises(ValueError, match="`h` must be a number"):
        loss.h = -1


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (CosineDense(3), r'key "standard_norm". Received: .*return_norm=True'),
        (ProductDense(3), r'key "standard_norm". Received: .*`CosineDense'),
    ],
)
def test_head_must_keep_the_norm(head, message):
    inputs = keras.Input((4,))
    model = PEDCCModel(inputs, head(inputs))
    model.compile("sgd", AdaFaceLoss(), run_eagerly=True)
    with pytest.raises(ValueError, match=message):
        model.train_on_batch(np.ones((2, 4)), np.zeros(2))


def test_norm_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"standard_norm.shape=\(1, 1\)"):
        adaface_loss([0], outputs_of(np.zeros((1, 2)), np.zeros((1, 1))))


def test_logits_that_are_no_cosines_give_nan():
    outputs = {"features": [[1.0]], "logits": [[5.0, 0.0]], "standard_norm": [0.0]}
    assert np.isnan(numpy_of(adaface_loss([0], outputs, scale=1.0))).all()
    with pytest.raises(ValueError, match="The logits must be cosines"):
        AdaFaceLoss(1.0)(np.array([0]), outputs)


def test_loss_is_refused_where_scores_are_computed_by_parts():
    inputs = keras.Input((8,))
    model = PEDCCModel(inputs, CosineDense(3, scores=Blockwise(2))(inputs))
    with pytest.raises(ValueError, match="Received: loss=<keras_pedcc"):
        model.compile("sgd", AdaFaceLoss())
