"""Whole training steps that users see: PEDCCModel beside keras.Model.

    KERAS_BACKEND=tensorflow python benchmarks/train_step.py --result FILE

The networks are MobileNetV2 of `keras.applications` with a linear layer to 512
features, and the VGG of the paper for EMNIST, on images of 32 x 32 with three channels,
both without pretrained weights. Each is trained as three models, with SGD with momentum
and `metrics=["accuracy"]`:

- `entropy`: `keras.Model` with a `Dense` layer and sparse cross entropy;
- `pedcc`: `PEDCCModel` with the dict of a `PEDCCDense` and `PEDCCLoss`;
- `pedcc_plain`: `keras.Model` with the logits of a `PEDCCDense` alone and `PEDCCLoss`,
  which tells what of the time of `pedcc` is that of `PEDCCModel`.

They take turns in one process, with `train_on_batch` or (`--call fit`) with epochs of
`--batches` batches. Printed are the medians in milliseconds of one batch, and the
median over the turns of the time over that of `entropy` in the same turn, with
quartiles.
"""

import argparse
import functools
import json
import pathlib
import sys

SIZES = {"mobilenet": 96, "vgg": 32}  # of the images


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--networks", nargs="+", choices=SIZES, default=list(SIZES))
    add("--size", type=int, help="of the images; else 96, and 32 for vgg")
    add("--num-classes", type=int, default=100)
    add("--batch", type=int, default=64)
    add("--call", choices=("train_on_batch", "fit"), default="train_on_batch")
    add("--batches", type=int, default=4, help="of each epoch of fit")
    add("--steps", type=int, default=30, help="turns that are timed")
    add("--result", type=pathlib.Path, help="JSON file to write")
    args = parser.parse_args(argv)
    least = {"size": 32, "num_classes": 2, "batch": 2, "batches": 1, "steps": 1}
    for name, number in least.items():
        given = getattr(args, name)
        if given is not None and given < number:
            parser.error(f"--{name.replace('_', '-')} must be at least {number}")
    return args


if __name__ == "__main__":
    parse_args()  # `--help` ends here, before the imports that take seconds


import keras
import numpy as np
from environment import environment
from turns import alternate

import keras_pedcc

ROOT = pathlib.Path(__file__).resolve().parent.parent


def main(argv=None):
    args = parse_args(argv)
    rows = []
    for network in args.networks:
        rows.append(compare(network, args))
        print(json.dumps(rows[-1]), flush=True)
    if args.result:
        result = {
            "command": f"python benchmarks/train_step.py {' '.join(sys.argv[1:])}",
            "rows": rows,
            "environment": environment(),
        }
        args.result.write_text(json.dumps(result, indent=1) + "\n")


def compare(network, args):
    """Medians of the three models, and their ratios turn by turn."""
    size = args.size or SIZES[network]
    number = args.batch * (args.batches if args.call == "fit" else 1)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (number, size, size, 3), "uint8")
    labels = rng.integers(0, args.num_classes, number).astype("int32")
    steps = {
        name: step_of(make(network, size, args.num_classes), args)
        for name, make in MODELS.items()
    }
    warm_up = 1 if args.call == "fit" else 3
    seconds = alternate(steps, args.steps, images, labels, warm_up=warm_up)
    batches = number // args.batch
    return {
        "backend": keras.backend.backend(),
        "network": network,
        "size": size,
        "num_classes": args.num_classes,
        "batch": args.batch,
        "call": args.call,
        "steps": args.steps,
        "milliseconds": {
            name: round(1e3 * float(np.median(times)) / batches, 2)
            for name, times in seconds.items()
        },
        "ratio": {
            name: ratios(times, seconds["entropy"]) for name, times in seconds.items()
        },
    }


def ratios(times, others):
    """Quartiles of the ratio turn by turn: what slows a whole turn slows both."""
    found = np.quantile(np.array(times) / np.array(others), [0.25, 0.5, 0.75])
    return dict(zip(("low", "median", "high"), found.round(3).tolist(), strict=True))


def step_of(model, args):
    """Function of images and labels that trains the model on them once."""
    if args.call == "fit":
        return functools.partial(
            model.fit, batch_size=args.batch, shuffle=False, verbose=0
        )
    return model.train_on_batch


# The models


def entropy(network, size, num_classes):
    inputs, features = NETWORKS[network](size)
    model = keras.Model(inputs, keras.layers.Dense(num_classes)(features))
    return compiled(model, keras.losses.SparseCategoricalCrossentropy(from_logits=True))


def pedcc(network, size, num_classes):
    inputs, features = NETWORKS[network](size)
    model = keras_pedcc.PEDCCModel(inputs, head(num_classes)(features))
    return compiled(model, keras_pedcc.PEDCCLoss())


def pedcc_plain(network, size, num_classes):
    inputs, features = NETWORKS[network](size)
    logits = head(num_classes, return_features=False)(features)
    return compiled(keras.Model(inputs, logits), keras_pedcc.PEDCCLoss())


def head(num_classes, **options):
    # Where the centroids lie changes no time.
    return keras_pedcc.PEDCCDense(num_classes, centroids="random", **options)


def compiled(model, loss):
    optimizer = keras.optimizers.SGD(1e-3, momentum=0.9)
    model.compile(optimizer, loss, metrics=["accuracy"])
    return model


MODELS = {"entropy": entropy, "pedcc": pedcc, "pedcc_plain": pedcc_plain}


# The networks


def mobilenet(size):
    """Images in, 512 features out."""
    inputs = keras.Input((size, size, 3), dtype="uint8")
    x = keras.layers.Rescaling(1 / 127.5, -1, dtype="float32")(inputs)
    backbone = keras.applications.MobileNetV2(
        input_shape=(size, size, 3), include_top=False, weights=None, pooling="avg"
    )
    # A ReLU ends the backbone: a head with centroids all around needs both signs.
    return inputs, keras.layers.Dense(512)(backbone(x))


def vgg(size):
    """Images in, 256 features out: ten convolutions of 64 filters."""
    sys.path.insert(0, str(ROOT / "experiments"))
    from image_experiment.networks import vgg as network

    statistics, blocks = ([0.5] * 3, [0.06] * 3), [(3, 64)] * 3
    return network(
        (size, size, 3), 64, blocks, 256, statistics=statistics, weight_decay=0
    )


NETWORKS = {"mobilenet": mobilenet, "vgg": vgg}


if __name__ == "__main__":
    main()
