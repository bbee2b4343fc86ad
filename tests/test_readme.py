import json
import pathlib
import re
import subprocess
import sys

import keras
import pytest

import keras_pedcc

ROOT = pathlib.Path(__file__).parents[1]


def test_python_blocks_of_the_readme_run(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "README.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) >= 2
    scope = {}
    for block in blocks:
        exec(block, scope)
    promised = re.findall(r"^# (\{.*|[\d. ]+)$", "\n".join(blocks), re.MULTILINE)
    assert len(promised) == 3
    printed = capsys.readouterr().out
    assert all(line in printed for line in promised)


@pytest.mark.slow
def test_digits_example_runs_and_writes_everything(tmp_path):
    command = [sys.executable, str(ROOT / "examples" / "digits.py"), "--smoke"]
    command += ["--verbose", "2", "--output-dir", str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "PEDCC-Loss minus cross entropy" in run.stdout
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["environment"]["backend"] == keras.backend.backend()
    assert len(result["runs"]["PEDCC-Loss"]) == 2
    for name in ("features.png", "accuracy.png"):
        assert (tmp_path / name).stat().st_size > 10_000
    model = keras.saving.load_model(tmp_path / "pedcc.keras")
    assert model.layers[-1].trainable


@pytest.mark.slow
def test_centroids_example_runs_and_writes_everything(tmp_path):
    command = [sys.executable, str(ROOT / "examples" / "centroids.py")]
    command += ["--num-classes", "30", "--dim", "12", "--output-dir", str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "largest_cosine_bound" in run.stdout
    assert (tmp_path / "centroids.png").stat().st_size > 10_000
    assert keras_pedcc.load_centroids(tmp_path / "centroids.npz").shape == (30, 12)


@pytest.mark.skipif(keras.backend.backend() != "jax", reason="what JAX users get")
def test_import_on_jax_brings_no_tensorflow():
    code = "import sys, keras, keras_pedcc; print(*sys.modules)"
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert "keras_pedcc.losses" in run.stdout.split()
    assert "tensorflow" not in run.stdout.split()
