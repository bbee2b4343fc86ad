"""No step of a head and a loss waits for the device to tell a number, on PyTorch."""

import collections

import keras
import numpy as np
import pytest

import keras_pedcc
from keras_pedcc import Blockwise, CosineDense, KerdockDense, PEDCCDense, Sampled

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "torch", reason="others compile their steps"
)
# What PyTorch records where a number, or a size, is read off the device.
READS = {"aten::_local_scalar_dense", "aten::nonzero", "aten::is_nonzero"}
CASES = {
    "dense": (PEDCCDense, {"centroids": "random"}, keras_pedcc.PEDCCLoss(), 0),
    "trained": (CosineDense, {}, keras_pedcc.ArcFaceLoss(), 0),
    "norm": (CosineDense, {"return_norm": True}, keras_pedcc.AdaFaceLoss(), 0),
    "blocks": (
        PEDCCDense,
        {"centroids": "random", "scores": Blockwise(32)},
        keras_pedcc.PEDCCLoss(),
        0,
    ),
    "trained blocks": (
        CosineDense,
        {"scores": Blockwise(32)},
        keras_pedcc.AMSoftmaxLoss(),
        0,
    ),
    "kerdock": (KerdockDense, {"scores": "blockwise"}, keras_pedcc.PEDCCLoss(), 0),
    # Keras reads the seed of every draw.
    "sampled": (CosineDense, {"scores": Sampled(0.2)}, keras_pedcc.PEDCCLoss(), 1),
}


@pytest.mark.parametrize("case", CASES)
def test_steps_after_the_first_read_nothing_off_the_device(rng, monkeypatch, case):
    import torch
    from torch.profiler import ProfilerActivity, profile

    make, options, loss, reads = CASES[case]
    head = make(100, **options)
    features = torch.tensor(rng.standard_normal((16, 32)), dtype=torch.float32)
    features.requires_grad_()
    labels = torch.tensor(np.arange(16))

    def step():
        outputs = head.for_loss(head(features, training=True))
        loss(labels, outputs).backward()

    step()
    # On a CPU nothing would be recorded of it.
    monkeypatch.delattr(keras.ops, "convert_to_numpy")
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        step()
    counts = collections.Counter(event.name for event in recorded.events())
    assert counts["aten::mul"]
    assert sum(counts[name] for name in READS) == reads
