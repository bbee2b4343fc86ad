"""One training step of a head and its loss in PyTorch: PEDCC beside its peers.

    KERAS_BACKEND=torch python benchmarks/peers.py --result FILE

The peers are AM-Softmax with trained weights: `plain`, written here with functions of
PyTorch, and `metric_learning`, `CosFaceLoss` of pytorch-metric-learning, which is left
out where it is not installed. A step is the loss, its gradients with respect to the
features and to every trained weight, and the update of these weights by SGD with
momentum 0.9; the centroids of `pedcc` are frozen, those of `pedcc_trained` (only with
`--trained`) are not. All take alternating steps in one process, in float32; printed are
the medians in milliseconds and the time of `pedcc` over that of each peer.
"""

import argparse
import json
import pathlib
import statistics
import sys


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--num-classes", type=int, nargs="+", default=[100, 10_000, 50_000])
    add("--batch", type=int, default=128)
    add("--dim", type=int, default=512)
    add("--steps", type=int, default=30)
    add("--trained", action="store_true", help="time trained centroids, too")
    add("--result", type=pathlib.Path, help="JSON file to write")
    args = parser.parse_args(argv)
    if min(args.batch, args.dim - 1, args.steps, *args.num_classes) < 1:
        parser.error("--batch, --steps must be at least 1, --dim, --num-classes 2")
    return args


if __name__ == "__main__":
    parse_args()  # `--help` ends here, before the imports that take seconds


import keras
import numpy as np
from turns import alternate

import keras_pedcc

SCALE, MARGIN, RATE = 30.0, 0.35, 1e-6


def main(argv=None):
    args = parse_args(argv)
    if keras.backend.backend() != "torch":
        raise SystemExit("The peers are of PyTorch: set KERAS_BACKEND=torch.")
    rows = []
    for num_classes in args.num_classes:
        rows.append(compare(num_classes, args))
        print(json.dumps(rows[-1]), flush=True)
    if args.result:
        from environment import environment

        result = {
            "command": f"python benchmarks/peers.py {' '.join(sys.argv[1:])}".strip(),
            "batch": args.batch,
            "dim": args.dim,
            "steps": args.steps,
            "rows": rows,
            "environment": {**environment(), **versions()},
        }
        args.result.write_text(json.dumps(result, indent=1) + "\n")


def compare(num_classes, args):
    """Median milliseconds of each, and the share of its time that PEDCC takes."""
    import torch

    torch.manual_seed(0)
    features = torch.randn(args.batch, args.dim)
    labels = torch.randint(num_classes, (args.batch,))
    losses = peers(num_classes, args.dim)
    losses |= {"pedcc": pedcc(num_classes, args.dim)}
    if args.trained:
        losses["pedcc_trained"] = pedcc(num_classes, args.dim, trainable=True)
    steps = {name: training_step(*each) for name, each in losses.items()}
    seconds = alternate(steps, args.steps, features, labels)
    median = {name: statistics.median(times) for name, times in seconds.items()}
    return {
        "num_classes": num_classes,
        "milliseconds": {name: round(1e3 * t, 3) for name, t in median.items()},
        "pedcc_over": {
            name: round(median["pedcc"] / t, 3)
            for name, t in median.items()
            if name != "pedcc"
        },
    }


def pedcc(num_classes, dim, trainable=False):
    """Loss of features and labels, and the weights that are trained.

    Where the centroids lie changes no time.
    """
    centroids = np.random.default_rng(0).standard_normal((num_classes, dim), "float32")
    head = keras_pedcc.PEDCCDense(
        num_classes, centroids=centroids, trainable=trainable, scores="dense"
    )
    head.build((None, dim))
    loss = keras_pedcc.PEDCCLoss(scale=SCALE, margin=MARGIN)
    weights = [weight.value for weight in head.trainable_weights]
    return lambda features, labels: loss(labels, head(features, training=True)), weights


def peers(num_classes, dim):
    """The same of each peer."""
    made = {"plain": plain(num_classes, dim)}
    try:
        from pytorch_metric_learning.losses import CosFaceLoss
    except ImportError as error:
        told = f"peers: no row of pytorch-metric-learning: {error}. "
        print(told + "pip install pytorch-metric-learning", file=sys.stderr)
        return made
    loss = CosFaceLoss(num_classes, dim, margin=MARGIN, scale=SCALE)
    return made | {"metric_learning": (loss, list(loss.parameters()))}


def plain(num_classes, dim):
    """AM-Softmax as one writes it in PyTorch."""
    import torch
    import torch.nn.functional as F

    weight = torch.nn.Parameter(torch.randn(num_classes, dim))

    def loss(features, labels):
        cosines = F.linear(F.normalize(features), F.normalize(weight))
        margins = torch.zeros_like(cosines).scatter_(1, labels[:, None], MARGIN)
        return F.cross_entropy(SCALE * (cosines - margins), labels)

    return loss, [weight]


def training_step(loss, weights):
    """Function that takes one step on features and labels."""
    import torch

    optimizer = torch.optim.SGD(weights, RATE, momentum=0.9) if weights else None

    def step(features, labels):
        features = features.detach().requires_grad_()
        loss(features, labels).backward()
        if optimizer:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return features.grad

    return step


def versions():
    """Of the peer that may be missing."""
    try:
        import pytorch_metric_learning
    except ImportError:
        return {}
    return {"pytorch_metric_learning": pytorch_metric_learning.__version__}


if __name__ == "__main__":
    main()
