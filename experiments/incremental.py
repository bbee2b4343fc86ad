"""Classes that come later, with five images each, and no old images are kept.

    python experiments/incremental.py --features FILE --result FILE

The usual protocol of CIFAR-100: 60 classes with all their images, then eight sessions
of five classes with five images. After each, all test images of the classes seen so
far are classified among these. The classes come in the order of their labels; each seed
draws the five images, and the weights.

- class means: the network stays as it was after the base session, and a class is the
  mean of the unit features of its images. Also without any network.
- trained on: in each session the layers but the batch normalization train on the new
  images. With old means, half of each batch are means of the old classes, one vector of
  1280 numbers each, that are kept in the place of images.
- rows at means: the network stays as it was; base classes keep their predefined
  centroids, and the centroid of a later class is moved to the mean of the features of
  its images. With "trained on", training with old means goes on from there.

Cross entropy has one more row of weights for each new class from the start, and
predefined centroids one more centroid; until its session no image of the class was
seen. Dot regression is the loss of NC-FSCIL, `(cos - 1)^2 / 2` to the own centroid.

Rates are chosen by the same game among the base classes: 40 of them, then four
sessions, scored on held-out training images.

Reference: Yang et al., "Neural Collapse Inspired Feature-Classifier Alignment for
Few-Shot Class-Incremental Learning", ICLR 2023, https://arxiv.org/abs/2302.03004.
"""

import functools
import itertools
import pathlib

from incremental_flags import parser_of


def parse_args(argv=None):
    parser = parser_of(__doc__)
    parser.add_argument(
        "--features", type=pathlib.Path, required=True, help="file of features"
    )
    return parser.parse_args(argv)


if __name__ == "__main__":
    parse_args()  # `--help` ends here, before the imports that take seconds


import feature_heads
import few_images
import numpy as np
from feature_heads import Record, pick
from feature_kinds import BASELINE
from incremental_game import (
    MEANS,
    ROWS,
    ROWS_TRAINED,
    TRAINED,
    WITH_MEANS,
    Game,
    Plan,
)

FROZEN = ("frozen mild", "dot regression")
KINDS = ("cross entropy", *FROZEN)
METHODS = [
    (None, MEANS),
    *((kind, way) for kind in KINDS for way in (MEANS, TRAINED, WITH_MEANS)),
    *((kind, way) for kind in FROZEN for way in (ROWS, ROWS_TRAINED)),
]
# Rates of the sessions: all, and those that are tried first.
LADDER = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3, 1.0)
FIRST_TRIED = LADDER[4:9]
HELD_OUT = 50  # images per class


def main(argv=None):
    args = parse_args(argv)
    game = Game(feature_heads.load(args.features), args)
    study(lambda seed: game, game, Record("incremental", args, summary), args)


def study(game_of, trial_game, record, args):
    """Plays all methods, at the rates of the trial game.

    Args:
        game_of: Function of a seed that returns its `Game`.
        trial_game: `Game` of the trials.
        record: `feature_heads.Record`.
        args: Parsed command line.
    """
    for kind, way in METHODS:
        rates = chosen_rates(trial_game, record, kind, way, args)
        for seed in args.seeds:
            key = {"scored": "test", "kind": kind, "way": way, "seed": seed, **rates}
            game = game_of(seed)
            plan = usual_plan(game.data, seed, args)
            play = functools.partial(game.play, kind, way, plan, seed, **rates)
            record.once(key, play)
    record.write()
    print(table(summary(record.runs)))


def usual_plan(data, seed, args):
    """Base classes with all images; scored on the test images."""
    base = pick(data.y_train, args.base_images, seed, range(args.base))
    return plan_of(data.y_train, base, args.base, data, seed, args)


def plan_of(labels, base, first, data, seed, args, last=None, scored=None):
    last = len(np.unique(labels)) if last is None else last
    seen = list(range(first, last + 1, args.classes))
    sessions = [base]
    for begin, end in itertools.pairwise(seen):
        sessions.append(pick(labels, args.images, seed, range(begin, end)))
    x, y = scored or (data.x_test, data.y_test)
    return Plan(sessions, seen, x, y)


def trial_plan(data, seed, args):
    """Two thirds of the base classes, then the rest; scored on held-out images."""
    first, last = args.base * 2 // 3, args.base
    images = args.base_images - HELD_OUT
    base = pick(data.y_train, images, seed, range(first))
    held = pick(data.y_train, HELD_OUT, seed, range(last), skip=images)
    scored = data.x_train[held], data.y_train[held]
    return plan_of(data.y_train, base, first, data, seed, args, last, scored)


def chosen_rates(game, record, kind, way, args):
    """Rates of the base session and of the others, by the game of `trial_plan`."""
    if kind is None:
        return {"base_rate": None, "rate": None}
    plan = trial_plan(game.data, args.trial_seed, args)

    def score(base_rate, way, rate, measure):
        key = {"scored": "held out", "kind": kind, "way": way, "seed": args.trial_seed}
        key |= {"base_rate": base_rate, "rate": rate}
        play = functools.partial(
            game.play, kind, way, plan, args.trial_seed, base_rate, rate
        )
        return record.once(key, play)[measure]

    base_rate = few_images.best_rate(lambda rate: score(rate, MEANS, None, "first"))
    if way in (MEANS, ROWS):
        return {"base_rate": base_rate, "rate": None}
    rate = few_images.best_rate(
        lambda rate: score(base_rate, way, rate, "average"), LADDER, FIRST_TRIED
    )
    return {"base_rate": base_rate, "rate": rate}


MEASURES = ("first", "average", "last", "last_base", "last_new")


def summary(runs):
    """Each measure of each method, beside class means of cross entropy."""
    tested = [run for run in runs if run["scored"] == "test"]
    rows = {}
    for name in MEASURES:
        values = feature_heads.grouped(tested, ("kind", "way"), name)
        for (kind, way), own in values.items():
            row = rows.setdefault((kind, way), {"kind": kind, "way": way})
            row[name] = feature_heads.spread(list(own.values()))
            baseline = values.get((BASELINE, MEANS), {})
            row[name]["minus_cross_entropy"] = feature_heads.paired(own, baseline)
    return {"rows": [rows[method] for method in METHODS if method in rows]}


def table(found):
    """Markdown: a row for each method."""
    head = ["trained with", "later classes", "base session", "average", "last"]
    head += ["last: base classes", "last: later classes"]
    lines = [
        [row["kind"] or "no network", row["way"]]
        + [feature_heads.compared(row[name]) for name in MEASURES]
        for row in found["rows"]
    ]
    return feature_heads.markdown(head, lines)


if __name__ == "__main__":
    main()
