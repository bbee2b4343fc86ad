import pathlib
import subprocess
import sys

import pytest
from tensors import only_once

import keras_pedcc
from reliability import mutants

PACKAGE = pathlib.Path(keras_pedcc.__file__).parent
SCRIPT = pathlib.Path(mutants.__file__)
TESTS = pathlib.Path(__file__).parent


def test_every_fault_says_where_it_goes_and_what_catches_it():
    for fault in mutants.load_faults():
        assert {"file", "old", "new", "what", "tests"} <= fault.keys()
        for name in fault["tests"]:
            assert (TESTS / name.split("::")[0]).is_file(), name


def test_fault_that_fits_nowhere_is_refused():
    fault = {"file": "labels.py", "old": "no such text", "new": ""}
    with pytest.raises(ValueError, match=r"must occur once\. Received: 0 times"):
        mutants.broken("text", fault)


@only_once
@pytest.mark.slow
def test_three_faults_are_caught():
    # In a process of its own: those that run the tests are forked from it.
    command = [sys.executable, str(SCRIPT), "--only", "quality.py"]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert "put into the package: 0 of 3 failed" in run.stdout
