"""Retrieval: whether the nearest features belong to the same class."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_pedcc.common import Array, ArrayLike
from keras_pedcc.common.checks import check_classes, check_features, check_whole
from keras_pedcc.evaluation.ranking import ranked


def retrieval_report(
    features: ArrayLike,
    labels: ArrayLike,
    *,
    gallery: ArrayLike | None = None,
    gallery_labels: ArrayLike | None = None,
    k: int | Sequence[int] = (1, 5),
) -> dict[str, Any]:
    """Reports recall@k and mAP@R of an exact search by cosine.

    Each feature is a query. The gallery consists of all other features, or is given.
    Sort the gallery by falling cosine; let R be the number of its items that share the
    label of query q, and `P(i)` the share of these among the first i items. `recall@k`
    is the share of queries with at least one of them among the first k, so `recall@1`
    is the accuracy of the nearest neighbour. `mAP@R` is the mean over queries of `1/R
    sum_i P(i) [item i shares the label]`, i = 1 to R. Items whose cosines are equal up
    to rounding (4 units in the last place of 1) count in the worst order, other classes
    first: a network that maps all images to one point gets 0.

    All cosines are computed, in float32 (float64 for float64 features), in blocks of
    queries. In addition to the features and a normalized copy of them, this needs at
    most about 0.3 GiB. Features in float32 are searched on the accelerator of the
    backend if there is one, without TF32, else on the CPU.

    Args:
        features: Array or tensor, shape `(batch, dim)`; need not be unit vectors.
        labels: Class of each feature, any labels, shape `(batch,)` or `(batch, 1)`.
        gallery: Array or tensor, shape `(items, dim)`. Defaults to the features, each
            query without itself.
        gallery_labels: Class of each item of `gallery`, `(items,)` or `(items, 1)`.
        k: int, at least 1, or a sequence of them.

    Returns:
        Dict of Python numbers: `"recall_at_1"` and so on for each k, and
        `"mean_average_precision_at_r"`, all in [0, 1]; `"queries"`, the number of
        queries that count; `"queries_without_match"`, the number of queries without an
        item of their label in the gallery, which do not count.

    Raises:
        TypeError: `k` is not a whole number.
        ValueError: `k` is below 1 or empty; a shape does not fit; a feature is NaN,
            infinite or a row of zeros; a label is NaN; a gallery has no labels; no
            query has a match.

    Example:

    >>> features = [[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9], [0.5, 0.4]]
    >>> report = keras_pedcc.retrieval_report(features, [0, 0, 1, 1, 1], k=1)
    >>> report["recall_at_1"], round(report["mean_average_precision_at_r"], 3)
    (0.8, 0.8)

    Reference: Musgrave et al., "A Metric Learning Reality Check", 2020.
    """
    ranks = check_ranks(k)
    queries, items, codes, members = prepared(features, labels, gallery, gallery_labels)
    found = ranked(queries, items, codes, members, max(ranks), gallery is None)
    return summary(found, ranks)


def summary(found: Array, ranks: list[int]) -> dict[str, Any]:
    """The report of queries, given what `ranked` returns for them."""
    matched = found[~np.isnan(found[:, 0])]
    if not len(matched):
        raise ValueError(
            "There must be a query that shares its label with an item of the gallery. "
            f"Received: {len(found)} queries without one. Look at the labels."
        )
    first, precision = np.transpose(matched)
    recalls = {f"recall_at_{each}": float(np.mean(first <= each)) for each in ranks}
    return {
        **recalls,
        "mean_average_precision_at_r": float(np.mean(precision)),
        "queries": len(matched),
        "queries_without_match": len(found) - len(matched),
    }


def check_ranks(k: Any) -> list[int]:
    """Returns `k` as a list of whole numbers, or raises."""
    ranks = [k] if np.ndim(k) == 0 else list(k)
    if not ranks:
        raise ValueError(
            f"`k` must be at least one number. Received: k={k!r}. Pass k=1 or more."
        )
    for each in ranks:
        check_whole(1, k=each)
    return ranks


def prepared(
    features: ArrayLike,
    labels: ArrayLike,
    gallery: ArrayLike | None,
    gallery_labels: ArrayLike | None,
) -> tuple[Array, Array, Array, list[Array]]:
    """Unit queries and items, the code of each query, the items of each code."""
    if (gallery is None) != (gallery_labels is None):
        raise ValueError(
            "`gallery` and `gallery_labels` must come together. Received: one of them "
            "alone. Pass both, or neither to search among `features`."
        )
    queries, labels = _labelled(features=features, labels=labels)
    items, item_labels = queries, labels
    if gallery is not None:
        items, item_labels = _labelled(gallery=gallery, gallery_labels=gallery_labels)
    if items.shape[1] != queries.shape[1]:
        raise ValueError(
            "`gallery` must have the dim of `features`. Received: gallery.shape="
            f"{items.shape}, features.shape={queries.shape}. Use one embedder for both."
        )
    kinds, codes = np.unique(np.concatenate([labels, item_labels]), return_inverse=True)
    of_items = codes[len(codes) - len(items) :]
    bounds = np.cumsum(np.bincount(of_items, minlength=len(kinds)))[:-1]
    members = np.split(np.argsort(of_items, kind="stable"), bounds)
    return queries, items, codes[: len(queries)], members


def _labelled(**named: ArrayLike) -> tuple[Array, Array]:
    (name, features), (of_labels, labels) = named.items()
    units = unit_features(**{name: features})
    return units, check_classes(**{of_labels: labels, name: units})


def unit_features(**named: ArrayLike) -> Array:
    """The one array given as unit vectors, float32 unless it is float64, or raises."""
    features = check_features(**named)
    units = features.astype("float64" if features.dtype == "float64" else "float32")
    # Scale first, so that no square overflows or underflows.
    units /= np.maximum(units.max(axis=1), -units.min(axis=1))[:, None]
    units /= np.linalg.norm(units, axis=1, keepdims=True)
    return units
