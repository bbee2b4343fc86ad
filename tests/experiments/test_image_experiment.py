"""The image experiments of `experiments/`, at the size of a thumbnail."""

import csv
import json
import re
import shutil
import sys

import keras
import numpy as np
import pytest
from cifar100 import CIFAR100
from emnist import EMNIST
from image_experiment import data, figures, losses, networks, settings, training
from image_experiment.batches import FollowEpoch, TrainingBatches, soft_labels
from image_experiment.data import BadInputError, Source
from image_experiment.experiment import Experiment
from image_experiment.reporting import History, read_history, write_history, write_whole
from tensors import NO_JIT, only_once

import keras_pedcc

pytestmark = pytest.mark.slow
TINY = Experiment(
    name="tiny",
    source=Source("Tiny", ("tiny.npz", "other.npz"), "tiny", (8, 8, 1), 3),
    stem=4,
    blocks=((1, 4), (1, 6)),
    dim=5,
    pad=1,
    flip=True,
    notes="",
)
SHORT = ["--epochs", "2", "--batch-size", "16", "--finetune-epoch", "1", "--verbose"]
SHORT += ["0", *NO_JIT]


@pytest.fixture
def arrays():
    return made_arrays()


def made_arrays():
    draw = np.random.default_rng(0)
    x = draw.integers(0, 256, (60, 8, 8, 1), dtype="uint8")
    y = np.arange(60, dtype="uint8") % 3
    x[y == 1] //= 4  # something to learn
    return {"x_train": x[:48], "y_train": y[:48], "x_test": x[48:], "y_test": y[48:]}


@pytest.fixture
def data_dir(tmp_path, arrays):
    folder = tmp_path / "data"
    folder.mkdir()
    np.savez(folder / "tiny.npz", **arrays)
    return folder


@pytest.fixture
def run(data_dir, tmp_path, capsys):
    """Runs the tiny experiment in-process; returns exit code and messages."""

    def run(*flags, folder="out", short=SHORT):
        argv = ["--data-dir", str(data_dir), "--output-dir", str(tmp_path / folder)]
        code = training.run(TINY, [*argv, *short, *map(str, flags)])
        return code, capsys.readouterr().err

    return run


@pytest.fixture(scope="module")
def made_runs(tmp_path_factory):
    """A run and one with --fixed, both at their end."""
    folder = tmp_path_factory.mktemp("runs")
    np.savez(folder / "tiny.npz", **made_arrays())
    for name, flags in {"out": SHORT, "fixed": [*SHORT, "--fixed"]}.items():
        argv = ["--data-dir", folder, "--output-dir", folder / name, *flags]
        assert training.run(TINY, [str(word) for word in argv]) == 0
    return folder


@pytest.fixture
def copied(made_runs, tmp_path):
    """Copies a run to the folder of the test."""
    return lambda name: shutil.copytree(made_runs / name, tmp_path / name)


def saved_weights(folder):
    return keras.saving.load_model(folder / "model.keras").get_weights()


# Data


def test_load_gives_the_arrays(data_dir, arrays):
    images = data.load(TINY.source, data_dir)
    for name, array in arrays.items():
        np.testing.assert_array_equal(getattr(images, name), array)
    assert images.y_train.dtype == np.int32
    assert images.origin == "tiny.npz"


def test_load_takes_images_without_channels_and_column_labels(data_dir, arrays):
    flat = {
        name: a[..., 0] if "x" in name else a[:, None] for name, a in arrays.items()
    }
    np.savez(data_dir / "tiny.npz", **flat)
    images = data.load(TINY.source, data_dir)
    np.testing.assert_array_equal(images.x_test, arrays["x_test"])
    np.testing.assert_array_equal(images.y_test, arrays["y_test"])


def test_second_file_name_is_taken_where_the_first_is_missing(data_dir):
    (data_dir / "tiny.npz").rename(data_dir / "other.npz")
    assert data.load(TINY.source, data_dir).origin == "other.npz"


def test_fingerprint_tells_one_pixel(data_dir, arrays):
    before = data.load(TINY.source, data_dir).fingerprint()
    assert data.load(TINY.source, data_dir).fingerprint() == before
    arrays["x_test"][0, 0, 0] ^= 1
    np.savez(data_dir / "tiny.npz", **arrays)
    assert data.load(TINY.source, data_dir).fingerprint() != before


