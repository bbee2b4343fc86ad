"""`experiments/faces.py` and what it is made of, on images that are noise."""

import json
import os
from types import SimpleNamespace

import compare_losses
import keras
import numpy as np
import pytest
from faces import FACES
from image_experiment import face_data, face_experiment, face_files, networks, training
from image_experiment.batches import TrainingBatches
from image_experiment.data import BadInputError
from image_experiment.face_experiment import FaceExperiment
from image_experiment.face_files import Pairs, People
from tensors import NO_JIT, only_once

import keras_pedcc

pytestmark = pytest.mark.slow
PIL = pytest.importorskip("PIL.Image", reason="image files need Pillow")
SIDE = 18
TINY = FaceExperiment("faces", 4, ((1, 4), (1, 6)), 5, "", batch_size=16)
SHORT = ["--epochs", "2", "--finetune-epoch", "1", "--verbose", "0", *NO_JIT]


def portraits(labels, seed=0, side=SIDE):
    """uint8 images; those of one person share most of their pixels."""
    draw = np.random.default_rng(seed)
    looks = draw.integers(0, 256, (max(labels) + 1, side, side, 3))
    noise = draw.integers(0, 256, (len(labels), side, side, 3))
    return ((3 * looks[labels] + noise) // 4).astype("uint8")


@pytest.fixture
def lfw(tmp_path):
    """A file like that of LFW: 40 people with three images, half for training."""
    labels = np.repeat(np.arange(40), 3)
    split = np.where(np.arange(40) % 2, 1, 2).astype("uint8")
    split[20:40:2] = 0  # in neither: the two parts are not of one size
    one = [[3 * p, 3 * p + 1 + fold % 2, 1, fold] for fold, p in enumerate(range(20))]
    two = [[3 * p, 3 * p + 6, 0, fold] for fold, p in enumerate(range(20))]
    pairs = np.array(one + two)
    pairs[:, 3] %= 10
    arrays = {
        "images": portraits(labels),
        "labels": labels,
        "people": np.array([f"Name_{p:02d}" for p in range(40)]),
        "person_dev_split": split,
        "pairs": pairs,
        "pairs_dev_test": np.array(
            [[6 * p, 6 * p + 1, 1] for p in range(10)]
            + [[6 * p, 6 * (p + 1) % 60, 0] for p in range(10)]
        ),
    }
    path = tmp_path / "lfw.npz"
    np.savez(path, **arrays)
    return path


@pytest.fixture
def folder(tmp_path):
    """A folder for each of six people, with four images of other sizes."""
    root = tmp_path / "people"
    labels = np.repeat(np.arange(6), 4)
    for number, image in enumerate(portraits(labels, seed=1, side=22)):
        person = root / f"person_{labels[number]}"
        person.mkdir(parents=True, exist_ok=True)
        PIL.fromarray(image).save(person / f"{number}.png")
    return root


@pytest.fixture
def run(tmp_path, capsys):
    """Runs the tiny experiment in-process; returns exit code and messages."""

    def run(*flags, folder="out"):
        argv = ["--output-dir", tmp_path / folder, *SHORT, *flags]
        code = training.run(TINY, [str(word) for word in argv])
        return code, capsys.readouterr()

    return run


def read(path):
    return json.loads(path.read_text())


@only_once
def test_development_split_trains_on_people_of_no_pair(lfw, run, tmp_path):
    code, _ = run("--lfw", lfw, "--held-out", "5")
    assert code == 0
    result = read(tmp_path / "out" / "result.json")
    assert result["data"]["people"] == 15
    assert result["data"]["training_images"] == 45
    assert result["data"]["scored_pairs"] == 20
    assert 0 <= result["accuracy"] <= 1
    assert result["held_out"]["pairs"] == 2 * result["held_out"]["same"] == 30
    assert {"auc", "eer"} <= result["test"].keys()
    assert "accuracy" not in result["test"]  # that by folds is not of this protocol
    history = (tmp_path / "out" / "history.csv").read_text()
    assert "val_verification_accuracy" in history.splitlines()[0]
    for name in ("model.keras", "curves.png", "roc.png", "pairs.png"):
        assert (tmp_path / "out" / name).stat().st_size


@only_once
def test_result_is_what_the_kept_model_gives(lfw, run, tmp_path):
    run("--lfw", lfw, "--held-out", "5", "--flip-test", "--no-figures")
    result = read(tmp_path / "out" / "result.json")
    model = keras.saving.load_model(tmp_path / "out" / "model.keras")
    with np.load(lfw) as file:
        images, pairs = file["images"][:, 1:17, 1:17], file["pairs_dev_test"]

    def unit(x):
        return x / np.linalg.norm(x, axis=1, keepdims=True)

    both = [
        unit(model.predict(x, verbose=0)["features"])
        for x in (images, images[:, :, ::-1])
    ]
    features = unit(sum(both).astype("float64"))
    cosines = (features[pairs[:, 0]] * features[pairs[:, 1]]).sum(axis=1)
    right = (cosines >= result["held_out"]["threshold"]) == pairs[:, 2]
    assert result["accuracy"] == pytest.approx(right.mean())


@only_once
def test_folder_of_people_is_tested_on_ten_folds(lfw, folder, run, tmp_path):
    flags = ["--train", folder, "--image-size", "18", "--fixed"]
    code, _ = run("--lfw", lfw, *flags)
    assert code == 0
    result = read(tmp_path / "out" / "result.json")
    assert result["data"]["people"] == 6
    assert result["data"]["held_out_pairs"] == 0
    assert len(result["test"]["fold_accuracies"]) == 10
    assert result["accuracy"] == result["test"]["accuracy"]
    assert result["held_out"] is None


@only_once
def test_run_goes_on_where_it_was_stopped(lfw, run, tmp_path, monkeypatch):
    flags = ["--lfw", lfw, "--held-out", "5", "--no-figures"]
    run(*flags, folder="whole")
    stop = keras.callbacks.LambdaCallback(on_epoch_begin=raise_at_second)
    make = training.make_callbacks
    with monkeypatch.context() as patch:
        patch.setattr(training, "make_callbacks", lambda *a: [*make(*a), stop])
        with pytest.raises(KeyboardInterrupt):
            run(*flags)
    assert run(*flags, "--resume")[0] == 0
    whole, resumed = (read(tmp_path / f / "result.json") for f in ("whole", "out"))
    assert resumed["test"] == whole["test"]
    assert resumed["held_out"] == whole["held_out"]


@only_once
def test_losses_are_compared_on_faces(lfw, tmp_path, monkeypatch):
    monkeypatch.setitem(compare_losses.EXPERIMENTS, "faces", TINY)
    flags = ["--dataset", "faces", "--data-dir", lfw, "--held-out", 5, "--seeds", 0]
    flags += ["--losses", "cross_entropy", "pedcc_n1", "--output-dir", tmp_path / "c"]
    flags = [str(flag) for flag in [*flags, *SHORT]]
    assert compare_losses.main(flags) == 0
    table = read(tmp_path / "c" / "table.json")
    chosen = {}
    for rate in (0.03, 0.1):
        folder = tmp_path / "c" / "held_out" / f"pedcc_n1_rate{rate}_seed100"
        chosen[rate] = read(folder / "result.json")["accuracy"]
        assert read(folder / "result.json")["data"]["scored_on"] == "held-out pairs"
    assert table["rows"]["pedcc_n1"]["learning_rate"] == max(chosen, key=chosen.get)
    result = tmp_path / "c" / "test" / "cross_entropy_rate*_seed0" / "result.json"
    (result,) = tmp_path.glob(str(result.relative_to(tmp_path)))
    accuracy = 100 * read(result)["accuracy"]
    assert table["rows"]["cross_entropy"]["accuracy"] == [pytest.approx(accuracy)]
    assert "20 test pairs" in (tmp_path / "c" / "table.md").read_text()


@only_once
@pytest.mark.skipif(
    not os.environ.get("KERAS_PEDCC_DATA"), reason="KERAS_PEDCC_DATA names no folder"
)
def test_network_is_above_raw_pixels_on_real_faces(tmp_path):
    flags = ["--lfw", os.environ["KERAS_PEDCC_DATA"], "--output-dir", tmp_path / "out"]
    # Of those with many images alone, which are a quarter of the images.
    flags += ["--min-images", 6, "--held-out", 20]
    flags += ["--width", 0.125, "--dim", 64, "--epochs", 4, "--batch-size", 64]
    flags += ["--schedule", "cosine", "--fixed", "--score", "last", *NO_JIT]
    assert training.run(FACES, [str(flag) for flag in flags]) == 0
    result = read(tmp_path / "out" / "result.json")
    assert result["raw_pixels"]["accuracy"] > 0.55
    assert result["above_raw_pixels"]["interval"][0] > 0


def raise_at_second(epoch, logs=None):
    if epoch == 1:
        raise KeyboardInterrupt


def test_raw_pixels_are_scored_beside():
    labels = np.repeat(np.arange(30), 2)
    images = portraits(labels)
    pairs = np.array([[2 * p, 2 * p + 1] for p in range(30)])
    pairs = np.concatenate([pairs, [[2 * p, (2 * p + 3) % 60] for p in range(30)]])
    pairs = Pairs(images, pairs, np.arange(60) < 30, np.arange(60) % 10)
    flat = images.reshape(60, -1).astype("float64")
    flat /= np.linalg.norm(flat, axis=1, keepdims=True)
    expected = (flat[pairs.pairs[:, 0]] * flat[pairs.pairs[:, 1]]).sum(axis=1)
    np.testing.assert_allclose(
        face_experiment.pixel_scores(pairs), expected, atol=1e-12
    )


def test_folds_decide_as_the_protocol_says(rng):
    same = np.arange(200) % 2 == 0
    scores = rng.normal(size=200) + same
    folds = rng.permutation(np.arange(200) % 10) + 3  # any names
    test = Pairs(None, None, same, folds)
    faces = face_data.Faces(None, None, 0, 0, None, test, "")
    found = face_experiment.verify(faces, {"test": scores, "held_out": None})
    assert found["right"].mean() == pytest.approx(found["accuracy"])
    report = keras_pedcc.verification_report(same, scores, folds=folds)
    assert found["accuracy"] == report["accuracy"]


def test_threshold_of_the_development_split_is_of_held_out_people(rng):
    same = np.arange(100) < 50
    held_out = Pairs(None, None, same)
    faces = face_data.Faces(None, None, 0, 0, held_out, Pairs(None, None, same), "")
    scores = {"held_out": same * 1.0, "test": same * 0.4}  # 0.5 tells the former apart
    found = face_experiment.verify(faces, scores)
    assert found["accuracy"] == 0.5
    assert found["test"]["auc"] == 1


def test_bootstrap_covers_the_mean(rng):
    values = rng.normal(size=400)
    found = face_experiment.bootstrap(values)
    low, high = found["interval"]
    assert found["mean"] == pytest.approx(values.mean())
    half = 1.96 * values.std() / np.sqrt(400)
    assert (high - low) / 2 == pytest.approx(half, rel=0.1)


def test_held_out_people_are_not_trained_on():
    labels = np.repeat(np.arange(12), [1, 2, 3, 4, 30, 2, 2, 2, 2, 2, 2, 2])
    people = People(np.arange(len(labels)), labels, tuple("abcdefghijkl"))
    kept, pairs = face_data.hold_out(people, 6)
    assert len(kept.names) == 6
    assert sorted(set(kept.labels)) == list(range(6))
    assert not set(kept.images) & set(pairs.images)
    away = labels[pairs.images]
    for label, name in zip(kept.labels, labels[kept.images], strict=True):
        assert kept.names[label] == people.names[name]
    first, second = away[pairs.pairs].T
    assert ((first == second) == pairs.same).all()
    assert pairs.same.sum() * 2 == len(pairs.same)
    unique = {tuple(sorted(pair)) for pair in pairs.pairs[pairs.same].tolist()}
    assert len(unique) == pairs.same.sum()
    assert np.bincount(first[pairs.same]).max() <= face_data.PAIRS_PER_PERSON


def test_people_with_few_images_are_left_out(lfw):
    with np.load(lfw) as file:
        arrays = dict(file)
    arrays["labels"][:3] = 1, 3, 3  # all of person 0; of 1 there are four, of 3 five
    people = People(arrays["images"], arrays["labels"], tuple(arrays["people"]))
    kept = face_data._with_enough(people, 4)
    assert kept.names == ("Name_01", "Name_03")
    assert np.bincount(kept.labels).tolist() == [4, 5]


def test_crops_are_parts_of_their_images(rng):
    images = rng.integers(0, 256, (20, 9, 9, 3), dtype="uint8")
    batches = TrainingBatches(images, np.arange(20), 20, seed=0, size=6)
    shown, labels = batches[0]
    assert shown.shape == (20, 6, 6, 3)
    places = set()
    for crop, label in zip(shown, labels, strict=True):
        found = [
            (top, left)
            for top in range(4)
            for left in range(4)
            if (images[label, top : top + 6, left : left + 6] == crop).all()
        ]
        assert len(found) == 1
        places.add(found[0])
    assert {0, 3} <= {top for top, _ in places}
    assert {0, 3} <= {left for _, left in places}


def test_centre_and_size():
    images = np.arange(2 * 7 * 7 * 3, dtype="uint8").reshape(2, 7, 7, 3)
    np.testing.assert_array_equal(face_data.centre(images, 3), images[:, 2:5, 2:5])
    assert face_data.resized(images, 14).shape == (2, 14, 14, 3)
    flat = np.full((1, 5, 5, 3), 77, "uint8")
    assert (face_data.resized(flat, 9) == 77).all()


def test_network_is_that_of_the_arcface_paper():
    inputs, features = networks.ir_resnet(
        (112, 112, 3),
        64,
        [(2, 64), (2, 128), (2, 256), (2, 512)],
        512,
        statistics=([0.5] * 3, [0.1] * 3),
        weight_decay=5e-4,
        feature_norm=False,
        dropout=0.4,
    )
    model = keras.Model(inputs, features)

    def block(a, b, changed=True):
        convolutions = 9 * a * b + 9 * b * b + (a * b if changed else 0)
        norms = 2 * (a + b + b + (b if changed else 0))
        return convolutions + norms + b  # a slope for each channel

    widths = [(64, 64), (64, 128), (128, 256), (256, 512)]
    expected = 27 * 64 + 2 * 64 + 64
    expected += sum(block(a, b) + block(b, b, changed=False) for a, b in widths)
    expected += 2 * 512 + 7 * 7 * 512 * 512 + 512
    trained = sum(int(np.prod(w.shape)) for w in model.trainable_weights)
    assert trained == expected
    strides = [layer.strides for layer in model.layers if hasattr(layer, "strides")]
    assert strides.count((2, 2)) == 8  # in each stage one, and its shortcut


def test_strided_shortcut_is_a_strided_convolution(rng):
    inputs, features = networks.ir_resnet(
        (8, 8, 3), 4, [(1, 6)], 5, statistics=([0.5] * 3, [0.1] * 3), weight_decay=0.0
    )
    model = keras.Model(inputs, features)
    pool = next(x for x in model.layers if isinstance(x, keras.layers.MaxPooling2D))
    conv = next(
        x
        for x in model.layers
        if isinstance(x, keras.layers.Conv2D) and x.kernel_size == (1, 1)
    )
    x = rng.normal(size=(2, 8, 8, 4)).astype("float32")
    kernel = keras.ops.convert_to_numpy(conv.kernel)[0, 0]
    found = keras.ops.convert_to_numpy(conv(pool(x)))
    np.testing.assert_allclose(found, x[:, ::2, ::2] @ kernel, atol=1e-5)


def test_folder_gives_people_in_order_and_their_images(folder):
    people = face_files.read_people(folder, 22, 0.01)
    assert people.names == tuple(f"person_{p}" for p in range(6))
    expected = portraits(np.repeat(np.arange(6), 4), seed=1, side=22)
    for label in range(6):
        own = people.images[people.labels == label]
        theirs = expected[4 * label : 4 * label + 4]
        assert sorted(x.tobytes() for x in own) == sorted(x.tobytes() for x in theirs)


def test_folder_skips_and_names_what_is_no_image(folder, capsys):
    (folder / "nobody").mkdir()
    whole = (folder / "person_2" / "8.png").read_bytes()
    (folder / "person_2" / "8.png").write_bytes(whole[: len(whole) // 2])
    (folder / "person_0" / "notes.txt").write_text("not an image")
    people = face_files.read_people(folder, 22, 0.2)
    assert np.bincount(people.labels).tolist() == [4, 4, 3, 4, 4, 4]
    said = capsys.readouterr().out
    assert "Skipped 1 people without a file. They are: nobody." in said
    assert "Skipped 2 files" in said
    assert "person_2/8.png" in said
    with pytest.raises(BadInputError, match="2 of 25 files"):
        face_files.read_people(folder, 22, 0.05)


def test_official_images_are_cut_to_the_face(tmp_path):
    image = np.zeros((250, 250, 3), "uint8")
    image[61:189, 61:189] = 200
    PIL.fromarray(image).save(tmp_path / "a.png")
    assert np.asarray(face_files._open(tmp_path / "a.png")).min() == 200


@pytest.fixture
def official(tmp_path):
    """LFW as it is distributed: lists beside the folder of images."""
    root = tmp_path / "official"
    labels = np.repeat(np.arange(6), 2)
    for number, image in enumerate(portraits(labels)):
        person = root / "lfw" / f"P_{labels[number]}"
        person.mkdir(parents=True, exist_ok=True)
        name = f"{person.name}_{number % 2 + 1:04d}.jpg"
        PIL.fromarray(image).save(person / name, quality=95)
    halves = ["P_0\t1\t2\nP_1\t1\t2\n", "P_0\t1\tP_1\t2\nP_1\t1\tP_2\t2\n"]
    (root / "pairs.txt").write_text("2\t2\n" + 2 * "".join(halves))
    (root / "pairsDevTest.txt").write_text("2\n" + "".join(halves))
    (root / "peopleDevTrain.txt").write_text("3\nP_3\t2\nP_4\t2\nP_5\t1\n")
    return root


def test_official_lists_give_pairs_and_people(official):
    pairs, nobody = face_files.read_lfw(official, development=False)
    assert nobody is None
    assert pairs.same.tolist() == 2 * [True, True, False, False]
    assert pairs.folds.tolist() == [0] * 4 + [1] * 4
    assert pairs.images.shape == (5, SIDE, SIDE, 3)
    first, second = pairs.images[pairs.pairs[2]].astype(int)
    clean = portraits(np.repeat(np.arange(6), 2)).astype(int)
    assert abs(first - clean[0]).mean() < 40 < abs(first - clean[3]).mean()
    assert abs(second - clean[3]).mean() < 40
    pairs, people = face_files.read_lfw(official, development=True)
    assert pairs.folds is None
    assert pairs.same.tolist() == [True, True, False, False]
    assert people.names == ("P_3", "P_4", "P_5")
    assert people.labels.tolist() == [0, 0, 1, 1, 2]


def spoil_pairs(arrays):
    arrays["pairs_dev_test"][3, 1] = 120


def spoil_type(arrays):
    arrays["images"] = arrays["images"].astype("float32")


def spoil_labels(arrays):
    arrays["labels"] = arrays["labels"] + 1


def spoil_columns(arrays):
    arrays["pairs_dev_test"] = arrays["pairs_dev_test"][:, :2]


def spoil_kinds(arrays):
    arrays["pairs_dev_test"][:, 2] = 1


def spoil_numbers(arrays):
    arrays["pairs_dev_test"] = arrays["pairs_dev_test"] + 0.5


def spoil_parts(arrays):
    arrays["pairs_dev_test"][0, :2] = 3, 4  # of Name_01, who is trained on


def spoil_split(arrays):
    arrays["person_dev_split"] = arrays["person_dev_split"][:-1]


def spoil_array(arrays):
    del arrays["person_dev_split"]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_pairs, "point past the 120 images"),
        (spoil_type, "must be uint8"),
        (spoil_labels, "do not fit"),
        (spoil_columns, "in 3 columns"),
        (spoil_kinds, "at least two of them each. There are 0 and 20 of 20"),
        (spoil_numbers, "must be whole numbers"),
        (spoil_parts, "shows people of DevTrain, who are trained on: Name_01"),
        (spoil_split, "does not fit its people"),
        (spoil_array, "has no array 'person_dev_split'"),
    ],
)
def test_spoilt_files_end_with_one_message(lfw, run, tmp_path, spoil, message):
    with np.load(lfw) as file:
        arrays = dict(file)
    spoil(arrays)
    np.savez(lfw, **arrays)
    code, said = run("--lfw", lfw, "--held-out", "5")
    assert code == 2
    assert message in said.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--held-out", "0"], "threshold from held-out people"),
        (["--held-out", "0", "--score-held-out"], "from held-out people"),
        (["--held-out", "19"], "between 2 and 18"),
        (["--held-out", "5", "--crop", "19"], "between 1 and 18"),
        (["--held-out", "5", "--min-images", "4"], "Lower --min-images"),
        (["--held-out", "5", "--dropout", "1"], "--dropout must be below 1"),
        (["--held-out", "5", "--train", "nowhere"], "neither a folder nor a file"),
        (["--held-out", "5", "--train", "."], "there must be one for each person"),
    ],
)
def test_wrong_flags_end_with_one_message(
    lfw, run, tmp_path, monkeypatch, flags, message
):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    code, said = run("--lfw", lfw, *flags)
    assert code == 2
    assert message in said.err


def test_truncated_and_missing_lfw(lfw, run, official, tmp_path):
    lfw.write_bytes(lfw.read_bytes()[:5000])
    assert "truncated" in run("--lfw", lfw)[1].err
    assert "pairs.txt" in run("--lfw", tmp_path / "none.npz")[1].err
    (official / "pairsDevTest.txt").unlink()
    assert "pairsDevTest.txt cannot be read" in run("--lfw", official)[1].err


def test_lists_that_are_none(official, run):
    (official / "pairsDevTest.txt").write_text("a list of something else\n")
    code, said = run("--lfw", official)
    assert code == 2
    assert "no list of pairs" in said.err
    (official / "pairsDevTest.txt").write_text("1\nP_0\t1\t9\n")
    code, said = run("--lfw", official)
    assert code == 2
    assert "P_0_0009.jpg" in said.err


def test_features_that_are_not_finite_are_scored_as_chance():
    found = FACES.score(None, SimpleNamespace(held_out=None), {"test": None})
    assert found == {"diverged": True, "accuracy": 0.5}
