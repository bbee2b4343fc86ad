"""The programs of `benchmarks/`, on next to nothing."""

import json
import os
import sys

import keras
import numpy as np
import pytest
from tensors import numpy_of, only_once, slope_of

import keras_pedcc
from benchmarks import (
    gpu_classes,
    many_classes,
    peers,
    retrieval,
    short_products,
    train_step,
    walsh_hadamard,
)

# many_classes.py


def growth(**changed):
    """A result with two sizes of each kind and every head."""
    sizes = [(1_000, 128), (131_072, 128), (50_000, 128), (50_000, 256)]
    rows = [
        {
            "head": head,
            "classes": classes,
            "batch_size": batch,
            "milliseconds": classes * batch / 1e5,
            "growth_mib": 0.0 if head == "streaming" else classes * batch / 1e6,
        }
        for head in many_classes.HEADS
        for classes, batch in sizes
    ]
    return {"batch_size": 128, "batch_classes": 50_000, "rows": rows} | changed


def test_growth_is_drawn_from_a_file(tmp_path):
    (tmp_path / "result.json").write_text(json.dumps(growth()))
    figure = tmp_path / "growth.png"
    many_classes.main(
        ["--draw", str(tmp_path / "result.json"), "--figure", str(figure)]
    )
    assert figure.stat().st_size > 10_000


def test_growth_without_batches_has_one_column(tmp_path):
    rows = [row for row in growth()["rows"] if row["batch_size"] == 128]
    one, other = many_classes.panels(growth(rows=rows))
    assert {row["classes"] for row in one[2]} == {1_000, 50_000, 131_072}
    assert {row["batch_size"] for row in other[2]} == {128}
    many_classes.draw(growth(rows=rows), tmp_path / "growth.png")
    with pytest.raises(SystemExit, match="nothing grows"):
        many_classes.draw(growth(rows=rows[:1]), tmp_path / "nothing.png")


def test_one_size_grows_while_the_other_stays():
    flags = ["--classes", "10", "20", "--batch-size", "4", "8", "--batch-classes", "20"]
    points = many_classes.points(many_classes.parse_args(flags))
    assert points == [(10, 4), (20, 4), (20, 8)]


def test_ratio_is_to_softmax_of_the_same_size():
    rows = growth()["rows"]
    mine = rows[-1] | {"milliseconds": 3 * rows[-1]["milliseconds"]}
    assert many_classes.ratio(mine, rows)["milliseconds"] == pytest.approx(3)
    assert many_classes.ratio(mine | {"batch_size": 7}, rows) is None


@pytest.mark.parametrize(
    ("number", "text"), [(500, "500"), (131_072, "131k"), (1e6, "1M")]
)
def test_sizes_on_the_axis_are_short(number, text):
    assert many_classes.short(number) == text


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--classes", "9", "1"], "--classes must be at least 2"),
        (["--batch-size", "0"], "--batch-size must be at least 1"),
        (["--rounds", "0"], "--rounds must be at least 1"),
        (["--draw", "result.json"], "--draw needs --figure"),
    ],
)
def test_many_classes_refuses(flags, message, capsys):
    with pytest.raises(SystemExit):
        many_classes.parse_args(flags)
    assert message in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="needs Linux")
@pytest.mark.parametrize("centroids", many_classes.CENTROIDS)
def test_many_classes_measures_each_case_in_a_process(tmp_path, centroids):
    path = tmp_path / "result.json"
    flags = ["--heads", "streaming", "--classes", "300", "--dim", "16"]
    flags += ["--batch-size", "4", "--steps", "1", "--rounds", "1"]
    flags += ["--centroids", centroids, "--centroids-dtype", "bfloat16"]
    many_classes.main([*flags, "--result", str(path)])
    [row] = json.loads(path.read_text())["rows"]
    assert row["milliseconds"] > 0
    assert row["peak_mib"] > 50


# peers.py


needs_torch = pytest.mark.skipif(
    keras.backend.backend() != "torch", reason="the peers are of PyTorch"
)


@pytest.mark.skipif(keras.backend.backend() == "torch", reason="there they run")
def test_peers_tell_which_backend_they_need():
    with pytest.raises(SystemExit, match="set KERAS_BACKEND=torch"):
        peers.main([])


