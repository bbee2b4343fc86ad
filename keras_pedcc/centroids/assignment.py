"""Assignment of classes to centroids that are not interchangeable."""

import numpy as np
from keras import ops

from keras_pedcc.common import Array, ArrayLike
from keras_pedcc.common.checks import check_whole, unit_centroids

GOALS = ("apart", "together")


def assign_classes(
    centroids: ArrayLike,
    similarity: ArrayLike,
    *,
    goal: str = "apart",
    rounds: int = 10_000,
) -> Array:
    """Orders centroids so that similar classes are far apart, or close together.

    Up to `dim + 1` classes all centroids are equally far from each other, and the order
    does not matter. With more classes, the function minimizes (`"apart"`) or maximizes
    (`"together"`) `sum_{i<j} S_ij cos(c_i, c_j)`. It exchanges the centroids of two
    classes, the best pair each time, until no exchange helps. This finds a local
    optimum: the general problem (quadratic assignment) has no fast solution.

    Args:
        centroids: Array or tensor, shape `(num_classes, dim)`.
        similarity: Array S, shape `(num_classes, num_classes)`, symmetric, finite;
            larger means more similar. The diagonal is ignored.
        goal: `"apart"` to give similar classes distant centroids, `"together"` to give
            them close ones.
        rounds: int. Maximum number of exchanges. Each takes time proportional to
            `num_classes^2`.

    Returns:
        The centroids in their new order, NumPy array: row i is for class i.

    Raises:
        ValueError: An argument has another shape, is not finite or not symmetric,
            or `goal` is unknown.

    Example:

    >>> centroids = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    >>> similarity = np.zeros((4, 4))
    >>> similarity[0, 1] = similarity[1, 0] = 1.0
    >>> ordered = keras_pedcc.assign_classes(centroids, similarity)
    >>> float(ordered[0] @ ordered[1])
    -1.0
    """
    centroids = np.asarray(ops.convert_to_numpy(centroids))
    unit = unit_centroids(centroids)
    alike = _check_similarity(similarity, len(unit))
    if goal not in GOALS:
        raise ValueError(
            f"`goal` must be one of {GOALS}. Received: goal={goal!r}. Leave it out to "
            "keep similar classes apart."
        )
    check_whole(0, rounds=rounds)
    sign = 1.0 if goal == "apart" else -1.0
    return centroids[_exchange(sign * alike, unit @ unit.T, rounds)]


def _check_similarity(similarity: ArrayLike, num_classes: int) -> Array:
    alike = np.array(ops.convert_to_numpy(similarity), "float64")
    if alike.ndim == 2:
        np.fill_diagonal(alike, 0)
    if alike.shape != (num_classes, num_classes):
        raise ValueError(
            "`similarity` must have shape (num_classes, num_classes). Received: "
            f"similarity.shape={alike.shape}, with {num_classes} centroids. Pass one "
            "row and one column per class."
        )
    if not np.isfinite(alike).all() or not np.allclose(alike, alike.T):
        raise ValueError(
            "`similarity` must be finite and symmetric. Received: a matrix that is "
            "not. Pass (S + S.T) / 2."
        )
    # Gains of exchanges are then relative to 1.
    return alike / max(np.abs(alike).max(), 1e-300)


def _exchange(alike: Array, cosines: Array, rounds: int) -> Array:
    """Order that lowers `sum alike * cosines[order][:, order]` by exchanges of two.

    With A = `alike`, B the ordered cosines and M = A B, exchanging u and v changes
    half the sum by `M_uv + M_vu - M_uu - M_vv + 2 A_uv B_uv`.
    """
    order = np.arange(len(alike))
    cosines = cosines.copy()
    np.fill_diagonal(cosines, 0)
    product = alike @ cosines
    for _ in range(rounds):
        own = np.diag(product)
        change = product + product.T - own[:, None] - own + 2 * alike * cosines
        u, v = np.unravel_index(change.argmin(), change.shape)
        if change[u, v] > -1e-9:
            break
        pair, swapped = [u, v], [v, u]
        order[pair] = order[swapped]
        before = cosines[pair].copy()
        cosines[pair] = cosines[swapped]
        cosines[:, pair] = cosines[:, swapped]
        product += alike[:, pair] @ (cosines[pair] - before)
        product[:, pair] = alike @ cosines[:, pair]
    return order
