"""Embedders: cut from a model, applied to images, and evaluated during training."""

from typing import Any

import keras
import numpy as np

from keras_pedcc.common import Array, ArrayLike, Logs
from keras_pedcc.common.checks import check_whole, rows_without_direction
from keras_pedcc.common.replicas import strategy_scope
from keras_pedcc.evaluation.embedder import Embedder
from keras_pedcc.evaluation.prediction import (
    map_arrays,
    number_of_rows,
    predict_all,
    to_numpy,
)
from keras_pedcc.evaluation.verification import (
    check_folds,
    check_pairs,
    check_same,
    pair_scores,
    verification_report,
)
from keras_pedcc.layers.center_dense import CenterDense
from keras_pedcc.layers.cosine_dense import CosineDense

KEYS = ("accuracy", "auc", "eer")  # of a verification report that go into the logs


def embedder(model: keras.Model, *, name: str = "embedder") -> keras.Model:
    """Returns the part of a model that computes the features, as a model.

    It shares the weights of `model`, so later training changes it, too. A head of this
    package is removed with its centroids; a Keras layer normalizes the features
    instead, and no weight per class remains.

    The embedder keeps the fingerprint of the centroids, also through `save` and
    `load_model`. Store `centroid_fingerprint(embed)` next to an index, and check it
    with `check_same_centroids(embed, stored)`. `keras.Model(embed.input,
    embed.output)` is plain Keras without the fingerprint: its file loads without this
    package, unless layers before the head need it.

    Args:
        model: Functional or built `Sequential` model, such as `PEDCCModel(inputs,
            outputs)`. Its features are the output `"features"`, shape `(batch, dim)`,
            or else the input of the head that computes its output, also in a nested
            model. For a subclassed model pass `keras.Model(x, model(x))`, with `x` a
            `keras.Input`: the embedder then contains that model, head included.
        name: Name of the new model.

    Returns:
        `keras.Model` from the inputs of `model` to unit vectors, shape
        `(batch, dim)`, float32 (float64 for float64 features).

    Raises:
        ValueError: `model` has no graph of layers, or no such features.

    Example:

    >>> embed = keras_pedcc.embedder(model)
    >>> features = embed.predict(x, verbose=0)
    >>> features.shape, np.round(np.linalg.norm(features, axis=1)[:2], 6).tolist()
    ((20, 64), [1.0, 1.0])
    """
    with strategy_scope(model):
        graph = _graph_of(model)
        if graph is None:
            raise ValueError(
                "`model` must be a functional model, or a Sequential one that is "
                f"built. Received: model={getattr(model, 'name', model)!r} (type "
                f"{type(model).__name__}). Pass keras.Model(x, model(x)), with x = "
                "keras.Input(shape)."
            )
        features, head = _features_of(graph)
        dtype = "float64" if features.dtype == "float64" else "float32"
        unit = keras.layers.UnitNormalization(dtype=dtype, name="unit_features")
        made = Embedder(graph.input, unit(features), name=name)
        if isinstance(head, CosineDense):
            made.cut_from(head)
        return made


