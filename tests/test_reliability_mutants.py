import pathlib
import subprocess
import sys

import pytest
from tensors import only_once

import keras_pedcc
from reliability import mutants

PACKAGE = pathlib.Path(keras_pedcc.__file__).parent
SCRIPT = pathlib.Path(mutants.__file__)


@pytest.mark.parametrize("fault", mutants.load_faults(), ids=mutants.title)
def test_fault_can_be_put_into_the_package(fault):
    source = (PACKAGE / fault["file"]).read_text()
    assert mutants.broken(source, fault) != source
    compile(mutants.broken(source, fault), fault["file"], "exec")


@pytest.mark.parametrize("fault", mutants.load_faults(), ids=mutants.title)
def test_tests_of_a_fault_are_there(fault):
    for name in fault["tests"]:
        file, _, function = name.partition("::")
        assert f"def {function}" in pathlib.Path(__file__).with_name(file).read_text()


def test_fault_that_fits_nowhere_is_refused():
    fault = {"file": "labels.py", "old": "no such text", "new": ""}
    with pytest.raises(ValueError, match=r"must occur once\. Received: 0 times"):
        mutants.broken("text", fault)


def test_every_module_has_a_fault():
    modules = {str(p.relative_to(PACKAGE)) for p in PACKAGE.rglob("*.py")}
    broken = {fault["file"] for fault in mutants.load_faults()}
    # Names alone; and what runs on several devices of JAX only.
    left = {each for each in modules - broken if not each.endswith("__init__.py")}
    assert left == {"scores/sharding.py"}


@only_once
@pytest.mark.slow
def test_three_faults_are_caught():
    # In a process of its own: those that run the tests are forked from it.
    command = [sys.executable, str(SCRIPT), "--only", "quality.py"]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert "put into the package: 0 of 3 failed" in run.stdout
