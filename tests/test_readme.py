import json
import subprocess
import sys

import keras
import pages
import pytest

import keras_pedcc


@pytest.mark.skipif(
    keras.backend.backend() == "jax", reason="long; two backends will do"
)
def test_quickstart_finds_digits_of_a_new_network_in_the_old_index(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    scope = pages.run(pages.ROOT / "README.md")
    found = scope["y"][scope["nearest"]] == scope["y_test"]
    assert found.mean() > 0.95  # the README says 97 to 98 %


@pytest.mark.slow
def test_digits_example_runs_and_writes_everything(tmp_path):
    command = [sys.executable, str(pages.ROOT / "examples" / "digits.py"), "--smoke"]
    command += ["--verbose", "2", "--output-dir", str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "PEDCC-Loss minus cross entropy" in run.stdout
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["environment"]["backend"] == keras.backend.backend()
    assert len(result["runs"]["PEDCC-Loss"]) == 2
    for name in ("features.png", "accuracy.png"):
        assert (tmp_path / name).stat().st_size > 10_000
    model = keras.saving.load_model(tmp_path / "pedcc.keras")
    assert model.layers[-1].trained


@pytest.mark.slow
def test_centroids_example_runs_and_writes_everything(tmp_path):
    command = [sys.executable, str(pages.ROOT / "examples" / "centroids.py")]
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
