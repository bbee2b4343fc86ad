import keras
import numpy as np
import pytest
import reference
from tensors import FEW_STEPS, assert_allclose, gradient_of, numpy_of, slope_of

from keras_pedcc import CenterDense, CenterLoss, FinetuneOptimizer, PEDCCModel
from keras_pedcc.losses import center_loss


@pytest.fixture
def batch(rng):
    """Features, logits, centres and labels; class 3 is in no sample."""
    features = rng.standard_normal((12, 6)).astype("float32")
    centers = rng.standard_normal((4, 6)).astype("float32")
    logits = rng.standard_normal((12, 4)).astype("float32")
    return features, logits, centers, np.arange(12) % 3


def outputs_of(features, logits, centers):
    norm = np.linalg.norm(features, axis=1)
    units = features / norm[:, None]
    return {"features": units, "norm": norm, "logits": logits, "centers": centers}


def twin(features, logits, centers, labels, weight):
    features = np.asarray(features, "float64")
    entropy = reference.margin_entropy(labels, logits, lambda x, _: x, 1.0)
    squared = np.sum((features - centers[labels]) ** 2, axis=1)
    return entropy + weight / 2 * squared


@pytest.mark.parametrize("weight", [0.0, 0.003, 1.0])
def test_loss_agrees_with_float64(batch, weight):
    features, logits, centers, labels = batch
    outputs = outputs_of(features, logits, centers)
    expected = twin(features, logits, centers, labels, weight)
    assert_allclose(center_loss(labels, outputs, center_weight=weight), expected)
    assert_allclose(CenterLoss(weight)(labels, outputs), expected.mean())


def test_labels_of_every_shape_and_dtype_agree(batch):
    features, logits, centers, labels = batch
    outputs = outputs_of(features, logits, centers)
    expected = numpy_of(center_loss(labels, outputs))
    assert_allclose(center_loss(labels[:, None].astype("uint8"), outputs), expected)
    assert_allclose(center_loss(np.eye(4)[labels], outputs), expected)
    none = numpy_of(center_loss(np.where(labels == 0, 4, labels), outputs))
    np.testing.assert_array_equal(np.isnan(none), labels == 0)


def test_soft_labels_weigh_the_distances(batch, rng):
    features, logits, centers, _ = batch
    outputs = outputs_of(features, logits, centers)
    targets = rng.dirichlet(np.ones(4), 12).astype("float32")
    entropy = reference.soft_am_softmax(targets, logits, 1.0, 0.0)
    distances = np.sum((features[:, None] - centers) ** 2, axis=2, dtype="float64")
    expected = entropy + 0.5 * (targets * distances).sum(axis=1)
    assert_allclose(center_loss(targets, outputs, center_weight=1.0), expected)


def test_gradient_over_features_is_the_ordinary_one(batch):
    features, _, centers, labels = batch
    head = CenterDense(4, center_initializer=keras.initializers.Constant(0))
    head.build((None, 6))
    head.centers.assign(centers)
    kernel = numpy_of(head.kernel).astype("float64")

    def of_features(x):
        return center_loss(labels, head.for_loss(head(x)), center_weight=2.0)

    expected = slope_of(lambda x: twin(x, x @ kernel, centers, labels, 2.0), features)
    assert_allclose(gradient_of(of_features, features), expected, rtol=1e-3, atol=1e-4)


def model_of(centers, center_weight=1.0, momentum=0.0, how=FEW_STEPS):
    inputs = keras.Input((6,))
    model = PEDCCModel(inputs, CenterDense(4)(inputs))
    model.layers[-1].centers.assign(centers)
    sgd = keras.optimizers.SGD
    optimizer = FinetuneOptimizer(sgd(0.1, momentum=momentum), sgd(0.5))
    model.compile(optimizer, CenterLoss(center_weight), metrics=["accuracy"], **how)
    return model


@pytest.mark.parametrize(
    ("policy", "how"), [("float32", FEW_STEPS), ("mixed_float16", {})]
)
def test_one_step_moves_the_centers_as_published(batch, policy, how):
    keras.mixed_precision.set_global_policy(policy)
    features, _, centers, labels = batch
    model = model_of(centers, 0.003, 0.9, how)
    model.fit(features, labels, batch_size=12, verbose=0)
    expected = reference.center_step(labels, features, centers, 0.5)
    assert_allclose(model.layers[-1].centers, expected, atol=1e-5)


