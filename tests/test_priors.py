"""Class priors: values, gradients, every kind of scores, training, frequencies."""

import keras
import numpy as np
import pytest
import reference
from keras import ops
from tensors import (
    FEW_STEPS,
    KINDS,
    assert_allclose,
    draw_alike,
    gradient_of,
    make_cosines,
    numpy_of,
    slope_of,
)

import keras_pedcc
from keras_pedcc import AMSoftmaxLoss, ArcFaceLoss, PEDCCDense, PEDCCLoss, PEDCCModel
from keras_pedcc.losses import am_softmax_loss, arcface_loss, pedcc_loss
from keras_pedcc.scores.blockwise import BlockwiseScores
from keras_pedcc.scores.sampled import SampledScores

CLASSES, DIM = 12, 5
LOSSES = {
    am_softmax_loss: AMSoftmaxLoss,
    arcface_loss: ArcFaceLoss,
    pedcc_loss: PEDCCLoss,
}
PRIORS = np.random.default_rng(1).permutation(np.geomspace(1e-6, 1, CLASSES))
SHIFT = reference.log_priors(PRIORS)
MARGINS = np.random.default_rng(2).uniform(0, 1, CLASSES)
TINY = 1e-36  # below it float32 loses digits


def lower_of(loss, margins):
    """What lowers the own cosine, of the cosine and the class."""
    if loss is arcface_loss:
        return lambda cosine, j: reference.turned(cosine, margins[j])
    return lambda cosine, j: cosine - margins[j]


def twin(loss, labels, cosines, scale, margins=MARGINS, shift=SHIFT):
    """The loss of each sample in float64, for indices or soft labels."""
    lower = lower_of(loss, margins)
    soft = np.ndim(labels) == 2
    entropy = reference.soft_margin_entropy if soft else reference.margin_entropy
    values = entropy(labels, cosines, lower, scale, shift)
    if loss is pedcc_loss:
        targets = labels if soft else np.eye(cosines.shape[1])[labels]
        values = values + 10 * (targets * (1 - cosines)).sum(axis=1)
    return values


def unit(rows):
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


@pytest.fixture
def case(rng):
    """Features, centroids of any length, and labels."""
    features = unit(rng.standard_normal((10, DIM))).astype("float32")
    centroids = rng.standard_normal((CLASSES, DIM)).astype("float32")
    return features, centroids, rng.integers(0, CLASSES, 10)


@pytest.mark.filterwarnings("ignore:The loss cannot fall below")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("loss", LOSSES)
def test_value_agrees_with_float64(rng, loss, kind):
    cosines, labels = make_cosines(rng, CLASSES, kind)
    one_hot = np.eye(CLASSES, dtype="float32")[labels]
    for scale in (1, 15, 64):
        constants = {"scale": scale, "margin": MARGINS, "priors": PRIORS}
        expected = twin(loss, labels, cosines.astype("float64"), scale)
        for given in (labels, one_hot):
            found = loss(given, cosines, **constants)
            assert_allclose(found, expected, rtol=1e-5, atol=TINY)
        whole = LOSSES[loss](scale, MARGINS, priors=PRIORS)(labels, cosines)
        assert_allclose(whole, expected.mean(), atol=TINY)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("soft", [False, True])
def test_gradient_agrees_with_finite_differences(rng, loss, soft):
    cosines = rng.uniform(-0.95, 0.95, (8, CLASSES)).astype("float32")
    targets = rng.dirichlet(np.ones(CLASSES), 8).astype("float32")
    labels = targets if soft else targets.argmax(axis=1)
    for scale in (15, 64):
        constants = {"scale": scale, "margin": MARGINS, "priors": PRIORS}
        found = gradient_of(lambda c, k=constants: loss(labels, c, **k), cosines)
        assert_allclose(
            loss(labels, cosines, **constants), twin(loss, labels, cosines, scale)
        )
        expected = slope_of(lambda c, s=scale: twin(loss, labels, c, s), cosines)
        assert_allclose(found, expected, rtol=1e-4, atol=2e-4)


