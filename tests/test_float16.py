"""Every loss trains under the policies of float16."""

import keras
import numpy as np
import pytest
from tensors import numpy_of

import keras_pedcc
from keras_pedcc import CenterDense, CosineDense, PEDCCDense, ProductDense

NORMED = {"return_norm": True}
# With the learning rate; what takes the length of features has larger gradients.
CASES = [
    (PEDCCDense, {}, keras_pedcc.PEDCCLoss(), 0.05),
    (PEDCCDense, {}, keras_pedcc.PEDCCLoss(mse_root=2), 0.05),
    (CosineDense, {}, keras_pedcc.AMSoftmaxLoss(scale=64.0), 0.05),
    (CosineDense, {}, keras_pedcc.ArcFaceLoss(), 0.05),
    (CosineDense, NORMED, keras_pedcc.ASoftmaxLoss(), 1e-4),
    (CosineDense, NORMED, keras_pedcc.AdaFaceLoss(), 0.05),
    (ProductDense, {}, keras_pedcc.LSoftmaxLoss(), 1e-5),
    (CenterDense, {}, keras_pedcc.CenterLoss(), 1e-5),
    (CosineDense, {}, keras_pedcc.HingeLoss(), 0.05),
    (CosineDense, {}, keras_pedcc.NTCELoss(), 0.05),
    (CosineDense, {}, keras_pedcc.NONLLoss(), 0.05),
]


@pytest.mark.parametrize("policy", ["mixed_float16", "float16"])
@pytest.mark.parametrize(
    ("head", "arguments", "loss", "rate"),
    CASES,
    ids=[type(loss).__name__ for _, _, loss, _ in CASES],
)
def test_training_stays_finite(rng, head, arguments, loss, rate, policy):
    keras.mixed_precision.set_global_policy(policy)
    inputs = keras.Input((8,))
    outputs = head(3, **arguments)(keras.layers.Dense(16)(inputs))
    model = keras_pedcc.PEDCCModel(inputs, outputs)
    eager = keras.backend.backend() == "tensorflow"  # which traces for long
    model.compile(keras.optimizers.SGD(rate), loss, run_eagerly=eager)
    # The squared length of such features is out of range.
    x, y = 100 * rng.standard_normal((24, 8)), np.arange(24) % 3
    # The first steps of mixed precision overflow, and are left out.
    steps = 12 if policy == "mixed_float16" else 3
    found = [model.train_on_batch(x, y) for _ in range(steps)]
    assert np.isfinite(found).all()
    assert found[-1] < found[0]
    assert all(np.isfinite(numpy_of(weight)).all() for weight in model.weights)
