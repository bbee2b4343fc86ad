"""Files for the embedding projector of TensorBoard."""

import os
import pathlib
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_pedcc.common import Array, ArrayLike, Logs
from keras_pedcc.common.checks import check_classes, check_whole
from keras_pedcc.evaluation.embedding import embed, embedder
from keras_pedcc.evaluation.prediction import number_of_rows, to_numpy
from keras_pedcc.layers.cosine_dense import CosineDense
from keras_pedcc.layers.heads import heads_of

CONFIG = """embeddings {{
  tensor_name: "features"
  tensor_path: "tensors.tsv"
  metadata_path: "metadata.tsv"
  sprite {{
    image_path: "sprite.png"
    single_image_dim: {size}
    single_image_dim: {size}
  }}
}}
"""
SPRITE = 8192  # pixels a side, the limit of browsers


class ProjectorCallback(keras.callbacks.Callback):
    """Writes features and centroids for TensorBoard's projector after each epoch.

    `tensorboard --logdir FOLDER` shows them under "Projector", with thumbnails of the
    images. FOLDER may be that of `keras.callbacks.TensorBoard`, too. The callback
    writes `tensors.tsv`, `metadata.tsv`, `sprite.png` and `projector_config.pbtxt`;
    this needs Pillow, but not TensorBoard. The last rows are the centroids of the head,
    with white thumbnails.

    Args:
        folder: Folder for the files, created if missing.
        images: Array or tensor, shape `(images, height, width, channels)`. Use a few
            thousand at most, because the browser loads all.
        labels: Class indices, shape `(images,)` or `(images, 1)`.
        class_names: Name of each class, by its index. Defaults to the numbers.
        thumbnail: int, at least 1. Height and width of a thumbnail in pixels.
        batch_size: int, at least 1. Images per step. Defaults to 32.

    Raises:
        TypeError: A number is not whole.
        ValueError: A shape does not fit; the thumbnails do not fit into one picture of
            8192 pixels a side; in `fit`, the model has no `features`, see `embedder`.

    Example:

    >>> images = np.ones((20, 4, 4, 1))
    >>> projector = keras_pedcc.ProjectorCallback("logs", images, y)
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        images: Any,
        labels: ArrayLike,
        *,
        class_names: Sequence[str] | None = None,
        thumbnail: int = 32,
        batch_size: int = 32,
    ) -> None:
        super().__init__()
        check_whole(1, thumbnail=thumbnail, batch_size=batch_size)
        self.images = to_numpy(images)
        if self.images.ndim != 4:
            raise ValueError(
                "`images` must have shape (images, height, width, channels). Received: "
                f"images.shape={self.images.shape}. Add an axis for the channels."
            )
        rows = np.empty((number_of_rows(self.images), 0))
        self.labels = check_classes(labels=labels, images=rows)
        self.folder = pathlib.Path(folder)
        self.class_names, self.thumbnail = class_names, thumbnail
        self.batch_size = batch_size
        _columns(len(self.images), thumbnail)

    def set_model(self, model: keras.Model) -> None:
        super().set_model(model)
        self._embedder = embedder(self.model)
        centroids, _ = _centroids_of(self.model, 0)
        _columns(len(self.images) + len(centroids), self.thumbnail)

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        features = embed(self._embedder, self.images, batch_size=self.batch_size)
        centroids, classes = _centroids_of(self.model, features.shape[1])
        self.folder.mkdir(parents=True, exist_ok=True)
        names = [self._name(label) for label in self.labels]
        kinds = [f"{name}\timage" for name in names]
        kinds += [f"{self._name(i)}\tcentroid" for i in classes]
        rows = np.concatenate([features, centroids])
        np.savetxt(self.folder / "tensors.tsv", rows, fmt="%.6g", delimiter="\t")
        self._write("metadata.tsv", "\n".join(["class\tkind", *kinds, ""]))
        sprite = _sprite(self.images, len(rows), self.thumbnail)
        keras.utils.save_img(
            self.folder / "sprite.png", sprite, "channels_last", scale=False
        )
        self._write("projector_config.pbtxt", CONFIG.format(size=self.thumbnail))

    def _name(self, label: Any) -> str:
        name = label if self.class_names is None else self.class_names[int(label)]
        return " ".join(str(name).split())  # a tab would start the next column

    def _write(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text, encoding="utf-8")


def _centroids_of(model: keras.Model, dim: int) -> tuple[Array, Array]:
    """The centroids in use of the first head of a model, or no rows; their classes."""
    heads = [head for head in heads_of(model) if isinstance(head, CosineDense)]
    if not heads:
        return np.empty((0, dim), "float32"), np.arange(0)
    each = getattr(heads[0], "sub_centers", 1)
    rows = np.asarray(ops.convert_to_numpy(heads[0].centroids), "float32")
    rows = rows[: heads[0].num_classes * each]
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return rows, np.arange(len(rows)) // each


def _columns(number: int, size: int) -> int:
    """Number of thumbnails in a row of a square picture."""
    columns = int(np.ceil(np.sqrt(number)))
    if columns * size > SPRITE:
        raise ValueError(
            f"The thumbnails must fit into {SPRITE} x {SPRITE} pixels. Received: "
            f"{number} images, thumbnail={size}. Pass fewer images, or a smaller "
            "thumbnail."
        )
    return columns


def _sprite(images: Array, number: int, size: int) -> Array:
    """Thumbnails in rows, from the top left; white after the last image."""
    columns = _columns(number, size)
    small = ops.convert_to_numpy(
        ops.image.resize(
            images.astype("float32"), (size, size), data_format="channels_last"
        )
    )[..., :3]
    low, high = small.min(), small.max()
    pixels = np.full((columns**2, size, size, small.shape[-1]), 255.0)
    pixels[: len(images)] = np.round((small - low) / max(high - low, 1e-12) * 255)
    rows = pixels.reshape(columns, columns, size, size, -1).transpose(0, 2, 1, 3, 4)
    return rows.reshape(columns * size, columns * size, -1)
