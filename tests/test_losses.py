import keras
import numpy as np
import pytest
import reference
from keras import ops
from tensors import KINDS, assert_allclose, gradient_of, make_cosines, numpy_of

from keras_pedcc import PEDCCLoss, losses
from keras_pedcc.losses import am_softmax_loss, centroid_distance, pedcc_loss

NO_LOSSES = {"annealing_lambda", "auto_scale", "loss_floor"}
TINY = 1e-36  # below it float32 loses digits


@pytest.mark.filterwarnings("ignore:The loss cannot fall below")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_classes", [47, 2, 1000])
def test_loss_agrees_with_float64(rng, num_classes, kind):
    cosines, labels = make_cosines(rng, num_classes, kind)
    for i, scale in enumerate((1, 15, 64)):
        for j, margin in enumerate((0, 0.5, 1)):
            root = (i + j) % 3 + 1  # each pair of values once
            expected = reference.pedcc(labels, cosines, scale, margin, 10, root)
            loss = PEDCCLoss(scale, margin, 10, root)(labels, cosines)
            assert_allclose(loss, expected, atol=TINY)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_classes", [47, 2, 1000])
def test_am_softmax_agrees_with_float64_for_each_sample(rng, num_classes, kind):
    cosines, labels = make_cosines(rng, num_classes, kind)
    for scale in (1, 15, 30, 64):
        for margin in (0, 0.2, 0.5, 1):
            loss = am_softmax_loss(labels, cosines, scale=scale, margin=margin)
            expected = reference.am_softmax(labels, cosines, scale, margin)
            assert_allclose(loss, expected, atol=TINY)


@pytest.mark.parametrize("kind", KINDS)
def test_one_hot_labels_are_as_accurate(rng, kind):
    cosines, labels = make_cosines(rng, 47, kind)
    for scale in (1, 15, 64):
        loss = am_softmax_loss(np.eye(47)[labels], cosines, scale=scale, margin=0.5)
        expected = reference.am_softmax(labels, cosines, scale, 0.5)
        assert_allclose(loss, expected, atol=TINY)


def test_am_softmax_is_its_formula():
    loss = am_softmax_loss([1], [[0.1, 0.6, -0.2]], scale=2.0, margin=0.5)
    own, others = np.exp(2 * (0.6 - 0.5)), np.exp(2 * 0.1) + np.exp(2 * -0.2)
    assert_allclose(loss, [-np.log(own / (own + others))])


def test_distance_is_half_the_squared_distance_of_unit_vectors(rng):
    vectors = rng.standard_normal((2, 5, 8))
    features, centroids = vectors / np.linalg.norm(vectors, axis=2, keepdims=True)
    squared = np.sum((features - centroids) ** 2, axis=1)
    cosines = (features @ centroids.T).astype("float32")
    assert_allclose(centroid_distance(np.arange(5), cosines), squared / 2)


def test_soft_labels_agree_with_float64(rng):
    cosines = rng.uniform(-1, 1, (16, 10)).astype("float32")
    targets = rng.dirichlet(np.ones(10), 16).astype("float32")
    loss = am_softmax_loss(targets, cosines, scale=30.0, margin=0.5)
    assert_allclose(loss, reference.soft_am_softmax(targets, cosines, 30, 0.5))
    expected = (targets * (1 - cosines.astype("float64"))).sum(axis=1)
    assert_allclose(centroid_distance(targets, cosines), expected)


def test_margin_zero_is_cross_entropy(rng):
    cosines, labels = make_cosines(rng, 10, "random")
    entropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    loss = PEDCCLoss(scale=15.0, margin=0.0, mse_weight=0.0)(labels, cosines)
    assert_allclose(loss, numpy_of(entropy(labels, 15 * cosines)))


def test_permuting_classes_changes_nothing(rng):
    cosines, labels = make_cosines(rng, 10, "random")
    order = rng.permutation(10)
    permuted = pedcc_loss(np.argsort(order)[labels], cosines[:, order], mse_root=2)
    assert_allclose(permuted, numpy_of(pedcc_loss(labels, cosines, mse_root=2)))


def test_loss_on_the_simplex_has_its_known_floor():
    cosines = np.full((10, 10), -1 / 9, "float32")
    np.fill_diagonal(cosines, 1)
    loss = PEDCCLoss(scale=7.5, margin=0.35)(np.arange(10), cosines)
    assert float(loss) == pytest.approx(0.02943, abs=1e-5)