def test_priors_far_apart_leave_no_range(rng):
    cosines, labels = make_cosines(rng, CLASSES, "opposite")
    priors = np.geomspace(1e-30, 1, CLASSES)
    shift = reference.log_priors(priors)
    expected = reference.am_softmax(labels, cosines, 15, 0.5, shift)
    assert_allclose(am_softmax_loss(labels, cosines, priors=priors), expected)
    slope = gradient_of(lambda c: am_softmax_loss(labels, c, priors=priors), cosines)
    own = slope[np.arange(len(labels)), labels]
    assert_allclose(own, -15 * -np.expm1(-expected), rtol=1e-4)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("soft", [False, True])
def test_equal_priors_change_nothing(rng, loss, soft):
    cosines, labels = make_cosines(rng, CLASSES, "random")
    given = rng.dirichlet(np.ones(CLASSES), 32) if soft else labels
    expected = numpy_of(loss(given, cosines))
    for priors in ([7] * CLASSES, np.full(CLASSES, 1 / CLASSES, "float32")):
        assert_allclose(loss(given, cosines, priors=priors), expected, rtol=1e-6)


def test_priors_count_by_their_ratios(rng):
    cosines, labels = make_cosines(rng, CLASSES, "random")
    expected = numpy_of(pedcc_loss(labels, cosines, priors=PRIORS))
    assert_allclose(pedcc_loss(labels, cosines, priors=PRIORS * 1e9), expected)


@pytest.mark.parametrize("root", [1, 2])
def test_weights_and_root_go_with_priors(rng, root):
    cosines, labels = make_cosines(rng, CLASSES, "random")
    weight = rng.uniform(0, 3, 32).astype("float32")
    loss = PEDCCLoss(20.0, 0.3, 4.0, root, priors=PRIORS)
    expected = reference.pedcc(labels, cosines, 20, 0.3, 4, root, weight, SHIFT)
    assert_allclose(loss(labels, cosines, weight), expected)


@pytest.mark.parametrize("size", [5, 100])
@pytest.mark.parametrize("loss", LOSSES)
def test_scores_by_blocks_agree_with_float64(case, loss, size):
    features, centroids, labels = case
    constants = {"scale": 20, "margin": MARGINS, "priors": PRIORS}
    weights = np.arange(len(labels), dtype="float32") + 1

    def blocks(x, c):
        z = BlockwiseScores(x, c, trained=True, block_size=size)
        return loss(labels, z, **constants) * ops.convert_to_tensor(weights)

    def expected(x, c):
        cosines = np.asarray(x, "float64") @ unit(np.asarray(c, "float64")).T
        return twin(loss, labels, cosines, 20) * weights

    x, c = map(ops.convert_to_tensor, (features, centroids))
    assert_allclose(blocks(x, c), expected(features, centroids), rtol=3e-5)
    for found, slope in (
        (
            gradient_of(lambda x: blocks(x, c), features),
            slope_of(lambda x: expected(x, centroids), features),
        ),
        (
            gradient_of(lambda c: blocks(x, c), centroids),
            slope_of(lambda c: expected(features, c), centroids),
        ),
    ):
        np.testing.assert_allclose(found, slope, rtol=1e-3, atol=5e-3)


@pytest.mark.parametrize("ranked", [False, True])
def test_rank_is_that_of_the_cosines(case, ranked):
    features, centroids, labels = case
    features = unit(features + unit(centroids)[labels]).astype("float32")
    x, c = map(ops.convert_to_tensor, (features, centroids))
    z = BlockwiseScores(x, c, trained=False, block_size=5, ranked=ranked)
    am_softmax_loss(labels, z, priors=PRIORS)
    cosines = features @ unit(centroids).T
    own = cosines[np.arange(len(labels)), labels]
    nearer = (cosines > own[:, None] + 1e-6).sum(axis=1)
    assert 0 < (nearer == 0).sum() < len(labels)
    found = numpy_of(z.rank)
    assert (found if ranked else found == 0).tolist() == (
        nearer if ranked else nearer == 0
    ).tolist()


