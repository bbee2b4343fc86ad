import pathlib
import shutil
import sys

import numpy as np
import pytest
from tensors import only_once

from keras_pedcc.centroids import files as storage
from reliability import damaged_files


@pytest.fixture
def worked(tmp_path, monkeypatch):
    """Function: what becomes of so many damages of one kind, in this process."""
    monkeypatch.setattr(storage, "WORTH_KEEPING", storage.WORTH_KEEPING)

    def work(name, number):
        kind = damaged_files.KINDS[name]
        kind.make(tmp_path / kind.name)
        return list(damaged_files.work(kind, tmp_path, 0, number, 0))

    return work


@only_once
@pytest.mark.parametrize("name", ["centroids", "cache", "backup"])
def test_damage_is_refused_or_without_effect(worked, name):
    outcomes = [outcome for outcome, _ in worked(name, 42)]
    assert set(outcomes) == {"refused", "same"}


@only_once
def test_content_that_is_another_is_noticed(worked, monkeypatch):
    monkeypatch.setattr(storage, "_digest", lambda array: "always")
    monkeypatch.setattr("zipfile.ZipExtFile._update_crc", lambda *args: None)
    assert ["wrong", "another content"] in worked("centroids", 21)


def test_error_of_another_kind_is_noticed(monkeypatch):
    def load(path):
        raise UnicodeDecodeError("utf-8", b"x", 0, 1, "not ours")

    monkeypatch.setattr(damaged_files.keras_pedcc, "load_centroids", load)
    kind, path = damaged_files.KINDS["centroids"], pathlib.Path("c.npz")
    outcome, words = damaged_files.outcome_of(kind, path, "")
    assert outcome == "unclear"
    assert words.startswith("UnicodeDecodeError")


def test_process_that_dies_is_a_failure_and_started_again(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    outcomes = list(damaged_files.outcomes("centroids", tmp_path, 2, 0))
    assert outcomes == [["died", "exit status 1"]] * 2


def test_damage_follows_from_the_seed_and_changes_the_bytes():
    data = np.random.default_rng(0).bytes(3000)
    damages = [damaged_files.damage(data, 1, number) for number in range(28)]
    again = [damaged_files.damage(data, 1, number) for number in range(28)]
    assert damages == again
    assert data not in damages
    assert len(set(damages)) == 28


@only_once
@pytest.mark.slow
def test_script_tries_every_kind_of_file():
    record = damaged_files.main(["--damages", "3"])
    assert record.failures == []
    assert record.tried == 3 * (len(damaged_files.KINDS) - 1)
