"""The gradient of a gradient penalty on PyTorch agrees with differences."""

import numpy as np

import keras_pedcc

BACKENDS = ("torch",)


def check():
    import torch

    head, loss = keras_pedcc.CosineDense(10), keras_pedcc.PEDCCLoss(4.0, 0.3, 3.0)
    x = torch.tensor(np.random.default_rng(0).normal(size=(4, 6)), dtype=torch.float32)

    def penalty(x):
        x = x.clone().requires_grad_()
        value = loss(np.arange(4), head(x)["logits"])
        slope = torch.autograd.grad(value, x, create_graph=True)[0]
        return x, slope.square().sum()

    x, value = penalty(x)
    found = torch.autograd.grad(value, x)[0][0, 0]
    step = torch.zeros_like(x)
    step[0, 0] = 1e-2
    x = x.detach()
    right = (penalty(x + step)[1] - penalty(x - step)[1]).detach() / 2e-2
    assert abs(found - right) < 1e-2 * abs(right), (found, right)