@pytest.mark.parametrize("root", [1, 2, 3])
@pytest.mark.parametrize("dtype", ["uint8", "int8", "int32", "int64", "float32"])
def test_labels_of_every_shape_and_dtype_agree(rng, root, dtype):
    cosines, labels = make_cosines(rng, 47, "random")
    loss = PEDCCLoss(mse_root=root)
    expected = reference.pedcc(labels, cosines, 15, 0.5, 10, root)
    assert_allclose(loss(labels.astype(dtype), cosines), expected)
    assert_allclose(loss(labels[:, None].astype(dtype), cosines), expected)
    assert_allclose(loss(np.eye(47, dtype=dtype)[labels], cosines), expected)
    assert_allclose(pedcc_loss(labels.astype(dtype), cosines).shape, (32,))


def test_dict_and_logits_give_the_same_loss(rng):
    cosines, labels = make_cosines(rng, 10, "random")
    outputs = {"features": rng.standard_normal((32, 4)), "logits": cosines}
    loss = PEDCCLoss()
    assert_allclose(loss(labels, outputs), numpy_of(loss(labels, cosines)))


@pytest.mark.parametrize("root", [1, 2, 3])
@pytest.mark.parametrize("shape", [(-1,), (-1, 1)])
def test_sample_weights_are_inside_the_means(rng, root, shape):
    cosines, labels = make_cosines(rng, 10, "random")
    weight = rng.uniform(0, 3, 32).astype("float32")
    expected = reference.pedcc(labels, cosines, 15, 0.5, 10, root, weight)
    loss = PEDCCLoss(mse_root=root)(labels, cosines, weight.reshape(shape))
    assert_allclose(loss, expected)


@pytest.mark.parametrize("root", [1, 2, 3])
def test_weight_zero_changes_nothing_but_the_batch_size(rng, root):
    cosines, labels = make_cosines(rng, 10, "random")
    weight = np.ones(32, "float32")
    weight[16:] = 0
    loss = PEDCCLoss(mse_root=root)
    before = numpy_of(loss(labels, cosines, weight))
    assert_allclose(loss((labels + (weight == 0)) % 10, cosines, weight), before)


@pytest.mark.parametrize("root", [1, 2, 3])
def test_vector_form_has_the_loss_as_mean(rng, root):
    cosines, labels = make_cosines(rng, 10, "random")
    vector = numpy_of(pedcc_loss(labels, cosines, mse_root=root))
    assert vector.shape == (32,)
    assert_allclose(PEDCCLoss(mse_root=root)(labels, cosines), vector.mean())


@pytest.mark.filterwarnings("ignore:The loss cannot fall below")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("side", [0.999, 1.25])
@pytest.mark.parametrize("margin", [0.0, 0.5, 2.0])
def test_largest_scale_that_needs_no_care_is_in_range(rng, kind, side, margin):
    cosines, labels = make_cosines(rng, 47, kind)
    scale = side * (85 - np.log(47)) / (2 + margin)
    expected = reference.pedcc(labels, cosines, scale, margin, 10, 1)
    assert_allclose(PEDCCLoss(scale, margin)(labels, cosines), expected, atol=TINY)
    slope = gradient_of(lambda z: PEDCCLoss(scale, margin)(labels, z), cosines)
    # The rates of the classes cancel, but for the part of the distance.
    np.testing.assert_allclose(slope.sum(axis=1) * len(labels), -10, rtol=1e-4)
    assert np.isfinite(slope).all()


@pytest.mark.parametrize("root", [1, 2, 3])
@pytest.mark.parametrize("soft", [False, True])
def test_gradient_agrees_with_finite_differences(rng, root, soft):
    cosines = rng.uniform(-0.9, 0.9, (4, 5)).astype("float32")
    labels = np.array([0, 3, 4, 3])
    given = rng.dirichlet(np.ones(5), 4).astype("float32") if soft else labels
    found = gradient_of(lambda c: pedcc_loss(given, c, mse_root=root), cosines)
    targets = given.astype("float64") if soft else np.eye(5)[labels]

    def float64_loss(cosines):
        am = reference.soft_am_softmax(targets, cosines, 15, 0.5)
        d = np.mean((targets * (1 - cosines)).sum(axis=1))
        return np.sum(am + 10 * d ** (1 / root))

    expected = np.zeros((4, 5))
    for at in np.ndindex(4, 5):
        step = np.zeros((4, 5))
        step[at] = 1e-6
        up = float64_loss(cosines.astype("float64") + step)
        expected[at] = (up - float64_loss(cosines.astype("float64") - step)) / 2e-6
    # Central differences are good to about 1e-9 of the loss over the step.
    assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("root", [1, 2, 3])
@pytest.mark.parametrize("one_hot", [False, True])
def test_gradient_is_finite_everywhere(rng, kind, root, one_hot):
    cosines, labels = make_cosines(rng, 10, kind)
    given = np.eye(10, dtype="float32")[labels] if one_hot else labels
    for scale in (1.0, 64.0):
        gradient = gradient_of(
            lambda c, s=scale: pedcc_loss(given, c, scale=s, mse_root=root), cosines
        )
        assert np.isfinite(gradient).all()