def test_held_out_images_are_scored_and_not_trained_on(data_dir, arrays):
    images = data.load(TINY.source, data_dir, held_out=12)
    np.testing.assert_array_equal(np.bincount(images.y_test), [4, 4, 4])
    assert len(images.x_train) == 36
    found = np.concatenate([images.x_train, images.x_test]).reshape(48, -1)
    given = arrays["x_train"].reshape(48, -1)
    np.testing.assert_array_equal(np.unique(found, axis=0), np.unique(given, axis=0))


def test_limit_keeps_images_even_over_the_classes(data_dir):
    images = data.load(TINY.source, data_dir, limit=10)
    assert sorted(np.bincount(images.y_train)) == [3, 3, 4]
    assert len(images.x_train) == 10
    assert len(images.x_test) == 12


def damage(folder, kind, arrays):
    path = folder / "tiny.npz"
    if kind == "missing":
        path.unlink()
    elif kind == "truncated":
        path.write_bytes(path.read_bytes()[:1000])
    elif kind == "text":
        path.write_text("no archive")
    else:
        name, value = kind
        np.savez(path, **{k: v for k, v in arrays.items() if k != name}, **value)


def changed(name, function):
    return lambda arrays: (name, {name: function(arrays[name])})


BAD_DATA = {
    "missing": ("missing", r"no tiny\.npz or other\.npz in .*two ways"),
    "truncated": ("truncated", "cannot be read"),
    "text": ("text", "cannot be read"),
    "no_array": (lambda _: ("y_test", {}), "has no array 'y_test'"),
    "float": (changed("x_train", lambda x: x / 255), "uint8 of shape .*float64"),
    "size": (changed("x_test", lambda x: x[:, :7]), r"\('n', 8, 8, 1\).*7, 8, 1"),
    "empty": (changed("x_test", lambda x: x[:0]), "uint8 of shape"),
    "short": (changed("y_train", lambda y: y[:-1]), r"shape \(48,\); it is .*47"),
    "fraction": (changed("y_train", lambda y: y / 2), "whole numbers"),
    "outside": (
        changed("y_test", lambda y: y + 1),
        r"between 0 and 2; it has 3 \(4 of",
    ),
    "negative": (changed("y_test", lambda y: y.astype(int) - 1), "it has -1"),
}


@pytest.mark.parametrize(("kind", "message"), BAD_DATA.values(), ids=BAD_DATA)
def test_bad_data_are_told(run, data_dir, tmp_path, arrays, kind, message):
    damage(data_dir, kind(arrays) if callable(kind) else kind, arrays)
    code, error = run()
    assert code == 2
    assert re.search(message, error)
    assert not (tmp_path / "out").exists()


def test_without_tensorflow_datasets_both_ways_are_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(BadInputError, match=r"\[tensorflow,examples\].*--data-dir"):
        data.load(TINY.source)


# Order and augmentation


def make_batches(arrays, **kwargs):
    kwargs = {"seed": 0, "num_classes": 3, **kwargs}
    return TrainingBatches(arrays["x_train"], arrays["y_train"], 16, **kwargs)


def content(batches, epoch):
    batches.set_epoch(epoch)
    return [batches[i] for i in range(len(batches))]


def test_batches_are_a_function_of_seed_and_epoch(arrays):
    kwargs = {"pad": 2, "flip": True, "mixup": 0.4}
    one, other = make_batches(arrays, **kwargs), make_batches(arrays, **kwargs)
    content(one, 0)
    for (x, y), (x_again, y_again) in zip(
        content(one, 5), content(other, 5), strict=True
    ):
        np.testing.assert_array_equal(x, x_again)
        np.testing.assert_array_equal(y, y_again)
    threaded = content(make_batches(arrays, **kwargs, workers=3), 5)
    for (x, _), (x_again, _) in zip(content(one, 5), threaded, strict=True):
        np.testing.assert_array_equal(x, x_again)
    first = [x for x, _ in content(one, 5)]
    assert not np.array_equal(first, [x for x, _ in content(one, 6)])
    other_seed = make_batches(arrays, **kwargs, seed=1)
    assert not np.array_equal(first, [x for x, _ in content(other_seed, 5)])


