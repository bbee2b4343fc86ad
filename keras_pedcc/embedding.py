"""A trained network as an embedder: alone, on images, and watched during training."""

import keras
import numpy as np

from keras_pedcc.checks import check_whole, rows_without_direction
from keras_pedcc.cosine_dense import CosineDense
from keras_pedcc.heads import CenterDense
from keras_pedcc.optimizers import strategy_scope
from keras_pedcc.replicas import number_of_replicas
from keras_pedcc.verification import (
    check_folds,
    check_pairs,
    check_same,
    pair_scores,
    verification_report,
)


def embedder(model, *, name="embedder"):
    """The part of a model that ends in `features`, as a model of its own.

    It shares the weights of `model`: what is trained later changes it, too. A head of
    this package is cut off, and its centroids with it; a Keras layer divides by the
    length in its place. So the embedder is plain Keras: it saves to a file that loads
    without this package, unless other layers need it, and holds nothing per class.

    Args:
        model: Functional `keras.Model`, such as `PEDCCModel(inputs, outputs)`, whose
            outputs are a dict with `"features"`, shape `(batch, dim)`.
        name: Name of the new model.

    Returns:
        `keras.Model` from the inputs of `model` to unit vectors, shape
        `(batch, dim)`, float32 (float64 where the features are).

    Raises:
        ValueError: `model` has no such output.

    Example:

    >>> embed = keras_pedcc.embedder(model)
    >>> features = embed.predict(x, verbose=0)
    >>> features.shape, np.round(np.linalg.norm(features, axis=1)[:2], 6).tolist()
    ((20, 64), [1.0, 1.0])
    """
    features = _features_of(model)
    dtype = "float64" if features.dtype == "float64" else "float32"
    layer, node, _ = features._keras_history
    if isinstance(layer, CosineDense | CenterDense):
        features = layer._inbound_nodes[node].input_tensors[0]
    with strategy_scope(model):
        unit = keras.layers.UnitNormalization(dtype=dtype, name="unit_features")
        return keras.Model(model.input, unit(features), name=name)


def embed(embedder, images, *, batch_size=32, flip=False):
    """Features of images; with `flip`, of each image and its mirror image together.

    With f(x) the embedder: `f(x)`, or `(f(x) + f(mirror(x))) / |...|`, mirrored left
    to right, as is usual in tests of face verification.

    Args:
        embedder: Model with one output, shape `(batch, dim)`, as `embedder` makes.
        images: Array, shape `(batch, ...)`; with `flip` images of shape `(batch,
            height, width, channels)`, or channels first where Keras is set to that.
        batch_size: int, at least 1.
        flip: bool.

    Returns:
        NumPy array, shape `(batch, dim)`; unit vectors if the embedder gives them. Two
        features that cancel out give NaN.

    Raises:
        ValueError: `embedder` has more outputs than one; with `flip`, images are of
            another shape.

    Example:

    >>> keras_pedcc.embed(keras_pedcc.embedder(model), x).shape
    (20, 64)
    """
    features = _predict(embedder, images, batch_size)
    if not isinstance(features, np.ndarray):
        raise ValueError(
            "`embedder` must give one array of features. Received: a model that gives "
            f"a {type(features).__name__}. Pass keras_pedcc.embedder(model)."
        )
    if not flip:
        return features
    mirrored = _mirrored(_check_images(images))
    features = features + _predict(embedder, mirrored, batch_size)
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    return features / np.where(lengths > 0, lengths, np.nan)


