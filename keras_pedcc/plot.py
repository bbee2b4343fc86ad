"""Figures of a trained network; each function takes arrays and returns a figure.

They need matplotlib: `pip install keras-pedcc[plot]`. The figures do not use pyplot:
save them with `figure.savefig(path)`, or show them in a notebook.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from keras import ops

from keras_pedcc.common import Array, ArrayLike
from keras_pedcc.common.checks import check_classes, check_features, check_whole
from keras_pedcc.evaluation.verification import roc_curve, verification_report

Figure = Any  # of matplotlib, which may be missing
Names = Sequence[str] | None
FEW = 20  # classes that legend and colors can distinguish


def features(
    features: ArrayLike,
    labels: ArrayLike,
    *,
    centroids: ArrayLike | None = None,
    class_names: Names = None,
) -> Figure:
    """Plots features and centroids in the plane in which the features vary most.

    The plane is spanned by the first two principal components of the features.
    Distances in it are smaller than those between the features.

    Args:
        features: Array or tensor, shape `(batch, dim)`, dim at least 2.
        labels: Class indices, shape `(batch,)` or `(batch, 1)`.
        centroids: Array, tensor or weight, shape `(num_classes, dim)`, row j that of
            class j; or `None`.
        class_names: Name of each class, by its index. Defaults to the numbers.

    Returns:
        `matplotlib.figure.Figure`.

    Raises:
        ValueError: A shape or value does not fit.

    Example:

    >>> figure = keras_pedcc.plot.features(np.eye(4), [0, 0, 1, 1])
    >>> figure.savefig("features.png")
    """
    rows = check_features(features=features).astype("float64")
    labels = _check_indices(labels, rows)
    plane = np.linalg.svd(rows - rows.mean(axis=0), full_matrices=False)[2][:2].T
    figure, axes = _figure((6, 6))
    for index in np.unique(labels):
        x, y = (rows[labels == index] @ plane).T
        name, color = _name(index, class_names), _color(index)
        axes.scatter(x, y, s=10, color=color, alpha=0.6, label=name, linewidths=0)
    if centroids is not None:
        points = np.asarray(ops.convert_to_numpy(centroids), "float64") @ plane
        for index, (x, y) in enumerate(points[:FEW]):
            axes.scatter(x, y, s=140, marker="*", color=_color(index), edgecolors="k")
    if len(np.unique(labels)) <= FEW:
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), markerscale=2)
    axes.set(xlabel="first principal component", ylabel="second", aspect="equal")
    axes.set_title("Features" + ("" if centroids is None else " and centroids (stars)"))
    return figure


def margins(cosines: ArrayLike, labels: ArrayLike) -> Figure:
    """Plots the cosine to the own class against the largest cosine to another class.

    Each point is a sample. Points below the diagonal are correctly classified, and
    their distance from it shows the margin.

    Args:
        cosines: The logits of a head, shape `(batch, num_classes)`.
        labels: Class indices, shape `(batch,)` or `(batch, 1)`.

    Returns:
        `matplotlib.figure.Figure`.

    Raises:
        ValueError: A shape or value does not fit.

    Example:

    >>> figure = keras_pedcc.plot.margins([[0.9, 0.1], [0.2, 0.3]], [0, 0])
    """
    own, others, _ = _own_and_others(cosines, labels)
    right = own > others
    figure, axes = _figure((5.5, 5.5))
    for kind, color, name in ((right, "C0", "right"), (~right, "C3", "wrong")):
        label = f"{name} ({kind.sum()})"
        axes.scatter(own[kind], others[kind], s=8, color=color, alpha=0.5, label=label)
    low, high = min(own.min(), others.min()), max(own.max(), others.max())
    axes.plot([low, high], [low, high], color="0.5", linewidth=1)
    axes.set(xlabel="cosine to the own class", ylabel="largest cosine to another")
    axes.set(aspect="equal", title=f"Median margin {np.median(own - others):.3f}")
    axes.legend(loc="upper left")
    return figure


def confusion(
    labels: ArrayLike, predicted: ArrayLike, *, class_names: Names = None
) -> Figure:
    """Plots the confusion matrix; rows are classes, columns are predictions.

    Colors are shares of the row. With up to 20 classes the counts are shown, too.

    Args:
        labels: Class indices, shape `(batch,)` or `(batch, 1)`.
        predicted: Predicted class indices, of the same shape.
        class_names: Name of each class, by its index. Defaults to the numbers.

    Returns:
        `matplotlib.figure.Figure`.

    Raises:
        ValueError: A shape or value does not fit.

    Example:

    >>> figure = keras_pedcc.plot.confusion([0, 0, 1], [0, 1, 1])
    """
    taken = np.asarray(ops.convert_to_numpy(predicted)).reshape(-1)
    labels = _check_indices(labels, taken[:, None])
    taken = _check_indices(taken, taken[:, None])
    counts = confusion_counts(labels, taken)
    figure, axes = _figure((1.5 + 0.45 * min(len(counts), 30),) * 2)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    if len(counts) <= FEW:
        names = [_name(i, class_names) for i in range(len(counts))]
        axes.set_xticks(range(len(counts)), names, rotation=90)
        axes.set_yticks(range(len(counts)), names)
        for (row, column), count in np.ndenumerate(counts):
            color = "w" if shares[row, column] > 0.5 else "k"
            text = {"ha": "center", "va": "center", "color": color, "fontsize": 8}
            axes.text(column, row, str(count) if count else "", **text)
    axes.set(xlabel="predicted", ylabel="class")
    axes.set_title(f"{np.trace(counts)} of {counts.sum()} right")
    return figure


def confusion_counts(labels: Array, predicted: Array) -> Array:
    """Counts of each class (row) and prediction (column)."""
    size = 1 + max(labels.max(), predicted.max())
    return np.bincount(labels * size + predicted, minlength=size**2).reshape(size, size)


def mistakes(
    images: ArrayLike,
    labels: ArrayLike,
    cosines: ArrayLike,
    *,
    class_names: Names = None,
    number: int = 16,
) -> Figure:
    """Shows the worst errors: the largest cosine to another class exceeds the own most.

    Args:
        images: Array or tensor, shape `(batch, height, width)`, or with channels last,
            of any range.
        labels: Class indices, shape `(batch,)` or `(batch, 1)`.
        cosines: The logits of a head, shape `(batch, num_classes)`.
        class_names: Name of each class, by its index. Defaults to the numbers.
        number: int, at least 1. Maximum number of images.

    Returns:
        `matplotlib.figure.Figure`; the title of each image has its class, the
        prediction, and the difference of the cosines.

    Raises:
        TypeError: `number` is not a whole number.
        ValueError: A shape or value does not fit.

    Example:

    >>> figure = keras_pedcc.plot.mistakes(np.ones((1, 8, 8)), [0], [[0.1, 0.7]])
    """
    check_whole(1, number=number)
    own, others, nearest = _own_and_others(cosines, labels)
    images = np.asarray(ops.convert_to_numpy(images))
    if images.ndim not in (3, 4) or len(images) != len(own):
        raise ValueError(
            "`images` must be one image for each row of `cosines`. Received: "
            f"images.shape={images.shape}, for {len(own)} rows. Pass an array of shape "
            "(batch, height, width, channels)."
        )
    classes = _check_indices(labels, own[:, None])
    wrong = np.flatnonzero(others >= own)
    worst = wrong[np.argsort((own - others)[wrong], kind="stable")][:number]
    figure, grid = _grid(len(worst))
    for axes, i in zip(grid, worst, strict=False):
        image = images[i, :, :, 0] if images[i].shape[2:] == (1,) else images[i]
        low, high = image.min(), image.max()
        axes.imshow((image - low) / max(high - low, 1e-12), cmap="gray")
        pair = f"{_name(classes[i], class_names)} → {_name(nearest[i], class_names)}"
        axes.set_title(f"{pair}\nby {others[i] - own[i]:.2f}", fontsize=8)
    figure.suptitle(f"Largest mistakes, of {len(wrong)} in {len(own)}")
    return figure


def roc(same: ArrayLike, scores: ArrayLike) -> Figure:
    """Plots the true over the false accept rate, see `keras_pedcc.roc_curve`.

    Args:
        same: Whether both are of one class: bool, or 0 and 1, shape `(pairs,)`.
        scores: Finite numbers, shape `(pairs,)`; larger means more alike.

    Returns:
        `matplotlib.figure.Figure`, with the area under the curve and the equal error
        rate.

    Raises:
        ValueError: A shape or value does not fit, or there are not two pairs of each
            kind.

    Example:

    >>> figure = keras_pedcc.plot.roc([1, 1, 0, 0], [0.9, 0.5, 0.5, 0.1])
    """
    far, tar, _ = roc_curve(same, scores)
    # Alternating folds, so that each has pairs of both kinds.
    kinds = np.asarray(ops.convert_to_numpy(same)).astype(int)
    folds = np.empty(len(kinds), int)
    for kind in (0, 1):
        folds[kinds == kind] = np.arange((kinds == kind).sum()) % 2
    report = verification_report(same, scores, folds=folds)
    figure, axes = _figure((5.5, 5))
    least = 1 / max((kinds == 0).sum(), 1)
    axes.step(np.maximum(far, least / 2), tar, where="post")
    axes.plot(report["eer"], 1 - report["eer"], "o", color="C3", label="equal error")
    axes.set(xscale="log", xlim=(least / 2, 1), ylim=(0, 1.02))
    axes.set(xlabel="false accept rate", ylabel="true accept rate")
    axes.set_title(f"AUC {report['auc']:.4f}, equal error rate {report['eer']:.4f}")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    return figure


def _figure(size: tuple[float, float]) -> tuple[Figure, Any]:
    # Not pyplot, which keeps all figures and may need a screen.
    from matplotlib.figure import Figure

    figure = Figure(size, layout="constrained")
    return figure, figure.add_subplot()


def _grid(number: int) -> tuple[Figure, list[Any]]:
    from matplotlib.figure import Figure

    columns = max(1, int(np.ceil(np.sqrt(number))))
    rows = max(1, -(-number // columns))
    figure = Figure((1.6 * max(columns, 3), 0.6 + 1.9 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).reshape(-1)
    for axes in grid:
        axes.set_axis_off()
    return figure, list(grid)


def _color(index: int) -> Any:
    import matplotlib

    return matplotlib.colormaps["tab10" if index < 10 else "tab20b"](index % 20)


def _name(index: int, class_names: Names) -> str:
    return str(index) if class_names is None else class_names[index]


def _check_indices(labels: ArrayLike, rows: Array) -> Array:
    found = check_classes(labels=labels, rows=rows)
    if found.dtype.kind not in "iu" or found.min(initial=0) < 0:
        raise ValueError(
            "`labels` must be class indices, from 0. Received: labels.dtype="
            f"{found.dtype}. Number the classes from 0."
        )
    return found.astype("int64")


def _own_and_others(
    cosines: ArrayLike, labels: ArrayLike
) -> tuple[Array, Array, Array]:
    """Cosine to the own class, the largest cosine to another, and that other class."""
    values = check_features(cosines=cosines).astype("float64")
    labels = _check_indices(labels, values)
    if labels.max() >= values.shape[1] or values.shape[1] < 2:
        raise ValueError(
            "`cosines` must have a column for each class, and at least two. Received: "
            f"cosines.shape={values.shape}, with a label {labels.max()}. Pass the "
            "logits of the head."
        )
    rows = np.arange(len(values))
    own = values[rows, labels]
    values[rows, labels] = -np.inf
    return own, values.max(axis=1), values.argmax(axis=1)
