"""Heads and losses compute in float32 inside `torch.autocast`."""

import keras_pedcc

BACKENDS = ("torch",)


def check():
    import torch

    x = torch.randn(32, 64, generator=torch.Generator().manual_seed(0))
    heads = [
        keras_pedcc.PEDCCDense(100),
        keras_pedcc.CosineDense(100),
        keras_pedcc.ProductDense(100),
        keras_pedcc.CenterDense(100),
        keras_pedcc.KerdockDense(200),
    ]
    for head in heads:
        plain = head(x)["logits"]
        with torch.autocast("cpu", torch.bfloat16):
            inside = head(x)["logits"]
        assert inside.dtype == torch.float32, head.name
        assert torch.equal(plain, inside), head.name