@pytest.mark.parametrize("root", [1, 2, 3])
def test_gradient_points_from_other_classes_to_the_own(rng, root):
    cosines, labels = make_cosines(rng, 10, "random")
    gradient = gradient_of(lambda c: pedcc_loss(labels, c, mse_root=root), cosines)
    own = np.eye(10, dtype=bool)[labels]
    assert (gradient[own] < 0).all()
    assert (gradient[~own] >= 0).all()


@pytest.mark.parametrize("root", [1, 2])
@pytest.mark.parametrize(
    "label", [-1, 10, 3.7, 2**31 + 3.0, float("nan"), float("inf"), -0.5]
)
def test_label_that_is_no_class_gives_nan(root, label):
    cosines = np.zeros((2, 10), "float32")
    loss = PEDCCLoss(mse_root=root)(np.array([1, label]), cosines)
    assert np.isnan(float(loss))
    both = numpy_of(am_softmax_loss(np.array([1, label]), cosines))
    np.testing.assert_array_equal(np.isnan(both), [False, True])


@pytest.mark.parametrize("row", [[0.5, 0.6, 0.5], [1.5, -0.5, 0.0], [np.nan, 0.5, 0.5]])
def test_soft_label_that_is_no_distribution_gives_nan(row):
    loss = am_softmax_loss(np.array([[1, 0, 0], row]), np.zeros((2, 3), "float32"))
    np.testing.assert_array_equal(np.isnan(numpy_of(loss)), [False, True])


@pytest.mark.parametrize("root", [1, 2, 3])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_logit_that_is_not_finite_gives_nan(root, value):
    cosines = np.zeros((2, 3), "float32")
    cosines[0, 1] = value
    assert np.isnan(numpy_of(pedcc_loss([0, 0], cosines, mse_root=root))[0])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_short_logits_are_computed_in_float32(rng, dtype):
    cosines, labels = make_cosines(rng, 300, "random")
    short = ops.cast(cosines, dtype)
    expected = reference.pedcc(
        labels, numpy_of(ops.cast(short, "float32")), 64, 0, 10, 1
    )
    assert_allclose(PEDCCLoss(64.0, 0.0)(labels, short), expected)


@pytest.mark.skipif(
    keras.backend.backend() != "tensorflow",
    reason="JAX needs jax_enable_x64; on PyTorch a step keeps 3e-9 only",
)
def test_float64_is_kept(rng):
    cosines, labels = make_cosines(rng, 10, "random")
    vector = pedcc_loss(labels, cosines.astype("float64"), mse_root=2)
    expected = reference.pedcc(labels, cosines, 15, 0.5, 10, 2)
    assert_allclose(numpy_of(vector).mean(), expected, rtol=1e-12)


@pytest.mark.skipif(
    keras.backend.backend() != "tensorflow",
    reason="JAX needs jax_enable_x64; Keras multiplies in float32 on PyTorch",
)
def test_constants_are_not_rounded_in_float64(rng):
    cosines, labels = make_cosines(rng, 10, "random")
    cosines, margins = cosines.astype("float64"), rng.uniform(0, 1, 10)
    for margin in (0.3, margins.tolist()):
        expected = reference.arcface(labels, cosines, 15, margin)
        loss = losses.arcface_loss(labels, cosines, margin=margin)
        assert_allclose(loss, expected, rtol=1e-12)
    given = {"features": cosines, "logits": cosines, "norm": np.ones(len(labels))}
    loss = losses.a_softmax_loss(labels, given, margin=2, annealing=0.3)
    ones = np.ones((len(labels), 1))
    expected = reference.multiple_angle(labels, cosines, ones, 2, 0.3)
    assert_allclose(loss, expected, rtol=1e-12)


def test_reductions(rng):
    cosines, labels = make_cosines(rng, 10, "random")
    vector = numpy_of(pedcc_loss(labels, cosines))
    assert_allclose(PEDCCLoss(reduction="sum")(labels, cosines), vector.sum())
    assert_allclose(PEDCCLoss(reduction="none")(labels, cosines), vector)


