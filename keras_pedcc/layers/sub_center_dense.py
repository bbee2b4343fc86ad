"""The head with several trainable centroids for each class."""

from typing import Any

import keras
from keras import ops

from keras_pedcc.common import Tensor
from keras_pedcc.common.checks import check_whole
from keras_pedcc.layers.cosine_dense import CosineDense


@keras.saving.register_keras_serializable("keras_pedcc")
class SubCenterDense(CosineDense):
    """Classification head with K trainable centroids for each class.

    `logits[i, j] = max_k cos(theta_ijk)`: the logit of a class is the largest cosine to
    its K = `sub_centers` centroids. A class that is several clusters, or has wrong
    labels among the right ones, needs no common centre, see
    `keras_pedcc.dominant_sub_centers`. Rows `K j` up to `K (j + 1)` of the weight
    `centroids` are those of class j. Losses and outputs are those of `CosineDense`.

    Args:
        num_classes: int, at least 2.
        sub_centers: int, at least 1. Centroids of each class. Defaults to 3, as in the
            paper.
        **kwargs: Arguments of `CosineDense`, except `scores` and `capacity`: all
            cosines are computed at once.

    Call arguments:
        inputs: Float tensor, shape `(batch, dim)`.

    Returns:
        As `CosineDense`.

    Raises:
        TypeError: `num_classes` or `sub_centers` is not a whole number.
        ValueError: `sub_centers` is below 1; `scores` or `capacity` is given; an
            argument of `CosineDense` does not fit.

    Example:

    >>> head = keras_pedcc.SubCenterDense(10, sub_centers=3, return_features=False)
    >>> keras.ops.shape(head(keras.ops.ones((2, 64)))), tuple(head.centroids.shape)
    ((2, 10), (30, 64))

    Reference: Deng et al., "Sub-center ArcFace: Boosting Face Recognition by
    Large-scale Noisy Web Faces", ECCV 2020,
    https://www.ecva.net/papers/eccv_2020/papers_ECCV/html/1445_ECCV_2020_paper.php
    """

    def __init__(self, num_classes: int, sub_centers: int = 3, **kwargs: Any) -> None:
        for name in ("scores", "capacity"):
            if name in kwargs:
                raise ValueError(
                    "`SubCenterDense` computes the cosines to all sub-centres at once, "
                    f"of all classes. Received: {name}={kwargs[name]!r}. Leave it out, "
                    "or use `CosineDense`."
                )
        super().__init__(num_classes, **kwargs)
        check_whole(1, sub_centers=sub_centers)
        self.sub_centers = int(sub_centers)

    @property
    def _rows(self) -> int:
        return self.num_classes * self.sub_centers

    def _logits(self, features: Tensor, training: bool | None) -> Tensor:
        every = super()._logits(features, training)
        parts = (-1, self.num_classes, self.sub_centers)
        return ops.max(ops.reshape(every, parts), axis=2)

    def _in_use(self, rows: Tensor) -> Tensor:
        return rows

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        del config["scores"], config["capacity"]
        return {**config, "sub_centers": self.sub_centers}
