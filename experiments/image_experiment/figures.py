"""Figures of one run."""

import keras
import matplotlib
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.ticker import MaxNLocator

import keras_pedcc
from image_experiment.losses import may_fine_tune
from image_experiment.reporting import read_history, unit_rows

matplotlib.use("Agg")
OWN, OTHER, TRAINING = "#30638e", "#d1495b", "#8d99ae"


def draw(args, scored_on, images, model, predicted):
    """Draws all figures into the folder of the run; returns what each shows."""
    draw_curves(args, scored_on, args.output_dir / "curves.png")
    guessed = predicted["logits"].argmax(axis=1)
    draw_confusion(images, guessed, args.output_dir / "confusion.png")
    cosines = unit_rows(predicted["features"]) @ class_directions(model).T
    draw_cosines(cosines, images.y_test, args.output_dir / "cosines.png")
    return {
        "curves.png": "accuracy and loss by epoch",
        "confusion.png": "which classes are taken for which",
        "cosines.png": "cosines to the own class and the nearest other",
    }


def class_directions(model):
    """Unit vector of each class, shape `(num_classes, dim)`."""
    head = model.get_layer("head")
    if hasattr(head, "centroids"):
        return unit_rows(keras.ops.convert_to_numpy(head.centroids))
    return unit_rows(keras.ops.convert_to_numpy(head.kernel).T)


def draw_curves(args, scored_on, path, scored="val_accuracy"):
    """Accuracy, loss and its parts by epoch, with the unfreezing marked.

    Args:
        args: Settings.
        scored_on: Name of what is scored at each epoch.
        path: File to write.
        scored: The column of `history.csv` with the accuracy on that.
    """
    rows = read_history(args.output_dir / "history.csv")
    panels = {
        "accuracy (%)": {"training images": "accuracy", scored_on: scored},
        "loss": {"training images": "loss", scored_on: "val_loss"},
    }
    if args.loss == "pedcc":
        panels["part of the loss, training images"] = {
            "eq. 8": "am_softmax",
            "eq. 9": "centroid_distance",
        }
    width = 4.5 * len(panels)
    figure, axes = plt.subplots(
        1, len(panels), figsize=(width, 4), layout="constrained"
    )
    for axis, (title, curves) in zip(axes, panels.items(), strict=True):
        _draw_panel(axis, args, rows, title, curves)
    save(figure, path)


def _draw_panel(axis, args, rows, title, curves):
    """Columns of the history by epoch, `curves` naming them by their labels."""
    factor = 100 if "%" in title else 1
    for (label, column), color in zip(curves.items(), (TRAINING, OWN), strict=True):
        if column in rows[0]:
            epochs = [row["epoch"] + 1 for row in rows]
            values = [factor * row[column] for row in rows]
            axis.plot(epochs, values, ".-", color=color, label=label)
    unfrozen = may_fine_tune(args) and not args.fixed
    if unfrozen and args.finetune_epoch < len(rows):
        line = {"color": "0.3", "ls": "--", "label": "centroids unfrozen"}
        axis.axvline(args.finetune_epoch + 0.5, **line)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set(xlabel="epoch", ylabel=title)
    axis.legend()


def draw_confusion(images, guessed, path):
    """Share of each class (row) that is taken for each class (column)."""
    num_classes = images.num_classes
    table = np.zeros((num_classes, num_classes))
    np.add.at(table, (images.y_test, guessed), 1)
    table /= np.maximum(table.sum(axis=1, keepdims=True), 1)
    figure, axis = plt.subplots(figsize=(8, 7), layout="constrained")
    shown = axis.imshow(100 * table, cmap="Blues", vmin=0, vmax=100)
    figure.colorbar(shown, label="share of the class (%)", shrink=0.8)
    if len(images.class_names) == num_classes <= 60:
        axis.set_xticks(range(num_classes), images.class_names, fontsize=6)
        axis.set_yticks(range(num_classes), images.class_names, fontsize=6)
    axis.set(xlabel="predicted class", ylabel="class")
    save(figure, path)


def draw_cosines(cosines, labels, path):
    """Histogram of the cosine to the own class, and to the nearest other."""
    rows = np.arange(len(labels))
    own = cosines[rows, labels].copy()
    cosines = cosines.copy()
    cosines[rows, labels] = -np.inf
    figure, axis = plt.subplots(figsize=(7, 4), layout="constrained")
    bins = np.linspace(-1, 1, 101)
    shares = {"alpha": 0.65, "weights": np.full(len(own), 100 / len(own))}
    axis.hist(own, bins, color=OWN, label="own class", **shares)
    nearest = cosines.max(axis=1)
    axis.hist(nearest, bins, color=OTHER, label="nearest other class", **shares)
    low = min(own.min(), nearest.min(), 0)
    axis.set(xlabel="cosine", ylabel="share of images (%)", xlim=(low, 1))
    figure.legend(loc="outside upper center", ncols=2)
    save(figure, path)


def draw_roc(scores, same, path):
    """ROC of verification, one curve for each entry of `scores`."""
    figure, axis = plt.subplots(figsize=(5.5, 4.5), layout="constrained")
    for (name, own), color in zip(scores.items(), (OWN, TRAINING, OTHER), strict=False):
        far, tar, _ = keras_pedcc.roc_curve(same, own)
        axis.plot(100 * far, 100 * tar, color=color, label=name)
    axis.plot([0, 100], [0, 100], color="0.8", lw=1, zorder=0)
    axis.set(
        xlabel="false accept rate (%)",
        ylabel="true accept rate (%)",
        xlim=(0, 100),
        ylim=(0, 100),
        aspect="equal",
    )
    axis.legend(loc="lower right")
    save(figure, path)


def draw_pairs(scores, same, path):
    """Histogram of the cosine of pairs of one person, and of two."""
    figure, axis = plt.subplots(figsize=(7, 4), layout="constrained")
    bins = np.linspace(min(0, scores.min()), 1, 61)
    for kind, color, label in ((same, OWN, "one person"), (~same, OTHER, "two")):
        share = np.full(kind.sum(), 100 / kind.sum())
        axis.hist(
            scores[kind], bins, weights=share, alpha=0.65, color=color, label=label
        )
    axis.set(xlabel="cosine", ylabel="share of pairs (%)", xlim=(bins[0], 1))
    axis.legend(title="pairs of")
    save(figure, path)


def save(figure, path):
    figure.savefig(path, dpi=130)
    plt.close(figure)
