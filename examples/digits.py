"""PEDCC-Loss beside cross entropy on 1,797 real handwritten digits, in a minute.

    python examples/digits.py

Trains the same small network with both losses on one fixed split and the same
seeds, prints what came out, and writes a model, two figures and all numbers. The
data ship inside scikit-learn; nothing is downloaded.

How the settings were chosen: never on the test part. A quarter of the training part
was held out (`--validate`), and each loss took from the grid 0.01, 0.03, 0.1, 0.3
the learning rate of highest mean validation accuracy over seeds 100, 101 and 102.
"""

import argparse
import json
import math
import os
import pathlib
import platform
import time

SMOKE = {
    "seeds": [0, 1],
    "epochs": 2,
    "finetune_epoch": 1,
    "output_dir": pathlib.Path("runs/digits_smoke"),
}


def parse_args(argv=None):
    """Settings from the command line; wrong ones end the program with a message."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--output-dir", type=pathlib.Path, default="runs/digits", help="for results")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4], help="one run each")
    add("--epochs", type=int, default=12, help="epochs of each run")
    recipes = "constants of PEDCC-Loss, see help(keras_pedcc.recipe)"
    add(
        "--recipe",
        choices=("paper", "frozen", "trained"),
        default="paper",
        help=recipes,
    )
    add("--finetune-epoch", type=int, default=8, help="centroids are trained from it")
    add("--batch-size", type=int, default=64, help="images per step")
    add("--dim", type=int, default=64, help="length of the features")
    add("--learning-rate", type=float, default=0.03, help="of PEDCC-Loss")
    add("--ce-learning-rate", type=float, default=0.1, help="of cross entropy")
    add("--centroid-learning-rate", type=float, default=1e-3, help="after unfreezing")
    add("--mse-root", type=int, default=1, help="n of eq. 10: 1, 2 or 3")
    add("--verbose", type=int, default=1, help="Keras: 0 silent, 1 bars, 2 lines")
    add("--validate", action="store_true", help="hold out training images instead")
    add("--smoke", action="store_true", help="2 seeds, 2 epochs, fewer images")
    if parser.parse_args(argv).smoke:
        parser.set_defaults(**SMOKE)
    args = parser.parse_args(argv)
    args.seeds = list(dict.fromkeys(args.seeds))  # one twice would count twice
    check_args(parser, args)
    return args


def check_args(parser, args):
    for name in ("epochs", "batch_size", "mse_root"):
        if getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1")
    if args.dim < 2:
        parser.error("--dim must be at least 2")
    if not 0 <= args.finetune_epoch < args.epochs:
        parser.error(
            f"--finetune-epoch must be at least 0 and below --epochs; they are "
            f"{args.finetune_epoch} and {args.epochs}"
        )


if __name__ == "__main__":
    parse_args()  # `--help` ends here, before the imports that take seconds


import keras
import numpy as np
from keras import layers, ops

import keras_pedcc

try:
    import matplotlib
    from matplotlib import pyplot as plt
    from scipy import stats
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split
except ImportError as error:
    raise SystemExit(
        f'{error.name} is missing: pip install "keras-pedcc[examples]"'
    ) from None

matplotlib.use("Agg")

PEDCC, CROSS_ENTROPY = "PEDCC-Loss", "Cross entropy"
LOSSES = (PEDCC, CROSS_ENTROPY)
COLORS = {PEDCC: "#d1495b", CROSS_ENTROPY: "#30638e"}
NUM_CLASSES = 10
SMOKE_SAMPLES = 400


def main(argv=None):
    """Trains, reports and writes everything; `argv` as on the command line."""
    args = parse_args(argv)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    data = load_data(args)
    print_settings(args, data)
    runs, model = compare(args, data)
    model.save(args.output_dir / "pedcc.keras")
    summary = {loss: summarise(runs[loss]) for loss in LOSSES}
    difference = paired_difference(runs)
    plot_features(args, data, args.output_dir / "features.png")
    plot_accuracy(args, runs, args.output_dir / "accuracy.png")
    write_result(args, data, runs, summary, difference)
    print_report(args, summary, difference)
    print_files(args)


def load_data(args):
    """Images in [0, 1], shape (n, 8, 8, 1), and labels: (training, scored) parts."""
    images, labels = load_digits(return_X_y=True)
    images = (images / 16.0).reshape(-1, 8, 8, 1).astype("float32")
    if args.smoke:
        images, labels = images[:SMOKE_SAMPLES], labels[:SMOKE_SAMPLES]
    train, test = split(images, labels, share=0.3)
    return split(*train, share=0.25) if args.validate else (train, test)


def split(images, labels, share):
    """The same stratified split whenever it is called."""
    x, x_held, y, y_held = train_test_split(
        images, labels, test_size=share, stratify=labels, random_state=0
    )
    return (x, y), (x_held, y_held)


def compare(args, data):
    """Runs of each loss over all seeds, and the last PEDCC model."""
    runs, models = {loss: [] for loss in LOSSES}, {}
    for number, seed in enumerate(args.seeds, start=1):
        for loss in LOSSES:
            print(f"\n{loss}, seed {seed} ({number} of {len(args.seeds)})")
            models[loss], run = train(loss, seed, args.dim, args, data)
            runs[loss].append(run)
    return runs, models[PEDCC]


def train(loss, seed, dim, args, data):
    """Trains one model; returns it with its history, distances and seconds."""
    start = time.perf_counter()
    # Before the model is built: both losses start from the same backbone.
    keras.utils.set_random_seed(seed)
    model = build_model(loss, dim, args, steps=len(data[0][0]) / args.batch_size)
    history = model.fit(
        *data[0],
        batch_size=args.batch_size,
        epochs=args.epochs,
        validation_data=data[1],
        callbacks=make_callbacks(loss, args),
        verbose=args.verbose,
    )
    seconds = time.perf_counter() - start
    return model, describe(model, seed, history.history, seconds, data[1])


def build_model(loss, dim, args, steps):
    """Backbone, head and loss, compiled; `steps` is the number of them per epoch."""
    inputs, features = build_backbone(dim)
    rate = args.learning_rate if loss == PEDCC else args.ce_learning_rate
    schedule = keras.optimizers.schedules.CosineDecay(
        rate, decay_steps=args.epochs * math.ceil(steps)
    )
    optimizer = keras.optimizers.SGD(schedule, momentum=0.9, weight_decay=5e-4)
    if loss == PEDCC:
        head, objective = keras_pedcc.recipe(args.recipe, NUM_CLASSES)
        objective.mse_root = args.mse_root
        model = keras_pedcc.PEDCCModel(inputs, head(features))
    else:
        model = keras.Model(inputs, layers.Dense(NUM_CLASSES)(features))
        objective = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, objective, metrics=["accuracy"])
    return model


def build_backbone(dim):
    """Three convolutions and the feature layer, as input and output tensors."""
    inputs = x = keras.Input((8, 8, 1))
    for filters, strides in ((16, 1), (32, 2), (32, 1)):
        x = layers.Conv2D(filters, 3, strides, padding="same", use_bias=False)(x)
        x = layers.BatchNormalization()(x)
        x = layers.ReLU()(x)
    x = layers.Flatten()(x)
    # A bias or a scale here would pull the features off the predefined directions.
    x = layers.Dense(dim, use_bias=False)(x)
    x = layers.BatchNormalization(center=False, scale=False, name="features")(x)
    return inputs, x


def make_callbacks(loss, args):
    """Late fine-tuning of the centroids, which belongs to the paper's recipe."""
    if loss == CROSS_ENTROPY or args.recipe != "paper":
        return []
    return [
        keras_pedcc.FinetuneCallback(args.finetune_epoch, args.centroid_learning_rate)
    ]


