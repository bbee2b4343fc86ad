import tracemalloc

import keras
import numpy as np
import pytest
from keras import ops
from tensors import only_once

from keras_pedcc import retrieval_report
from keras_pedcc.common.devices import exact_products
from keras_pedcc.evaluation import ranking


def slow_report(queries, labels, items, item_labels, ranks, without_self):
    """Twin of `retrieval_report`: sorts the whole gallery for each query."""
    hits, precisions = [], []
    for q, query in enumerate(queries):
        order = []
        for i, item in enumerate(items):
            if not (without_self and i == q):
                cosine = query @ item / (query @ query * (item @ item)) ** 0.5
                order.append((-round(cosine, 9), item_labels[i] == labels[q]))
        found = [same for _, same in sorted(order)]  # False comes before True
        if any(found):
            size = sum(found)
            hits.append([any(found[:k]) for k in ranks])
            at = [sum(found[: i + 1]) / (i + 1) for i in range(size) if found[i]]
            precisions.append(sum(at) / size)
    report = dict(zip([f"recall_at_{k}" for k in ranks], np.mean(hits, 0), strict=True))
    report["mean_average_precision_at_r"] = np.mean(precisions)
    report["queries"] = len(hits)
    report["queries_without_match"] = len(queries) - len(hits)
    return report


def assert_same(report, expected):
    assert sorted(report) == sorted(expected)
    for key, value in expected.items():
        assert report[key] == pytest.approx(value, rel=1e-12), key


@pytest.fixture(params=[None, 1000, 1])
def block(request, monkeypatch):
    """The usual size of a block, one that does not divide, and single queries."""
    if request.param:
        monkeypatch.setattr(ranking, "BLOCK", request.param)


@pytest.mark.usefixtures("block")
@pytest.mark.parametrize("ties", [False, True])
def test_report_agrees_with_sorting_everything(rng, ties):
    features = rng.standard_normal((70, 6))
    if ties:
        features = rng.integers(0, 2, (70, 6)) * 1.0
        features[:, 0] = 1
    labels = rng.integers(0, 12, 70)
    labels[0] = 99  # alone
    report = retrieval_report(features, labels, k=(1, 3, 69, 500))
    arguments = features, labels, features, labels, (1, 3, 69, 500), True
    assert_same(report, slow_report(*arguments))
    assert report["queries_without_match"] == 1


@pytest.mark.usefixtures("block")
def test_report_agrees_with_sorting_a_gallery(rng):
    queries, gallery = rng.standard_normal((40, 6)), rng.standard_normal((25, 6))
    labels, names = rng.integers(0, 8, 40), rng.integers(0, 6, 25)
    report = retrieval_report(
        queries, labels[:, None], gallery=gallery, gallery_labels=names, k=[2, 7]
    )
    assert_same(report, slow_report(queries, labels, gallery, names, (2, 7), False))
    assert report["queries_without_match"] == np.sum(labels > 5)


def test_gallery_without_the_query_is_the_default(rng):
    features, labels = rng.standard_normal((30, 4)), np.arange(30) % 5
    own = retrieval_report(features, labels)
    both = retrieval_report(
        features, labels, gallery=features, gallery_labels=labels, k=1
    )
    assert both["recall_at_1"] == 1.0
    assert own["recall_at_1"] < 1.0


def test_report_does_not_depend_on_order_or_length(rng):
    features = np.repeat(rng.standard_normal((20, 4)), 3, axis=0)
    labels, order = rng.integers(0, 6, 60), rng.permutation(60)
    first = retrieval_report(features, labels)
    lengths = 2.0 ** rng.integers(-5, 5, (60, 1))
    second = retrieval_report((features * lengths)[order], labels[order])
    assert_same(second, first)


@pytest.mark.parametrize("length", [1e-30, 1e30])
def test_report_does_not_depend_on_the_length_of_features(rng, length):
    features = rng.standard_normal((40, 4)).astype("float32")
    labels = rng.integers(0, 6, 40)
    found = retrieval_report(features * np.float32(length), labels)
    assert_same(found, retrieval_report(features, labels))


def test_map_to_one_point_finds_nothing():
    report = retrieval_report(np.ones((12, 4)), np.arange(12) % 2, k=(1, 5))
    assert (
        report["recall_at_1"]
        == report["recall_at_5"]
        == report["mean_average_precision_at_r"]
        == 0
    )


def test_report_takes_tensors_and_names():
    features = ops.convert_to_tensor(np.eye(4, dtype="float32") + 0.1)
    report = retrieval_report(features, [*"abab"], k=3)
    assert report["recall_at_3"] == 1.0
    assert {type(value) for value in report.values()} == {float, int}


