"""Small networks on the features that `pretrained_features.py` makes, and their losses.

What `few_images.py`, `unseen_classes.py`, `new_network.py` and `incremental.py` share.
"""

import dataclasses
import json
import math
import statistics

import keras
import numpy as np
from feature_kinds import KINDS
from image_experiment.reporting import write_whole
from keras import layers
from scipy import stats

import keras_pedcc
from benchmarks.environment import environment
from keras_pedcc.losses import auto_scale

LATE_FROM, LATE_RATE = 0.6, 1e-3  # share of the epochs before fine-tuning, its rate
MOMENTUM, WEIGHT_DECAY = 0.9, 5e-4
LEVEL = 0.05  # of significance
PATHS = ("features", "data_dir", "result", "choice")  # of one machine: not told


@dataclasses.dataclass(frozen=True)
class Shape:
    """Sizes of a network: features in, hidden units, features out, classes."""

    inputs: int
    hidden: int = 512
    dim: int = 128
    classes: int = 100


@dataclasses.dataclass(frozen=True)
class Features:
    """Features of training and test images, float32, and their labels."""

    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray


def load(path, kind="x", first=None):
    """Features of a file of `pretrained_features.py`, standardized.

    Args:
        path: Path of the `.npz` file.
        kind: `"x"`, the last features, or `"stages"`, those before.
        first: int or `None`. Only so many training images, from the first on.
    """
    with np.load(path, allow_pickle=False) as file:
        train = file[f"{kind}_train"][:first].astype("float32")
        test = file[f"{kind}_test"].astype("float32")
        labels = [file[f"y_{part}"].astype("int64") for part in ("train", "test")]
    mean, deviation = train.mean(axis=0), train.std(axis=0) + 1e-3
    train, test = ((x - mean) / deviation for x in (train, test))
    return Features(train, labels[0][: len(train)], test, labels[1])


def pick(labels, per_class, seed, classes=None, skip=0):
    """Places of so many images of each class, drawn by a seed, after `skip` others."""
    order = np.random.default_rng(seed).permutation(len(labels))
    classes = np.unique(labels) if classes is None else classes
    of_class = [order[labels[order] == k][skip : skip + per_class] for k in classes]
    fewest = min(map(len, of_class))
    if fewest < per_class:
        raise ValueError(
            f"Each class must have {skip + per_class} images. Received: a class with "
            f"{skip + fewest}. Lower --per-class."
        )
    return np.sort(np.concatenate(of_class))


class Network:
    """A compiled model of one kind that is trained again and again, from new weights.

    Keras traces and compiles it once; late fine-tuning makes it do so at each training.

    Args:
        kind: Name in `KINDS`.
        shape: `Shape`.
        margin: Margin instead of that of the kind, or `None`.
    """

    def __init__(self, kind, shape, margin=None):
        self.name, self.kind, self.shape, self.margin = kind, KINDS[kind], shape, margin
        self.model = self._model(seed=0)
        self.compile()

    def train(self, x, y, *, seed, rate, epochs, batch_size):
        """Trains from the weights of `seed`; the rate falls as a cosine to 0."""
        keras.utils.set_random_seed(seed)
        self.model.set_weights(self._model(seed).get_weights())
        if self.kind.late:
            self.compile()
        else:
            for variable in self.model.optimizer.variables:
                variable.assign(keras.ops.zeros(variable.shape, variable.dtype))
        self.model.fit(
            x,
            y,
            batch_size=batch_size,
            epochs=epochs,
            callbacks=self._callbacks(rate, epochs),
            verbose=0,
        )
        return self

    def compile(self):
        """Compiles the model with a new optimizer."""
        optimizer = keras.optimizers.SGD(
            0.1, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY
        )
        self.model.compile(optimizer, self._loss())

    @property
    def scale(self):
        """Factor of the logits in the loss."""
        if self.kind.loss is None:
            return 1.0
        loss = self._loss()
        if loss.scale != "auto":
            return loss.scale
        return auto_scale(self.shape.classes, margin=loss.margin)

    def outputs(self, x):
        """Dict of the unit features and the logits of images, as arrays."""
        return self.model.predict(x, batch_size=1000, verbose=0)

    def accuracy(self, x, y):
        """Accuracy in percent."""
        return 100 * float(np.mean(self.outputs(x)["logits"].argmax(axis=1) == y))

    def _callbacks(self, rate, epochs):
        def fallen(epoch):
            return rate * (1 + math.cos(math.pi * (epoch + 0.5) / epochs)) / 2

        callbacks = [keras.callbacks.LearningRateScheduler(fallen)]
        if self.kind.late:
            late = round(LATE_FROM * epochs)
            callbacks.append(keras_pedcc.FinetuneCallback(late, LATE_RATE))
        return callbacks

    def _loss(self):
        if self.kind.loss is None:
            return keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        if self.kind.loss == "dot regression":
            return dot_regression
        constants = dict(self.kind.constants)
        if self.kind.margins:
            constants["margin"] = self.kind.margins[0]
        if self.margin is not None:
            constants["margin"] = self.margin
        return getattr(keras_pedcc, self.kind.loss)(**constants)

    def _model(self, seed):
        inputs = keras.Input((self.shape.inputs,))
        x = layers.Dense(self.shape.hidden, use_bias=False)(inputs)
        x = layers.ReLU()(layers.BatchNormalization(momentum=0.9)(x))
        x = layers.Dense(self.shape.dim, use_bias=False)(x)
        x = layers.BatchNormalization(momentum=0.9, center=False, scale=False)(x)
        return keras_pedcc.PEDCCModel(inputs, self._outputs(x, seed))

    def _outputs(self, features, seed):
        classes, dim = self.shape.classes, self.shape.dim
        if self.kind.head == "dense":
            logits = layers.Dense(classes)(features)
            return {"features": layers.UnitNormalization()(features), "logits": logits}
        if self.kind.head in ("frozen", "trained"):
            trainable = {"trainable": True} if self.kind.head == "trained" else {}
            return keras_pedcc.PEDCCDense(classes, **trainable)(features)
        random = np.random.default_rng(0).normal(size=(classes, dim))
        if self.kind.head == "frozen random":
            return keras_pedcc.PEDCCDense(classes, centroids=random)(features)
        if self.kind.head == "shared cosine":
            start = keras.initializers.Constant(random / math.sqrt(dim))
            return keras_pedcc.CosineDense(classes, kernel_initializer=start)(features)
        return keras_pedcc.CosineDense(classes)(features)