def embed(
    embedder: keras.Model, images: Any, *, batch_size: int = 32, flip: bool = False
) -> Array:
    """Computes the features of images.

    Returns `f(x)`, with f the embedder. With `flip` it returns `(f(x) + f(mirror(x))) /
    |...|`, mirrored left to right, as is usual in face verification.

    Args:
        embedder: Model with one output, shape `(batch, dim)`, as `embedder` returns.
        images: Array or tensor, shape `(batch, ...)`; a list or dict of them, one for
            each input of the model; or an iterable of batches in the forms that
            `keras.Model.predict` takes, such as a `tf.data.Dataset`, a
            `keras.utils.PyDataset`, a PyTorch data loader or a generator. Labels are
            ignored. With `flip`, one array of shape `(batch, height, width,
            channels)`, or channels first if Keras is configured so.
        batch_size: int, at least 1. Rows of an array per batch; iterables keep their
            batch sizes.
        flip: bool. Whether to add the features of the mirror image. Defaults to
            `False`.

    Returns:
        NumPy array, shape `(batch, dim)`, one row for each image; unit vectors if the
        embedder returns unit vectors. An empty array gives shape `(0, dim)`. Features
        that cancel out give NaN.

    Raises:
        TypeError: `batch_size` is not a whole number.
        ValueError: `images` are not arrays, differ in length, or yield no batch;
            `embedder` has more than one output; or, with `flip`, `images` has another
            shape.

    Example:

    >>> keras_pedcc.embed(keras_pedcc.embedder(model), x).shape
    (20, 64)
    """
    if flip:
        images = check_images(images)
    features = predict_all(embedder, images, batch_size=batch_size)
    if not isinstance(features, np.ndarray):
        raise ValueError(
            "`embedder` must give one array of features. Received: a model that gives "
            f"a {type(features).__name__}. Pass keras_pedcc.embedder(model)."
        )
    if not flip:
        return features
    mirrored = predict_all(embedder, _mirrored(images), batch_size=batch_size)
    features = features + mirrored
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    return features / np.where(lengths > 0, lengths, np.nan)


