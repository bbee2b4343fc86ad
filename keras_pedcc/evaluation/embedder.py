"""The model that `embedder` returns, with the fingerprint of its centroids."""

import functools
from collections.abc import Callable
from typing import Any, Self

import keras

from keras_pedcc.centroids.fingerprint import centroid_fingerprint


@keras.saving.register_keras_serializable("keras_pedcc")
class Embedder(keras.Model):
    """Functional model that stores the fingerprint of the centroids of its head.

    `keras_pedcc.embedder` creates it. The fingerprint, 256 numbers, is in its config
    and so in saved files, not in its layers: `keras.Model(embed.input, embed.output)`
    is plain Keras, and its file loads without this package. If processes share the
    centroids, all of them must save.
    """

    # A function, because Keras would track the head as part of the model.
    _source: Callable[[], dict[str, Any]] | None = None

    @property
    def centroid_fingerprint(self) -> dict[str, Any] | None:
        """The `keras_pedcc.centroid_fingerprint` of the head, or `None`."""
        return None if self._source is None else self._source()

    def cut_from(self, head: keras.layers.Layer) -> None:
        """Takes the fingerprint from a head, at each access: it may be fine-tuned."""
        self._source = functools.partial(centroid_fingerprint, head)

    def get_config(self) -> dict[str, Any]:
        kept = {"centroid_fingerprint": self.centroid_fingerprint}
        return {**super().get_config(), **kept}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Self:
        config = dict(config)
        kept = config.pop("centroid_fingerprint", None)
        made: Self = super().from_config(config, custom_objects=custom_objects)
        if kept is not None:
            made._source = functools.partial(dict, kept)
        return made
