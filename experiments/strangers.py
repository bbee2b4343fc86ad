"""Which score tells strangers from known classes: letters, digits, and both data sets.

    python experiments/strangers.py --data-dir FOLDER --result FILE

Small networks are trained on the letters of EMNIST, with its digits as strangers; the
other way round; and on MNIST, with the letters of EMNIST as strangers. The network, the
heads and the scores are those of `upgrade.py`. A seed draws the half of the training
images that is trained on, and the weights. The threshold refuses 5 % of the other half.
Each network is scored once, on the test images; nothing is chosen by them.
"""

import argparse
import pathlib
import tempfile
import types

HEADS = ("frozen", "trained from predefined", "AM-Softmax", "cross entropy")
PAIRS = {
    "letters, not digits": ("letters", "digits"),
    "digits, not letters": ("digits", "letters"),
    "MNIST, not letters": ("MNIST", "letters"),
}


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--data-dir", type=pathlib.Path, required=True, help="with EMNIST and MNIST")
    add("--result", type=pathlib.Path, required=True, help="JSON file to write")
    add("--pairs", nargs="+", choices=PAIRS, default=list(PAIRS))
    add("--heads", nargs="+", choices=HEADS, default=list(HEADS))
    add("--seeds", type=int, nargs="+", default=[0, 1, 2])
    add("--steps", type=int, default=400)
    add("--batch-size", type=int, default=128)
    add("--learning-rate", type=float, default=0.05)
    add("--dim", type=int, default=64, help="length of the features")
    return parser.parse_args(argv)


if __name__ == "__main__":
    parse_args()  # `--help` ends here, before the imports that take seconds


import feature_heads
import numpy as np
from comparison_flags import MNIST
from emnist import EMNIST
from feature_heads import Record
from image_experiment import data
from upgrade_study import strangers, tasks

DIGITS = 10  # classes 0 to 9 of EMNIST; the rest are letters
MEASURES = {"auc": "AUROC", "fpr_at_95_tpr": "FPR95", "refused": "refused"}


def main(argv=None):
    args = parse_args(argv)
    record = Record("strangers", args, summary)
    parts = load(args.data_dir)
    for seed in args.seeds:
        for pair in args.pairs:
            known, others = (parts[name] for name in PAIRS[pair])
            task = make_task(known, others, seed)
            for head in args.heads:
                key = {"pair": pair, "name": head, "seed": seed}
                record.once(key, lambda: run(task, key, args))  # noqa: B023
    record.write()
    print(table(summary(record.runs)))


def load(folder):
    """Letters and digits of EMNIST, and MNIST, by name."""
    characters = data.load(EMNIST.source, folder)
    return {
        "digits": part(characters, lambda y: y < DIGITS),
        "letters": part(characters, lambda y: y >= DIGITS),
        "MNIST": data.load(MNIST.source, folder),
    }


def part(images, chosen):
    """The images whose class is chosen, with classes from 0 on."""
    arrays = []
    for x, y in ((images.x_train, images.y_train), (images.x_test, images.y_test)):
        arrays += [x[chosen(y)], np.unique(y[chosen(y)], return_inverse=True)[1]]
    return data.Images(*arrays, images.origin)


def make_task(known, others, seed):
    """A task whose last class is that of all strangers; it is not trained on."""
    number = int(known.y_train.max()) + 1
    y, y_test = (
        np.concatenate([labels, np.full(count, number)])
        for labels, count in (
            (known.y_train, len(others.y_train)),
            (known.y_test, len(others.y_test)),
        )
    )
    return tasks.Task(
        x=np.concatenate([known.x_train, others.x_train]),
        y=y,
        first_half=np.random.default_rng(seed).random(len(y)) < 0.5,
        x_test=np.concatenate([known.x_test, others.x_test]),
        y_test=y_test,
        num_classes=number + 1,
        num_known=number,
    )


def run(task, key, args):
    """Trains a network, and reports of each score."""
    settings = types.SimpleNamespace(**vars(args), data=key["pair"])
    with tempfile.TemporaryDirectory() as folder:
        settings.cache_dir = pathlib.Path(folder)
        return strangers.maker(key["name"], settings)(task, key["seed"])


def summary(runs):
    """Mean and deviation of each measure in percent, by pair, head and score."""
    rows = []
    for pair, name in dict.fromkeys((run["pair"], run["name"]) for run in runs):
        own = [run for run in runs if (run["pair"], run["name"]) == (pair, name)]
        row = {"pair": pair, "name": name}
        row["accuracy"] = feature_heads.spread([run["accuracy"] for run in own])
        for score in strangers.SCORES:
            row[score] = {
                measure: feature_heads.spread(
                    [100 * run["scores"][score][measure] for run in own]
                )
                for measure in MEASURES
            }
        rows.append(row)
    return {"rows": rows}


def table(found):
    """Markdown: AUROC and FPR95 of each head and score, for each pair."""
    rows = {(row["pair"], row["name"]): row for row in found["rows"]}
    pairs = list(dict.fromkeys(pair for pair, _ in rows))
    shown = [(pair, measure) for pair in pairs for measure in list(MEASURES)[:2]]
    head = ["head: score", *(f"{pair}: {MEASURES[m]}" for pair, m in shown)]
    lines = [
        [f"{name}: {score}"]
        + [feature_heads.as_text(rows[pair, name][score][m]) for pair, m in shown]
        for name in dict.fromkeys(name for _, name in rows)
        for score in strangers.SCORES
    ]
    return feature_heads.markdown(head, lines)


if __name__ == "__main__":
    main()
