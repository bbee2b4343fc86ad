"""Classes cut over devices, in processes that have several of them."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import keras
import pytest

import keras_pedcc

FOLDER = pathlib.Path(__file__).parent
on_jax = pytest.mark.skipif(
    keras.backend.backend() != "jax", reason="Keras cuts weights on JAX alone"
)


@on_jax
@pytest.mark.slow
def test_on_four_devices():
    flags = os.environ.get("XLA_FLAGS", "")
    flags += " --xla_force_host_platform_device_count=4"
    command = [sys.executable, "-m", "pytest", "-q", str(FOLDER / "four_devices.py")]
    done = subprocess.run(
        command,
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
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


def together(kind, folder, number=2):
    """What each of `number` processes that train together leaves."""
    folder = folder / kind
    folder.mkdir()
    address = f"127.0.0.1:{free_port()}"
    command = [sys.executable, str(FOLDER / "two_processes.py"), kind, str(folder)]
    runs = []
    for rank in range(number):
        environment = os.environ | {
            "KERAS_DISTRIBUTION_JOB_ADDRESSES": address,
            "KERAS_DISTRIBUTION_NUM_PROCESSES": str(number),
            "KERAS_DISTRIBUTION_PROCESS_ID": str(rank),
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": "",
        }
        with (folder / f"{rank}.log").open("w") as log:
            runs.append(
                subprocess.Popen(
                    command, env=environment, cwd=FOLDER.parent, stdout=log, stderr=log
                )
            )
    try:
        codes = [run.wait(timeout=300) for run in runs]
    finally:
        for run in runs:
            run.kill()
    logs = [(folder / f"{rank}.log").read_text() for rank in range(number)]
    assert codes == [0] * number, "\n".join(logs)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(number)]


@on_jax
@pytest.mark.slow
def test_two_processes_are_one(tmp_path):
    [alone] = together("alone", tmp_path, 1)
    for kind, rows in {"both": [20], "classes": [20], "batch": [40]}.items():
        both = together(kind, tmp_path)
        assert [each.pop("rows") for each in both] == [rows, rows]
        assert both[0]["loss"] == both[1]["loss"]
        for name in ("loss", "accuracy", "evaluated"):
            assert both[0][name] == pytest.approx(alone[name], rel=1e-5)
        assert both[0]["nearest"] == alone["nearest"]


@pytest.mark.skipif(keras.backend.backend() == "jax", reason="what others are told")
def test_class_parallel_needs_jax():
    with pytest.raises(RuntimeError, match="needs the JAX backend"):
        keras_pedcc.class_parallel()
