"""How `reliability/` runs the suite under other versions."""

import json
import sys

import keras
import pytest
from tensors import only_once

from reliability import compatibility


def run(folder, test):
    (folder / "test_it.py").write_text(test)
    cell = f"{keras.backend.backend()}:{sys.executable}"
    flags = ["--tests", str(folder / "test_it.py"), "--result", str(folder / "r.json")]
    failed = compatibility.main([cell, *flags])
    return failed, json.loads((folder / "r.json").read_text())


@only_once
@pytest.mark.slow
def test_a_suite_that_fails_is_told(tmp_path):
    failed, result = run(tmp_path, "def test_one(): pass\ndef test_two(): assert 0")
    assert failed == result["failed"] == 1
    assert "test_two" in result["failures"][0]
    [cell] = result["details"]
    assert (cell["passed"], cell["failed"]) == (1, 1)
    assert cell["keras"] == keras.__version__


@only_once
@pytest.mark.slow
def test_a_suite_that_does_not_start_is_told(tmp_path):
    failed, _ = run(tmp_path, "import what_there_is_not")
    assert failed


def test_cells_without_an_interpreter_are_refused(capsys):
    with pytest.raises(SystemExit):
        compatibility.main(["jax"])
    assert "a cell is backend:interpreter" in capsys.readouterr().err
