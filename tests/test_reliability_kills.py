"""The kills of `reliability/`, a few of them."""

import json

import keras
import pytest

from reliability import kills

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        keras.backend.backend() == "torch", reason="long; two backends will do"
    ),
]


@pytest.mark.parametrize("of", ["training", "files"])
def test_kills_do_no_harm(of, tmp_path):
    path = tmp_path / "result.json"
    flags = ["--of", of, "--kills", "2", "--images", "200", "--result", str(path)]
    assert kills.main(flags) == 0
    assert json.loads(path.read_text())["tried"] == 2


def test_half_a_file_is_told(tmp_path):
    record = kills.Record("", "")
    (tmp_path / "backup.npz").write_bytes(b"PK half")
    (tmp_path / "backup.unfinished").write_bytes(b"PK half")
    (tmp_path / "history.csv").write_text("epoch,loss\n0,1.5\n1\n")
    kills.look_at(tmp_path, record)
    assert len(record.failures) == 2
