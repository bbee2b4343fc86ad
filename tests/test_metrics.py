import keras
import numpy as np
import pytest
import reference
from keras import ops

from keras_pedcc import (
    InterClassDistance,
    IntraClassDistance,
    inter_class_distance,
    intra_class_distance,
)

PAIRS = [
    (IntraClassDistance, reference.intra_class_distance),
    (InterClassDistance, reference.inter_class_distance),
]


@pytest.fixture
def data(rng):
    features = rng.standard_normal((200, 6)) + rng.standard_normal(6)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    return features.astype("float32"), rng.integers(0, 5, 200)


def updated(metric, features, labels, weights=None):
    for part in np.array_split(np.arange(len(labels)), 7):
        weight = None if weights is None else weights[part]
        metric.update_state(labels[part], features[part], weight)
    return float(metric.result())


def test_functions_agree_with_their_formula(data):
    features, labels = data
    expected = reference.intra_class_distance(features.astype("float64"), labels)
    assert intra_class_distance(features, labels) == pytest.approx(expected, rel=1e-12)
    expected = reference.inter_class_distance(features.astype("float64"), labels)
    assert inter_class_distance(features, labels) == pytest.approx(expected, rel=1e-12)


def test_distances_add_up_to_the_total_variance(data):
    features, labels = data
    total = features.astype("float64").var(axis=0).sum()
    both = intra_class_distance(*data) + inter_class_distance(features, labels[:, None])
    assert both == pytest.approx(total, rel=1e-12)


def test_functions_take_labels_of_any_kind(data):
    features, labels = data
    names = np.array(list("abcde"))[labels]
    assert intra_class_distance(features, names) == intra_class_distance(*data)


@pytest.mark.parametrize(("metric", "expected"), PAIRS)
def test_metric_over_batches_is_the_function_over_all(data, metric, expected):
    features, labels = data
    value = updated(metric(5, 6), features, labels)
    # Sums of 200 unit features in float32.
    assert value == pytest.approx(expected(features, labels), abs=2e-6)


@pytest.mark.parametrize(("metric", "expected"), PAIRS)
@pytest.mark.parametrize("form", ["column", "one_hot", "uint8", "dict"])
def test_metric_takes_every_form(data, metric, expected, form):
    features, labels = data
    given = {
        "column": labels[:, None],
        "one_hot": np.eye(5)[labels],
        "uint8": labels.astype("uint8"),
        "dict": labels,
    }[form]
    metric = metric(5, 6)
    outputs = {"features": features, "logits": features}
    metric.update_state(given, outputs if form == "dict" else features)
    assert float(metric.result()) == pytest.approx(expected(features, labels), abs=2e-6)


@pytest.mark.parametrize(("metric", "expected"), PAIRS)
def test_metric_weights_samples(data, metric, expected, rng):
    weights = rng.uniform(0, 2, 200)
    value = updated(metric(5, 6), *data, weights)
    assert value == pytest.approx(expected(*data, weights), abs=2e-6)


@pytest.mark.parametrize("metric", [IntraClassDistance, InterClassDistance])
def test_metric_ignores_classes_without_samples(data, metric):
    features, labels = data
    assert updated(metric(50, 6), features, labels) == pytest.approx(
        updated(metric(5, 6), features, labels), abs=1e-6
    )


@pytest.mark.parametrize("metric", [IntraClassDistance, InterClassDistance])
@pytest.mark.parametrize("label", [-1, 5, 1.5])
def test_metric_of_a_label_that_is_no_class_is_nan(data, metric, label):
    features, labels = data
    metric = metric(5, 6)
    metric.update_state(np.append(labels[:-1], label), features)
    assert np.isnan(float(metric.result()))


@pytest.mark.parametrize("metric", [IntraClassDistance, InterClassDistance])
@pytest.mark.parametrize("row", [[0, 0, 0, 0, 0], [2, -1, 0, 0, 0], [1, 1, 0, 0, 0]])
def test_metric_of_soft_labels_that_are_none_is_nan(data, metric, row):
    features, labels = data
    soft = np.eye(5)[labels]
    soft[7] = row
    metric = metric(5, 6)
    metric.update_state(soft, features)
    assert np.isnan(float(metric.result()))


def test_metric_resets(data):
    metric = IntraClassDistance(5, 6)
    first = updated(metric, *data)
    metric.reset_state()
    assert updated(metric, *data) == first


@pytest.mark.parametrize("metric", [IntraClassDistance, InterClassDistance])
def test_metric_config_survives_a_round_trip(metric):
    config = keras.saving.serialize_keras_object(metric(5, 6, name="mine"))
    restored = keras.saving.deserialize_keras_object(config)
    assert type(restored) is metric
    assert (restored.num_classes, restored.dim, restored.name) == (5, 6, "mine")


def test_functions_refuse_shapes(data):
    features, labels = data
    with pytest.raises(ValueError, match="one label for each"):
        intra_class_distance(features, labels[1:])
    with pytest.raises(ValueError, match=r"features.shape=\(200,\)"):
        inter_class_distance(features[:, 0], labels)
    with pytest.raises(ValueError, match="Pass class indices"):
        intra_class_distance(features, np.eye(5)[labels])
    with pytest.raises(ValueError, match="There must be features"):
        intra_class_distance(features[:0], labels[:0])
    with pytest.raises(ValueError, match=r"labels.shape=\(2, 100\)"):
        intra_class_distance(features, labels.reshape(2, 100))


def test_functions_refuse_labels_that_are_nan(data):
    features, labels = data
    labels = np.where(np.arange(200) < 3, np.nan, labels)
    for function in (intra_class_distance, inter_class_distance):
        with pytest.raises(ValueError, match=r"3 that are NaN, the first labels\[0\]"):
            function(features, labels)


def test_functions_take_tensors_that_have_gradients(data):
    features = keras.Variable(data[0])
    assert intra_class_distance(features, data[1]) == intra_class_distance(*data)


def test_metric_refuses_arguments_and_shapes(data):
    with pytest.raises(ValueError, match="`num_classes` must be at least 2"):
        IntraClassDistance(1, 6)
    with pytest.raises(TypeError, match="`dim` must be a whole number"):
        InterClassDistance(5, 6.5)
    with pytest.raises(ValueError, match=r"features of shape \(batch, 7\)"):
        IntraClassDistance(5, 7).update_state(data[1], ops.convert_to_tensor(data[0]))


@pytest.mark.parametrize("labels", [np.zeros(1), np.zeros((200, 3)), np.zeros(3)])
def test_metric_refuses_labels_of_another_batch(data, labels):
    with pytest.raises(ValueError, match="one label for each feature, shape"):
        IntraClassDistance(5, 6).update_state(labels, data[0])
    with pytest.raises(ValueError, match=r"with 1 features\. Pass labels and features"):
        IntraClassDistance(5, 6).update_state([0, 1, 2], data[0][:1])
