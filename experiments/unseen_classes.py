"""Classes that were not trained on: are they found, and noticed as strangers?

    python experiments/unseen_classes.py --features FILE --result FILE --choice FILE

FILE of `--choice` is the result of `few_images.py`, from which the rates come. Half of
the classes of CIFAR-100, drawn by each seed, is trained on. Then, on test images:

- retrieval: each image of the other half searches among all images of that half,
- strangers: how well a score tells the images of the known half from those of the
  other: the largest logit ("largest": cosine, or for cross entropy the largest
  probability), the energy, and the cosine to the 10th nearest training image.

AUROC in percent, and FPR95, the share of strangers above the threshold that 95 % of
the known exceed.
"""

import argparse
import functools
import pathlib

from feature_kinds import BASELINE, KINDS

NAMES = tuple(KINDS)[:8]


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
    add("--hidden", type=int, default=512)
    add("--dim", type=int, default=128)
    add("--first", type=int, help="only so many training images, from the first on")
    add("--kinds", nargs="+", choices=KINDS, default=list(NAMES))
    add("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    return parser.parse_args(argv)


if __name__ == "__main__":
    parse_args()  # `--help` ends here, before the imports that take seconds


import feature_heads
import numpy as np
from feature_heads import Network, Record, Shape, pick
from scipy import special
from sklearn.metrics import roc_auc_score

import keras_pedcc

NEIGHBOURS = 10
WITHOUT = "the features themselves"
SCORES = ("largest", "energy", "neighbours")


def main(argv=None):
    args = parse_args(argv)
    data = feature_heads.load(args.features, first=args.first)
    record = Record("unseen_classes", args, summary)
    chosen = feature_heads.chosen(args.choice, args.choice_of)
    classes = np.unique(data.y_train)
    shape = Shape(data.x_train.shape[1], args.hidden, args.dim, len(classes) // 2)
    networks = {
        kind: Network(kind, shape, chosen[kind]["margin"]) for kind in args.kinds
    }
    for seed in args.seeds:
        half = Half(data, classes, seed, args.per_class)
        record.once({"kind": WITHOUT, "seed": seed}, half.without_training)
        for kind, network in networks.items():
            make = functools.partial(half.scores, network, chosen[kind]["rate"], args)
            record.once({"kind": kind, "seed": seed}, make)
    record.write()
    print(retrieval_table(summary(record.runs)))
    print(strangers_table(summary(record.runs)))


class Half:
    """The images of the classes that are trained on, and of the others.

    Args:
        data: `feature_heads.Features`.
        classes: All classes.
        seed: int. Draws those that are known, and the training images.
        per_class: Number of training images of each class.
    """

    def __init__(self, data, classes, seed, per_class):
        self.seed = seed
        self.known = np.sort(
            np.random.default_rng(seed).permutation(classes)[: len(classes) // 2]
        )
        part = pick(data.y_train, per_class, seed, self.known)
        self.x, self.y = data.x_train[part], self._places(data.y_train[part])
        among = np.isin(data.y_test, self.known)
        self.x_known = data.x_test[among]
        self.y_known = self._places(data.y_test[among])
        self.x_other, self.y_other = data.x_test[~among], data.y_test[~among]

    def without_training(self):
        """Retrieval, and strangers by the nearest images, with the features alone."""
        features = [unit(x) for x in (self.x, self.x_known, self.x_other)]
        return {**self._retrieval(self.x_other), **strangers({}, *features)}

    def scores(self, network, rate, args):
        """What a network trained on the known half is worth."""
        network.train(
            self.x,
            self.y,
            seed=self.seed,
            rate=rate,
            epochs=max(1, round(args.steps * args.batch_size / len(self.y))),
            batch_size=args.batch_size,
        )
        trained, known, other = map(
            network.outputs, (self.x, self.x_known, self.x_other)
        )
        hits = known["logits"].argmax(axis=1) == self.y_known
        logits = {
            name: [score(each["logits"], network) for each in (known, other)]
            for name, score in (("largest", largest), ("energy", energy))
        }
        features = [each["features"] for each in (trained, known, other)]
        return {
            "accuracy": 100 * float(np.mean(hits)),
            **self._retrieval(other["features"]),
            **strangers(logits, *features),
        }

    def _places(self, labels):
        return np.searchsorted(self.known, labels)

    def _retrieval(self, features):
        report = keras_pedcc.retrieval_report(features, self.y_other, k=1)
        return {
            "recall_at_1": 100 * report["recall_at_1"],
            "map_at_r": 100 * report["mean_average_precision_at_r"],
        }


def strangers(logits, trained, known, other):
    """AUROC and FPR95 in percent of each score.

    Args:
        logits: Dict of pairs of scores: of known images, and of strangers.
        trained: Unit features of the training images.
        known: Unit features of known test images.
        other: Unit features of strangers.
    """
    near = {"neighbours": [neighbours(each, trained) for each in (known, other)]}
    found = {}
    for name, (high, low) in {**logits, **near}.items():
        is_known = np.repeat([1, 0], [len(high), len(low)])
        auroc = roc_auc_score(is_known, np.concatenate([high, low]))
        found[f"auroc_{name}"] = 100 * float(auroc)
        found[f"fpr95_{name}"] = 100 * float(np.mean(low >= np.quantile(high, 0.05)))
    return found


def largest(logits, network):
    """The largest cosine; of logits that are no cosines the largest probability."""
    if network.kind.loss is None:
        logits = special.softmax(logits.astype("float64"), axis=1)
    return logits.max(axis=1)


def energy(logits, network):
    """Log of the sum of the exponentials of the scaled logits."""
    return special.logsumexp(network.scale * logits.astype("float64"), axis=1)


def neighbours(features, trained):
    """Cosine to the tenth nearest of the training images."""
    found = [
        np.partition(block @ trained.T, -NEIGHBOURS, axis=1)[:, -NEIGHBOURS]
        for block in np.array_split(features, max(1, len(features) // 1000))
    ]
    return np.concatenate(found)


def unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def summary(runs):
    """For each loss, mean, deviation and paired difference of each measure."""
    rows = []
    for kind in dict.fromkeys(run["kind"] for run in runs):
        own = [run for run in runs if run["kind"] == kind]
        row = {"kind": kind, "seeds": len(own)}
        for name in own[0].keys() - {"kind", "seed"}:
            values = feature_heads.grouped(
                [run for run in runs if name in run], ("kind",), name
            )
            row[name] = feature_heads.spread(list(values[kind,].values()))
            row[name]["minus_cross_entropy"] = feature_heads.paired(
                values[kind,], values.get((BASELINE,), {})
            )
        rows.append(row)
    return {"rows": rows}


def retrieval_table(found):
    """Markdown: known classes classified, and others retrieved."""
    names = ("accuracy", "recall_at_1", "map_at_r")
    head = ["loss", "known: accuracy", "unseen: recall@1", "unseen: mAP@R"]
    return _table(found, head, names)


def strangers_table(found):
    """Markdown: AUROC and FPR95 of each score."""
    names = [f"{measure}_{score}" for score in SCORES for measure in ("auroc", "fpr95")]
    head = ["loss"]
    head += [f"{m} {s}" for s in SCORES for m in ("AUROC", "FPR95")]
    return _table(found, head, names)


def _table(found, head, names):
    lines = []
    for row in found["rows"]:
        cells = [feature_heads.compared(row.get(name)) for name in names]
        lines.append([row["kind"], *cells])
    return feature_heads.markdown(head, lines)


if __name__ == "__main__":
    main()