def test_blocks_of_classes_far_rarer_than_the_own_have_a_gradient(case):
    features, centroids, labels = case
    priors = np.full(CLASSES, 1e-80)
    priors[labels[0]] = 1e80
    x, c = ops.convert_to_tensor(features[:1]), ops.convert_to_tensor(centroids)

    def loss(x):
        z = BlockwiseScores(x, c, trained=False, block_size=5)
        return am_softmax_loss(labels[:1], z, scale=2, priors=priors)

    assert_allclose(gradient_of(loss, x), np.zeros((1, DIM)))


@pytest.mark.parametrize("loss", LOSSES)
def test_sample_of_all_classes_gives_the_exact_loss(case, loss):
    features, centroids, labels = case
    x, c = map(ops.convert_to_tensor, (features, centroids))
    seed = keras.random.SeedGenerator(5)
    z = SampledScores(x, c, trained=True, number=CLASSES - 1, seed=seed)
    found = loss(labels, z, scale=20, margin=MARGINS, priors=PRIORS)
    cosines = features.astype("float64") @ unit(centroids.astype("float64")).T
    assert_allclose(found, twin(loss, labels, cosines, 20), rtol=3e-5)


def test_kerdocks_vectors_by_blocks_take_no_priors(rng):
    x = ops.convert_to_tensor(rng.standard_normal((2, 16)).astype("float32"))
    for scores in ("dense", "blockwise"):
        head = keras_pedcc.KerdockDense(40, scores=scores)
        outputs = head.for_loss(head(x, training=True))
        if scores == "dense":
            loss = numpy_of(pedcc_loss([0, 39], outputs, priors=[1] * 40))
            assert np.isfinite(loss).all()
            continue
        told = r"`priors` must be None.*Received: priors of length 40.*scores=\"dense\""
        with pytest.raises(ValueError, match=told):
            pedcc_loss([0, 39], outputs, priors=[1] * 40)


@pytest.mark.parametrize(
    ("priors", "message"),
    [
        ([1, 0, 2], r"must be positive and finite. Received: priors=0 for class 1"),
        ([1.0, -0.5], r"Received: priors=-0.5 for class 1"),
        ([float("nan"), 1], r"Received: priors=nan for class 0"),
        ([1, float("inf")], r"Received: priors=inf for class 1"),
        (["a", "b"], r"one positive number per class.*priors=\['a', 'b'\]. Pass"),
        ([True, True], r"one positive number per class"),
        ([[1, 2], [3, 4]], r"one positive number per class"),
        ([[1, 2], [3]], r"one positive number per class.*priors=\[\[1, 2\], \[3\]\]"),
        ([], r"one positive number per class.*priors=\[\]"),
        (3.0, r"one positive number per class.*priors=3.0"),
        (ops.ones(3), r"as a list or NumPy array"),
    ],
)
def test_priors_are_checked(priors, message):
    for function, loss in LOSSES.items():
        with pytest.raises(ValueError, match=message):
            loss(priors=priors)
        with pytest.raises(ValueError, match=message):
            function([0], np.zeros((1, 2)), priors=priors)


def test_priors_must_be_one_per_class():
    for function, loss in LOSSES.items():
        for given in (loss(priors=[1, 2]), lambda *a, f=function: f(*a, priors=[1, 2])):
            with pytest.raises(ValueError, match=r"of length 2, num_classes=3\. Pass"):
                given([0], np.zeros((1, 3)))


def samples(rng):
    labels = rng.choice(CLASSES, 64, p=PRIORS / PRIORS.sum())
    labels[:CLASSES] = np.arange(CLASSES)
    return rng.standard_normal((64, 8)).astype("float32"), labels


