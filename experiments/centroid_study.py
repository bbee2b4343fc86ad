"""When do predefined centroids win, and should they be trained?

    python experiments/centroid_study.py --dataset emnist47 --data-dir FOLDER

Trains each recipe on 5 to all training images per class, for the same number of
steps, and draws the accuracy beside that of cross entropy. Recipes: centroids that
stay where they are; the paper's late fine-tuning; trained from the first step at a
rate of their own, or like the rest of the network, from the predefined or from
random directions, with and without a fixed mean, a pull back to the start, the second
part of the loss, and a smaller margin. A run that is finished is not repeated. Flags
that are not listed go to every run, see `emnist.py --help`.
"""

import argparse
import collections
import json
import pathlib
import shlex
import sys

import numpy as np
from comparison_flags import (
    EXPERIMENTS,
    OF_CLASSES,
    command_of,
    leave_out_repeats,
    refuse_flag,
)
from image_experiment.comparisons import LOSSES

TRAINED, MILD = ["--centroids", "trained"], ["--margin", "0.2"]
MILDER, SLOW = LOSSES["pedcc_recipe"], ["--learning-rate", "0.02"]
RECIPES = {
    "cross entropy": ["--loss", "cross_entropy"],
    "AM-Softmax": ["--loss", "am_softmax"],
    "AM-Softmax from PEDCC": ["--loss", "pedcc_am", *TRAINED],
    "frozen": ["--fixed"],
    "frozen, rate 0.02": ["--fixed", *SLOW],
    "frozen, margin 0.2": ["--fixed", *MILD],
    "late at 0.001": [],
    "from the start at 0.01": ["--finetune-epoch", "0", "--finetune-rate", "0.01"],
    "from the start at 0.1": ["--finetune-epoch", "0", "--finetune-rate", "0.1"],
    "with the network": TRAINED,
    "with the network, margin 0.2": [*TRAINED, *MILD],
    "with the network, margin 0.2, lambda 3": MILDER,
    "with the network, margin 0.2, lambda 3, rate 0.02": [*MILDER, *SLOW],
    "with the network, margin 0.2, lambda 1": [*TRAINED, *MILD, "--mse-weight", "1"],
    "with the network, mean not kept": [*TRAINED, "--no-keep-mean"],
    "with the network, anchored": [*TRAINED, "--no-keep-mean", "--anchor", "0.01"],
    "with the network, random start": ["--centroids", "random"],
}


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        epilog="Further flags go to every run, as --width 0.25; emnist.py --help lists "
        "them.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--dataset", choices=OF_CLASSES, default="digits", help="which images")
    add("--data-dir", type=pathlib.Path, help="as of emnist.py; digits need none")
    add("--per-class", type=int, nargs="+", default=[5, 20, 100], metavar="N")
    add(
        "--recipes",
        nargs="+",
        default=list(RECIPES),
        choices=RECIPES,
        metavar="R",
        help="names in quotes",
    )
    add("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of every recipe")
    add(
        "--steps",
        type=int,
        nargs="+",
        default=[600],
        help="of each run, to the nearest whole epoch: one number, or one for each of "
        "--per-class",
    )
    add(
        "--imbalance",
        type=float,
        default=1.0,
        help="images of the first class, which has --per-class, for each of the last",
    )
    add("--batch-size", type=int, default=64, help="images per step")
    add("--learning-rate", type=float, default=0.05, help="of the network")
    add("--jobs", type=int, default=1, help="runs side by side")
    add("--output-dir", type=pathlib.Path, help="runs/study_DATASET if left out")
    args, args.flags = parser.parse_known_args(argv)
    for flag in ("--limit", "--epochs", "--passes"):
        refuse_flag(parser, args, flag, "it follows from --per-class and --steps")
    refuse_flag(parser, args, "--seed", "name all with --seeds")
    refuse_flag(parser, args, "--loss", "it is that of the recipe")
    args.command = command_of("centroid_study", parser, args)
    args.output_dir = args.output_dir or pathlib.Path("runs") / f"study_{args.dataset}"
    for name in ("jobs", "batch_size", "steps", "per_class", "imbalance"):
        if np.min(getattr(args, name)) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1")
    if len(args.steps) == 1:
        args.steps *= len(args.per_class)
    if len(args.steps) != len(args.per_class):
        parser.error("--steps must be one number, or one for each of --per-class")
    if len(set(args.per_class)) < len(args.per_class):
        parser.error("--per-class must be different numbers")
    leave_out_repeats(args, "recipes", "seeds")
    return args


if __name__ == "__main__":
    parse_args()  # `--help` ends here, before the imports that take seconds


from compare_losses import (
    Job,
    difference,
    diverged,
    note_of,
    run_all,
    shared_settings,
    spread,
)
from image_experiment.data import BadInputError, long_tail
from image_experiment.reporting import environment_of, place_of, write_whole

BASELINE = "cross entropy"
EPOCHS = 12  # about, so that few images do not mean many short epochs


def main(argv=None):
    """Trains what is missing, and writes table and figure; returns the exit code."""
    args = parse_args(argv)
    try:
        results = run_all(make_jobs(args), args)
    except BadInputError as error:
        print(f"centroid_study: error: {error}", file=sys.stderr)
        return 2
    study = summarise(results, args)
    write_whole(args.output_dir / "study.json", json.dumps(study, indent=1))
    text = as_markdown(study)
    write_whole(args.output_dir / "study.md", text)
    draw(study, args.output_dir / "study.png")
    print(f"\n{text}\nWritten to {args.output_dir}: study.json, study.md, study.png")
    return 0


def make_jobs(args):
    return [
        make_job(args, recipe, number, steps, seed)
        for number, steps in zip(args.per_class, args.steps, strict=True)
        for seed in args.seeds
        for recipe in args.recipes
    ]


