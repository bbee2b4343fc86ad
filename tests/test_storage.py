import contextlib
import multiprocessing
import os
import pathlib

import keras
import numpy as np
import pytest
from tensors import only_once

import keras_pedcc
from keras_pedcc import generate_pedcc, load_centroids, save_centroids
from keras_pedcc.centroids import files as storage


def numpy_of(tensor):
    return keras.ops.convert_to_numpy(tensor)


@pytest.fixture
def kept(monkeypatch, tmp_path):
    """An empty cache that keeps whatever is made."""
    monkeypatch.setenv("KERAS_PEDCC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(storage, "WORTH_KEEPING", 0.0)
    return tmp_path / "cache"


@pytest.mark.parametrize("name", ["c.npy", "c.npz"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_centroids_come_back_as_saved(tmp_path, name, dtype):
    centroids = generate_pedcc(20, 16, dtype=dtype)
    save_centroids(tmp_path / name, centroids)
    loaded = load_centroids(tmp_path / name)
    expected = numpy_of(keras.ops.cast(centroids, "float32"))
    np.testing.assert_array_equal(loaded.astype("float32"), expected)
    head = keras_pedcc.PEDCCDense(20, centroids=loaded)
    head.build((None, 16))
    np.testing.assert_allclose(numpy_of(head.centroids), expected, atol=2e-3)
    assert os.listdir(tmp_path) == [name]


@pytest.mark.parametrize("name", ["c.npy", "c.npz"])
def test_damaged_files_are_refused(tmp_path, name, rng):
    path = tmp_path / name
    save_centroids(path, generate_pedcc(20, 16))
    whole = path.read_bytes()
    damaged = [whole[: len(whole) // 2], b"", b"not centroids"]
    if name == "c.npz":
        # `.npy` has no checksum: a changed bit there is another number.
        for at in rng.integers(0, len(whole), 60):
            damaged.append(whole[:at] + bytes([whole[at] ^ 255]) + whole[at + 1 :])
    for data in damaged:
        path.write_bytes(data)
        loaded = None
        with contextlib.suppress(ValueError):
            loaded = load_centroids(path)
        if loaded is not None:  # a byte that means nothing, as a date in the archive
            assert name == "c.npz"
            np.testing.assert_array_equal(loaded, numpy_of(generate_pedcc(20, 16)))
    path.write_bytes(whole[:99])
    with pytest.raises(ValueError, match="`path` must be a file of"):
        load_centroids(path)


def test_array_of_another_checksum_is_refused(tmp_path):
    path = tmp_path / "c.npz"
    save_centroids(path, np.eye(3))
    with np.load(path) as file:
        np.savez(path, centroids=2 * np.eye(3), sha256=file["sha256"])
    with pytest.raises(ValueError, match=r"checksum does not match.* Save it again"):
        load_centroids(path)


@pytest.mark.parametrize(("name", "function"), [("c.npy", "save"), ("c.npz", "savez")])
def test_interrupted_save_leaves_the_old_file(tmp_path, monkeypatch, name, function):
    def interrupted(file, *args, **kwargs):
        file.write(b"half")
        raise KeyboardInterrupt

    save_centroids(tmp_path / name, np.eye(3))
    monkeypatch.setattr(np, function, interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_centroids(tmp_path / name, 2 * np.eye(3))
    np.testing.assert_array_equal(load_centroids(tmp_path / name), np.eye(3))
    assert os.listdir(tmp_path) == [name]


def test_what_is_no_centroids_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"`path` must end in .npy or .npz"):
        save_centroids(tmp_path / "c.txt", np.eye(3))
    with pytest.raises(ValueError, match="must be finite"):
        save_centroids(tmp_path / "c.npy", np.zeros((3, 3)))
    np.save(tmp_path / "c.npy", np.ones(3))
    with pytest.raises(ValueError, match="must have shape"):
        load_centroids(tmp_path / "c.npy")
    np.save(tmp_path / "c.npy", np.array([None, 1]), allow_pickle=True)
    with pytest.raises(ValueError, match="cannot be read"):
        load_centroids(tmp_path / "c.npy")
    with pytest.raises(FileNotFoundError):
        load_centroids(tmp_path / "missing.npy")


def test_descents_are_made_once(kept, monkeypatch):
    made = numpy_of(generate_pedcc(30, 8))
    assert len(list(kept.iterdir())) == 1
    monkeypatch.setattr("keras_pedcc.centroids.generate.maximize_angle", None)
    np.testing.assert_array_equal(numpy_of(generate_pedcc(30, 8)), made)
    with pytest.raises(TypeError, match="not callable"):
        generate_pedcc(30, 8, cache=False)
    with pytest.raises(TypeError, match="not callable"):
        generate_pedcc(30, 8, seed=1)


def test_quick_descents_and_closed_forms_are_not_kept(kept, monkeypatch):
    generate_pedcc(9, 8)
    generate_pedcc(30, 8, seconds=5.0, steps=50)
    monkeypatch.setattr(storage, "WORTH_KEEPING", 1e9)
    generate_pedcc(30, 8, steps=50)
    assert not kept.exists()


@pytest.mark.parametrize("how", ["bit", "half", "empty", "version"])
def test_damaged_and_old_cache_files_are_made_again(kept, monkeypatch, how):
    made = numpy_of(generate_pedcc(30, 8, steps=50))
    (path,) = kept.iterdir()
    data = path.read_bytes()
    middle = len(data) // 2
    path.write_bytes(
        {
            "bit": data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :],
            "half": data[:middle],
            "empty": b"",
            "version": data,
        }[how]
    )
    if how == "version":
        monkeypatch.setattr(storage, "VERSION", 2)
    with pytest.warns(UserWarning, match="not used and made again"):
        again = numpy_of(generate_pedcc(30, 8, steps=50))
    np.testing.assert_array_equal(again, made)
    np.testing.assert_array_equal(numpy_of(generate_pedcc(30, 8, steps=50)), made)


def test_interrupted_write_leaves_nothing(kept, monkeypatch):
    def interrupted(*args, **kwargs):
        args[0].write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez", interrupted)
    with pytest.raises(KeyboardInterrupt):
        generate_pedcc(30, 8, steps=50)
    assert list(kept.iterdir()) == []


def test_cache_that_cannot_be_written_is_no_error(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("KERAS_PEDCC_CACHE", str(tmp_path / "file" / "cache"))
    monkeypatch.setattr(storage, "WORTH_KEEPING", 0.0)
    with pytest.warns(UserWarning, match="are not kept in the cache"):
        generate_pedcc(30, 8, steps=50)


def test_cache_folder_is_the_users(monkeypatch):
    monkeypatch.delenv("KERAS_PEDCC_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert storage.cache_folder() == pathlib.Path("/somewhere/keras_pedcc")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert storage.cache_folder() == pathlib.Path.home() / ".cache" / "keras_pedcc"


def _make(folder, queue):
    os.environ["KERAS_PEDCC_CACHE"] = folder
    storage.WORTH_KEEPING = 0.0
    queue.put(numpy_of(generate_pedcc(40, 8, steps=200)).tobytes())


@only_once
@pytest.mark.slow
def test_processes_that_start_together_agree(tmp_path):
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    processes = [
        context.Process(target=_make, args=(str(tmp_path), queue)) for _ in range(3)
    ]
    for process in processes:
        process.start()
    results = {queue.get(timeout=240) for _ in processes}
    for process in processes:
        process.join()
    assert len(results) == 1
    assert [path.suffix for path in tmp_path.iterdir()] == [".npz"]