class VerificationCallback(keras.callbacks.Callback):
    """Verifies pairs of images at the end of each epoch, and puts it into the logs.

    Embeds the images that occur in `pairs`, each once, and adds to the logs, so to
    the history as well: `val_verification_accuracy`, `val_verification_auc` and
    `val_verification_eer`, see `verification_report`. Callbacks that come after this
    one in the list can monitor them. Which way is up Keras knows of its own metrics
    only, so tell it, with or without `save_best_only`: `ModelCheckpoint(path,
    monitor="val_verification_accuracy", mode="max")`, `mode="min"` for the error rate.

    When features become NaN, infinite or zero the three are NaN, and training goes on:
    stopping is for `keras.callbacks.TerminateOnNaN`.

    Args:
        images: Array, shape `(images, ...)`, as the model takes them.
        pairs: Whole numbers, indices into `images`, shape `(pairs, 2)`.
        same: Whether both are of one class, bool or 0 and 1, shape `(pairs,)`.
        folds: As in `verification_report`.
        batch_size: int, at least 1. Images embedded at a time.
        flip: bool. Whether each image is taken together with its mirror image, see
            `embed`.
        name: What stands between `val_` and `_accuracy`, for more sets than one.

    Raises:
        TypeError: `folds` or `batch_size` is not a whole number.
        ValueError: A shape or value does not fit; all pairs are of one kind; in
            `fit`, the model has no `features`, see `embedder`.

    Example:

    >>> pairs, same = [[0, 10], [0, 1], [1, 11], [1, 2]], [1, 0, 1, 0]
    >>> verify = keras_pedcc.VerificationCallback(x, pairs, same, folds=2)
    >>> history = model.fit(x, y, epochs=2, callbacks=[verify], verbose=0)
    >>> len(history.history["val_verification_accuracy"])
    2
    """

    def __init__(
        self,
        images,
        pairs,
        same,
        *,
        folds=10,
        batch_size=32,
        flip=False,
        name="verification",
    ):
        super().__init__()
        check_whole(1, batch_size=batch_size)
        images = _check_images(images) if flip else np.asarray(images)
        used, index = np.unique(check_pairs(pairs, len(images)), return_inverse=True)
        self.pairs = index.reshape(-1, 2)
        self.images = images[used] if len(used) < len(images) else images
        self.same = check_same(same)
        self.folds = _check_pairs_folds(folds, self.same, self.pairs)
        self.batch_size = batch_size
        self.flip = flip
        self.name = name

    def set_model(self, model):
        super().set_model(model)
        # Once: each new model would be traced anew.
        self._embedder = embedder(self.model)

    def on_epoch_end(self, epoch, logs=None):
        report = self._report()
        for key in ("accuracy", "auc", "eer"):
            logs[f"val_{self.name}_{key}"] = report[key]

    def _report(self):
        features = embed(
            self._embedder, self.images, batch_size=self.batch_size, flip=self.flip
        )
        if rows_without_direction(features).any():
            return dict.fromkeys(("accuracy", "auc", "eer"), float("nan"))
        scores = pair_scores(features, pairs=self.pairs)
        return verification_report(scores, self.same, folds=self.folds)


def _features_of(model):
    try:
        outputs = model.output
    except (AttributeError, ValueError):  # of a subclassed or a sequential model
        outputs = None
    if not isinstance(outputs, dict) or "features" not in outputs:
        found = sorted(outputs) if isinstance(outputs, dict) else type(outputs).__name__
        raise ValueError(
            '`model` must be a functional model with a dict of outputs, "features" '
            f"among them. Received: model={getattr(model, 'name', model)!r} with "
            f"outputs {found}. Build it as keras_pedcc.PEDCCModel(inputs, outputs), "
            "with a head that returns its features."
        )
    return outputs["features"]


def _predict(embedder, images, batch_size):
    """`embedder.predict`, also where devices share every batch.

    JAX's `DataParallel` cuts only what divides; a replica of TensorFlow that gets
    nothing fails in batch normalisation.
    """
    distribution = keras.distribution.distribution()
    with strategy_scope(embedder):
        parts = number_of_replicas()
    parts = distribution.device_mesh.devices.size if distribution else parts
    more = -len(images) % parts
    if more:
        images = np.asarray(images)
        images = np.concatenate([images, images[:1].repeat(more, axis=0)])
    features = embedder.predict(images, batch_size=batch_size, verbose=0)
    number = len(images) - more
    return keras.tree.map_structure(lambda rows: rows[:number], features)


def _check_images(images):
    images = np.asarray(images)
    if images.ndim != 4:
        raise ValueError(
            "`images` must have four axes to be flipped. Received: images.shape="
            f"{images.shape}. Pass flip=False, or images with height, width and "
            "channels."
        )
    return images


def _mirrored(images):
    last = keras.config.image_data_format() == "channels_last"
    # In one piece: PyTorch takes no array that runs backwards.
    return np.ascontiguousarray(np.flip(images, axis=2 if last else 3))


def _check_pairs_folds(folds, same, pairs):
    if len(same) != len(pairs):
        raise ValueError(
            "There must be one of `same` for each pair. Received: pairs.shape="
            f"{pairs.shape}, same.shape={same.shape}. Pass both from one list."
        )
    return check_folds(folds, same)