def make_job(args, recipe, number, steps, seed):
    """One run; `loss` holds recipe and images per class."""
    classes = EXPERIMENTS[args.dataset].source.num_classes
    images = long_tail(number, classes, args.imbalance).sum()
    epochs, passes = schedule_of(images, steps, args.batch_size)
    name = recipe.replace(" ", "_").replace(",", "")
    folder = args.output_dir / f"{name}_{number}_per_class_seed{seed}"
    flags = ["--limit", number * classes, "--imbalance", args.imbalance]
    flags += ["--epochs", epochs, "--passes", passes]
    flags += ["--batch-size", args.batch_size]
    rate = rate_of(recipe, args)
    flags += ["--schedule", "cosine", "--learning-rate", rate]
    flags += RECIPES[recipe]
    flags += ["--seed", seed, *args.flags, "--output-dir", folder, "--resume"]
    flags += ["--verbose", "0", "--no-figures", "--score", "last"]
    if args.data_dir:
        flags += ["--data-dir", args.data_dir]
    flags = tuple(map(str, flags))
    return Job(cell_of(recipe, number), seed, rate, args.dataset, str(folder), flags)


def schedule_of(images, steps, batch_size):
    """Epochs, and passes in each, of about so many steps.

    To the nearest whole epoch, which leaves out what is less than a batch.
    """
    passes = max(1, round(steps * batch_size / images / EPOCHS))
    steps_per_epoch = max(1, images * passes // batch_size)
    return max(1, round(steps / steps_per_epoch)), passes


def cell_of(recipe, number):
    return f"{recipe}, {number} per class"


def rate_of(recipe, args):
    """The learning rate that the recipe names, else that of all."""
    flags = RECIPES[recipe]
    if SLOW[0] in flags:
        return float(flags[flags.index(SLOW[0]) + 1])
    return args.learning_rate


def summarise(results, args):
    """Accuracy of each recipe at each number of images per class."""
    accuracy = collections.defaultdict(dict)
    for job, result in results.items():
        accuracy[job.loss][job.seed] = 100 * result["accuracy"]
    rows = {recipe: {} for recipe in args.recipes}
    for recipe, cells in rows.items():
        for number in args.per_class:
            own = accuracy[cell_of(recipe, number)]
            base = accuracy.get(cell_of(BASELINE, number))
            cells[str(number)] = {
                "accuracy": [own[seed] for seed in args.seeds],
                **spread(own.values()),
                "difference": difference(own, base, args.seeds),
            }
    return {
        "dataset": args.dataset,
        "command": args.command,
        "steps": args.steps,
        "per_class": args.per_class,
        "seeds": args.seeds,
        "rows": rows,
        "diverged": diverged(results),
        "recipes": {recipe: shlex.join(RECIPES[recipe]) for recipe in args.recipes},
        "settings": shared_settings(results),
        "data": next(iter(results.values()))["data"],
        "environment": environment_of(results),
    }


def as_markdown(study):
    """Mean accuracy by recipe and images per class, best of each column in bold."""
    columns = [str(number) for number in study["per_class"]]
    best = {
        c: max(study["rows"].values(), key=lambda cells: cells[c]["mean"])[c]["mean"]
        for c in columns
    }
    lines = ["| centroids | " + " | ".join(f"{c} per class" for c in columns) + " |"]
    lines.append("|---" * (len(columns) + 1) + "|")
    for recipe, cells in study["rows"].items():
        texts = []
        for c in columns:
            text = f"{cells[c]['mean']:.1f}"
            text = f"**{text}**" if cells[c]["mean"] == best[c] else text
            std = cells[c]["std"]
            texts.append(text if std is None else f"{text} +- {std:.1f}")
        lines.append(f"| {recipe} | " + " | ".join(texts) + " |")
    lines += [
        "",
        f"Accuracy (%) on {study['data']['scored_images']:,} "
        f"{study['data']['scored_on']} of {study['dataset']}, "
        f"about {steps_of(study)} steps, seeds "
        f"{', '.join(map(str, study['seeds']))}; {place_of(study['environment'])}. "
        f"Command: `{study['command']}`",
        *note_of(study.get("diverged")),
    ]
    return "\n".join(lines)


def steps_of(study):
    """The steps of the runs in words: one number, or one for each column."""
    steps = study["steps"] if len(set(study["steps"])) > 1 else study["steps"][:1]
    return ", ".join(map(str, steps))


def draw(study, path):
    """Accuracy minus that of cross entropy, against the images per class."""
    from image_experiment.figures import plt, save

    figure, axis = plt.subplots(figsize=(9, 5), layout="constrained")
    styles = ["-", "--", ":"]
    for place, (recipe, cells) in enumerate(study["rows"].items()):
        if cells[str(study["per_class"][0])]["difference"] is None:
            continue
        values = [cells[str(n)]["difference"]["mean"] for n in study["per_class"]]
        style = {"color": f"C{place % 10}", "ls": styles[place % 3], "marker": "o"}
        axis.plot(study["per_class"], values, label=recipe, ms=4, **style)
    axis.axhline(0, color="0.5", lw=1)
    axis.set(
        xscale="log",
        xlabel="training images per class",
        ylabel="accuracy minus cross entropy (points)",
        title=study["dataset"],
    )
    axis.set_xticks(study["per_class"], [str(n) for n in study["per_class"]])
    axis.minorticks_off()
    if axis.get_legend_handles_labels()[0]:  # none of cross entropy alone
        figure.legend(loc="outside right center", fontsize=8)
    save(figure, path)


if __name__ == "__main__":
    raise SystemExit(main())
