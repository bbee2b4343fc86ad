r"""Figures 3 and 4 of the paper: where features go, and what pulls them there.

    python experiments/feature_space.py                               digits, in minutes
    python experiments/feature_space.py --dataset mnist --data-dir FOLDER
    python experiments/feature_space.py --dataset cifar100 --data-dir FOLDER \
        --draw gradients --feature-norm

`features.png`: features of test images in two and three dimensions, as FC1 gives them
and on the unit circle and sphere, for softmax cross entropy, center loss, AM-Softmax
and PEDCC-Loss, with the direction or centre of each class. `gradients.png`: length of
the gradient of the loss of one sample over its features, by epoch. A run that is
finished is not repeated: the same command goes on where it was stopped. Flags that
are not listed go to every run, see `emnist.py --help`. As in the paper, no batch
normalisation follows FC1 (`--feature-norm` puts it there), and at the paper's rate of
0.1 softmax and center loss can then diverge: the rate is 0.01 unless you pass another.
Center loss in `gradients.png` has the lambda of 1 that the paper has there, and can
diverge at that rate, too: it is then drawn and listed as far as it went.
"""

import argparse
import contextlib
import io
import json
import math
import pathlib
import sys

from comparison_flags import DEFAULT_FLAGS, EXPERIMENTS, OF_CLASSES, command_of


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        epilog="Further flags go to every run, as --width 0.25 or --epochs 5.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--dataset", choices=OF_CLASSES, default="digits", help="which images")
    add("--data-dir", type=pathlib.Path, help="as of cifar100.py; digits need none")
    choices = ("features", "gradients")
    add("--draw", nargs="+", choices=choices, default=choices, help="which figures")
    add(
        "--output-dir", type=pathlib.Path, help="runs/feature_space_DATASET if left out"
    )
    args, args.flags = parser.parse_known_args(argv)
    args.command = command_of("feature_space", parser, args)
    name = f"feature_space_{args.dataset}"
    args.output_dir = args.output_dir or pathlib.Path("runs") / name
    args.flags = [*DEFAULT_FLAGS.get(args.dataset, []), *args.flags]
    return args


if __name__ == "__main__":
    parse_args()  # `--help` ends here, before the imports that take seconds


import keras
import numpy as np
from image_experiment import feature_figures, settings, training
from image_experiment.data import BadInputError
from image_experiment.feature_figures import CLASS_COLORS, Cloud
from image_experiment.gradients import GradientLengths, extract, feature_extractor
from image_experiment.reporting import read_history, write_whole

SOFTMAX, CENTER = ["--loss", "cross_entropy"], ["--loss", "center"]
PLACED = {
    "Softmax": SOFTMAX,
    "Center loss": [*CENTER, "--center-weight", "0.1"],
    "AM-Softmax": ["--loss", "am_softmax"],
    "PEDCC-Loss": ["--loss", "pedcc"],
}
PULLED = {
    "Softmax": SOFTMAX,
    "Center loss": [*CENTER, "--center-weight", "1"],
    "PEDCC-AM": ["--loss", "pedcc_am"],
    "PEDCC-AM-MSE": ["--loss", "pedcc"],
}
ORDER = ("PEDCC-AM-MSE", "PEDCC-AM", "Softmax")  # the paper's, the longest first
MAY_DIVERGE = [f"gradient {name}" for name in PULLED if name not in ORDER]
DIMS = (2, 3)
POINTS = 1500  # test images in a picture, at most
PROBED = 1000  # training images whose gradients are measured, at most


def main(argv=None):
    """Trains what is missing, draws and reports; returns the exit code."""
    args = parse_args(argv)
    try:
        check(args)
        found = {}
        if "features" in args.draw:
            found["features"] = show_features(args)
        if "gradients" in args.draw:
            found["gradients"] = show_gradients(args)
    except BadInputError as error:
        print(f"feature_space: error: {error}", file=sys.stderr)
        return 2
    write_result(args, found)
    print_summary(args, found)
    return 0


def check(args):
    classes = EXPERIMENTS[args.dataset].source.num_classes
    if "features" in args.draw and classes > len(CLASS_COLORS):
        raise BadInputError(
            f"features.png has a colour for each of {len(CLASS_COLORS)} classes; "
            f"{args.dataset} has {classes}. Pass --draw gradients."
        )


def show_features(args):
    """Trains and draws Figure 3; returns the results of its runs, by name."""
    rows, results = [], {}
    for dim in DIMS:
        rows.append([])
        for name, flags in PLACED.items():
            run, result = train(args, f"{dim}-D {name}", [*flags, "--dim", dim])
            results[f"{dim}-D {name}"] = result
            rows[-1].append(cloud_of(run, name, result, EXPERIMENTS[args.dataset]))
    feature_figures.draw_features(rows, args.output_dir / "features.png")
    return results


def show_gradients(args):
    """Trains and draws Figure 4; returns the results of its runs, by name."""
    results = {}
    for name, flags in PULLED.items():
        run, result = train(args, f"gradient {name}", flags, watch)
        result["lengths"] = lengths_of(run)
        results[name] = result
    curves = {
        labelled(name, result): result["lengths"] for name, result in results.items()
    }
    feature_figures.draw_gradients(curves, args.output_dir / "gradients.png")
    return results


