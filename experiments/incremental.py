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

Cross entropy has one more row of weights for each new class from the start, and
predefined centroids one more centroid; until its session no image of the class was
seen. Dot regression is the loss of NC-FSCIL, `(cos - 1)^2 / 2` to the own centroid.

Rates are chosen by the same game among the base classes: 40 of them, then four
sessions, scored on held-out training images.

Reference: Yang et al., "Neural Collapse Inspired Feature-Classifier Alignment for
Few-Shot Class-Incremental Learning", ICLR 2023, https://arxiv.org/abs/2302.03004.
"""

import argparse
import dataclasses
import functools
import itertools
import pathlib
import statistics


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--features", type=pathlib.Path, required=True, help="file of features")
    add("--result", type=pathlib.Path, required=True, help="JSON file to write")
    add("--base", type=int, default=60, help="classes of the base session")
    add("--base-images", type=int, default=500, help="of each of them")
    add("--classes", type=int, default=5, help="of each later session")
    add("--images", type=int, default=5, help="of each class there")
    add("--epochs", type=int, default=5, help="of the base session")
    add("--batch-size", type=int, default=250)
    add("--later-steps", type=int, default=100, help="of each later session")
    add("--later-batch", type=int, default=50)
    add("--hidden", type=int, default=512)
    add("--dim", type=int, default=128)
    add("--seeds", type=int, nargs="+", default=[0, 1, 2])
    add("--trial-seed", type=int, default=100)
    return parser.parse_args(argv)


if __name__ == "__main__":
    parse_args()  # `--help` ends here, before the imports that take seconds


import feature_heads
import few_images
import keras
import numpy as np
from feature_heads import Network, Record, Shape, pick

MEANS, TRAINED, WITH_MEANS = (
    "class means",
    "trained on",
    "trained on with old means",
)
KINDS = ("cross entropy", "frozen mild", "dot regression")
METHODS = [
    (None, MEANS),
    *((kind, way) for kind in KINDS for way in (MEANS, TRAINED, WITH_MEANS)),
]
# Rates of the sessions: all, and those that are tried first.
LADDER = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3, 1.0)
FIRST_TRIED = LADDER[4:9]
HELD_OUT = 50  # images per class


def main(argv=None):
    args = parse_args(argv)
    data = feature_heads.load(args.features)
    record = Record("incremental", args, summary)
    game = Game(data, args)
    for kind, way in METHODS:
        rates = chosen_rates(game, record, kind, way, args)
        for seed in args.seeds:
            key = {"scored": "test", "kind": kind, "way": way, "seed": seed, **rates}
            plan = usual_plan(data, seed, args)
            play = functools.partial(game.play, kind, way, plan, seed, **rates)
            record.once(key, play)
    record.write()
    print(table(summary(record.runs)))


@dataclasses.dataclass(frozen=True)
class Plan:
    """What comes in each session: places of training images, and classes.

    Attributes:
        sessions: List of arrays of places of training images, the base first.
        seen: List of the number of classes seen after each.
        x, y: Images that are classified, and their labels.
    """

    sessions: list
    seen: list
    x: np.ndarray
    y: np.ndarray


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
    if way == MEANS:
        return {"base_rate": base_rate, "rate": None}
    rate = few_images.best_rate(
        lambda rate: score(base_rate, way, rate, "average"), LADDER, FIRST_TRIED
    )
    return {"base_rate": base_rate, "rate": rate}


class Game:
    """Plays the sessions of a plan.

    Args:
        data: `feature_heads.Features`.
        args: Parsed command line.
    """

    def __init__(self, data, args):
        self.data, self.args = data, args
        self.network = functools.cache(self._network)
        self.base = functools.cache(self._base)
        self._plans = {}

    def play(self, kind, way, plan, seed, base_rate=None, rate=None):
        """Accuracies after each session: of all classes, base classes, new ones."""
        if kind is None:
            hits = self._by_means(plan, unit)
        else:
            network = self.network(kind)
            self._restore(network, kind, plan, seed, base_rate)
            if way == MEANS:
                hits = self._by_means(plan, lambda x: network.outputs(x)["features"])
            else:
                hits = self._by_training(network, plan, way, rate, seed)
        return accuracies(hits, plan)

    def _restore(self, network, kind, plan, seed, base_rate):
        """Gives a network the weights that it had after the base session."""
        self._plans[seed, plan.seen[0]] = plan
        weights = self.base(kind, plan.seen[0], seed, base_rate)
        network.model.set_weights(weights)

    def _base(self, kind, first, seed, rate):
        part = self._plans[seed, first].sessions[0]
        args = self.args
        network = self.network(kind).train(
            self.data.x_train[part],
            self.data.y_train[part],
            seed=seed,
            rate=rate,
            epochs=args.epochs,
            batch_size=args.batch_size,
        )
        return network.model.get_weights()

    def _by_means(self, plan, embed):
        """Hits after each session, by the nearest class mean."""
        scored, means = embed(plan.x), []
        for part, seen in zip(plan.sessions, plan.seen, strict=True):
            features, labels = embed(self.data.x_train[part]), self.data.y_train[part]
            means += [features[labels == k].mean(axis=0) for k in np.unique(labels)]
            nearest = (scored @ unit(np.array(means)).T).argmax(axis=1)
            yield plan.y < seen, nearest == plan.y

    def _by_training(self, network, plan, way, rate, seed):
        """Hits after each session, by the largest logit of the classes seen."""
        draw, old = np.random.default_rng(seed), Means()
        model = self._later(network)
        for number, (part, seen) in enumerate(
            zip(plan.sessions, plan.seen, strict=True)
        ):
            x, y = self.data.x_train[part], self.data.y_train[part]
            if number:
                self._adapt(model, x, y, old if way == WITH_MEANS else None, rate, draw)
            old.add(x, y)
            logits = model.predict(plan.x, batch_size=1000, verbose=0)["logits"]
            yield plan.y < seen, logits[:, :seen].argmax(axis=1) == plan.y

    def _adapt(self, model, x, y, old, rate, draw):
        """Trains on the images of a session, and on the means of old classes."""
        half = self.args.later_batch // 2
        places = draw.integers(len(y), size=(self.args.later_steps, 2 * half))
        xs, ys = x[places], y[places]
        if old is not None:
            places = draw.integers(len(old.y), size=(len(xs), half))
            xs[:, half:], ys[:, half:] = old.x[places], old.y[places]
        for variable in model.optimizer.variables:
            variable.assign(keras.ops.zeros(variable.shape, variable.dtype))
        model.optimizer.learning_rate = rate
        model.fit(
            xs.reshape(-1, x.shape[1]),
            ys.reshape(-1),
            batch_size=2 * half,
            shuffle=False,
            verbose=0,
        )

    def _later(self, network):
        """A model of the same weights whose batch normalization stays as it is."""
        later = self.network(network.name, True).model
        later.set_weights(network.model.get_weights())
        return later

    def _network(self, kind, later=False):
        classes = len(np.unique(self.data.y_train))
        inputs = self.data.x_train.shape[1]
        shape = Shape(inputs, self.args.hidden, self.args.dim, classes)
        network = Network(kind, shape)
        if later:
            for layer in network.model.layers:
                if isinstance(layer, keras.layers.BatchNormalization):
                    layer.trainable = False
            network.compile()
        return network


class Means:
    """Means of the classes so far, arrays `x` and `y`."""

    def __init__(self):
        self.x, self.y = None, np.array([], int)

    def add(self, x, y):
        kinds = np.unique(y)
        means = np.array([x[y == k].mean(axis=0) for k in kinds])
        self.x = means if self.x is None else np.concatenate([self.x, means])
        self.y = np.concatenate([self.y, kinds])


def unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def accuracies(hits, plan):
    """Percentages: after each session, their mean, and of the last one's parts."""
    hits = list(hits)
    of_all = [100 * float(np.mean(right[seen])) for seen, right in hits]
    seen, right = hits[-1]
    is_base = plan.y < plan.seen[0]
    return {
        "sessions": of_all,
        "first": of_all[0],
        "average": statistics.fmean(of_all),
        "last": of_all[-1],
        "last_base": 100 * float(np.mean(right[is_base])),
        "last_new": 100 * float(np.mean(right[seen & ~is_base])),
    }


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
            baseline = values.get((feature_heads.BASELINE, MEANS), {})
            row[name]["minus_cross_entropy"] = feature_heads.paired(own, baseline)
    return {"rows": list(rows.values())}


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
