"""The notebooks, as the scripts they are, and what they promise."""

import importlib.util
import json
import pathlib
import runpy
import shutil
import subprocess
import sys

import pytest
from tensors import only_once

FOLDER = pathlib.Path(__file__).parents[1] / "notebooks"
# What each shows with a number, by the names in its own code.
PROMISES = {
    "convert": lambda n: (
        n["accuracy"] > 0.95
        and n["gaps"]["predefined centroids"] > n["gaps"]["cross entropy"]
    ),
    "identify": lambda n: n["identified"] > n["by_pixels"].mean(),
    "imbalance": lambda n: (
        n["few_accuracy"]["trained"] > 0.8
        and n["tail_accuracy"]["trained, priors"] > 0.7
    ),
    "million": lambda n: min(n["right"].values()) > 0.8 and n["megabytes"] < 1,
    "upgrade": lambda n: (
        n["recalls"]["frozen centroids"][1] > 0.95
        and n["recalls"]["cross entropy"][1] < 0.4
        and n["found_after"] > n["found_before"] + 0.1
    ),
    "deploy": lambda n: (
        n["accuracy"] > 0.9
        and n["history"].epoch == [3, 4, 5, 6, 7]
        and n["difference"] < 1e-5
        and max(n["differences"].values()) < 1e-5
    ),
}


def test_every_notebook_has_a_promise():
    assert {path.stem for path in FOLDER.glob("*.py")} == set(PROMISES)


@only_once
@pytest.mark.slow
# Exporters warn about their own age, and TensorFlow of networks trained in turns.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", PROMISES)
def test_notebook_keeps_its_promise(name, tmp_path, monkeypatch):
    pyplot = pytest.importorskip("matplotlib.pyplot")
    pyplot.switch_backend("agg")
    monkeypatch.chdir(tmp_path)
    names = runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")
    pyplot.close("all")
    assert PROMISES[name](names)


@only_once
@pytest.mark.slow
@pytest.mark.skipif(
    not importlib.util.find_spec("jupytext"), reason="pip install jupytext"
)
def test_notebooks_convert(tmp_path):
    texts = [shutil.copy(FOLDER / f"{name}.py", tmp_path) for name in PROMISES]
    command = [sys.executable, "-m", "jupytext", "--quiet", "--to", "ipynb", *texts]
    subprocess.run(command, check=True)
    for name in PROMISES:
        cells = json.loads((tmp_path / f"{name}.ipynb").read_text())["cells"]
        title, install, *rest = cells
        assert title["source"][0].startswith("# ")
        assert install["source"][-1].startswith("%pip install")
        assert {each["cell_type"] for each in rest} == {"markdown", "code"}
