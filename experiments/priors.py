"""What class priors gain where classes are unevenly frequent.

    python experiments/priors.py --data-dir FOLDER --result FILE

Class k of the 47 characters of EMNIST has `most * imbalance^(-k / 46)` training images;
the test images are as many for each class. A small network is trained for so many
steps with each loss, without priors and with those of the training labels, and scored
once, at its end; nothing is chosen by the test images.
"""

import argparse
import json
import pathlib
import statistics

KINDS = ("cross entropy", "frozen", "trained")
MILD = {"scale": "auto", "margin": 0.2, "mse_weight": 3.0}


def main(argv=None):
    args = parse_args(argv)
    images = load(args)
    runs = []
    for seed in args.seeds:
        for kind in KINDS:
            for with_priors in (False, True):
                runs.append(run(images, kind, with_priors, seed, args))
                print(json.dumps(runs[-1]), flush=True)
                save(runs, args, "priors.py", rows)
    for row in rows(runs):
        print(json.dumps(row), flush=True)


def load(args, held_out=0):
    """Unbalanced training images, and all test images, with channels, in [0, 1].

    With `held_out`, so many of the other training images of each class take the place
    of the test images.
    """
    import numpy as np
    from emnist import EMNIST
    from image_experiment import data

    images = data.load(EMNIST.source, args.data_dir)
    sizes = data.long_tail(args.most, images.num_classes, args.imbalance)
    order = np.random.default_rng(0).permutation(len(images.y_train))
    labels = images.y_train[order]
    kept = np.concatenate([order[labels == k][:n] for k, n in enumerate(sizes)])
    if held_out:
        held = [order[labels == k][n : n + held_out] for k, n in enumerate(sizes)]
        held = np.concatenate(held)
        images.x_test, images.y_test = images.x_train[held], images.y_train[held]
    images.x_train, images.y_train = images.x_train[kept], images.y_train[kept]
    for part in ("x_train", "x_test"):
        values = getattr(images, part).astype("float32") / 255
        setattr(images, part, values.reshape(len(values), 28, 28, 1))
    return images


def run(images, kind, with_priors, seed, args, rate=None, **constants):
    """Accuracy in percent on all test images, and on the rarest third of classes."""
    import keras
    import numpy as np

    import keras_pedcc

    keras.utils.set_random_seed(seed)
    number = images.num_classes
    priors = keras_pedcc.class_priors(images.y_train, number) if with_priors else None
    inputs = keras.Input((28, 28, 1))
    features = network(inputs)
    if kind == "cross entropy":
        outputs = keras.layers.Dense(number)(features)
        loss = cross_entropy(priors)
    else:
        trained = {"trainable": True} if kind == "trained" else {}
        head = keras_pedcc.PEDCCDense(number, return_features=False, **trained)
        outputs = head(features)
        loss = keras_pedcc.PEDCCLoss(**{**MILD, **constants}, priors=priors)
    model = keras.Model(inputs, outputs)
    rate = args.learning_rate if rate is None else rate
    rate = keras.optimizers.schedules.CosineDecay(rate, args.steps)
    model.compile(keras.optimizers.SGD(rate, momentum=0.9, weight_decay=5e-4), loss)
    model.fit(
        *drawn(images, args.steps * args.batch_size, seed),
        batch_size=args.batch_size,
        shuffle=False,
        verbose=0,
    )
    found = model.predict(images.x_test, batch_size=1000, verbose=0).argmax(axis=1)
    right = found == images.y_test
    rare = images.y_test >= number - number // 3
    return {
        "kind": kind,
        "priors": with_priors,
        "seed": seed,
        "accuracy": 100 * float(np.mean(right)),
        "rarest_third": 100 * float(np.mean(right[rare])),
    }


def network(inputs):
    """Three convolutions of stride 2, and a linear layer of 64 features."""
    from keras import layers

    x = inputs
    for filters in (16, 32, 64):
        x = layers.Conv2D(filters, 3, 2, padding="same", use_bias=False)(x)
        x = layers.ReLU()(layers.BatchNormalization(momentum=0.9)(x))
    x = layers.Dense(64, use_bias=False)(layers.Flatten()(x))
    return layers.BatchNormalization(momentum=0.9, center=False, scale=False)(x)


def cross_entropy(priors):
    """Cross entropy, with the logarithms of the priors added to the logits."""
    import keras
    import numpy as np

    shift = 0.0
    if priors is not None:
        shift = keras.ops.convert_to_tensor(np.log(priors), "float32")
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return lambda labels, logits: loss(labels, logits + shift)


def drawn(images, number, seed):
    """So many training images and labels, in a new order at each pass."""
    import numpy as np

    draw, size = np.random.default_rng(seed), len(images.y_train)
    passes = [draw.permutation(size) for _ in range(-(-number // size))]
    index = np.concatenate(passes)[:number]
    return images.x_train[index], images.y_train[index]


def rows(runs):
    """Mean and standard deviation over the seeds, of each loss."""
    found = []
    for kind, priors in dict.fromkeys((each["kind"], each["priors"]) for each in runs):
        row = {"kind": kind, "priors": priors}
        for name in ("accuracy", "rarest_third"):
            values = [
                each[name]
                for each in runs
                if (each["kind"], each["priors"]) == (kind, priors)
            ]
            deviation = statistics.stdev(values) if len(values) > 1 else None
            row[name] = {"mean": statistics.fmean(values), "deviation": deviation}
        found.append(row)
    return found


def save(runs, args, script, rows):
    from image_experiment.reporting import write_whole

    from benchmarks.environment import environment

    if args.result is None:
        return
    flags = [
        f"--{name.replace('_', '-')} {' '.join(map(str, as_list(value)))}"
        for name, value in vars(args).items()
        if name not in ("data_dir", "result")
    ]
    content = {
        "command": " ".join([f"python experiments/{script}", *flags]),
        "rows": rows(runs),
        "runs": runs,
        "environment": environment(),
    }
    write_whole(args.result, json.dumps(content, indent=1))


def as_list(value):
    return value if isinstance(value, list) else [value]


def parse_args(argv):
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--data-dir", type=pathlib.Path, help="folder with EMNIST")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2])
    add("--most", type=int, default=500, help="images of the most frequent class")
    add("--imbalance", type=float, default=50.0, help="most over least frequent")
    add("--steps", type=int, default=600)
    add("--batch-size", type=int, default=128)
    add("--learning-rate", type=float, default=0.05)
    add("--result", type=pathlib.Path, help="JSON file to write, after each run")
    args = parser.parse_args(argv)
    for name in ("most", "steps", "batch_size"):
        if getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1")
    if args.imbalance < 1:
        parser.error("--imbalance must be at least 1")
    return args


if __name__ == "__main__":
    main()