def test_config_survives_a_round_trip():
    loss = PEDCCLoss(30.0, 0.35, 5.0, 2, name="mine", dtype="float64")
    config = keras.saving.serialize_keras_object(loss)
    assert config["registered_name"] == "keras_pedcc>PEDCCLoss"
    restored = keras.saving.deserialize_keras_object(config)
    assert isinstance(restored, PEDCCLoss)
    assert restored.get_config() == loss.get_config()
    assert loss.get_config()["dtype"] == "float64"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scale": 0}, r"`scale` must be a number in \(0, inf\)"),
        ({"scale": float("inf")}, "`scale` must be a number"),
        ({"scale": "15"}, "Received: scale='15'"),
        ({"margin": -0.1}, r"`margin` must be a number in \[0, 2\]"),
        ({"margin": 2.5}, "Received: margin=2.5"),
        ({"margin": float("nan")}, "Received: margin=nan"),
        ({"mse_weight": -1}, "`mse_weight` must be a number"),
        ({"mse_root": 0}, "`mse_root` must be a whole number from 1 up"),
        ({"mse_root": 1.5}, "Received: mse_root=1.5"),
        ({"mse_root": True}, "Received: mse_root=True"),
        ({"mse_root": np.array([1, 2])}, r"Received: mse_root=array\(\[1, 2\]\)"),
        ({"mse_root": 2, "reduction": "sum"}, "needs a mean as reduction"),
        ({"dtype": "bfloat16"}, "`dtype` must be"),
    ],
)
def test_loss_refuses_constants(arguments, message):
    with pytest.raises(ValueError, match=message):
        PEDCCLoss(**arguments)


@pytest.mark.parametrize(
    ("labels", "logits", "message"),
    [
        (np.zeros((2, 4)), np.zeros((2, 3)), r"`y_true` must have shape \(batch,\)"),
        (np.zeros((2, 3, 1)), np.zeros((2, 3)), "`y_true` must have shape"),
        (np.zeros(3), np.zeros((2, 3)), "one label per row"),
        (np.zeros(2), np.zeros(2), r"logits must have shape \(batch, num_classes\)"),
        (np.zeros(2), np.zeros((2, 1)), "num_classes at least 2"),
        (np.zeros(2), {"logits": np.zeros((2, 3))}, r"keys \['logits'\]"),
        (np.zeros(2), {"a": 0, "b": 0}, 'must have the keys "features" and "logits"'),
    ],
)
def test_loss_refuses_shapes(labels, logits, message):
    with pytest.raises(ValueError, match=message):
        PEDCCLoss()(labels, logits)


def test_loss_takes_numpy_constants():
    loss = PEDCCLoss(np.float32(15), np.float64(0.5), mse_root=np.int64(1))
    assert loss.get_config() == PEDCCLoss().get_config()


def test_loss_refuses_a_matrix_of_sample_weights():
    with pytest.raises(ValueError, match=r"`sample_weight` must have shape \(batch,\)"):
        pedcc_loss([0, 1], np.zeros((2, 3)), sample_weight=np.ones((2, 3)))


@pytest.mark.parametrize("bad", [np.array([2**32 + 1]), np.array([2**40], "uint64")])
def test_numpy_labels_beyond_int32_are_no_class(bad):
    logits = np.zeros((1, 3), "float32")
    assert np.isnan(numpy_of(am_softmax_loss(bad, logits))).all()
    assert np.isnan(numpy_of(centroid_distance(bad, logits))).all()


@pytest.mark.parametrize("name", sorted({*losses.__all__} - NO_LOSSES))
def test_every_loss_is_saved_by_its_name(name):
    loss = getattr(losses, name)
    assert keras.saving.get_registered_name(loss) == f"keras_pedcc>{name}"
    assert ">>> " in loss.__doc__
    assert "Reference:" in loss.__doc__


@pytest.mark.parametrize("margin", [0.0, [0.1, 0.3, 0.2]])
def test_margin_can_be_set(rng, margin):
    cosines, labels = make_cosines(rng, 3, "random")
    loss = PEDCCLoss(margin=0.5)
    loss.margin = margin
    assert loss.get_config()["margin"] == margin
    expected = numpy_of(PEDCCLoss(margin=margin)(labels, cosines))
    assert_allclose(loss(labels, cosines), expected, rtol=0)
    with pytest.raises(ValueError, match="`margin` must be a number"):
        loss.margin = -1.0


@pytest.mark.parametrize(
    ("name", "value"),
    [("scale", -3.0), ("scale", np.nan), ("mse_weight", -5.0), ("mse_root", 0)],
)
def test_constants_that_are_set_later_are_checked(name, value):
    loss = PEDCCLoss()
    with pytest.raises(ValueError, match=f"`{name}` must be"):
        setattr(loss, name, value)


def test_scale_can_be_set():
    loss = PEDCCLoss(scale=1.0, margin=0.0)
    arguments = [0], [[1.0, -1.0]]
    before = float(loss(*arguments))
    loss.scale = 2.0
    assert float(loss(*arguments)) < before
    assert loss.get_config()["scale"] == 2.0
