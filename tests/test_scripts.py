"""`--help` of every script: quick, because it ends before Keras is imported."""

import os
import pathlib
import subprocess
import sys

import pytest
from tensors import only_once

ROOT = pathlib.Path(__file__).parents[1]
FOLDERS = ("examples", "benchmarks", "experiments", "reliability")
SCRIPTS = [
    path.relative_to(ROOT).as_posix()
    for folder in FOLDERS
    for path in sorted((ROOT / folder).glob("*.py"))
    if "__main__" in path.read_text()
]
SLOW_TO_IMPORT = ("jax", "keras", "tensorflow", "torch")


@pytest.fixture(scope="module")
def without_keras(tmp_path_factory):
    """Folder whose modules stand in for Keras and its backends, and end the program."""
    folder = tmp_path_factory.mktemp("stand_ins")
    for name in SLOW_TO_IMPORT:
        (folder / f"{name}.py").write_text(f'raise SystemExit("imports {name}")')
    return folder


@only_once
@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS)
def test_help_needs_no_keras(script, without_keras):
    path = os.pathsep.join(map(str, (without_keras, ROOT)))
    command = [sys.executable, str(ROOT / script), "--help"]
    done = subprocess.run(
        command,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.startswith(f"usage: {pathlib.Path(script).name}")
