import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import pytest

# Keras and its backend are imported below: with `-n` the first process only hands out
# tests, and would import them for nothing.


def pytest_configure(config):
    """Two devices for MirroredStrategy, which must be set before anything else runs."""
    if config.getoption("numprocesses", None):
        return
    import keras

    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        tf.config.set_logical_device_configuration(
            tf.config.list_physical_devices("CPU")[0],
            [tf.config.LogicalDeviceConfiguration()] * 2,
        )
    keras.utils.set_random_seed(0)


@pytest.fixture(autouse=True)
def _fresh(tmp_path_factory, monkeypatch):
    """The same draws, float32 and an empty cache for every test."""
    import keras
    from tensors import draw_alike

    draw_alike(0)
    monkeypatch.setenv("KERAS_PEDCC_CACHE", str(tmp_path_factory.getbasetemp() / "c"))
    yield
    keras.mixed_precision.set_global_policy("float32")


@pytest.fixture(scope="session")
def two_replicas():
    # One for all tests: a second one in a process takes the first one's keys for
    # its collectives, and TensorFlow aborts.
    import tensorflow as tf

    assert len(tf.config.list_logical_devices("CPU")) == 2  # or it waits for ever
    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])


@pytest.fixture
def rng():
    import numpy as np

    return np.random.default_rng(0)
