"""How near frozen centroids come to cross entropy where classes are uneven.

    python experiments/frozen_priors.py --data-dir FOLDER --result FILE

Network, data and steps are those of `priors.py`, all with priors. The constants of each
loss are those of highest accuracy on 50 held-out training images of each class: first
the scale, then the margin, the weight of eq. 9 and the learning rate, each beside the
best so far. Then each loss is scored once for each seed, on the test images. Runs that
are in the result file are not repeated.
"""

import argparse
import functools
import pathlib


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--data-dir", type=pathlib.Path, help="folder with EMNIST")
    add("--result", type=pathlib.Path, required=True, help="JSON file to write")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2])
    add("--trial-seed", type=int, default=100)
    add("--most", type=int, default=500, help="images of the most frequent class")
    add("--imbalance", type=float, default=50.0, help="most over least frequent")
    add("--steps", type=int, default=600)
    add("--batch-size", type=int, default=128)
    return parser.parse_args(argv)


if __name__ == "__main__":
    parse_args()  # `--help` ends here, before the imports that take seconds


import feature_heads
import priors
from feature_kinds import BASELINE

HELD_OUT = 50  # images per class
AXES = {
    "scale": ("auto", 15.0, 30.0, 60.0),
    "margin": (0.2, 0.1, 0.0, 0.35, 0.5),
    "mse_weight": (3.0, 1.0, 0.0),
    "rate": (0.05, 0.015, 0.15, 0.5),
}
SCORES = ("accuracy", "rarest_third")


def main(argv=None):
    args = parse_args(argv)
    images, trial = priors.load(args), priors.load(args, HELD_OUT)
    record = feature_heads.Record("frozen_priors", args, summary)

    def once(scored, part, kind, seed, constants):
        key = {"scored": scored, "kind": kind, "seed": seed, **constants}
        make = functools.partial(priors.run, part, kind, True, seed, args, **constants)
        return record.once(key, make)

    for kind in priors.KINDS:
        chosen = choose(
            kind,
            lambda constants, kind=kind: once(
                "held out", trial, kind, args.trial_seed, constants
            )["accuracy"],
        )
        for seed in args.seeds:
            once("test", images, kind, seed, chosen)
    record.write()
    print(table(summary(record.runs)))


def choose(kind, score):
    """The best constants, found one after the other."""
    names = ["rate"] if kind == "cross entropy" else list(AXES)
    chosen = {name: AXES[name][0] for name in names}
    for name in names:
        tried = [{**chosen, name: value} for value in AXES[name]]
        chosen = max(tried, key=score)
    return chosen


def summary(runs):
    """Each score of each loss, beside cross entropy's."""
    tested = [run for run in runs if run["scored"] == "test"]
    rows = {
        run["kind"]: {name: run.get(name) for name in ("kind", *AXES)} for run in tested
    }
    for name in SCORES:
        values = feature_heads.grouped(tested, ("kind",), name)
        for (kind,), own in values.items():
            found = feature_heads.spread(list(own.values()))
            baseline = values.get((BASELINE,), {})
            found["minus_cross_entropy"] = feature_heads.paired(own, baseline)
            rows[kind][name] = found
    return {"rows": list(rows.values())}


def table(found):
    """Markdown: a row for each loss."""
    head = ["loss", "scale", "margin", "lambda", "learning rate"]
    lines = [
        [row["kind"]]
        + ["-" if row[name] is None else str(row[name]) for name in AXES]
        + [feature_heads.compared(row[name]) for name in SCORES]
        for row in found["rows"]
    ]
    return feature_heads.markdown([*head, "accuracy", "rarest third"], lines)


if __name__ == "__main__":
    main()