def describe(model, seed, history, seconds, held_out):
    """The numbers of one run, ready for JSON."""
    images, labels = held_out
    features = unit_rows(extract_features(model, images))
    return {
        "seed": seed,
        "accuracy": history["val_accuracy"][-1],
        "intra_class_distance": keras_pedcc.intra_class_distance(features, labels),
        "inter_class_distance": keras_pedcc.inter_class_distance(features, labels),
        "seconds": seconds,
        "history": {name: [float(v) for v in row] for name, row in history.items()},
    }


def extract_features(model, images):
    """Output of the feature layer, not normalised, shape (n, dim)."""
    extractor = keras.Model(model.inputs[0], model.get_layer("features").output)
    return ops.convert_to_numpy(extractor(images, training=False))


def unit_rows(features):
    """Divides each row by its length."""
    return features / np.linalg.norm(features, axis=1, keepdims=True)


def summarise(runs):
    """Mean and standard deviation over the runs of each number."""
    names = ("accuracy", "intra_class_distance", "inter_class_distance", "seconds")
    columns = {name: np.array([run[name] for run in runs]) for name in names}
    return {
        name: {
            "mean": float(c.mean()),
            "std": float(c.std(ddof=1)) if c[1:].size else None,
        }
        for name, c in columns.items()
    }