def test_each_epoch_has_each_image_once(arrays):
    for epoch in (0, 1):
        images = np.concatenate([x for x, _ in content(make_batches(arrays), epoch)])
        np.testing.assert_array_equal(
            np.unique(images.reshape(48, -1), axis=0),
            np.unique(arrays["x_train"].reshape(48, -1), axis=0),
        )


def test_each_image_comes_as_often_as_there_are_passes(arrays):
    batches = make_batches(arrays, passes=3, pad=1)
    assert len(batches) == 9
    numbered = make_batches({**arrays, "y_train": np.arange(48)}, passes=3)
    labels = np.concatenate([y for _, y in content(numbered, 1)])
    np.testing.assert_array_equal(np.bincount(labels), np.full(48, 3))
    images = np.concatenate([x for x, _ in content(numbered, 1)])
    np.testing.assert_array_equal(images, arrays["x_train"][labels])


def test_images_that_fill_no_batch_are_left_out(arrays):
    batches = TrainingBatches(arrays["x_train"], arrays["y_train"], 20, seed=0)
    assert len(batches) == 2
    assert {len(x) for x, _ in content(batches, 0)} == {20}


def test_crop_and_flip_agree_with_one_image_at_a_time(arrays):
    batches = make_batches(arrays, pad=2, flip=True)
    (images, labels), plan = content(batches, 3)[1], batches.plan
    for image, label, at in zip(images, labels, plan.order[16:32], strict=True):
        padded = np.zeros((12, 12, 1), "uint8")
        padded[2:10, 2:10] = arrays["x_train"][at]
        top, left = plan.offsets[at]
        expected = padded[top : top + 8, left : left + 8]
        expected = np.fliplr(expected) if plan.flips[at] else expected
        np.testing.assert_array_equal(image, expected)
        assert label == arrays["y_train"][at]


def test_every_offset_is_drawn_and_half_are_mirrored():
    many = np.zeros((5000, 2, 2, 1), "uint8")
    batches = TrainingBatches(
        many, np.zeros(5000, "int32"), 16, seed=0, pad=4, flip=True
    )
    _, counts = np.unique(batches.plan.offsets, axis=0, return_counts=True)
    assert len(counts) == 81
    assert counts.min() > 5000 / 81 / 2
    assert abs(batches.plan.flips.mean() - 0.5) < 0.03


def test_mixup_mixes_images_and_labels_alike(arrays):
    batches = make_batches(arrays, mixup=0.4, label_smoothing=0.1)
    (images, labels), plan = content(batches, 2)[0], batches.plan
    for image, label, at in zip(images, labels, plan.order[:16], strict=True):
        share, other = plan.shares[at], plan.partners[at]
        x, y = arrays["x_train"].astype(float), np.eye(3)[arrays["y_train"]]
        mixed = share * x[at] + (1 - share) * x[other]
        assert np.abs(image - mixed).max() <= 0.5 + 1e-9
        hard = share * y[at] + (1 - share) * y[other]
        np.testing.assert_allclose(label, 0.9 * hard + 0.1 / 3, atol=1e-6)


def test_soft_labels_sum_to_one():
    labels = soft_labels(np.array([0, 2]), 3, 0.3)
    np.testing.assert_allclose(labels, [[0.8, 0.1, 0.1], [0.1, 0.1, 0.8]], rtol=1e-6)


@pytest.mark.parametrize("workers", [1, 2])
def test_fit_trains_each_epoch_on_its_own_batches(workers):
    images = np.zeros((60, 2, 2, 1), "float32")
    # Labels are numbers of images, 48 of which are taken in each epoch.
    batches = TrainingBatches(images, np.arange(60.0), 16, seed=0, workers=workers)
    model = keras.Sequential([keras.Input((2, 2, 1)), keras.layers.Flatten()])
    model.add(keras.layers.Dense(1))

    def label(y_true, y_pred):
        return y_true

    metric = keras.metrics.MeanMetricWrapper(label, "label")
    model.compile(keras.optimizers.SGD(0.0), "mse", metrics=[metric])
    follow = FollowEpoch(batches)
    history = model.fit(
        batches, epochs=6, initial_epoch=3, callbacks=[follow], verbose=0
    )
    expected = [np.mean([y for _, y in content(batches, e)]) for e in (3, 4, 5)]
    assert len(set(expected)) == 3
    np.testing.assert_allclose(history.history["label"], expected, rtol=1e-6)


