"""What `Sampled(sample_rate)` costs in accuracy, on real images of many classes.

    python experiments/sampled_classes.py --task faces --data-dir FOLDER --result FILE

`pairs`: two handwritten characters of EMNIST side by side are one image, and each of
the 47 * 47 = 2,209 ordered pairs is a class. Training pairs are of training characters,
test pairs of test characters. `faces`: the people of LFW with five images or more are
the classes, and every fifth image of each is a test image. Images, pairs and parts are
the same for every run.

A small network is trained at each rate and seed, with frozen centroids and PEDCC-Loss,
or with trained centroids and AM-Softmax; rate 1 is the plain head. Every run is scored
once, at its end, with all classes; nothing is chosen by the test images.
"""

import argparse
import json
import os
import pathlib
import statistics
import time

CHARACTERS = 47


def main(argv=None):
    args = parse_args(argv)
    images = make_pairs(args) if args.task == "pairs" else make_faces(args)
    runs = []
    for seed in args.seeds:
        for rate in args.rates:
            runs.append(run(images, rate, seed, args))
            print(json.dumps(runs[-1]), flush=True)
            save(images, runs, args)
    for row in rows(runs):
        print(json.dumps(row), flush=True)


def make_pairs(args):
    """The characters of EMNIST, two by two."""
    import numpy as np
    from emnist import EMNIST
    from image_experiment import data

    images = data.load(EMNIST.source, args.data_dir)
    draw = np.random.default_rng(0)
    for part, number in (("train", args.train_pairs), ("test", args.test_pairs)):
        x, y = getattr(images, f"x_{part}"), getattr(images, f"y_{part}")
        x, y = pairs(x, y, number, draw)
        setattr(images, f"x_{part}", x)
        setattr(images, f"y_{part}", y)
    images.num_classes = CHARACTERS**2
    return images


def make_faces(args):
    """The people of LFW with five images or more; every fifth image is for the test."""
    import numpy as np
    from image_experiment import data, face_data, face_files

    people = face_files.read_people(args.data_dir / "lfw.npz", 64, 0)
    counts = np.bincount(people.labels)
    people = face_files.relabelled(people, counts[people.labels] >= 5)
    order = np.random.default_rng(0).permutation(len(people.labels))
    x, y = face_data.centre(people.images, 56)[order], people.labels[order]
    order = np.argsort(y, kind="stable")
    x, y = x[order], y[order]
    test = (np.arange(len(y)) - np.searchsorted(y, y)) % 5 == 0
    parts = (x[~test], y[~test], x[test], y[test])
    return data.Images(*parts, "lfw.npz", num_classes=len(people.names))


def pairs(x, y, number, draw):
    """`number` pairs of characters for each of the ordered pairs of their classes."""
    import numpy as np

    left, right = np.divmod(np.repeat(np.arange(CHARACTERS**2), number), CHARACTERS)
    members = [np.flatnonzero(y == k) for k in range(CHARACTERS)]
    sides = [
        x[np.array([draw.choice(members[k]) for k in side])] for side in (left, right)
    ]
    return np.concatenate(sides, axis=2), (CHARACTERS * left + right).astype("int32")


def run(images, rate, seed, args):
    """Trains one network; its accuracy on the test pairs."""
    import keras

    keras.backend.clear_session()
    keras.utils.set_random_seed(seed)
    model = make_model(images, rate, args)
    begun = time.perf_counter()
    history = model.fit(
        images.x_train,
        images.y_train,
        batch_size=args.batch_size,
        epochs=args.epochs,
        verbose=args.verbose,
    ).history
    seconds = time.perf_counter() - begun
    scored = model.evaluate(
        images.x_test, images.y_test, batch_size=1024, verbose=0, return_dict=True
    )
    return {
        "rate": rate,
        "seed": seed,
        "accuracy": scored["accuracy"],
        "test_loss": scored["loss"],
        "train_loss": history["loss"][-1],
        "train_accuracy": history["accuracy"][-1],
        "train_seconds": seconds,
    }


