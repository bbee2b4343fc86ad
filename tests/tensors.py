"""What tests do with tensors: compare them, differentiate, and draw cosines."""

import random

import keras
import numpy as np
import pytest
from keras import ops

KINDS = ["random", "signs", "on_centroid", "opposite", "saturated"]

only_once = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow",
    reason="long, and next to the same whatever the backend",
)
# Tracing alone is quicker than compiling on TensorFlow; JAX would not compile at all.
NO_JIT = ["--no-jit"] if keras.backend.backend() == "tensorflow" else []
# For `compile`, where a few steps are not worth a trace, which TensorFlow makes anew
# for every model.
FEW_STEPS = {"run_eagerly": keras.backend.backend() == "tensorflow"}


def deep(cases, elsewhere):
    """All cases on TensorFlow; where another backend runs the same code, the first."""
    return cases if keras.backend.backend() == "tensorflow" else cases[:elsewhere]


def draw_alike(seed):
    """From here on, the same initial weights and whatever else Keras draws."""
    if keras.backend.backend() == "tensorflow":
        # Keras takes its seeds from Python. TensorFlow, given one too, would forget the
        # operations that it holds, and make them anew in every test.
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002
    else:
        keras.utils.set_random_seed(seed)


def numpy_of(tensor):
    return ops.convert_to_numpy(tensor)


def assert_allclose(actual, desired, rtol=1e-5, atol=0.0):
    np.testing.assert_allclose(numpy_of(actual), desired, rtol=rtol, atol=atol)


def gradient_of(function, array):
    """Gradient of the sum of `function(array)`, on any backend."""
    array = ops.convert_to_tensor(array)
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            tape.watch(array)
            total = ops.sum(function(array))
        return numpy_of(tape.gradient(total, array))
    if backend == "jax":
        import jax

        return numpy_of(jax.grad(lambda x: ops.sum(function(x)))(array))
    array = array.detach().requires_grad_()
    ops.sum(function(array)).backward()
    return numpy_of(array.grad)


def make_cosines(rng, num_classes, kind, batch=32):
    cosines = rng.uniform(-1, 1, (batch, num_classes)).astype("float32")
    labels = rng.integers(0, num_classes, batch)
    if kind == "signs":
        cosines = np.sign(cosines)
    if kind == "on_centroid":
        cosines[np.arange(batch), labels] = 1.0
    if kind == "opposite":
        cosines[np.arange(batch), labels] = -1.0
    if kind == "saturated":
        cosines = np.full_like(cosines, -1.0)
        cosines[np.arange(batch), labels] = 1.0
    return cosines, labels


def slope_of(function, array, step=1e-6):
    """Gradient of the sum of a float64 NumPy function, by central differences."""
    array = np.asarray(array, "float64")
    slope = np.zeros(array.shape)
    for at in np.ndindex(array.shape):
        up, down = array.copy(), array.copy()
        up[at] += step
        down[at] -= step
        slope[at] = (np.sum(function(up)) - np.sum(function(down))) / (2 * step)
    return slope
