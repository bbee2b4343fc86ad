import doctest
import importlib

import keras
import numpy as np
import pytest

import keras_pedcc

MODULES = [
    "assignment",
    "backup",
    "callbacks",
    "centroids",
    "embedding",
    "functional",
    "heads",
    "cosine_dense",
    "pedcc_dense",
    "kerdock_dense",
    "loading",
    "losses.center",
    "losses.hinge",
    "losses.margin",
    "losses.multiple_angle",
    "losses.pedcc",
    "metrics",
    "models",
    "prediction",
    "report",
    "retrieval",
    "storage",
    "verification",
    "warmup",
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_are_true(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(f"keras_pedcc.{name}")
    inputs = keras.Input((8,))
    head = keras_pedcc.PEDCCDense(10)
    model = keras_pedcc.PEDCCModel(inputs, head(keras.layers.Dense(64)(inputs)))
    model.compile("sgd", keras_pedcc.PEDCCLoss())
    known = {"keras": keras, "keras_pedcc": keras_pedcc, "model": model, "np": np}
    known |= {"x": np.ones((20, 8)), "y": np.arange(20) % 10}
    results = doctest.testmod(module, extraglobs=known)
    assert results.attempted > 0
    assert results.failed == 0