@needs_torch
@pytest.mark.parametrize("name", ["plain", "metric_learning"])
def test_peers_are_am_softmax(name):
    import torch

    if name == "metric_learning":
        pytest.importorskip("pytorch_metric_learning")
    loss, [weight] = peers.peers(7, 16)[name]
    features, labels = torch.randn(5, 16), torch.arange(5)
    rows = weight if name == "plain" else weight.T
    cosines = torch.nn.functional.normalize(features) @ (
        torch.nn.functional.normalize(rows).T
    )
    right = keras_pedcc.losses.am_softmax_loss(
        labels, cosines, scale=peers.SCALE, margin=peers.MARGIN
    )
    found = float(loss(features, labels).detach())
    np.testing.assert_allclose(found, float(right.mean().detach()), rtol=1e-5)


@needs_torch
def test_step_of_peers_trains_what_is_trained_and_gives_the_slope():
    import torch

    features, labels = torch.randn(5, 16), torch.arange(5)
    for loss, weights in (peers.plain(7, 16), peers.pedcc(7, 16, trainable=True)):
        before = weights[0].detach().clone()
        slope = peers.training_step(loss, weights)(features, labels)
        assert slope.shape == features.shape
        assert slope.abs().max() > 0
        assert (weights[0].detach() != before).any()
    assert peers.pedcc(7, 16)[1] == []


@needs_torch
def test_peers_write_what_they_measure(tmp_path):
    path = tmp_path / "peers.json"
    flags = ["--num-classes", "7", "--dim", "16", "--batch", "4", "--steps", "2"]
    peers.main([*flags, "--trained", "--result", str(path)])
    [row] = json.loads(path.read_text())["rows"]
    assert {"plain", "pedcc", "pedcc_trained"} <= set(row["milliseconds"])
    assert "pedcc" not in row["pedcc_over"]


@needs_torch
def test_missing_peer_is_told(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "pytorch_metric_learning.losses", None)
    assert set(peers.peers(7, 16)) == {"plain"}
    assert "pip install pytorch-metric-learning" in capsys.readouterr().err


# walsh_hadamard.py


@pytest.fixture
def transformed(rng):
    """Signs, the matrix that they stand for, features and slopes."""
    signs = np.where(rng.random((8, 16)) < 0.5, -1, 1).astype("int8")
    matrix = walsh_hadamard.hadamard(16) * signs[:, None] / 4
    x = rng.standard_normal((16, 5)).astype("float32")
    slopes = rng.standard_normal((128, 5)).astype("float32")
    return signs, matrix.reshape(128, 16), x / np.linalg.norm(x, axis=0), slopes


@pytest.mark.parametrize("name", ["half_product", "kronecker", "butterflies"])
def test_transforms_are_products_with_the_matrix(transformed, name):
    signs, matrix, x, slopes = transformed
    way = walsh_hadamard.WAYS[name](signs)
    x, slopes = map(keras.ops.convert_to_tensor, (x, slopes))
    found = keras.ops.convert_to_numpy(way.cosines(way.held, x))
    np.testing.assert_allclose(found, matrix @ np.asarray(x), atol=1e-6)
    found = keras.ops.convert_to_numpy(way.pull(way.held, slopes))
    np.testing.assert_allclose(found, matrix.T @ np.asarray(slopes), atol=1e-5)


@pytest.mark.parametrize("name", walsh_hadamard.WAYS)
@pytest.mark.parametrize("size", [2, 8])
def test_blocks_of_bases_give_the_sum_over_classes_and_its_slope(
    transformed, name, size
):
    signs, matrix, x, _ = transformed
    way = walsh_hadamard.WAYS[name](signs)
    tensor = keras.ops.convert_to_tensor(x)
    total, slope = walsh_hadamard.streaming(way, way.held, tensor, size)
    vectors = np.concatenate([matrix, -matrix])
    powers = np.exp(walsh_hadamard.SCALE * (vectors @ x).astype("float64"))
    total, slope = map(keras.ops.convert_to_numpy, (total, slope))
    np.testing.assert_allclose(total, powers.sum(axis=0), rtol=1e-4)
    right = walsh_hadamard.SCALE * vectors.T @ powers
    np.testing.assert_allclose(slope, right, rtol=1e-4, atol=1e-4 * np.abs(right).max())


def test_ways_to_kerdock_s_cosines_agree(tmp_path):
    path = tmp_path / "result.json"
    flags = ["--dim", "16", "--batch", "3", "--steps", "1", "--result", str(path)]
    walsh_hadamard.main(flags)
    rows = json.loads(path.read_text())["rows"]
    assert [row["task"] for row in rows] == ["forward", "gradient", "streaming"]
    for row in rows:
        assert max(row["largest_error"].values()) < 1e-4


# gpu_classes.py