def paired_difference(runs, level=0.95):
    """PEDCC minus cross entropy, paired by seed, with its t interval.

    In accuracy, -1 to 1. The interval is `None` for fewer than two seeds.
    """
    pairs = zip(runs[PEDCC], runs[CROSS_ENTROPY], strict=True)
    values = np.array([ours["accuracy"] - theirs["accuracy"] for ours, theirs in pairs])
    interval = None
    if len(values) > 1:
        error = values.std(ddof=1) / math.sqrt(len(values))
        half = float(stats.t.ppf((1 + level) / 2, len(values) - 1) * error)
        interval = [float(values.mean()) - half, float(values.mean()) + half]
    return {
        "per_seed": values.tolist(),
        "mean": float(values.mean()),
        "level": level,
        "interval": interval,
    }


def plot_features(args, data, path):
    """2-D features of both losses on the held-out part, side by side."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 5.2), layout="constrained")
    images, labels = data[1]
    for axis, loss in zip(axes, (CROSS_ENTROPY, PEDCC), strict=True):
        print(f"\n{loss}, 2-D features for the figure")
        model, run = train(loss, args.seeds[0], 2, args, data)
        features = extract_features(model, images)
        if loss == PEDCC:
            features = unit_rows(features)
            draw_centroids(axis, model)
        points = axis.scatter(*features.T, c=labels, cmap="tab10", s=14, alpha=0.75)
        axis.set_title(f"{loss}: {100 * run['accuracy']:.1f} % with 2-D features")
        axis.set_aspect("equal", adjustable="datalim")
        unit = ", unit length" if loss == PEDCC else ""
        axis.set(xlabel=f"feature 1{unit}", ylabel=f"feature 2{unit}")
    figure.legend(*points.legend_elements(), title="digit", loc="outside right center")
    save_figure(figure, path)


def draw_centroids(axis, model):
    """The unit circle, and each centroid as a star."""
    centroids = ops.convert_to_numpy(model.layers[-1].centroids)
    circle = plt.Circle((0, 0), 1, fill=False, color="0.8", zorder=0)
    axis.add_patch(circle)
    stars = {"marker": "*", "s": 260, "edgecolors": "black", "zorder": 3}
    axis.scatter(*unit_rows(centroids).T, c=range(NUM_CLASSES), cmap="tab10", **stars)


def plot_accuracy(args, runs, path):
    """Accuracy on the held-out part against the epoch: mean, and band of seeds."""
    figure, axis = plt.subplots(figsize=(7, 4.5), layout="constrained")
    epochs = np.arange(1, args.epochs + 1)
    for loss in LOSSES:
        curves = 100 * np.array([run["history"]["val_accuracy"] for run in runs[loss]])
        low, high = curves.min(axis=0), curves.max(axis=0)
        axis.fill_between(epochs, low, high, color=COLORS[loss], alpha=0.2, lw=0)
        axis.plot(epochs, curves.mean(axis=0), color=COLORS[loss], label=loss)
    if make_callbacks(PEDCC, args):
        unfrozen = {"color": "0.4", "ls": "--", "lw": 1, "label": "centroids unfrozen"}
        axis.axvline(args.finetune_epoch, **unfrozen)  # between that epoch and the next
    axis.set(xlabel="epoch", ylabel="test accuracy (%)", ylim=(85, 100.2))
    axis.legend(title="mean, lowest and highest seed", loc="lower right")
    save_figure(figure, path)


def save_figure(figure, path):
    figure.savefig(path, dpi=130)
    plt.close(figure)


def write_result(args, data, runs, summary, difference):
    """All numbers and what they depend on, as JSON."""
    result = {
        "settings": {name: value for name, value in vars(args).items()},
        "samples": {"training": len(data[0][0]), "held_out": len(data[1][0])},
        "environment": {
            "python": platform.python_version(),
            "platform": platform.platform(),
            "cpus": os.cpu_count(),
            "backend": keras.backend.backend(),
            "keras": keras.__version__,
            "keras_pedcc": keras_pedcc.__version__,
            "numpy": np.__version__,
        },
        "runs": runs,
        "summary": summary,
        "paired_difference": difference,
    }
    text = json.dumps(result, indent=1, default=str)
    (args.output_dir / "result.json").write_text(text + "\n")


def print_settings(args, data):
    sizes = f"{len(data[0][0])} training and {len(data[1][0])} held-out images"
    print(f"{sizes}, {args.epochs} epochs, Keras on {keras.backend.backend()}")


def print_report(args, summary, difference):
    """The table, and what the paired difference says."""
    print("\nloss           accuracy (%)   intra-class  inter-class  seconds per run")
    for loss in LOSSES:
        row = summary[loss]
        spread = row["accuracy"]["std"]
        accuracy = f"{100 * row['accuracy']['mean']:.2f}"
        accuracy += "" if spread is None else f" +- {100 * spread:.2f}"
        distances = (
            row[f"{kind}_class_distance"]["mean"] for kind in ("intra", "inter")
        )
        intra, inter = (f"{value:.4f}" for value in distances)
        seconds = f"{row['seconds']['mean']:.1f}"
        print(f"{loss:14} {accuracy:14} {intra:12} {inter:12} {seconds}")
    print(f"Mean and standard deviation over {len(args.seeds)} seeds, last epoch.")
    print(verdict(difference))


def verdict(difference):
    """One sentence on PEDCC minus cross entropy."""
    mean = f"PEDCC-Loss minus cross entropy: {100 * difference['mean']:+.2f} points"
    if difference["interval"] is None:
        return f"{mean}; no interval from a single seed."
    low, high = difference["interval"]
    place = "above" if low > 0 else "below" if high < 0 else "level with"
    interval = f"95 % paired interval {100 * low:+.2f} to {100 * high:+.2f}"
    return f"{mean} ({interval}): PEDCC-Loss is {place} cross entropy."


def print_files(args):
    print(f"\nWritten to {args.output_dir}:")
    print("  pedcc.keras    the last PEDCC model")
    print("  result.json    all settings and numbers")
    print("  features.png   2-D features of both losses")
    print("  accuracy.png   accuracy by epoch")
    print("Load the model with:")
    print("  import keras, keras_pedcc")
    path = args.output_dir / "pedcc.keras"
    print(f'  model = keras.saving.load_model("{path.as_posix()}")')


if __name__ == "__main__":
    main()