@pytest.mark.parametrize("ties", [False, True])
def test_search_on_a_device_finds_the_same(rng, monkeypatch, ties):
    monkeypatch.setattr(ranking, "has_accelerator", lambda: True)
    monkeypatch.setattr(ranking, "BLOCK", 4 * 70 * 30)  # 30 queries
    features = rng.standard_normal((70, 6)).astype("float32")
    if ties:
        features = rng.integers(0, 2, (70, 6)).astype("float32")
        features[:, 0] = 1
    labels = rng.integers(0, 12, 70)
    labels[0] = 99  # alone
    report = retrieval_report(features, labels, k=(1, 3))
    twin = features.astype("float64")
    assert_same(report, slow_report(twin, labels, twin, labels, (1, 3), True))
    arguments = {"gallery": features[40:], "gallery_labels": labels[40:]}
    report = retrieval_report(features[:40], labels[:40], **arguments, k=(1, 3))
    others = twin[:40], labels[:40], twin[40:], labels[40:]
    assert_same(report, slow_report(*others, (1, 3), False))


def test_products_are_exact_inside_and_as_before_outside():
    backend = keras.backend.backend()
    if backend == "jax":
        import jax

        read = lambda: jax.config.jax_default_matmul_precision  # noqa: E731
        exact = "float32"
    elif backend == "torch":
        import torch

        read, exact = torch.get_float32_matmul_precision, "highest"
        torch.set_float32_matmul_precision("high")
    else:
        import tensorflow as tf

        read, exact = tf.config.experimental.tensor_float_32_execution_enabled, False
    before = read()
    with exact_products():
        assert read() == exact
    assert read() == before != exact
    if backend == "torch":
        torch.set_float32_matmul_precision("highest")


@only_once
@pytest.mark.slow
def test_memory_is_bounded(rng):
    # A fifth of the 100,000 items: all cosines at once would take 1.5 GiB here.
    features = rng.standard_normal((20_000, 512), dtype="float32")
    tracemalloc.start()
    retrieval_report(features, rng.integers(0, 5000, 20_000))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < features.nbytes + 0.3 * 2**30


def test_report_refuses_arguments(rng):
    features, labels = rng.standard_normal((6, 4)), np.arange(6) % 3
    with pytest.raises(ValueError, match="`k` must be at least 1"):
        retrieval_report(features, labels, k=(1, 0))
    with pytest.raises(TypeError, match="`k` must be a whole number"):
        retrieval_report(features, labels, k=1.5)
    with pytest.raises(ValueError, match="`k` must be at least one number"):
        retrieval_report(features, labels, k=())
    with pytest.raises(ValueError, match=r"`labels` must .* `features`.*\(5,\)"):
        retrieval_report(features, labels[:5])
    with pytest.raises(ValueError, match=r"labels.shape=\(6, 3\).*not one-hot"):
        retrieval_report(features, np.eye(3)[labels])
    with pytest.raises(ValueError, match=r"labels.shape=\(2, 3\).*not one-hot"):
        retrieval_report(features, labels.reshape(2, 3))
    with pytest.raises(ValueError, match=r"Received: 1 that are NaN, .*labels\[2\]"):
        retrieval_report(features, np.where(np.arange(6) == 2, np.nan, labels))
    with pytest.raises(ValueError, match="6 queries without one"):
        retrieval_report(features, np.arange(6))
    with pytest.raises(ValueError, match=r"`features` must be finite.*features\[1\]"):
        retrieval_report(np.where(np.arange(6)[:, None] == 1, np.nan, 1.0), labels)


def test_report_refuses_galleries(rng):
    features, labels = rng.standard_normal((6, 4)), np.arange(6) % 3
    with pytest.raises(ValueError, match="`gallery_labels` must come together"):
        retrieval_report(features, labels, gallery=features)
    with pytest.raises(ValueError, match="`gallery_labels` must come together"):
        retrieval_report(features, labels, gallery_labels=labels)
    with pytest.raises(ValueError, match=r"dim of `features`.*gallery.shape=\(6, 3\)"):
        retrieval_report(
            features, labels, gallery=features[:, :3], gallery_labels=labels
        )
    with pytest.raises(ValueError, match=r"`gallery_labels` must .* `gallery`.*\(2,\)"):
        retrieval_report(features, labels, gallery=features, gallery_labels=labels[:2])
    with pytest.raises(ValueError, match=r"`gallery` must be finite.*gallery\[0\]"):
        retrieval_report(
            features, labels, gallery=np.zeros((6, 4)), gallery_labels=labels
        )