# Network and recipe


def layers_of(experiment):
    inputs, features = networks.vgg(
        experiment.source.shape,
        experiment.stem,
        experiment.blocks,
        experiment.dim,
        statistics=([0.5], [0.1]),
        weight_decay=5e-4,
    )
    return keras.Model(inputs, features).layers


def test_cifar100_network_is_the_paper_s():
    layers = layers_of(CIFAR100)
    filters = [x.filters for x in layers if isinstance(x, keras.layers.Conv2D)]
    assert filters == 5 * [96] + 4 * [192] + 4 * [384]
    kinds = [type(x).__name__ for x in layers]
    block = 4 * ["Conv2D", "BatchNormalization", "PReLU"] + ["MaxPooling2D"]
    ending = ["Flatten", "Dense", "BatchNormalization"]
    assert kinds[3:] == block[:3] + 3 * block + ending
    assert layers[-2].units == 512


def test_emnist_network_is_the_paper_s():
    layers = layers_of(EMNIST)
    filters = [x.filters for x in layers if isinstance(x, keras.layers.Conv2D)]
    assert filters == 10 * [64]
    assert sum(isinstance(x, keras.layers.MaxPooling2D) for x in layers) == 3
    assert layers[-2].units == 256


def test_recipe_s_defaults_are_the_paper_s():
    args = settings.parse(CIFAR100, [])
    assert (args.epochs, args.batch_size, args.learning_rate) == (120, 256, 0.1)
    assert (args.weight_decay, args.dim, args.width) == (5e-4, 512, 1)
    assert (args.scale, args.margin, args.mse_weight, args.mse_root) == (15, 0.5, 10, 1)
    assert (args.finetune_epoch, args.finetune_rate) == (70, 1e-3)
    assert (args.schedule, args.decay_epochs) == ("step", [25, 50, 80, 100])
    assert losses.make_optimizer(args).momentum == 0.9
    shorter = settings.parse(CIFAR100, ["--epochs", "12"])
    assert shorter.finetune_epoch == 7
    assert (args.pad, args.flip) == (4, True)
    args = settings.parse(EMNIST, [])
    assert (args.pad, args.flip, args.label_smoothing, args.mixup) == (0, False, 0, 0)


def test_layers_begin_as_in_the_recipe():
    layers = layers_of(CIFAR100)
    for layer in layers:
        if isinstance(layer, keras.layers.PReLU):
            assert layer.alpha.shape == (1, 1, layer.output.shape[-1])
            assert (keras.ops.convert_to_numpy(layer.alpha) == 0.25).all()
        if isinstance(layer, keras.layers.BatchNormalization):
            assert (layer.momentum, layer.epsilon) == (0.9, 1e-5)
        if isinstance(layer, keras.layers.Conv2D):
            kernel = keras.ops.convert_to_numpy(layer.kernel)
            expected = (2 / (9 * kernel.shape[2])) ** 0.5
            assert kernel.std() == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize(
    ("flags", "marked"),
    [
        ([], True),
        (["--loss", "pedcc_am"], True),
        (["--fixed"], False),
        (["--centroids", "trained"], False),
        (["--loss", "cross_entropy"], False),
        (["--finetune-epoch", "2"], False),
    ],
)
def test_unfreezing_is_marked_where_there_is_one(tmp_path, monkeypatch, flags, marked):
    args = settings.parse(TINY, ["--finetune-epoch", "1", *flags])
    args.output_dir = tmp_path
    rows = [
        {"epoch": e, "accuracy": 0.5, "loss": 1.0, "centroid_distance": 0.4}
        for e in range(2)
    ]
    write_history(tmp_path / "history.csv", rows)
    drawn = []
    monkeypatch.setattr(figures, "save", lambda figure, path: drawn.append(figure))
    figures.draw_curves(args, "test images", tmp_path / "curves.png")
    lines = [line for axis in drawn[0].axes for line in axis.lines]
    found = [line.get_xdata()[0] for line in lines if "unfrozen" in line.get_label()]
    assert found == len(drawn[0].axes) * [1.5] * marked


