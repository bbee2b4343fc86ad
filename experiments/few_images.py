"""Which loss when: accuracy on CIFAR-100 by the number of images per class.

    python experiments/few_images.py --features FILE --result FILE

FILE of `--features` is made by `pretrained_features.py`. A network of two layers is
trained on the features with each loss. Learning rate, and margin where the loss has
several to choose from, are those of highest accuracy on held-out training images, for
each number of images; then each loss has one evaluation on all test images for each
seed, which draws images, weights and order. A run that is in the result is not
repeated: the same command goes on where it was stopped.
"""

import argparse
import functools
import pathlib
import statistics

from feature_kinds import BASELINE, KINDS


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--features", type=pathlib.Path, required=True, help="file of features")
    add("--result", type=pathlib.Path, required=True, help="JSON file to write")
    add("--per-class", type=int, nargs="+", default=[5, 10, 50], help="images")
    add("--steps", type=int, nargs="+", default=[600, 600, 1000], help="for each")
    add("--chosen-at", type=int, nargs="+", help="images in the trials, for each")
    add("--batch-size", type=int, default=100)
    add("--hidden", type=int, default=512)
    add("--dim", type=int, default=128)
    add("--first", type=int, help="only so many training images, from the first on")
    add("--most-tried", type=int, default=450, help="images per class in a trial")
    add("--kinds", nargs="+", choices=KINDS, default=list(KINDS)[:8])
    add("--seeds", type=int, nargs="*", default=[0, 1, 2, 3, 4], help="of tests")
    add("--trial-seeds", type=int, nargs="+", default=[100])
    args = parser.parse_args(argv)
    args.chosen_at = args.chosen_at or args.per_class
    if not len(args.steps) == len(args.chosen_at) == len(args.per_class):
        parser.error(
            "--steps and --chosen-at must have one number for each of --per-class"
        )
    if not set(args.chosen_at) <= set(args.per_class):
        parser.error("--chosen-at must be of --per-class")
    return args


if __name__ == "__main__":
    parse_args()  # `--help` ends here, before the imports that take seconds


import feature_heads
from feature_heads import LEVEL, Network, Record, Shape, pick

HELD_OUT = 50  # images per class
LADDER = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
FIRST_TRIED = (0.03, 0.1, 0.3)


def main(argv=None):
    args = parse_args(argv)
    study = Study(feature_heads.load(args.features, first=args.first), args)
    choice = {
        (number, kind): study.choose(chosen_at, kind)
        for number, chosen_at in zip(args.per_class, args.chosen_at, strict=True)
        for kind in args.kinds
    }
    for seed in args.seeds:
        for (number, kind), chosen in choice.items():
            study.score(number, kind, seed, *chosen)
    study.record.write()
    print(table([study.record.summary(study.record.runs)]))


