"""Embeddings that outlive their network: is the new one found in the index of the old?

    python experiments/new_network.py --features FILE --result FILE --choice FILE

FILE of `--choice` is the result of `few_images.py`, from which the rates come. The old
network learned 70 of the 100 classes of CIFAR-100, drawn by each seed; the new one, of
twice the width and from another seed, learned all 100, on its own. It sees the same
features as the old one, or others: those of earlier stages of the pretrained network.
Each network has rows for 100 classes in its head. Test images search in the index of
test images by the old network, known and unseen classes apart.
"""

import argparse
import functools
import pathlib

from feature_kinds import KINDS

NAMES = (
    "cross entropy",
    "AM-Softmax",
    "AM-Softmax, shared start",
    "frozen mild, random",
    "trained",
    "frozen mild",
    "paper",
)


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--features", type=pathlib.Path, required=True, help="file of features")
    add("--result", type=pathlib.Path, required=True, help="JSON file to write")
    add("--choice", type=pathlib.Path, required=True, help="JSON of few_images.py")
    add("--choice-of", type=int, default=50, help="its images per class")
    add("--per-class", type=int, default=100, help="training images")
    add("--steps", type=int, default=1000)
    add("--batch-size", type=int, default=100)
    add("--hidden", type=int, default=512, help="of the old network")
    add("--dim", type=int, default=128)
    add("--queries", type=int, default=50, help="test images of each class")
    add("--first", type=int, help="only so many training images, from the first on")
    add("--kinds", nargs="+", choices=KINDS, default=list(NAMES))
    add("--seeds", type=int, nargs="+", default=[0, 1, 2])
    return parser.parse_args(argv)


if __name__ == "__main__":
    parse_args()  # `--help` ends here, before the imports that take seconds


import feature_heads
import numpy as np
from feature_heads import Network, Record, Shape, pick

import keras_pedcc

# Those that few_images.py does not try have the rate of their next of kin.
RATE_OF = {
    "AM-Softmax, shared start": "AM-Softmax",
    "frozen mild, random": "frozen mild",
}
SEEN = {"the same features": "x", "features of earlier stages": "stages"}
SEARCHES = ("old_in_old", "new_in_old", "new_in_new")
PARTS = ("known", "unseen")


def main(argv=None):
    args = parse_args(argv)
    data = {
        seen: feature_heads.load(args.features, kind, first=args.first)
        for seen, kind in SEEN.items()
    }
    record = Record("new_network", args, summary)
    rates = feature_heads.chosen(args.choice, args.choice_of)
    study = Study(data, rates, args)
    for seed in args.seeds:
        for kind in args.kinds:
            for seen in SEEN:
                key = {"kind": kind, "new_sees": seen, "seed": seed}
                record.once(key, functools.partial(study.report, kind, seen, seed))
    record.write()
    print(table(summary(record.runs)))


class Study:
    """Pairs of an old and a new network.

    Args:
        data: `feature_heads.Features` by what the new network sees.
        rates: What `few_images.py` chose, by loss.
        args: Parsed command line.
    """

    def __init__(self, data, rates, args):
        self.data, self.rates, self.args = data, rates, args
        self.old = next(iter(data.values()))
        self.classes = np.unique(self.old.y_train)
        self.queries = pick(self.old.y_test, args.queries, seed=0)
        self.network = functools.cache(self._network)
        self.old_features = functools.lru_cache(1)(self._old_features)

    def report(self, kind, seen, seed):
        """What `compatibility_report` tells, in percent."""
        new = self._trained(kind, seen, 2, seed + 1000, self.classes)
        report = keras_pedcc.compatibility_report(
            self.old_features(kind, seed),
            new.outputs(self.data[seen].x_test[self.queries])["features"],
            self.old.y_test[self.queries],
            known=self._known(seed),
            k=1,
        )
        return {
            part: {
                **{name: _percent(report[part][name]) for name in SEARCHES},
                "compatible": report[part]["compatible"],
            }
            for part in PARTS
        }

    def _old_features(self, kind, seed):
        old = self._trained(kind, next(iter(self.data)), 1, seed, self._known(seed))
        return old.outputs(self.old.x_test[self.queries])["features"]

    def _known(self, seed):
        number = round(0.7 * len(self.classes))
        return np.random.default_rng(seed).permutation(self.classes)[:number]

    def _trained(self, kind, seen, width, seed, classes):
        data, args = self.data[seen], self.args
        part = pick(data.y_train, args.per_class, seed, classes)
        return self.network(kind, seen, width).train(
            data.x_train[part],
            data.y_train[part],
            seed=seed,
            rate=self.rates[RATE_OF.get(kind, kind)]["rate"],
            epochs=max(1, round(args.steps * args.batch_size / len(part))),
            batch_size=args.batch_size,
        )

    def _network(self, kind, seen, width):
        inputs = self.data[seen].x_train.shape[1]
        sizes = {"hidden": width * self.args.hidden, "dim": self.args.dim}
        shape = Shape(inputs, **sizes, classes=len(self.classes))
        return Network(kind, shape, self.rates.get(kind, {}).get("margin"))


def _percent(report):
    return {
        "recall_at_1": 100 * report["recall_at_1"],
        "map_at_r": 100 * report["mean_average_precision_at_r"],
    }


def summary(runs):
    """Mean and deviation of each search, and in how many pairs new beats old."""
    rows = []
    for kind, seen in dict.fromkeys((run["kind"], run["new_sees"]) for run in runs):
        own = [r for r in runs if (r["kind"], r["new_sees"]) == (kind, seen)]
        row = {"kind": kind, "new_sees": seen, "seeds": len(own)}
        for part in PARTS:
            row[part] = {
                name: {
                    measure: feature_heads.spread(
                        [run[part][name][measure] for run in own]
                    )
                    for measure in own[0][part][name]
                }
                for name in SEARCHES
            }
            row[part]["compatible"] = sum(run[part]["compatible"] for run in own)
        rows.append(row)
    return {"rows": rows}


def table(found, measure="recall_at_1"):
    """Markdown: a row for each loss and each kind of new network."""
    words = [name.replace("_", " ") for name in SEARCHES]
    head = ["loss", "the new network sees"]
    head += [f"{part}: {word}" for part in PARTS for word in words]
    head.append("compatible, known")
    lines = [
        [row["kind"], row["new_sees"]]
        + [
            feature_heads.as_text(row[part][name][measure])
            for part in PARTS
            for name in SEARCHES
        ]
        + [f"{row['known']['compatible']} of {row['seeds']}"]
        for row in sorted(
            found["rows"], key=lambda row: list(SEEN).index(row["new_sees"])
        )
    ]
    return feature_heads.markdown(head, lines)


if __name__ == "__main__":
    main()
