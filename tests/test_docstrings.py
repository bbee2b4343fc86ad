import doctest
import importlib
import pathlib
import re

import keras
import numpy as np
import pytest

import keras_pedcc

PACKAGE = pathlib.Path(keras_pedcc.__file__).parent
MODULES = sorted(
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
    for path in PACKAGE.rglob("*.py")
    if re.search(r">>> (?!.*SKIP)", path.read_text())
)


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_are_true(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(name)
    inputs = keras.Input((8,))
    head = keras_pedcc.PEDCCDense(10)
    model = keras_pedcc.PEDCCModel(inputs, head(keras.layers.Dense(64)(inputs)))
    model.compile("sgd", keras_pedcc.PEDCCLoss())
    known = {"keras": keras, "keras_pedcc": keras_pedcc, "model": model, "np": np}
    known |= {"x": np.ones((20, 8)), "y": np.arange(20) % 10}
    results = doctest.testmod(module, extraglobs=known)
    assert results.attempted > 0
    assert results.failed == 0