@pytest.mark.parametrize(
    "flags",
    [
        [],
        ["--epochs", "3", "--decay-epochs", "1", "2", "--no-jit", "--fixed"],
        ["--no-feature-norm", "--jit", "--mixed-precision", "float16", "--no-flip"],
    ],
)
def test_flags_lead_back_to_the_settings(flags):
    chosen = settings.of_the_run(settings.parse(TINY, flags))
    found = settings.flags_of(TINY, chosen)
    assert settings.of_the_run(settings.parse(TINY, found)) == chosen
    assert len(found) == len(flags)


def test_weight_decay_is_a_penalty_on_every_kernel_and_nothing_else(data_dir):
    """`d / 2 |w|^2`, whose slope SGD takes as the rate times `d w`."""
    args = settings.parse(TINY, ["--width", "1", "--weight-decay", "0.5"])
    images = data.load(TINY.source, data_dir)
    model = training.make_model(TINY, args, images)
    total = sum(
        0.25 * np.sum(keras.ops.convert_to_numpy(v).astype(float) ** 2)
        for v in model.trainable_variables
        if v.path.endswith("kernel")
    )
    penalty = sum(keras.ops.convert_to_numpy(loss) for loss in model.losses)
    assert penalty == pytest.approx(total, rel=1e-5)
    # Of the two heads the trained one is a kernel, too; frozen centroids are not.
    softmax = settings.parse(TINY, ["--loss", "cross_entropy", "--weight-decay", "0.5"])
    assert len(training.make_model(TINY, softmax, images).losses) == 5
    assert len(model.losses) == 4


def test_step_schedule_is_a_tenth_at_each_decay_epoch():
    args = settings.parse(TINY, ["--decay-epochs", "2", "4"])
    rates = [training.rate_of(epoch, args) for epoch in range(5)]
    np.testing.assert_allclose(rates, [0.1, 0.1, 0.01, 0.01, 0.001])


def test_cosine_schedule_falls_from_the_rate_towards_zero():
    args = settings.parse(TINY, ["--schedule", "cosine", "--epochs", "4"])
    rates = [training.rate_of(epoch, args) for epoch in (0, 2, 4)]
    np.testing.assert_allclose(rates, [0.1, 0.05, 0], atol=1e-12)


def test_statistics_are_those_of_the_pixels(arrays):
    mean, variance = networks.pixel_statistics(arrays["x_train"])
    pixels = arrays["x_train"].astype(float).reshape(-1, 1) / 255
    np.testing.assert_allclose(mean, pixels.mean(axis=0))
    np.testing.assert_allclose(variance, pixels.var(axis=0))


# Runs


def test_run_writes_what_it_promises(run, tmp_path, data_dir):
    assert run() == (0, "")
    folder = tmp_path / "out"
    result = json.loads((folder / "result.json").read_text())
    assert result["settings"]["epochs"] == 2
    assert result["environment"]["backend"] == keras.backend.backend()
    assert len(result["accuracy_per_epoch"]) == 2
    assert result["accuracy"] == pytest.approx(result["accuracy_per_epoch"][-1])
    assert not result["diverged"]
    assert result["images_per_second"] > 0
    with (folder / "history.csv").open() as file:
        rows = list(csv.DictReader(file))
    names = {"epoch", "accuracy", "am_softmax", "centroid_distance", "loss"}
    assert names | {"intra_class_distance", "val_accuracy", "learning_rate"} <= set(
        rows[0]
    )
    for name in ("curves", "confusion", "cosines"):
        assert (folder / f"{name}.png").stat().st_size > 8000
    model = keras.saving.load_model(folder / "model.keras")
    images = data.load(TINY.source, data_dir)
    logits = model.predict(images.x_test, verbose=0)["logits"]
    found = np.mean(logits.argmax(axis=1) == images.y_test)
    assert found == pytest.approx(result["accuracy"])


def test_loss_is_the_sum_of_its_parts_and_the_penalty(run, tmp_path):
    run("--weight-decay", 0, "--mse-root", 2)
    for row in read_history(tmp_path / "out" / "history.csv"):
        distance = row["val_centroid_distance"] ** 0.5
        expected = row["val_am_softmax"] + 10 * distance
        assert row["val_loss"] == pytest.approx(expected, rel=1e-4)


