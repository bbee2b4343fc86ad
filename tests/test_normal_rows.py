"""The initial centroids of `CosineDense`, drawn by blocks of rows on JAX."""

import os
import subprocess
import sys

import keras
import numpy as np
import pytest
from tensors import numpy_of

from keras_pedcc import CosineDense
from keras_pedcc.layers import normal_rows

on_jax = pytest.mark.skipif(
    keras.backend.backend() != "jax", reason="elsewhere Keras draws"
)
GROWTH = """
import pathlib, re
import keras, keras_pedcc
def memory(name):
    status = pathlib.Path("/proc/self/status").read_text()
    return int(re.search(rf"{name}:\\s+(\\d+) kB", status)[1]) * 1024
keras_pedcc.CosineDense(5_000).build((None, 256))  # what comes once
pathlib.Path("/proc/self/clear_refs").write_text("5")
before = memory("VmRSS")
head = keras_pedcc.CosineDense(150_000)
head.build((None, 256))
keras.ops.convert_to_numpy(head.centroids[:1])  # waits for it
print((memory("VmHWM") - before) / (150_000 * 256 * 4))
"""


def rows_of(number, initializer="random_normal", **options):
    head = CosineDense(number, kernel_initializer=initializer, **options)
    head.build((None, 500))
    return numpy_of(head.centroids).astype("float32")


@on_jax
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rows_by_blocks_are_normal_and_differ(monkeypatch, dtype):
    monkeypatch.setattr(normal_rows, "BLOCK_ROWS", 4)
    normal = keras.initializers.RandomNormal(2.0, 0.5, seed=3)
    rows = rows_of(10, normal, dtype=dtype)  # the last block overlaps
    np.testing.assert_allclose(rows.mean(axis=1), 2, atol=0.1)
    np.testing.assert_allclose(rows.std(axis=1), 0.5, atol=0.1)
    assert np.abs(np.corrcoef(rows) - np.eye(10)).max() < 0.2
    np.testing.assert_array_equal(rows, rows_of(10, normal, dtype=dtype))
    other = keras.initializers.RandomNormal(2.0, 0.5, seed=4)
    assert (rows != rows_of(10, other, dtype=dtype)).mean() > 0.9


@on_jax
def test_rows_of_one_block_and_other_initializers_are_those_of_keras(monkeypatch):
    monkeypatch.setattr(normal_rows, "BLOCK_ROWS", 4)
    for initializer, number in (
        (keras.initializers.RandomNormal(seed=3), 4),
        (keras.initializers.GlorotNormal(seed=3), 10),
    ):
        right = numpy_of(initializer((number, 500), "float32"))
        np.testing.assert_array_equal(rows_of(number, initializer), right)


@on_jax
@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="needs Linux")
def test_drawing_takes_less_than_twice_the_weight():
    done = subprocess.run(
        [sys.executable, "-c", GROWTH], stdout=subprocess.PIPE, text=True, check=True
    )
    assert 0.9 < float(done.stdout) < 2
