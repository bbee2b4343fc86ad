"""The heads that are compared: where their rows start, what trains them."""

import dataclasses

import numpy as np

SLOW_RATE = 1e-3  # of centroids that may leave their place a little
MILD = {"margin": 0.2, "mse_weight": 3.0}


@dataclasses.dataclass(frozen=True)
class Head:
    """A head and its loss.

    Attributes:
        kind: `"frozen"`, `"trained"` (`PEDCCDense`), `"slow"` (the same, with
            `SLOW_RATE`), `"cosine"` (`CosineDense`) or `"dense"` (Keras').
        rows: Where the rows start: `"predefined"`; `"random"`, one draw for both
            networks; `"own"`, a draw of this network's own; `"old means"`, predefined
            for known classes, else the mean direction of the old network's features;
            `"old head"`, what the old head learned, else these means.
        loss: `"mild"`, `"paper"` (PEDCC-Loss), `"am"` or `"ce"`.
        reserved: Whether the old head has the rows of the unseen classes already.
        bct: Whether the old head, frozen, is a second loss.
    """

    kind: str = "frozen"
    rows: str = "predefined"
    loss: str = "mild"
    reserved: bool = False
    bct: bool = False


OLD = {
    "frozen": Head(),
    "frozen, reserved rows": Head(reserved=True),
    "frozen, paper's constants": Head(loss="paper"),
    "frozen, random directions": Head(rows="random"),
    "trained from predefined": Head("trained"),
    "AM-Softmax": Head("cosine", "random", "am"),
    "cross entropy": Head("dense", "random", "ce"),
}

# The old network of each, and the head of the new one.
UPGRADES = {
    "frozen": ("frozen", Head()),
    "frozen, paper's constants": ("frozen, paper's constants", Head(loss="paper")),
    "frozen, random directions": ("frozen, random directions", Head(rows="random")),
    "frozen, reserved rows": ("frozen, reserved rows", Head()),
    "frozen + BCT": ("frozen", Head(bct=True)),
    "frozen, unseen at old means": ("frozen", Head(rows="old means")),
    "slowly trained from old means": ("frozen", Head("slow", "old means")),
    "trained from predefined": ("trained from predefined", Head("trained")),
    "AM-Softmax, shared start": ("AM-Softmax", Head("cosine", "random", "am")),
    "AM-Softmax, own starts": ("AM-Softmax", Head("cosine", "own", "am")),
    "AM-Softmax, from the old head": ("AM-Softmax", Head("cosine", "old head", "am")),
    "AM-Softmax + BCT": ("AM-Softmax", Head("cosine", "own", "am", bct=True)),
    "frozen at AM-Softmax's old head": ("AM-Softmax", Head(rows="old head")),
    "cross entropy, shared start": ("cross entropy", Head("dense", "random", "ce")),
    "cross entropy, own starts": ("cross entropy", Head("dense", "own", "ce")),
    "cross entropy + BCT": ("cross entropy", Head("dense", "own", "ce", bct=True)),
}


def start_rows(head, number, dim, seed, own_seed, old=None):
    """The rows that a head starts from, shape `(number, dim)`.

    Args:
        head: `Head`.
        number: int, number of all classes.
        dim: int, length of the features.
        seed: int, common to both networks.
        own_seed: int, of this network alone.
        old: The old network as `training.train_old` gives it, or `None` for its own.
    """
    import keras

    import keras_pedcc

    if head.rows in ("random", "own"):
        draw = np.random.default_rng([seed if head.rows == "random" else own_seed, 7])
        return unit(draw.standard_normal((number, dim)))
    rows = keras_pedcc.generate_pedcc(number, dim, seed=seed)
    rows = np.array(keras.ops.convert_to_numpy(rows))
    if head.rows == "predefined":
        return rows
    if head.rows == "old head":
        return old_rows(old)
    rows[len(old["rows"]) :] = old["unseen_means"]
    return rows


def old_rows(old):
    """Rows of the old head, those of the unseen classes at their mean features."""
    lengths = np.linalg.norm(old["rows"], axis=1)
    return np.concatenate([old["rows"], lengths.mean() * old["unseen_means"]])


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def make_head(head, rows, frozen=False):
    """The layer of a head, with these rows, that gives logits."""
    import keras

    import keras_pedcc

    number, dim = rows.shape
    if head.kind == "dense":
        layer = keras.layers.Dense(number, trainable=not frozen)
        layer.build((None, dim))
        layer.kernel.assign(rows.T)
        return layer
    if head.kind == "cosine" and not frozen:
        layer = keras_pedcc.CosineDense(number, return_features=False)
        layer.build((None, dim))
        layer.centroids.assign(rows)
        return layer
    trained = {"trainable": True} if head.kind == "trained" and not frozen else {}
    return keras_pedcc.PEDCCDense(
        number, centroids=rows, return_features=False, **trained
    )


def make_loss(head):
    import keras

    import keras_pedcc

    if head.loss == "ce":
        return keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    if head.loss == "am":
        return keras_pedcc.AMSoftmaxLoss("auto", margin=MILD["margin"])
    if head.loss == "paper":
        return keras_pedcc.PEDCCLoss(15.0, margin=0.5, mse_weight=10.0)
    return keras_pedcc.PEDCCLoss("auto", **MILD)


def scale_of(head, outputs):
    """What the loss multiplies the outputs of the head with."""
    from keras_pedcc.losses import auto_scale

    if head.loss in ("ce", "paper"):
        return {"ce": 1.0, "paper": 15.0}[head.loss]
    return auto_scale(outputs, margin=MILD["margin"])
