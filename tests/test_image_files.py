import pathlib

import numpy as np
import pytest
from tensors import only_once

from keras_pedcc import ClassBatches, ImageFiles

Image = pytest.importorskip("PIL.Image")
pytestmark = only_once


@pytest.fixture
def folder(tmp_path, rng):
    """Two classes of three images, one of them in a folder of its own."""
    for name in ("b/0.png", "b/1.PNG", "b/more/2.jpg", "a/3.bmp", "a/4.png", "a/5.gif"):
        path = tmp_path / "train" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.full((6, 4, 3), 10 * int(path.stem), "uint8")
        Image.fromarray(pixels).save(path)
    (tmp_path / "train" / "a" / "notes.txt").write_text("no image")
    (tmp_path / "train" / "a" / ".hidden.png").write_text("no image")
    (tmp_path / "train" / ".hidden").mkdir()
    return tmp_path / "train"


def test_folder_has_a_class_in_each_sub_folder(folder):
    files = ImageFiles.from_folder(folder, size=(6, 4))
    assert files.class_names == ["a", "b"]
    assert files.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert [pathlib.Path(path).stem for path in files.paths] == [*"345012"]
    images = files[:]
    assert images.shape == (6, 6, 4, 3)
    assert images.dtype == "float32"
    expected = [30, 40, 50, 0, 10, 20]
    np.testing.assert_allclose(images.mean(axis=(1, 2, 3)), expected, atol=1)
    assert files.unreadable() == []


def test_images_are_resized_and_of_one_color_mode(folder):
    files = ImageFiles.from_folder(folder, size=(3, 5), color_mode="grayscale")
    found = files[np.array([4, 1, 1])]
    assert found.shape == (3, 3, 5, 1)
    np.testing.assert_allclose(found[:, 0, 0, 0], [10, 40, 40], atol=1)
    np.testing.assert_array_equal(files[4], found[0])


def test_batches_read_their_files(folder):
    files = ImageFiles.from_folder(folder, size=(6, 4))
    images, labels = ClassBatches(files, files.labels, classes=2, samples=2)[0]
    assert images.shape == (4, 6, 4, 3)
    np.testing.assert_array_equal(images.mean(axis=(1, 2, 3)) < 25, labels == 1)


def test_table_gives_paths_and_labels(folder):
    pandas = pytest.importorskip("pandas")
    rows = {"file": ["b/0.png", "a/4.png"], "kind": [7, 3], "more": [0, 0]}
    for table in (rows, pandas.DataFrame(rows)):
        files = ImageFiles.from_table(
            table, paths="file", labels="kind", folder=folder, size=(6, 4)
        )
        assert files.class_names == ["3", "7"]
        assert files.labels.tolist() == [1, 0]
        np.testing.assert_allclose(files[:][:, 0, 0, 0], [0, 40])


def test_held_out_files_number_the_classes_as_the_others():
    held = ImageFiles(["x.png"], ["b"], size=(6, 4), class_names=["a", "b", "c"])
    assert held.labels.tolist() == [1]
    with pytest.raises(ValueError, match=r"labels of 1 other classes \['b'\]"):
        ImageFiles(["x.png"], ["b"], size=(6, 4), class_names=["a"])


def test_unreadable_images_are_counted_and_named(folder):
    (folder / "a" / "4.png").write_bytes((folder / "a" / "4.png").read_bytes()[:50])
    (folder / "b" / "0.png").write_text("no image")
    files = ImageFiles.from_folder(folder, size=(6, 4))
    with pytest.raises(ValueError, match=r"2 of 6 that cannot be read.*a/4\.png"):
        files[:]
    assert [pathlib.Path(path).name for path in files.unreadable()] == [
        "4.png",
        "0.png",
    ]
    assert files[[0, 2]].shape == (2, 6, 4, 3)


def test_folders_without_images_are_refused(folder):
    (folder / "c").mkdir()
    with pytest.raises(ValueError, match=r"3 sub-folders, 1 .*without images \['c'\]"):
        ImageFiles.from_folder(folder, size=(6, 4))
    with pytest.raises(ValueError, match="with 0 sub-folders"):
        ImageFiles.from_folder(folder / "c", size=(6, 4))
    with pytest.raises(ValueError, match="with 0 sub-folders"):
        ImageFiles.from_folder(folder / "nowhere", size=(6, 4))


def test_files_refuse_arguments():
    with pytest.raises(ValueError, match=r"\['file', 'label'\], without \['path'\]"):
        ImageFiles.from_table({"file": ["a"], "label": [0]}, size=(6, 4))
    with pytest.raises(ValueError, match=r"2 paths, labels.shape=\(1,\)"):
        ImageFiles(["a", "b"], ["x"], size=(6, 4))
    with pytest.raises(ValueError, match=r"1 that are missing, the first labels\[1\]"):
        ImageFiles(["a", "b"], [1.0, np.nan], size=(6, 4))
    with pytest.raises(ValueError, match=r"1 that are missing, the first labels\[0\]"):
        ImageFiles(["a", "b"], [None, "x"], size=(6, 4))
    with pytest.raises(ValueError, match=r"size=6\. Pass two whole"):
        ImageFiles(["a"], ["x"], size=6)
    with pytest.raises(TypeError, match="`width` must be a whole number"):
        ImageFiles(["a"], ["x"], size=(6, 4.5))
    with pytest.raises(ValueError, match="color_mode='bgr'"):
        ImageFiles(["a"], ["x"], size=(6, 4), color_mode="bgr")


def test_names_are_all_different_and_may_be_numbers(tmp_path):
    paths = [tmp_path / "a.png", tmp_path / "b.png"]
    with pytest.raises(ValueError, match="`class_names` must be all different"):
        ImageFiles(paths, [0, 1], size=(4, 4), class_names=[0, 1, 0])
    files = ImageFiles(paths, [5, 3], size=(4, 4), class_names=[5, 3])
    assert files.labels.tolist() == [0, 1]