@pytest.mark.slow
@pytest.mark.skipif(keras.backend.backend() != "jax", reason="the quicker one")
def test_cases_are_measured_over_the_floor(tmp_path):
    path = tmp_path / "result.json"
    flags = ["--classes", "300", "--dim", "16", "--batch", "4", "--steps", "1"]
    gpu_classes.main([*flags, "--result", str(path)])
    rows = json.loads(path.read_text())["rows"]
    assert [row["case"] for row in rows] == list(gpu_classes.CASES)
    assert rows[0]["over_floor"] == 1
    assert all(row["milliseconds"] > 0 for row in rows)


@pytest.mark.slow
@pytest.mark.skipif(keras.backend.backend() != "jax", reason="the quicker one")
def test_a_case_that_does_not_fit_is_told(capsys):
    gpu_classes.main(["--cases", "kerdock", "--classes", "20", "--dim", "16"])
    row = json.loads(capsys.readouterr().out)
    assert row["milliseconds"] is None
    assert "num_classes=20" in row["failed"]


# retrieval.py


@needs_torch
def test_both_ways_of_retrieval_find_the_same():
    pytest.importorskip("pytorch_metric_learning")
    flags = ["--items", "300", "--dim", "8", "--classes", "20"]
    rows = [
        retrieval.measured(retrieval.parse_args(["--way", way, *flags]))
        for way in retrieval.WAYS
    ]
    for key in ("recall_at_1", "mean_average_precision_at_r"):
        assert 0.1 < rows[0][key] < 1
        assert rows[1][key] == pytest.approx(rows[0][key], rel=1e-6)


# train_step.py


def test_ratios_are_taken_turn_by_turn():
    found = train_step.ratios([2.0, 8.0, 3.0], [1.0, 4.0, 1.0])
    assert found == {"low": 2.0, "median": 2.0, "high": 2.5}


@pytest.mark.parametrize("name", train_step.MODELS)
def test_models_of_train_step_train(monkeypatch, rng, name):
    def small(size):
        inputs = keras.Input((size, size, 3))
        return inputs, keras.layers.Dense(8)(keras.layers.Flatten()(inputs))

    monkeypatch.setitem(train_step.NETWORKS, "small", small)
    model = train_step.MODELS[name]("small", 4, 3)
    model.run_eagerly = True
    before = numpy_of(model.trainable_weights[0])
    args = train_step.parse_args(["--batch", "6", "--call", "fit"])
    images, labels = rng.integers(0, 256, (12, 4, 4, 3)), np.arange(12) % 3
    train_step.step_of(model, args)(images, labels)
    assert np.abs(numpy_of(model.trainable_weights[0]) - before).max() > 0
    assert "accuracy" in model.get_metrics_result()


@only_once
@pytest.mark.slow
@pytest.mark.parametrize("network", train_step.NETWORKS)
def test_networks_of_train_step_end_with_features(network):
    inputs, features = train_step.NETWORKS[network](32)
    assert tuple(inputs.shape) == (None, 32, 32, 3)
    assert len(features.shape) == 2


@only_once
def test_train_step_refuses_what_it_cannot_measure(capsys):
    with pytest.raises(SystemExit):
        train_step.parse_args(["--size", "16"])
    assert "--size must be at least 32" in capsys.readouterr().err


# short_products.py


def test_short_products_tell_times_and_errors(tmp_path):
    path = tmp_path / "result.json"
    flags = ["--classes", "50", "--dim", "16", "--batch", "8", "--steps", "1"]
    short_products.main([*flags, "--result", str(path)])
    [row] = json.loads(path.read_text())["rows"]
    assert row["ratio"]["float32"] == 1
    assert row["loss_error"]["float32_sums"] < 0.01
    errors = row["slope_error"]
    assert errors["float32_sums"] < errors["rounded"]


@only_once
def test_short_products_have_the_gradient_of_their_loss(rng):
    cosines, labels = rng.uniform(-1, 1, (3, 5)), np.array([0, 4, 2])
    found = short_products.loss_and_slope(cosines, labels, 10.0)
    right = slope_of(
        lambda x: short_products.loss_and_slope(x, labels, 10.0)[0], cosines
    )
    np.testing.assert_allclose(found[1], right, rtol=1e-4, atol=1e-6)
    loss = keras_pedcc.losses.am_softmax_loss(
        labels, cosines, scale=10.0, margin=short_products.MARGIN
    )
    np.testing.assert_allclose(found[0], numpy_of(loss), rtol=1e-5)