@only_once
def test_centroids_move_only_where_they_are_unfrozen(made_runs):
    fixed, tuned = (
        keras.saving.load_model(made_runs / name / "model.keras").get_layer("head")
        for name in ("fixed", "out")
    )
    fresh = keras.ops.convert_to_numpy(keras_pedcc.generate_pedcc(3, 5))
    difference = np.abs(keras.ops.convert_to_numpy(fixed.centroids) - fresh)
    assert difference.max() == 0
    difference = np.abs(keras.ops.convert_to_numpy(tuned.centroids) - fresh)
    assert difference.max() > 1e-6


@only_once
def test_branch_is_the_run_that_unfroze_itself(run, made_runs, tmp_path):
    assert run("--branch-from", made_runs / "fixed", folder="branch") == (0, "")
    pairs = zip(
        saved_weights(tmp_path / "branch"),
        saved_weights(made_runs / "out"),
        strict=True,
    )
    for branched, whole in pairs:
        np.testing.assert_array_equal(branched, whole)
    history = read_history(tmp_path / "branch" / "history.csv")
    assert np.isnan(history[0]["images_per_second"])  # that of the other run
    assert history[1]["images_per_second"] > 0
    result = json.loads((tmp_path / "branch" / "result.json").read_text())
    assert result["seconds"] == history[1]["train_seconds"]
    assert [row["epoch"] for row in history] == [0, 1]


@pytest.fixture
def killed_branch(run, made_runs, tmp_path, monkeypatch):
    """Flags of a branch that was killed with its state taken over, and no settings."""
    flags = ["--branch-from", made_runs / "fixed", "--no-figures"]
    start = training.start_branch

    def kill(args):
        start(args)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(training, "start_branch", kill)
        with pytest.raises(KeyboardInterrupt):
            run(*flags, folder="branch")
    assert (tmp_path / "branch" / "backup.npz").exists()
    return flags


@only_once
def test_branch_that_was_killed_at_its_start_begins_again(run, tmp_path, killed_branch):
    assert run(*killed_branch, folder="branch") == (0, "")
    run(*killed_branch, folder="whole")
    folders = [tmp_path / "branch", tmp_path / "whole"]
    for ours, whole in zip(*map(saved_weights, folders), strict=True):
        np.testing.assert_array_equal(ours, whole)
    ours, whole = [sorted(path.name for path in each.iterdir()) for each in folders]
    assert ours == whole


@only_once
def test_other_run_takes_nothing_of_a_branch_that_was_killed(
    run, tmp_path, killed_branch
):
    assert run("--no-figures", "--seed", 1, folder="branch") == (0, "")
    history = read_history(tmp_path / "branch" / "history.csv")
    assert [row["train_seconds"] > 0 for row in history] == [True, True]


def test_stopped_run_goes_on_to_the_same_weights(run, tmp_path, monkeypatch):
    flags = ["--epochs", 4, "--finetune-epoch", 2, "--mixup", 0.2]
    run(*flags, folder="whole")

    class Stop(Exception):
        pass

    def stop(self, epoch, logs=None):
        if epoch == 2:
            raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(FollowEpoch, "on_epoch_end", stop)
        with pytest.raises(Stop):
            run(*flags)
    assert run(*flags, "--resume") == (0, "")
    pairs = zip(
        saved_weights(tmp_path / "out"), saved_weights(tmp_path / "whole"), strict=True
    )
    for resumed, whole in pairs:
        np.testing.assert_array_equal(resumed, whole)
    rows = read_history(tmp_path / "out" / "history.csv")
    assert [row["epoch"] for row in rows] == [0, 1, 2, 3]


@only_once
def test_finished_run_is_left_alone(run, copied, tmp_path):
    copied("out")
    before = (tmp_path / "out" / "result.json").read_text()
    assert run("--resume") == (0, "")
    assert (tmp_path / "out" / "result.json").read_text() == before


def test_run_whose_loss_becomes_nan_says_so(run, tmp_path):
    code, error = run("--learning-rate", 1e9, "--loss", "cross_entropy")
    assert (code, error) == (1, "")
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["diverged"]
    assert result["epochs"] == 1
    assert not (tmp_path / "out" / "cosines.png").exists()
    assert run("--learning-rate", 1e9, "--loss", "cross_entropy", "--resume")[0] == 1


@only_once
@pytest.mark.parametrize("flags", [["--loss", "cross_entropy"], ["--mixup", "0.2"]])
def test_other_recipes_run(run, tmp_path, flags):
    assert run(*flags, "--mixed-precision", "--label-smoothing", "0.1") == (0, "")
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert 0 <= result["accuracy"] <= 1
    keras.saving.load_model(tmp_path / "out" / "model.keras")