def test_last_smaller_batch_moves_the_centers_as_published(batch):
    features, _, centers, labels = batch
    model = model_of(centers)
    model.fit(features, labels, batch_size=9, shuffle=False, epochs=2, verbose=0)
    for part in (slice(9), slice(9, 12)) * 2:
        centers = reference.center_step(labels[part], features[part], centers, 0.5)
    assert_allclose(model.layers[-1].centers, centers, atol=1e-5)


def test_weights_count_as_so_many_samples(batch):
    features, logits, centers, labels = batch
    model, weight = model_of(centers), np.array([0, 1, 2, 3] * 3, "float32")
    model.fit(features, labels, sample_weight=weight, batch_size=12, verbose=0)
    often = weight.astype(int)
    expected = reference.center_step(
        labels.repeat(often), features.repeat(often, axis=0), centers, 0.5
    )
    assert_allclose(model.layers[-1].centers, expected, atol=1e-5)
    found = CenterLoss(1.0)(labels, outputs_of(features, logits, centers), weight)
    expected = weight * twin(features, logits, centers, labels, 1.0)
    assert_allclose(found, expected.mean())


def test_model_trains_saves_and_loads(tmp_path, batch):
    features, _, centers, labels = batch
    model = model_of(centers)
    history = model.fit(features, labels, epochs=4, verbose=0)
    assert history.history["loss"][-1] < history.history["loss"][0]
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    for each in (model, loaded):
        each.fit(features, labels, verbose=0)
    for ours, theirs in zip(model.weights, loaded.weights, strict=True):
        assert_allclose(theirs, numpy_of(ours))


class Nested(PEDCCModel):
    """A model with a `call` of its own, whose head is inside another model."""

    def __init__(self):
        super().__init__()
        inputs = keras.Input((6,))
        self.inner = keras.Model(inputs, CenterDense(4)(inputs))

    def call(self, inputs):
        return self.inner(inputs)


def test_head_inside_a_model_with_its_own_call_is_found(batch):
    features, _, centers, labels = batch
    model = Nested()
    model(features)
    head = model.inner.layers[-1]
    head.centers.assign(centers)
    sgd = keras.optimizers.SGD
    model.compile(FinetuneOptimizer(sgd(0.1), sgd(0.5)), CenterLoss())
    model.fit(features, labels, batch_size=12, verbose=0)
    expected = reference.center_step(labels, features, centers, 0.5)
    assert_allclose(head.centers, expected, atol=1e-5)


def test_config_survives_a_round_trip():
    loss = CenterLoss(0.5, name="mine", dtype="float64")
    config = keras.saving.serialize_keras_object(loss)
    restored = keras.saving.deserialize_keras_object(config)
    assert isinstance(restored, CenterLoss)
    assert restored.get_config() == loss.get_config()


def test_loss_refuses():
    with pytest.raises(ValueError, match="`center_weight` must be a number"):
        CenterLoss(-1.0)
    with pytest.raises(ValueError, match="`reduction` must be a mean"):
        CenterLoss(reduction="sum")
    plain = {"features": np.zeros((1, 2)), "logits": np.zeros((1, 2))}
    with pytest.raises(ValueError, match=r'"centers"\. Received.*head\.for_loss'):
        center_loss([0], plain)


@pytest.mark.parametrize(
    ("name", "shape"), [("centers", (5, 6)), ("centers", (4, 5)), ("norm", (12, 1))]
)
def test_loss_refuses_another_shape(batch, name, shape):
    features, logits, centers, labels = batch
    outputs = outputs_of(features, logits, centers) | {name: np.ones(shape, "float32")}
    message = rf"{name}.shape=\({shape[0]}, {shape[1]}\).*CenterDense"
    with pytest.raises(ValueError, match=message):
        center_loss(labels, outputs)


@pytest.mark.parametrize("soft", [False, True])
def test_gradient_over_centers_is_the_published_step(batch, soft):
    features, logits, centers, labels = batch
    targets = np.eye(4, dtype="float32")[labels] if soft else labels

    def value(centers):
        return center_loss(targets, outputs_of(features, logits, centers)) / 12

    step = centers - reference.center_step(labels, features, centers, 1.0)
    assert_allclose(gradient_of(value, centers), step, rtol=1e-4, atol=1e-5)


def test_soft_label_of_nan_leaves_the_other_samples(batch):
    features, logits, centers, index = batch
    outputs = outputs_of(features, logits, centers)
    labels = np.eye(4, dtype="float32")[index]
    expected = numpy_of(center_loss(labels, outputs))
    labels[1], expected[1] = np.nan, np.nan
    assert_allclose(center_loss(labels, outputs), expected)