def test_models_train_alike_with_all_scores_and_load(rng, tmp_path):
    x, y = samples(rng)
    priors = keras_pedcc.class_priors(y, CLASSES)
    histories, models = [], []
    for scores in ("dense", keras_pedcc.Blockwise(5)):
        draw_alike(3)
        inputs = keras.Input((8,))
        head = PEDCCDense(CLASSES, scores=scores, trainable=True, keep_mean=False)
        model = PEDCCModel(inputs, head(keras.layers.Dense(DIM)(inputs)))
        loss = PEDCCLoss(priors=priors)
        sgd = keras.optimizers.SGD(0.05)
        model.compile(sgd, loss, metrics=["accuracy"], **FEW_STEPS)
        fitted = model.fit(x, y, batch_size=16, epochs=2, shuffle=False, verbose=0)
        histories.append(fitted.history)
        models.append(model)
    dense, blocks = models
    for name, values in histories[0].items():
        np.testing.assert_allclose(histories[1][name], values, rtol=1e-4, err_msg=name)
    for ours, theirs in zip(blocks.weights, dense.weights, strict=True):
        assert_allclose(ours.value, numpy_of(theirs.value), rtol=1e-4, atol=1e-5)
    blocks.save(tmp_path / "model.keras")
    found = keras.saving.load_model(tmp_path / "model.keras")
    found = found.evaluate(x, y, verbose=0, return_dict=True)
    logits = dense.predict(x, verbose=0)["logits"]
    assert found["accuracy"] == pytest.approx((logits.argmax(axis=1) == y).mean())
    shifted = 15 * logits + np.log(priors)
    assert found["accuracy"] != (shifted.argmax(axis=1) == y).mean()
    shift = reference.log_priors(priors)
    expected = reference.pedcc(y, logits, 15, 0.5, 10, 1, shift=shift)
    assert found["loss"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("kind", ["index", "column", "one_hot", "tensor", "float"])
def test_class_priors_are_frequencies(kind):
    labels = np.array([2, 0, 2, 2, 0, 4])
    given = {
        "index": labels,
        "column": labels[:, None],
        "one_hot": np.eye(5)[labels],
        "tensor": ops.convert_to_tensor(labels),
        "float": labels.astype("float32").tolist(),
    }[kind]
    priors = keras_pedcc.class_priors(given)
    assert priors.dtype == "float64"
    np.testing.assert_allclose(priors, np.array([2, 1, 3, 1, 1]) / 8)
    if kind != "one_hot":
        priors = keras_pedcc.class_priors(given, 7)
        np.testing.assert_allclose(priors, np.array([2, 1, 3, 1, 1, 1, 1]) / 10)


@pytest.mark.parametrize(
    ("labels", "number", "message"),
    [
        ([0, 3], 3, r"whole numbers in \[0, 3\). Received: labels\[1\]=3"),
        ([0, -1], None, r"Received: labels\[1\]=-1"),
        ([0.5], None, r"Received: labels\[0\]=0.5"),
        ([float("nan")], None, r"Received: labels\[0\]=nan"),
        ([float("inf")], None, r"Received: labels\[0\]=inf"),
        ([], 3, r"at least one number. Received: labels.shape=\(0,\)"),
        (["a"], None, r"`labels` must have shape"),
        (np.ones((2, 2, 2)), None, r"`labels` must have shape"),
        (np.eye(3), 4, r"a column for each class. Received: labels.shape=\(3, 3\)"),
        ([[1, 0], [1, 1]], None, r"must sum to 1. Received: labels\[1\]=\[1. 1.\]"),
        ([0], 0, r"`num_classes` must be at least 1"),
    ],
)
def test_class_priors_refuse_labels(labels, number, message):
    with pytest.raises(ValueError, match=message):
        keras_pedcc.class_priors(labels, number)