@pytest.mark.parametrize("start", ["trained", "random"])
def test_centroids_can_be_trained_with_the_network(data_dir, arrays, start):
    flags = ["--centroids", start, "--learning-rate", "0.01", *NO_JIT]
    args = settings.parse(TINY, flags)
    images = data.load(TINY.source, data_dir)
    model = training.make_model(TINY, args, images)
    centroids = model.get_layer("head").centroids
    before = keras.ops.convert_to_numpy(centroids)
    predefined = keras.ops.convert_to_numpy(keras_pedcc.generate_pedcc(3, 5))
    assert np.allclose(before, predefined, atol=1e-6) == (start == "trained")
    assert np.allclose(np.linalg.norm(before, axis=1), 1)
    model.fit(images.x_train, images.y_train, verbose=0)
    assert np.abs(keras.ops.convert_to_numpy(centroids) - before).max() > 1e-4
    kinds = {
        type(c).__name__ for c in training.make_callbacks(args, make_batches(arrays))
    }
    assert "FinetuneCallback" not in kinds


@pytest.mark.parametrize(
    ("loss", "gamma"), [("l_softmax", 2.5e-5), ("a_softmax", 0.12)]
)
def test_plain_softmax_fades_faster(data_dir, loss, gamma):
    flags = ["--loss", loss, "--multiple", "2", "--annealing-speed", "40"]
    images = data.load(TINY.source, data_dir)
    model = training.make_model(TINY, settings.parse(TINY, flags), images)
    assert model.loss.annealing_gamma == pytest.approx(40 * gamma)
    assert model.loss.margin == 2


def test_anchor_pulls_back_to_the_start(data_dir):
    args = settings.parse(
        TINY, ["--centroids", "trained", "--anchor", "0.5", "--weight-decay", "0"]
    )
    images = data.load(TINY.source, data_dir)
    model = training.make_model(TINY, args, images)
    centroids = model.get_layer("head").centroids

    def penalty():
        return sum(keras.ops.convert_to_numpy(loss) for loss in model.losses)

    assert penalty() == 0
    centroids.assign(keras.ops.convert_to_numpy(centroids) + 0.1)
    assert penalty() == pytest.approx(0.25 * 15 * 0.01, rel=1e-4)


@pytest.mark.filterwarnings("ignore:The loss cannot fall below")
def test_margin_of_arcface_may_be_wide(data_dir):
    args = settings.parse(TINY, ["--loss", "arcface", "--margin", "2.5", *NO_JIT])
    images = data.load(TINY.source, data_dir)
    model = training.make_model(TINY, args, images)
    found = model.evaluate(images.x_test, images.y_test, verbose=0, return_dict=True)
    assert "am_softmax" not in " ".join(found)
    assert np.isfinite(found["loss"])


# Bad input


BAD_FLAGS = {
    "epochs": (["--epochs", "0"], "--epochs must be at least 1. Received: 0"),
    "width": (["--width", "0"], "--width must be above 0"),
    "smoothing": (["--label-smoothing", "1"], "--label-smoothing must be below 1"),
    "rate": (["--learning-rate", "nan"], "--learning-rate must be above 0"),
    "limit": (["--limit", "49"], "--limit must lie between 1 and 48"),
    "held_out": (["--held-out", "48"], "leaves no image to train on"),
    "cpus": (["--logical-cpus", "1000"], "--logical-cpus must lie between 1 and"),
    "margin": (["--margin", "3"], "`margin` must be a number in [0, 2]"),
    "branch": (["--branch-from", "nowhere"], "nowhere has no branch.npz"),
    "seed": (["--seed", "4294967296"], "--seed must be at most 4294967295"),
    "decay": (["--weight-decay", "inf"], "--weight-decay must be at most"),
    "pad": (["--pad", "1001"], "--pad must be at most 1000"),
    "decay_epochs": (["--decay-epochs", "-1"], "--decay-epochs must be at least 0"),
    "fixed": (["--fixed", "--centroids", "trained"], "--fixed contradicts"),
    "kept": (["--keep-mean", "--fixed"], "--keep-mean is for"),
    "anchor": (["--anchor", "1", "--fixed"], "--anchor is for centroids"),
    "annealing": (["--annealing-speed", "0"], "--annealing-speed must be above 0"),
    "both": (["--branch-from", "x", "--fixed"], "leave out --fixed"),
}


