"""Plays sessions of classes that come one after the other, for `incremental.py`."""

import dataclasses
import functools
import statistics

import keras
import numpy as np
from feature_heads import Network, Shape

MEANS, TRAINED, WITH_MEANS, ROWS, ROWS_TRAINED = (
    "class means",
    "trained on",
    "trained on with old means",
    "rows at means",
    "rows at means, trained on with old means",
)


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
            if number and way in (ROWS, ROWS_TRAINED):
                self._move_rows(model, x, y)
            if number and way != ROWS:
                self._adapt(model, x, y, None if way == TRAINED else old, rate, draw)
            old.add(x, y)
            logits = model.predict(plan.x, batch_size=1000, verbose=0)["logits"]
            yield plan.y < seen, logits[:, :seen].argmax(axis=1) == plan.y

    def _move_rows(self, model, x, y):
        """Puts the centroids of these classes at the means of their features."""
        features = model.predict(x, batch_size=1000, verbose=0)["features"]
        head = next(each for each in model.layers if hasattr(each, "centroids"))
        rows = np.array(keras.ops.convert_to_numpy(head.centroids))
        for k in np.unique(y):
            rows[k] = unit(features[y == k].mean(axis=0, keepdims=True))[0]
        head.centroids.assign(rows)

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