def dot_regression(labels, outputs):
    """Half the squared difference of the cosine to the own centroid from 1."""
    labels = keras.ops.reshape(keras.ops.cast(labels, "int32"), (-1, 1))
    own = keras.ops.take_along_axis(outputs["logits"], labels, axis=1)
    return keras.ops.squeeze((own - 1) ** 2 / 2, axis=1)


class Record:
    """Runs that are done, in a JSON file that is written after each.

    A run is a dict: a key that tells it from the others, and what was found. What the
    file has already is not done again.

    Args:
        script: Name of the script, for the command that the file tells.
        args: Its parsed arguments; `args.result` is the path of the file.
        summary: Function of the runs to a dict that the file holds, too.
    """

    def __init__(self, script, args, summary):
        self.script, self.args, self.summary = script, args, summary
        self.runs = read(args.result).get("runs", [])

    def once(self, key, make):
        """The run of this key, made by `make()` (a dict) unless it is there."""
        for run in self.runs:
            if key.items() <= run.items():
                return run
        self.runs.append({**key, **make()})
        print(json.dumps(self.runs[-1]), flush=True)
        self.write()
        return self.runs[-1]

    def write(self):
        content = {"command": command(self.script, self.args)}
        content |= {**self.summary(self.runs), "runs": self.runs}
        content["environment"] = environment()
        write_whole(self.args.result, json.dumps(content, indent=1))


def command(script, args):
    """The command line, but for the paths of files."""
    words = [f"python experiments/{script}.py"]
    for name, value in vars(args).items():
        if name not in PATHS and value is not None:
            words += [f"--{name.replace('_', '-')}", _as_text(value)]
    return " ".join(words)


def _as_text(value):
    values = value if isinstance(value, list) else [value]
    return " ".join(f"'{x}'" if " " in str(x) else str(x) for x in values)


def read(path):
    """Content of a JSON file; an empty dict where there is none yet."""
    return json.loads(path.read_text()) if path.exists() else {}


def grouped(runs, names, value):
    """Values by seed, for each combination of the values of `names`, in their order."""
    found = {}
    for run in runs:
        key = tuple(run[name] for name in names)
        found.setdefault(key, {})[run["seed"]] = run[value]
    return found


def spread(values):
    """Mean and standard deviation of numbers, which is `None` for one alone."""
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "deviation": deviation}


def paired(values, others):
    """Mean of the differences of the seeds that both have, and p of the paired t-test.

    `None` where fewer than two seeds are common, or all differences are equal, but for
    rounding.
    """
    seeds = sorted(values.keys() & others.keys())
    differences = [values[seed] - others[seed] for seed in seeds]
    if len(differences) < 2 or statistics.pstdev(differences) < 1e-9:
        return None
    p = float(stats.ttest_1samp(differences, 0.0).pvalue)
    return {"mean": statistics.fmean(differences), "p": p}


def as_text(found, digits=1):
    """Mean and deviation of `spread` as a cell of a table."""
    text = f"{found['mean']:.{digits}f}"
    if found["deviation"] is None:
        return text
    return f"{text} ± {found['deviation']:.{digits}f}"


def markdown(head, lines):
    """A Markdown table."""
    rows = [head, ["---"] * len(head), *lines]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def compared(found):
    """Mean and deviation as a cell, with the difference from cross entropy.

    `~`: not significantly different, by the paired t-test.
    """
    if found is None:
        return "-"
    text, difference = as_text(found), found["minus_cross_entropy"]
    if difference is None:
        return text
    mark = "" if difference["p"] < LEVEL else " ~"
    return f"{text} ({difference['mean']:+.1f}{mark})"


def chosen(path, per_class):
    """Rate and margin of each kind, as `few_images.py` chose them."""
    return {
        each["kind"]: each
        for each in read(path)["choice"]
        if each["per_class"] == per_class
    }
