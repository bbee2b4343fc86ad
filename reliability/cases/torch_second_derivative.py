"""A second derivative on PyTorch is that of the loss."""

import numpy as np

import keras_pedcc

BACKENDS = ("torch",)
PAIRS = (
    (keras_pedcc.PEDCCDense, keras_pedcc.PEDCCLoss()),
    (keras_pedcc.PEDCCDense, keras_pedcc.AMSoftmaxLoss()),
    (keras_pedcc.CosineDense, keras_pedcc.ArcFaceLoss()),
)


def check():
    import torch

    rng = np.random.default_rng(0)
    x, direction = rng.normal(size=(2, 3, 8))
    for make, loss in PAIRS:
        head = make(20)
        head.build((None, 8))

        def slope(array, head=head, loss=loss):
            array = torch.tensor(array, dtype=torch.float32, requires_grad=True)
            value = loss(np.array([0, 2, 1]), head(array))
            return array, torch.autograd.grad(value, array, create_graph=True)[0]

        array, first = slope(x)
        along = (first * torch.tensor(direction, dtype=torch.float32)).sum()
        found = torch.autograd.grad(along, array)[0].numpy()
        up, down = (
            slope(x + sign * 4e-3 * direction)[1].detach().numpy() for sign in (1, -1)
        )
        right = (up - down) / 8e-3
        assert np.abs(found - right).max() < 5e-3 * np.abs(right).max(), loss.name