class Study:
    """Trainings on some features.

    Args:
        features: `feature_heads.Features`.
        args: Parsed command line.
    """

    def __init__(self, features, args):
        self.features, self.args = features, args
        self.record = Record("few_images", args, summary)
        # Compiled once for all numbers of images, rates and seeds.
        self.network = functools.cache(self._network)

    def choose(self, number, kind):
        """Rate and margin of highest accuracy on held-out training images."""
        margins = KINDS[kind].margins or (None,)
        rate = best_rate(lambda rate: self._trials(number, kind, rate, margins[0]))
        scores = {m: self._trials(number, kind, rate, m) for m in margins}
        return rate, max(scores, key=scores.get)

    def score(self, number, kind, seed, rate, margin):
        """Trains with what was chosen, and scores the test images once."""
        key = {"scored": "test", "per_class": number, "kind": kind, "seed": seed}

        def make():
            part = pick(self.features.y_train, number, seed)
            network = self._trained(number, kind, rate, margin, seed, part)
            test = self.features.x_test, self.features.y_test
            return {"rate": rate, "margin": margin, "accuracy": network.accuracy(*test)}

        self.record.once(key, make)

    def _trials(self, *setting):
        trials = (self._trial(seed, *setting) for seed in self.args.trial_seeds)
        return statistics.fmean(trials)

    def _trial(self, seed, number, kind, rate, margin):
        key = {"scored": "held out", "per_class": number, "kind": kind, "seed": seed}

        def make():
            x, y = self.features.x_train, self.features.y_train
            fewer = min(number, self.args.most_tried)
            held = pick(y, HELD_OUT, seed, skip=fewer)
            part = pick(y, fewer, seed)
            network = self._trained(number, kind, rate, margin, seed, part)
            return {"accuracy": network.accuracy(x[held], y[held])}

        return self.record.once({**key, "rate": rate, "margin": margin}, make)[
            "accuracy"
        ]

    def _trained(self, number, kind, rate, margin, seed, part):
        steps = dict(zip(self.args.per_class, self.args.steps, strict=True))[number]
        return self.network(kind, margin).train(
            self.features.x_train[part],
            self.features.y_train[part],
            seed=seed,
            rate=rate,
            epochs=max(1, round(steps * self.args.batch_size / len(part))),
            batch_size=self.args.batch_size,
        )

    def _network(self, kind, margin):
        inputs = self.features.x_train.shape[1]
        classes = int(self.features.y_train.max()) + 1
        shape = Shape(inputs, self.args.hidden, self.args.dim, classes)
        return Network(kind, shape, margin)


def best_rate(score, ladder=LADDER, first=FIRST_TRIED):
    """The learning rate of highest score; more are tried while it is at an end."""
    scores = {rate: score(rate) for rate in first}
    while True:
        best = max(scores, key=scores.get)
        place = ladder.index(best)
        beside = ladder[max(place - 1, 0) : place + 2]
        missing = [rate for rate in beside if rate not in scores]
        if not missing:
            return best
        scores |= {rate: score(rate) for rate in missing}


def summary(runs):
    """Rows of the table, with paired tests against cross entropy and the best."""
    tested = [run for run in runs if run["scored"] == "test"]
    values = feature_heads.grouped(tested, ("per_class", "kind"), "accuracy")
    rows = []
    for (number, kind), own in values.items():
        means = {
            other: statistics.fmean(of_seed.values())
            for (n, other), of_seed in values.items()
            if n == number
        }
        best = max(means, key=means.get)
        row = {"per_class": number, "kind": kind, "seeds": len(own)}
        row |= feature_heads.spread(list(own.values()))
        baseline = values.get((number, BASELINE), {})
        row["minus_cross_entropy"] = feature_heads.paired(own, baseline)
        row["minus_best"] = feature_heads.paired(own, values[number, best])
        rows.append({**row, "best": kind == best})
    return {"choice": choice_of(tested), "rows": rows}


def choice_of(tested):
    """What was chosen on held-out images: a dict for each number and loss."""
    names = ("per_class", "kind", "rate", "margin")
    choices = [{name: run[name] for name in names} for run in tested]
    return [each for i, each in enumerate(choices) if each not in choices[:i]]


def table(studies):
    """Markdown of some results: a row for each loss, a column for each number."""
    cells = {
        (row["kind"], row["per_class"]): cell(row)
        for study in studies
        for row in study["rows"]
    }
    kinds = list(dict.fromkeys(kind for kind, _ in cells))
    numbers = sorted({number for _, number in cells})
    head = ["loss", *(f"{number} per class" for number in numbers)]
    lines = [[kind, *(cells.get((kind, n), "-") for n in numbers)] for kind in kinds]
    return feature_heads.markdown(head, lines)


def cell(row):
    """Mean and deviation, and the difference from cross entropy.

    Bold: the highest, and what is not significantly behind it. `~`: not significantly
    different from cross entropy.
    """
    text = feature_heads.compared(row)
    return f"**{text}**" if tied(row) else text


def tied(row):
    """Whether a row is the best, or not significantly behind it."""
    behind = row["minus_best"]
    return row["best"] or (behind is not None and behind["p"] >= LEVEL)


if __name__ == "__main__":
    main()
