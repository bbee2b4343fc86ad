import errno
import os

import pytest

from keras_pedcc.common import atomic


def test_file_has_what_was_written(tmp_path):
    path = tmp_path / "file.txt"
    for content in (b"first", b"second"):
        atomic.write_file(path, lambda file, content=content: file.write(content))
        assert path.read_bytes() == content
    assert os.listdir(tmp_path) == ["file.txt"]


def test_writers_of_one_file_leave_it_whole(tmp_path):
    path = tmp_path / "file.txt"

    def slow(file):
        file.write(b"half of")
        file.flush()
        atomic.write_file(path, lambda other: other.write(b"fast"))
        assert path.read_bytes() == b"fast"
        file.write(b" the slow one")

    atomic.write_file(path, slow)
    assert path.read_bytes() == b"half of the slow one"


def test_failed_write_leaves_the_old_file_alone(tmp_path):
    path = tmp_path / "file.txt"
    path.write_bytes(b"old")

    def fail(file):
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        atomic.write_file(path, fail)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file.txt"]


@pytest.mark.parametrize(("age", "left"), [(3700, False), (3500, True)])
def test_file_of_a_killed_process_is_deleted_after_an_hour(tmp_path, age, left):
    unfinished = tmp_path / f"other.npz.0123456789ab{atomic.UNFINISHED}"
    unfinished.write_bytes(b"half")
    before = unfinished.stat().st_mtime - age
    os.utime(unfinished, (before, before))
    atomic.write_file(tmp_path / "file.txt", lambda file: file.write(b"whole"))
    assert unfinished.exists() == left


def test_files_of_others_are_never_deleted(tmp_path):
    theirs = tmp_path / "model.unfinished"
    theirs.write_bytes(b"theirs")
    os.utime(theirs, (0, 0))
    atomic.write_file(tmp_path / "file.txt", lambda file: file.write(b"whole"))
    assert theirs.exists()
