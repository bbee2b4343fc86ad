"""Compatibility: does an index of old embeddings still work with a new network?"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_pedcc.common import Array, ArrayLike
from keras_pedcc.common.checks import check_classes, check_features
from keras_pedcc.evaluation import ranking, retrieval


def compatibility_report(
    old: ArrayLike,
    new: ArrayLike,
    labels: ArrayLike,
    *,
    old_gallery: ArrayLike | None = None,
    new_gallery: ArrayLike | None = None,
    gallery_labels: ArrayLike | None = None,
    known: ArrayLike | None = None,
    k: int | Sequence[int] = (1, 5),
) -> dict[str, Any]:
    """Reports how well features of a new network are found among those of an old one.

    Both networks embed the same images. The report contains three searches by
    `retrieval_report`: old features in a gallery of old ones, new in old, and new in
    new. The gallery consists of all other images, or is given.

    Two measures follow the definition of backward compatibility. They are taken over
    all pairs of a query q and an item i of the gallery, with `n` the new and `o` the
    old features:

    - `same_not_farther`: share of the pairs from the same class with
      `cos(n_q, o_i) >= cos(o_q, o_i)`,
    - `others_not_nearer`: share of the pairs from two classes with
      `cos(n_q, o_i) <= cos(o_q, o_i)`.

    The definition requires both to be 1, which no network reaches. `compatible` is the
    empirical criterion instead: new features are found in the old gallery more often
    than old ones, by recall at the first k.

    Args:
        old: Features of the queries by the old network, shape `(batch, dim)`.
        new: Features of the same images by the new network, of the same shape.
        labels: Class of each image, any labels, shape `(batch,)` or `(batch, 1)`.
        old_gallery: Features by the old network, shape `(items, dim)`, or `None`: the
            queries, each without itself.
        new_gallery: Features of the same images by the new network.
        gallery_labels: Class of each image of the gallery.
        known: The classes that the old network was trained on, at least two. The report
            then also covers known and unseen classes separately.
        k: int, at least 1, or a sequence of them.

    Returns:
        Dict of

        - `"old_in_old"`, `"new_in_old"`, `"new_in_new"`: dicts as from
          `retrieval_report`,
        - `"same_not_farther"`, `"others_not_nearer"`: floats in [0, 1], see above,
        - `"compatible"`: bool, see above,
        - with `known`, `"known"` and `"unseen"`: dicts of the three reports and
          `"compatible"`, for the queries of these classes; `None` if none of them has
          a match.

    Raises:
        ValueError: A shape does not fit; the networks differ in `dim`; only some of the
            gallery arguments are given; fewer than two classes are known; or as in
            `retrieval_report`.

    Example:

    >>> old = [[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [0.7, 0.7]]
    >>> new = [[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0]]
    >>> report = keras_pedcc.compatibility_report(old, new, [0, 0, 1, 1], k=1)
    >>> report["old_in_old"]["recall_at_1"], report["new_in_old"]["recall_at_1"]
    (0.5, 1.0)

    Reference: Shen et al., "Towards Backward-Compatible Representation Learning", 2020,
    eqs. 1 to 3, https://arxiv.org/abs/2003.11942.
    """
    ranks = retrieval.check_ranks(k)
    given = [each is not None for each in (old_gallery, new_gallery, gallery_labels)]
    if any(given) and not all(given):
        raise ValueError(
            "`old_gallery`, `new_gallery` and `gallery_labels` must come together. "
            f"Received: {sum(given)} of 3. Pass all, or none to search among the "
            "queries."
        )
    _check_same_shape(old=old, new=new)
    if all(given):
        _check_same_shape(old_gallery=old_gallery, new_gallery=new_gallery)
    alone = not all(given)
    of_old = retrieval.prepared(old, labels, old_gallery, gallery_labels)
    of_new = retrieval.prepared(new, labels, new_gallery, gallery_labels)
    codes, members = of_old[2:]
    pairs = {
        "old_in_old": (of_old[0], of_old[1]),
        "new_in_old": (of_new[0], of_old[1]),
        "new_in_new": (of_new[0], of_new[1]),
    }
    found = {
        name: ranking.ranked(*pair, codes, members, max(ranks), alone)
        for name, pair in pairs.items()
    }
    report = _reports(found, ranks, np.ones(len(codes), bool))
    report |= _criteria(of_old[0], *pairs["new_in_old"], codes, members, alone)
    if known is not None:
        classes = check_classes(labels=labels, old=of_old[0])
        is_known = np.isin(classes, _check_known(known))
        for name, which in (("known", is_known), ("unseen", ~is_known)):
            matched = which & ~np.isnan(found["old_in_old"][:, 0])
            report[name] = _reports(found, ranks, which) if matched.any() else None
    return report


def _reports(found: dict[str, Array], ranks: list[int], which: Array) -> dict[str, Any]:
    """The three reports of some queries, and whether they are compatible."""
    reports = {
        name: retrieval.summary(each[which], ranks) for name, each in found.items()
    }
    first = f"recall_at_{ranks[0]}"
    compatible = reports["new_in_old"][first] > reports["old_in_old"][first]
    return {**reports, "compatible": compatible}


def _criteria(
    old: Array,
    new: Array,
    items: Array,
    codes: Array,
    members: list[Array],
    without_self: bool,
) -> dict[str, float]:
    """Shares of pairs that satisfy the definition, by blocks of queries."""
    of_items = np.empty(len(items), int)
    for code, own in enumerate(members):
        of_items[own] = code
    held, number = np.zeros(2, int), np.zeros(2, int)
    size = max(1, ranking.BLOCK // items[:, 0].nbytes // 4)
    for start in range(0, len(old), size):
        stop = start + size
        gain = new[start:stop] @ items.T - old[start:stop] @ items.T
        same = codes[start:stop, None] == of_items
        counted = np.ones_like(same)
        if without_self:
            rows = np.arange(len(same))
            counted[rows, start + rows] = False
        for each, (kind, holds) in enumerate(((same, gain >= 0), (~same, gain <= 0))):
            held[each] += np.count_nonzero(kind & holds & counted)
            number[each] += np.count_nonzero(kind & counted)
    names = ("same_not_farther", "others_not_nearer")
    return {name: float(held[i] / max(number[i], 1)) for i, name in enumerate(names)}


def _check_same_shape(**named: ArrayLike) -> None:
    old, new = (check_features(**{name: each}) for name, each in named.items())
    if old.shape != new.shape:
        first, second = named
        raise ValueError(
            f"`{first}` and `{second}` must be features of the same images, of one "
            f"length. Received: {first}.shape={old.shape}, {second}.shape={new.shape}. "
            "Give the new network as many features as the old one has."
        )


def _check_known(known: ArrayLike) -> Array:
    found = np.unique(np.asarray(known))
    if len(found) < 2:
        raise ValueError(
            "`known` must name at least two classes. Received: "
            f"{len(found)} of them. Pass those that the old network was trained on."
        )
    return found