@pytest.mark.parametrize(("flags", "message"), BAD_FLAGS.values(), ids=BAD_FLAGS)
def test_bad_flags_are_told(run, tmp_path, flags, message):
    code, error = run(*flags)
    assert code == 2
    assert error.startswith("tiny: error: ")
    assert message in error
    assert not (tmp_path / "out" / "settings.json").exists()


def test_strategy_of_another_backend_is_refused(run):
    tensorflow = keras.backend.backend() == "tensorflow"
    strategy = "data_parallel" if tensorflow else "mirrored"
    code, error = run("--strategy", strategy)
    assert code == 2
    assert f"--strategy {strategy} needs KERAS_BACKEND=" in error


@pytest.mark.parametrize("name", ["backup.npz", "history.csv", "result.json"])
def test_remains_of_an_unknown_run_are_refused(run, tmp_path, name):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text("of whom?")
    for flags in ([], ["--resume"]):
        code, error = run(*flags)
        assert code == 2
        assert f"holds {name}, and no settings.json" in error


@only_once
@pytest.mark.parametrize("name", ["settings.json", "history.csv", "backup.npz"])
def test_damaged_files_of_a_run_are_told(run, copied, tmp_path, name):
    copied("out")
    (tmp_path / "out" / "result.json").unlink()
    damaged = {"settings.json": "[1]", "history.csv": "epoch\none\n"}
    (tmp_path / "out" / name).write_text(damaged.get(name, "PK"))
    code, error = run("--resume", "--epochs", 2)
    assert code == 2
    assert name in error


@only_once
def test_result_of_a_shortened_run_says_so(run, tmp_path, monkeypatch):
    stop = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: setattr(stop.model, "stop_training", True)
    )
    make = training.make_callbacks
    monkeypatch.setattr(training, "make_callbacks", lambda *a: [*make(*a), stop])
    with pytest.warns(UserWarning, match="were not fine-tuned"):
        code, _ = run()
    assert code == 1
    assert json.loads((tmp_path / "out" / "result.json").read_text())["diverged"]


@only_once
def test_run_is_not_written_over(run, copied, tmp_path):
    copied("out")
    before = {p: p.read_bytes() for p in (tmp_path / "out").iterdir()}
    code, error = run("--seed", 1)
    assert code == 2
    assert "holds a run already. Pass --resume" in error
    assert {p: p.read_bytes() for p in (tmp_path / "out").iterdir()} == before


@only_once
def test_resumption_with_other_settings_is_refused(run, copied, data_dir, arrays):
    copied("out")
    code, error = run("--resume", "--epochs", 3, "--seed", 1)
    assert code == 2
    assert "epochs was 2 and is 3; seed was 0 and is 1" in error
    arrays["x_train"][0] ^= 1
    np.savez(data_dir / "tiny.npz", **arrays)
    code, error = run("--resume")
    assert code == 2
    assert "data was 'tiny.npz " in error


@only_once
def test_branch_with_other_settings_is_refused(run, made_runs):
    code, error = run("--branch-from", made_runs / "fixed", "--margin", 0.2)
    assert code == 2
    assert "margin was 0.5 and is 0.2" in error


def test_folder_that_cannot_be_written_is_told(run, tmp_path):
    (tmp_path / "file").write_text("")
    code, error = run(folder="file/out")
    assert code == 2
    assert "cannot be written (Not a directory)" in error


# Reporting


def test_history_leaves_out_rows_of_an_epoch_that_is_trained_again(tmp_path, arrays):
    path = tmp_path / "history.csv"
    speed = "train_seconds,images_per_second"
    rows = [f"{epoch},{3.0 - epoch},1.0,48.0" for epoch in range(3)]
    write_whole(path, "\n".join([f"epoch,loss,{speed}", *rows]))
    history = History(path, make_batches(arrays))
    history.on_epoch_begin(1)
    history.on_epoch_end(1, {"loss": 5.0})
    rows = read_history(path)
    assert [row["epoch"] for row in rows] == [0, 1]
    assert rows[0]["loss"] == 3
    assert rows[1]["loss"] == 5
