"""Trains the old and the new network of an upgrade, and keeps the old one's answers."""

import numpy as np
from image_experiment.batches import TrainingBatches

from upgrade_study.heads import (
    OLD,
    SLOW_RATE,
    make_head,
    make_loss,
    old_rows,
    start_rows,
    unit,
)

OLD_WIDTHS, NEW_WIDTHS = (16, 32, 64), (24, 48, 96)
# What else may be new about the new network. Halves: of the training images.
CHANGES = {
    "wider alone": {},
    "deeper": {"depth": 2},
    "a layer of 256 before the features": {"hidden": 256},
    "AdamW": {"optimizer": "adamw"},
    "shifted images": {"pad": 2},
    "images the old one never saw": {"second_half": True},
}


def train_old(task, name, seed, args):
    """Trains an old network, or reads what a former call kept of it in the cache.

    Returns:
        Dict of arrays: `rows` and `bias` of the head; `test_*`, `seen_*` and `held_*`,
        the outputs for the test images and for probes of both halves; `unseen_means`,
        the mean directions of the features of the unseen classes; `backend`.
    """
    path = args.cache_dir / f"{slug(name)}_{seed}_{settings_name(args)}.npz"
    if not path.exists():
        old = _train_old(task, OLD[name], seed, args)
        np.savez(path.with_suffix(".part.npz"), **old)
        path.with_suffix(".part.npz").replace(path)
    with np.load(path) as file:
        return dict(file)


def slug(name):
    return "".join(c if c.isalnum() else "-" for c in name.lower())


def settings_name(args):
    rate = f"{args.learning_rate:g}"
    return f"{args.data}_{args.steps}_{args.batch_size}_{rate}_{args.dim}"


def _train_old(task, head, seed, args):
    import keras

    rows = start_rows(head, task.num_classes, args.dim, seed, own_seed=seed)
    rows = rows if head.reserved else rows[: task.num_known]
    model, layer = train(task, head, rows, task.for_old, seed, args, OLD_WIDTHS)
    old = {"rows": rows_of(layer)[: task.num_known], "bias": bias_of(layer)}
    for name, index in (("seen", task.probes(True)), ("held", task.probes(False))):
        found = outputs_of(model, task.x[index])
        old |= {f"{name}_{key}": value for key, value in found.items()}
    old |= {f"test_{k}": v for k, v in outputs_of(model, task.x_test).items()}
    labels, features = task.y[task.probes(False)], unit(old["held_features"])
    unseen = range(task.num_known, task.num_classes)
    old["unseen_means"] = unit(
        np.array([features[labels == k].mean(axis=0) for k in unseen])
    )
    return {**old, "backend": keras.backend.backend()}


def train_new(task, head, old, seed, args, *, rows=None, change=None):
    """Trains a new network on all classes; its outputs for the test images.

    Args:
        task: `Task`.
        head: `Head`.
        old: What `train_old` returns.
        seed: int.
        args: Arguments of the command line.
        rows: Array in the place of the rows that `head` starts from.
        change: One of the values of `CHANGES`, or `None`.

    Returns:
        Dict of `features` and `logits` for the test images, the mean `loss` of these,
        and the head's loss in the last tenth of the training.
    """
    import keras

    own_seed = 1000 + seed
    change = dict(change or {})
    index = np.arange(len(task.y))
    if change.pop("second_half", False):
        index = np.flatnonzero(~task.first_half)
    if rows is None:
        rows = start_rows(head, task.num_classes, args.dim, seed, own_seed, old)
    model, _ = train(
        task, head, rows, index, own_seed, args, NEW_WIDTHS, old=old, **change
    )
    found = outputs_of(model, task.x_test)
    loss = make_loss(head)(task.y_test, found["logits"])
    return {**found, "loss": float(keras.ops.convert_to_numpy(loss))}


def train(task, head, rows, index, seed, args, widths, *, old=None, **change):
    """A trained network of features and logits, and the layer of its head."""
    import keras

    import keras_pedcc

    keras.backend.clear_session()
    keras.utils.set_random_seed(seed)
    pad, optimizer = change.pop("pad", 0), change.pop("optimizer", "sgd")
    inputs = keras.Input(task.x.shape[1:], dtype="uint8")
    features = network(inputs, widths, args.dim, **change)
    layer = make_head(head, rows)
    logits = layer(features)
    outputs, losses = [logits], [make_loss(head)]
    if head.bct:
        outputs.append(old_head(head, old)(features))
        losses.append(make_loss(head))
    model = keras.Model(inputs, outputs)
    model.compile(make_optimizer(optimizer, args), losses)
    batches = Batches(
        task.x[index],
        task.y[index].astype("int32"),
        args.batch_size,
        seed=seed,
        pad=pad,
        size=task.x.shape[1] if pad else None,
        passes=-(-args.steps * args.batch_size // len(index)),
    )
    batches.labels_of_each = len(outputs)
    slowly = keras_pedcc.FinetuneCallback(0, SLOW_RATE)
    model.fit(
        batches,
        steps_per_epoch=args.steps,
        verbose=0,
        callbacks=[slowly] if head.kind == "slow" else [],
    )
    return keras.Model(inputs, {"features": features, "logits": logits}), layer


class Batches(TrainingBatches):
    """The labels once for each output of the model."""

    labels_of_each = 1

    def __getitem__(self, number):
        images, labels = super().__getitem__(number)
        return images, (labels,) * self.labels_of_each


def old_head(head, old):
    """The old head, with rows for the unseen classes, frozen."""
    layer = make_head(head, old_rows(old), frozen=True)
    if head.kind == "dense":
        bias = np.full(len(old_rows(old)), old["bias"].mean(), "float32")
        bias[: len(old["bias"])] = old["bias"]
        layer.bias.assign(bias)
    return layer


def network(inputs, widths, dim, *, depth=1, hidden=0):
    """Stages of `depth` convolutions, the first of stride 2; linear features."""
    from keras import layers

    x = layers.Rescaling(1 / 255)(inputs)
    for width in widths:
        for stride in (2,) + (1,) * (depth - 1):
            x = layers.Conv2D(width, 3, stride, padding="same", use_bias=False)(x)
            x = layers.ReLU()(layers.BatchNormalization(momentum=0.9)(x))
    x = layers.Flatten()(x)
    if hidden:
        x = layers.Dense(hidden, use_bias=False)(x)
        x = layers.ReLU()(layers.BatchNormalization(momentum=0.9)(x))
    x = layers.Dense(dim, use_bias=False)(x)
    return layers.BatchNormalization(momentum=0.9, center=False, scale=False)(x)


def make_optimizer(name, args):
    import keras

    if name == "adamw":
        rate = keras.optimizers.schedules.CosineDecay(2e-3, args.steps)
        return keras.optimizers.AdamW(rate, weight_decay=5e-2)
    rate = keras.optimizers.schedules.CosineDecay(args.learning_rate, args.steps)
    return keras.optimizers.SGD(rate, momentum=0.9, weight_decay=5e-4)


def outputs_of(model, images):
    """Features, not of unit length, and logits."""
    return model.predict(images, batch_size=500, verbose=0)


def rows_of(layer):
    import keras

    if hasattr(layer, "centroids"):
        return keras.ops.convert_to_numpy(layer.centroids)
    return keras.ops.convert_to_numpy(layer.kernel).T


def bias_of(layer):
    import keras

    if hasattr(layer, "centroids"):
        return np.zeros(0)
    return keras.ops.convert_to_numpy(layer.bias)
