"""What is measured of two networks."""

import numpy as np

from upgrade_study.heads import unit

PAIRS = 10_000  # of each kind, for verification across the networks


def measures(task, old, new):
    """How well the new network works, alone and with an index of the old one.

    Args:
        task: `Task`.
        old: What `training.train_old` returns.
        new: What `training.train_new` returns.

    Returns:
        Dict of `accuracy` (percent) and `loss` of the new network on the test images;
        `report` of `keras_pedcc.compatibility_report` with the test images; and
        `verification`: `auc` and `eer` of pairs whose first image the new network
        embeds, the second the old one.
    """
    import keras_pedcc

    features = {"old": unit(old["test_features"]), "new": unit(new["features"])}
    report = keras_pedcc.compatibility_report(
        **features, labels=task.y_test, known=range(task.num_known), k=1
    )
    right = new["logits"].argmax(axis=1) == task.y_test
    return {
        "accuracy": 100 * float(np.mean(right)),
        "loss": new["loss"],
        "report": report,
        "verification": across(features["new"], features["old"], task.y_test),
    }


def across(new, old, labels):
    """Verification of pairs of two images, the first by one network."""
    import keras_pedcc

    pairs, same = draw_pairs(labels)
    scores = keras_pedcc.pair_scores(new[pairs[:, 0]], old[pairs[:, 1]])
    report = keras_pedcc.verification_report(same, scores)
    return {name: report[name] for name in ("auc", "eer")}


def draw_pairs(labels):
    """Random pairs of two images, as many of one class as of two."""
    draw = np.random.default_rng(0)
    order = draw.permutation(np.arange(40 * PAIRS) % len(labels))
    pairs = order.reshape(-1, 2)
    pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    same = labels[pairs[:, 0]] == labels[pairs[:, 1]]
    by_class = np.argsort(labels, kind="stable")
    # Neighbours in the order of the classes share theirs, but for a few.
    shift = draw.integers(1, 1 + np.bincount(labels)[np.unique(labels)].min() // 2)
    alike = np.stack([by_class[:-shift], by_class[shift:]], axis=1)
    alike = draw.permutation(alike[labels[alike[:, 0]] == labels[alike[:, 1]]])[:PAIRS]
    others = pairs[~same][: len(alike)]
    kinds = np.repeat([True, False], [len(alike), len(others)])
    mixed = draw.permutation(len(kinds))
    return np.concatenate([alike, others])[mixed], kinds[mixed]
