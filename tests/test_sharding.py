"""Classes cut over devices, in processes that have several of them."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import keras
import pytest
from distribute_page import small_program

import keras_pedcc

FOLDER = pathlib.Path(__file__).parent
on_jax = pytest.mark.skipif(
    keras.backend.backend() != "jax", reason="Keras cuts weights on JAX alone"
)


def with_devices(number):
    flags = os.environ.get("XLA_FLAGS", "")
    return f"{flags} --xla_force_host_platform_device_count={number}"


@on_jax
@pytest.mark.slow
def test_on_four_devices():
    command = [sys.executable, "-m", "pytest", "-q", str(FOLDER / "four_devices.py")]
    done = subprocess.run(
        command,
        env=os.environ | {"XLA_FLAGS": with_devices(4), "JAX_PLATFORMS": "cpu"},
        cwd=FOLDER.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def free_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def together(program, folder, *arguments, number=2):
    """Runs a program in `number` processes that train together."""
    address = f"127.0.0.1:{free_port()}"
    runs = []
    for rank in range(number):
        environment = os.environ | {
            "KERAS_DISTRIBUTION_JOB_ADDRESSES": address,
            "KERAS_DISTRIBUTION_NUM_PROCESSES": str(number),
            "KERAS_DISTRIBUTION_PROCESS_ID": str(rank),
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": with_devices(1),
        }
        with (folder / f"{rank}.log").open("w") as log:
            runs.append(
                subprocess.Popen(
                    [sys.executable, str(program), *arguments],
                    env=environment,
                    cwd=folder,
                    stdout=log,
                    stderr=log,
                )
            )
    try:
        codes = [run.wait(timeout=300) for run in runs]
    finally:
        for run in runs:
            run.kill()
    logs = [(folder / f"{rank}.log").read_text() for rank in range(number)]
    assert codes == [0] * number, "\n".join(logs)


def trained(kind, folder, number=2):
    """What each process leaves."""
    folder = folder / kind
    folder.mkdir()
    together(FOLDER / "two_processes.py", folder, kind, str(folder), number=number)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(number)]


@on_jax
@pytest.mark.slow
def test_two_processes_are_one(tmp_path):
    [alone] = trained("alone", tmp_path, 1)
    for kind, rows in {"both": [20], "classes": [20], "batch": [40]}.items():
        both = trained(kind, tmp_path)
        assert [each.pop("rows") for each in both] == [rows, rows]
        assert both[0]["loss"] == both[1]["loss"]
        for name in ("loss", "accuracy", "evaluated"):
            assert both[0][name] == pytest.approx(alone[name], rel=1e-5)
        assert both[0]["nearest"] == alone["nearest"]


@on_jax
@pytest.mark.slow
def test_program_of_the_page_runs_in_two_processes(tmp_path):
    program = tmp_path / "train.py"
    program.write_text(small_program())
    together(program, tmp_path)
    for rank in range(2):
        model = keras.saving.load_model(tmp_path / f"many_{rank}.keras")
        assert model.get_layer("head").centroids.shape == (64, 16)


@pytest.mark.skipif(keras.backend.backend() == "jax", reason="what others are told")
def test_class_parallel_needs_jax():
    with pytest.raises(RuntimeError, match="needs the JAX backend"):
        keras_pedcc.class_parallel()