def make_model(images, rate, args):
    import keras

    import keras_pedcc

    scores = "dense" if rate == 1 else keras_pedcc.Sampled(rate)
    if args.head == "frozen":
        head = keras_pedcc.PEDCCDense(images.num_classes, scores=scores)
        loss = keras_pedcc.PEDCCLoss("auto", args.margin)
    else:
        head = keras_pedcc.CosineDense(images.num_classes, scores=scores)
        loss = keras_pedcc.AMSoftmaxLoss("auto", args.margin)
    inputs = keras.Input(images.x_train.shape[1:])
    model = keras_pedcc.PEDCCModel(inputs, head(backbone(inputs, args)))
    steps = -(-len(images.x_train) // args.batch_size) * args.epochs
    rates = keras.optimizers.schedules.CosineDecay(args.learning_rate, steps)
    model.compile(keras.optimizers.Adam(rates), loss, metrics=["accuracy"])
    return model


def backbone(inputs, args):
    """Three convolutions of stride 2 and a linear layer, with batch normalisation."""
    from keras import layers

    x = layers.Rescaling(1 / 255)(inputs)
    if args.task == "faces":
        x = layers.RandomFlip("horizontal")(x)
    for width in (16, 32, 64):
        x = layers.Conv2D(width, 3, 2, "same", use_bias=False)(x)
        x = layers.BatchNormalization(momentum=0.9)(x)
        x = layers.ReLU()(x)
    x = layers.Dense(args.dim, use_bias=False)(layers.Flatten()(x))
    return layers.BatchNormalization(momentum=0.9)(x)


def rows(runs):
    """Mean accuracy of each rate, and the difference from rate 1 seed by seed."""
    found = []
    for rate in dict.fromkeys(each["rate"] for each in runs):
        own = {each["seed"]: each["accuracy"] for each in runs if each["rate"] == rate}
        base = {each["seed"]: each["accuracy"] for each in runs if each["rate"] == 1}
        differences = [own[seed] - base[seed] for seed in own if seed in base]
        found.append(
            {
                "rate": rate,
                "seeds": list(own),
                "accuracy": spread(own.values()),
                "minus_rate_1": spread(differences),
            }
        )
    return found


def spread(values):
    """Mean and standard deviation, if there are so many."""
    values = list(values)
    if not values:
        return None
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "deviation": deviation}


def save(images, runs, args):
    from image_experiment.reporting import write_whole

    from benchmarks.environment import environment

    if args.result is None:
        return
    settings = {
        name: value
        for name, value in vars(args).items()
        if name not in ("data_dir", "result", "verbose")
    }
    flags = [
        f"--{name.replace('_', '-')} {' '.join(map(str, as_list(value)))}"
        for name, value in settings.items()
    ]
    content = {
        "command": " ".join(["python experiments/sampled_classes.py", *flags]),
        "settings": settings,
        "data": {
            "origin": images.origin,
            "fingerprint": images.fingerprint(),
            "classes": images.num_classes,
            "training_images": len(images.y_train),
            "test_images": len(images.y_test),
        },
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
    add("--task", choices=("pairs", "faces"), default="pairs")
    add("--head", choices=("frozen", "trained"), default="frozen")
    add("--data-dir", type=pathlib.Path, help="folder with EMNIST or lfw.npz")
    add("--rates", type=float, nargs="+", default=[1.0, 0.5, 0.2, 0.1])
    add("--seeds", type=int, nargs="+", default=[0, 1, 2])
    add("--train-pairs", type=int, default=30, help="of each class")
    add("--test-pairs", type=int, default=5, help="of each class")
    add("--dim", type=int, default=128)
    add("--batch-size", type=int, default=128)
    add("--epochs", type=int, default=3)
    add("--learning-rate", type=float, default=2e-3)
    add("--margin", type=float, default=0.2)
    add("--verbose", type=int, default=0)
    add("--result", type=pathlib.Path, help="JSON file to write, after each run")
    args = parser.parse_args(argv)
    if args.task == "faces" and args.data_dir is None:
        parser.error("--task faces needs --data-dir, the folder of lfw.npz")
    for name in ("train_pairs", "test_pairs", "batch_size", "epochs"):
        if getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1")
    if not all(0 < rate <= 1 for rate in args.rates):
        parser.error("--rates must lie in (0, 1]")
    return args


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    main()