class VerificationCallback(keras.callbacks.Callback):
    """Verifies pairs of images at the end of each epoch and logs the result.

    Embeds each image in `pairs` once, and adds `val_verification_accuracy`,
    `val_verification_auc` and `val_verification_eer` to the logs and the history; see
    `verification_report`. Callbacks later in the list can monitor them. Keras infers
    `mode` only for built-in metrics, so pass it, with or without `save_best_only`:
    `ModelCheckpoint(path, monitor="val_verification_accuracy", mode="max")`, or
    `mode="min"` for the error rate.

    If features become NaN, infinite or zero, the three values are NaN and training
    continues. To stop it, use `keras.callbacks.TerminateOnNaN`.

    Args:
        images: Array or tensor, shape `(images, ...)`; or a list or dict of them, one
            for each input of the model.
        pairs: Whole numbers, indices into `images`, shape `(pairs, 2)`.
        same: Whether both are of one class, bool or 0 and 1, shape `(pairs,)`.
        folds: As in `verification_report`. Defaults to 10.
        batch_size: int, at least 1. Images per step. Defaults to 32.
        flip: bool. Whether to add the features of the mirror image, see `embed`.
            Defaults to `False`.
        name: Name between `val_` and `_accuracy`, to tell several sets apart. Defaults
            to `"verification"`.

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
        images: Any,
        pairs: ArrayLike,
        same: ArrayLike,
        *,
        folds: int | ArrayLike = 10,
        batch_size: int = 32,
        flip: bool = False,
        name: str = "verification",
    ) -> None:
        super().__init__()
        check_whole(1, batch_size=batch_size)
        images = check_images(images) if flip else images
        number = number_of_rows(images)
        used, index = np.unique(check_pairs(pairs, number), return_inverse=True)
        self.pairs = index.reshape(-1, 2)
        self.images = map_arrays(
            lambda each: each[used] if len(used) < number else each, images
        )
        self.same = check_same(same)
        self.folds = _check_pairs_folds(folds, self.same, self.pairs)
        self.batch_size = batch_size
        self.flip = flip
        self.name = name

    def set_model(self, model: keras.Model) -> None:
        super().set_model(model)
        # Once, because each new model would be traced again.
        self._embedder = embedder(self.model)

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        report = self._report()
        if logs is not None:
            logs.update({f"val_{self.name}_{key}": report[key] for key in KEYS})

    def _report(self) -> dict[str, Any]:
        features = embed(
            self._embedder, self.images, batch_size=self.batch_size, flip=self.flip
        )
        if rows_without_direction(features).any():
            return dict.fromkeys(KEYS, float("nan"))
        scores = pair_scores(features, pairs=self.pairs)
        return verification_report(self.same, scores, folds=self.folds)


def _graph_of(model: object) -> keras.Model | None:
    """A functional or built `Sequential` model as a plain one, `None` for any other."""
    if not isinstance(model, keras.Model):
        return None
    inputs: Any = getattr(model, "inputs", None)
    outputs: Any = getattr(model, "outputs", None)
    tensors = keras.tree.flatten([inputs, outputs])
    if not all(isinstance(each, keras.KerasTensor) for each in tensors):
        return None
    if not isinstance(model, keras.Sequential):  # which has the flat lists alone
        inputs, outputs = model.input, model.output
    one = isinstance(inputs, list) and len(inputs) == 1
    return keras.Model(inputs[0] if one else inputs, outputs)


def _features_of(graph: keras.Model) -> tuple[keras.KerasTensor, Any]:
    """The tensor of features, before a head normalizes it, and the head.

    The head is `None` if the features go into no head, or into several.
    """
    outputs = graph.output
    named = outputs.get("features") if isinstance(outputs, dict) else None
    leaves = keras.tree.flatten(outputs)
    wanted = [i for i, each in enumerate(leaves) if named is None or each is named]
    found = _heads_of(graph, wanted)
    taken = {id(each): each for _, each in found}
    heads = {id(each): each for each, _ in found}
    if len(taken) == 1:
        head = heads.popitem()[1] if len(heads) == 1 else None
        return taken.popitem()[1], head
    if isinstance(named, keras.KerasTensor):
        return named, None
    names = sorted(outputs) if isinstance(outputs, dict) else "without names"
    raise ValueError(
        '`model` must have an output "features", or outputs of one head of this '
        f"package. Received: outputs {names}, from {len(taken)} heads. Pass "
        'keras.Model(model.inputs, {"features": model.get_layer(name).output}), with '
        "the name of the layer that ends in features."
    )


def _heads_of(
    graph: keras.Model, wanted: list[int]
) -> list[tuple[keras.layers.Layer, keras.KerasTensor]]:
    """The heads that compute the outputs with these numbers, and their inputs."""
    calls, copy = _calls_of(graph)
    leaves = keras.tree.flatten(copy.output)
    ids = {id(leaves[i]) for i in wanted}
    found = []
    for layer, args, kwargs, outputs in calls:
        places = [i for i, each in enumerate(outputs) if id(each) in ids]
        if places and isinstance(layer, CosineDense | CenterDense):
            found.append((layer, args[0] if args else kwargs["inputs"]))
        elif places and (inner := _graph_of(layer)) is not None:
            for head, each in _heads_of(inner, places):
                found.append((head, keras.Model(inner.input, each)(*args, **kwargs)))
    return found


def _calls_of(graph: keras.Model) -> tuple[list[tuple[Any, ...]], keras.Model]:
    """Calls the layers of a model again, on the same inputs.

    The `input` of a layer is that of its first call, which may be in another model.

    Returns:
        List of layer, arguments and flat outputs of each call, and the resulting
        model.
    """
    calls = []

    def call(layer: keras.layers.Layer, *args: Any, **kwargs: Any) -> Any:
        outputs = layer(*args, **kwargs)
        calls.append((layer, args, kwargs, keras.tree.flatten(outputs)))
        return outputs

    copy = keras.models.clone_model(
        graph,
        input_tensors=graph.input,
        clone_function=lambda layer: layer,
        call_function=call,
    )
    return calls, copy


def check_images(images: Any) -> Array:
    """Returns one array of images that can be mirrored, or raises."""
    if len(getattr(images, "shape", ())) != 4:
        raise ValueError(
            "`images` must be one array with four axes to be flipped. Received: "
            f"{type(images).__name__}, images.shape={getattr(images, 'shape', None)}. "
            "Pass flip=False, or one array with height, width and channels."
        )
    return to_numpy(images)


def _mirrored(images: Array) -> Array:
    last = keras.config.image_data_format() == "channels_last"
    # Contiguous, because PyTorch does not accept negative strides.
    return np.ascontiguousarray(np.flip(images, axis=2 if last else 3))


def _check_pairs_folds(folds: int | ArrayLike, same: Array, pairs: Array) -> Array:
    if len(same) != len(pairs):
        raise ValueError(
            "There must be one of `same` for each pair. Received: pairs.shape="
            f"{pairs.shape}, same.shape={same.shape}. Pass both from one list."
        )
    return check_folds(folds, same)