def lengths_of(run):
    """The columns that `GradientLengths` left, up to where they are finite."""
    rows = read_history(run.output_dir / "gradients.csv")
    finite = [row for row in rows if all(map(math.isfinite, row.values()))]
    return {column: [row[column] for row in finite] for column in rows[0]}


def labelled(name, result):
    return f"{name} (diverged)" if result["diverged"] else name


def watch(run, images):
    """The callback that measures; on training images, evenly from all."""
    number = min(PROBED, len(images.x_train))
    at = np.linspace(0, len(images.x_train) - 1, number).astype(int)
    path = run.output_dir / "gradients.csv"
    return [GradientLengths(path, run, images.x_train[at], images.y_train[at])]


def train(args, name, flags, watch=None):
    """Trains one run, or reads what it left; returns its settings and result."""
    experiment = EXPERIMENTS[args.dataset]
    folder = args.output_dir / name.replace(" ", "_").lower()
    given = [
        "--no-feature-norm",
        "--learning-rate",
        0.01,
        *flags,
        *args.flags,
        "--fixed",
        "--resume",
    ]
    given += ["--output-dir", folder, "--verbose", 0, "--no-figures"]
    if args.data_dir:
        given += ["--data-dir", args.data_dir]
    run = settings.parse(experiment, list(map(str, given)))
    if run.strategy != "none":
        raise BadInputError("--strategy has no use here: the runs take one device.")
    with contextlib.redirect_stdout(io.StringIO()):
        training.train(experiment, run, watch)
    result = json.loads((folder / "result.json").read_text())
    if result["diverged"] and name not in MAY_DIVERGE:
        raise BadInputError(
            f"{name}: the loss is NaN after epoch {result['epochs']}. Pass a lower "
            "--learning-rate, and another --output-dir."
        )
    score = f"{100 * result['accuracy']:.2f} % of test images"
    print(f"{name}: {'diverged' if result['diverged'] else score}", flush=True)
    return run, result


def cloud_of(run, name, result, experiment):
    """What the model of a run makes of the first test images."""
    model = keras.saving.load_model(run.output_dir / "model.keras")
    images = experiment.load(run)
    shown = extract(feature_extractor(model), images.x_test[:POINTS], run.batch_size)
    return Cloud(
        title=f"{name}: {100 * result['accuracy']:.1f} %",
        features=shown,
        labels=images.y_test[:POINTS],
        classes=classes_of(model),
        placed=run.loss == "center",
    )


def classes_of(model):
    """Centroid, weight or centre of each class, shape `(num_classes, dim)`."""
    head = model.get_layer("head")
    for name in ("centroids", "centers"):
        if hasattr(head, name):
            return keras.ops.convert_to_numpy(getattr(head, name))
    return keras.ops.convert_to_numpy(head.kernel).T


def in_order(results, column):
    """Epochs after which the lengths had the order of the paper."""
    lengths = [results[name]["lengths"] for name in ORDER]
    columns = zip(*(rows[column] for rows in lengths), strict=True)
    return [
        epoch
        for epoch, (first, second, third) in zip(
            lengths[0]["epoch"], columns, strict=True
        )
        if first > second > third
    ]


def write_result(args, found):
    result = {"dataset": args.dataset, "command": args.command, **found}
    if "gradients" in found:
        result["epochs_in_the_paper_s_order"] = {
            column: in_order(found["gradients"], column)
            for column in ("gradient", "turning")
        }
    write_whole(args.output_dir / "result.json", json.dumps(result, indent=1))


def print_summary(args, found):
    if "features" in found:
        print("\nTest accuracy (%)")
        for name, result in found["features"].items():
            print(f"  {name:18} {100 * result['accuracy']:.2f}")
    if "gradients" in found:
        print_lengths(found["gradients"])
    print(f"\nWritten to {args.output_dir}: result.json", end="")
    print("".join(f", {name}.png" for name in found))


def print_lengths(results):
    """A table of lengths for each measure, and what became of the paper's order."""
    said = {
        "gradient": "Gradient of the loss of one sample over its features, mean length",
        "turning": "The same times the length of the features",
    }
    for column, title in said.items():
        lengths = {name: result["lengths"] for name, result in results.items()}
        epochs = lengths["Softmax"]["epoch"]
        print(f"\n{title}, after epoch\n{'':14}" + "".join(f"{e:>9}" for e in epochs))
        for name, rows in lengths.items():
            end = "  diverged" if results[name]["diverged"] else ""
            print(f"{name:14}" + "".join(f"{v:9.3g}" for v in rows[column]) + end)
        print(verdict(epochs, in_order(results, column)))
    scores = lengths["Softmax"]["scores"]
    print("\nSoftmax over its scores\n" + " " * 14, end="")
    print("".join(f"{value:9.3g}" for value in scores))


def verdict(epochs, kept):
    """One sentence on the order of the paper."""
    order = " > ".join(ORDER)
    if len(kept) == len(epochs):
        return f"The paper's order, {order}, holds throughout."
    if not kept:
        return f"The paper's order, {order}, holds nowhere."
    return f"The paper's order, {order}, holds after epoch {', '.join(map(str, kept))}."


if __name__ == "__main__":
    raise SystemExit(main())
