"""How near loss and gradient are to float64 under `mixed_bfloat16`."""

import keras
import numpy as np
import pytest
from tensors import gradient_of, numpy_of

import keras_pedcc
from keras_pedcc import Blockwise, CosineDense, KerdockDense, PEDCCDense, Sampled

NUMBER, DIM, BATCH, SCALE, MARGIN = 10_000, 64, 12, 64.0, 0.2
FROZEN = {"centroids": "random"}
CASES = {
    "dense": (PEDCCDense, FROZEN | {"scores": "dense"}),
    "short centroids": (PEDCCDense, FROZEN | {"scores": "dense", "dtype": "bfloat16"}),
    "blocks": (PEDCCDense, FROZEN | {"scores": Blockwise(4096)}),
    "trained": (CosineDense, {"scores": Blockwise(4096)}),
    "every class drawn": (CosineDense, {"scores": Sampled(1.0)}),
    "kerdock": (KerdockDense, {"scores": "blockwise"}),
}


@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradient_of_short_features_are_near_float64(rng, case):
    keras.mixed_precision.set_global_policy("mixed_bfloat16")
    make, options = CASES[case]
    head = make(NUMBER, **options)
    head.build((None, DIM))
    rows = head.centroids
    if isinstance(rows, keras.Variable):
        rows = numpy_of(keras.ops.cast(rows, "float32"))
    rows = np.asarray(rows, "float64")
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    labels = rng.integers(0, NUMBER, BATCH)
    noise = rng.standard_normal((BATCH, DIM)) / DIM**0.5
    # From saturated to wrong.
    features = rows[labels] + np.linspace(0.3, 2, BATCH)[:, None] * noise
    loss = keras_pedcc.AMSoftmaxLoss(SCALE, MARGIN, reduction=None)

    def found(features):
        short = keras.ops.cast(features, "bfloat16")  # as the network gives them
        return loss(labels, head.for_loss(head(short, training=True)))

    right, slope = twin(features, rows, labels)
    features = features.astype("float32")
    losses = numpy_of(found(features))
    assert abs(losses.mean() / right.mean() - 1) < 2e-3
    off = np.linalg.norm(gradient_of(found, features) - slope, axis=1)
    assert off.max() < 0.015 * np.linalg.norm(slope, axis=1).max()


def twin(features, rows, labels):
    """Loss of each sample and its gradient over the features, in float64."""
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    unit, at = features / lengths, np.arange(len(labels))
    cosines = unit @ rows.T
    powers = np.exp(SCALE * (cosines - cosines[at, labels][:, None] + MARGIN))
    powers[at, labels] = 0
    total = powers.sum(axis=1, keepdims=True)
    along = SCALE * powers / (1 + total)
    along[at, labels] = -along.sum(axis=1)
    slope = along @ rows
    slope -= unit * np.sum(unit * slope, axis=1, keepdims=True)
    return np.log1p(total)[:, 0], slope / lengths
