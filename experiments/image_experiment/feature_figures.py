"""Figures 3 and 4 of the paper: features in two and three dimensions, gradients."""

from typing import NamedTuple

import numpy as np
from matplotlib import patheffects
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from image_experiment.figures import plt, save
from image_experiment.reporting import unit_rows

# Found by a search for ten colours that are far apart in CIELAB (32 and more), as
# normal eyes and those without one kind of cone see them.
CLASS_COLORS = np.array([
    "#1e2d4b", "#f0b400", "#00d287", "#d21e0f", "#6900ff",
    "#690096", "#ff4bff", "#0f7869", "#5a0000", "#b4c3e1",
])  # fmt: skip
STYLES = (
    {"color": "#717581", "marker": "o", "ms": 4},
    {"color": "#e76300", "marker": "s", "ms": 4},
    {"color": "#3f90da", "marker": "^", "ms": 5},
    {"color": "#832db6", "marker": "D", "ms": 4},
)
# Where the sphere is seen from, in radians.
AZIMUTH, ELEVATION = 0.6, 0.35
SHOWN = 0.995  # share of the features that lie inside the picture


class Cloud(NamedTuple):
    """The features of one model, and its classes among them."""

    title: str
    features: np.ndarray  # (n, dim), as they enter the head
    labels: np.ndarray  # (n,)
    classes: np.ndarray  # (num_classes, dim): centroids, weights or centres
    placed: bool  # whether a class has a place, or only a direction


def draw_features(rows, path):
    """One column per loss; for each number of dimensions two rows, whole and unit.

    Args:
        rows: List of lists of `Cloud`, those of one list with the same dimension.
        path: File to write.
    """
    columns = len(rows[0])
    size = (2.75 * columns, 5.7 * len(rows) + 0.6)
    figure, axes = plt.subplots(
        2 * len(rows), columns, figsize=size, layout="constrained", squeeze=False
    )
    for number, clouds in enumerate(rows):
        for whole, unit, cloud in zip(*axes[2 * number :][:2], clouds, strict=True):
            whole.set_title(cloud.title, fontsize=11)
            draw_whole(whole, cloud)
            draw_unit(unit, cloud)
        dim = clouds[0].features.shape[1]
        axes[2 * number, 0].set_ylabel(f"{dim}-D, as FC1 gives them", fontsize=11)
        name = "circle" if dim == 2 else "sphere"
        axes[2 * number + 1, 0].set_ylabel(f"{dim}-D, on the unit {name}", fontsize=11)
    add_legend(figure, len(rows[0][0].classes))
    save(figure, path)


def draw_whole(axis, cloud):
    """The features with their length, and a ray or a star for each class."""
    radius = np.quantile(np.linalg.norm(cloud.features, axis=1), SHOWN)
    if cloud.placed:
        ends = cloud.classes
        radius = max(radius, np.linalg.norm(ends, axis=1).max())
    else:
        ends = radius * unit_rows(cloud.classes)
    if cloud.features.shape[1] == 3:
        draw_axes(axis, radius)
    draw_points(axis, cloud, faint=0.35)
    draw_classes(axis, ends, 0.17 * radius)
    frame(axis, 1.3 * radius)
    if cloud.features.shape[1] == 2:
        for side in (axis.xaxis, axis.yaxis):
            side.set_major_locator(MaxNLocator(4, min_n_ticks=3, symmetric=True))
    else:
        axis.set(xticks=[], yticks=[])
        axis.set_xlabel(f"length of an axis: {radius:.3g}", fontsize=8)


def draw_unit(axis, cloud):
    """The features divided by their length."""
    axis.add_patch(plt.Circle((0, 0), 1, fc="#f6f6f6", ec="0.6", lw=0.8, zorder=0))
    if cloud.features.shape[1] == 3:
        draw_sphere(axis)
    unit, directions = unit_rows(cloud.features), unit_rows(cloud.classes)
    draw_points(axis, cloud._replace(features=unit), faint=0.08)
    draw_classes(axis, directions, 0.17)
    frame(axis, 1.3)
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set_visible(False)


def draw_points(axis, cloud, faint):
    """Features, the far ones first and of opacity `faint`."""
    places, depth = on_page(cloud.features)
    order = np.argsort(depth, kind="stable")
    reach = max(np.abs(depth).max(), 1e-9)
    near = np.ones(len(depth)) if not depth.any() else (1 + depth / reach) / 2
    opacity = faint + (0.65 - faint) * near
    colors = CLASS_COLORS[cloud.labels[order]]
    axis.scatter(*places[order].T, c=colors, alpha=opacity[order], s=7, lw=0, zorder=2)


def draw_classes(axis, ends, gap):
    """A line from the origin to the end of each class, and beyond it its number."""
    ends, depth = on_page(ends)
    for number in np.argsort(depth, kind="stable"):
        shade = shade_of(depth[number])
        line = {"color": "0.25", "lw": 0.7, **shade}
        axis.plot(*np.stack([0 * ends[number], ends[number]]).T, **line)
        star = {"marker": "*", "s": 70, "ec": "black", "lw": 0.6, **shade}
        axis.scatter(*ends[number], color=CLASS_COLORS[number], **star)
    label_classes(axis, ends + gap * unit_rows(ends), depth)


def label_classes(axis, places, depth):
    """Writes the number of each class; those that would cover each other in a row."""
    outline = [patheffects.withStroke(linewidth=2.2, foreground="white")]
    text = {"ha": "center", "va": "center", "size": 9, "path_effects": outline}
    for members in neighbours(places):
        place, name = places[members].mean(axis=0), " ".join(map(str, members))
        axis.text(*place, name, **text, **shade_of(depth[members].max()))


def shade_of(depth):
    """How to draw what lies on this side of the page, or behind."""
    hidden = depth < -1e-9
    return {"alpha": 0.35 if hidden else 1, "zorder": 1 if hidden else 3}


def neighbours(places):
    """Lists of the numbers that would cover each other if they stood there."""
    near = 0.09 * np.linalg.norm(places, axis=1).max()
    groups = []
    for number, place in enumerate(places):
        for group in groups:
            if np.linalg.norm(places[group[0]] - place) < near:
                group.append(number)
                break
        else:
            groups.append([number])
    return groups


def draw_sphere(axis):
    """Circles of latitude and longitude, as far as they are on this side."""
    turn, lift = np.linspace(0, 2 * np.pi, 181), np.linspace(-np.pi / 2, np.pi / 2, 91)
    step = np.pi / 6
    circles = [on_sphere(turn, 0 * turn + step * k) for k in range(-2, 3)]
    circles += [on_sphere(0 * lift + step * k, lift) for k in range(12)]
    for circle in circles:
        places, depth = on_page(circle)
        places[depth < 0] = np.nan
        axis.plot(*places.T, color="0.85", lw=0.6, zorder=0.5)


def on_sphere(longitude, latitude):
    """Points of the unit sphere, shape `(n, 3)`; angles in radians."""
    flat = np.cos(latitude)
    return np.stack(
        [flat * np.cos(longitude), flat * np.sin(longitude), np.sin(latitude)], axis=1
    )


def draw_axes(axis, radius):
    """The three axes of the features, from the origin."""
    places, _ = on_page(radius * np.eye(3))
    for number, place in enumerate(places, start=1):
        axis.plot(*np.stack([0 * place, place]).T, color="0.75", lw=0.8, zorder=0)
        axis.text(*(1.08 * place), f"$x_{number}$", color="0.5", size=8, zorder=0)


def on_page(points):
    """Where points of two or three dimensions are drawn, and how near they are."""
    if points.shape[1] == 2:
        return points, np.zeros(len(points))
    toward = on_sphere(np.array([AZIMUTH]), np.array([ELEVATION]))[0]
    right = np.array([-np.sin(AZIMUTH), np.cos(AZIMUTH), 0])
    up = np.cross(toward, right)
    return points @ np.stack([right, up], axis=1), points @ toward


def frame(axis, reach):
    axis.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal")
    axis.tick_params(labelsize=7, color="0.6")
    axis.spines[:].set_color("0.8")


def add_legend(figure, num_classes):
    """The classes by colour, and what the star is."""
    dot = {"marker": "o", "ls": "", "ms": 6, "mec": "none"}
    marks = [Line2D([], [], color=c, **dot) for c in CLASS_COLORS[:num_classes]]
    star = {"marker": "*", "ls": "-", "lw": 0.7, "ms": 9, "color": "0.25", "mfc": "w"}
    figure.legend(
        [*marks, Line2D([], [], **star)],
        [*map(str, range(num_classes)), "direction of the class, or its centre"],
        loc="outside lower center",
        ncols=num_classes + 1,
        columnspacing=1.1,
        handletextpad=0.3,
        frameon=False,
    )


def draw_gradients(curves, path):
    """Figure 4 of the paper, and the gradient for features of any length.

    Args:
        curves: Dict by loss; each value has lists `epoch`, `gradient`, `turning` and,
            for softmax, `scores`.
        path: File to write.
    """
    figure, axes = plt.subplots(1, 3, figsize=(12, 4), layout="constrained")
    for (loss, curve), style in zip(curves.items(), STYLES, strict=False):
        axes[0].plot(curve["epoch"], curve["gradient"], label=loss, **style)
        axes[2].plot(curve["epoch"], curve["turning"], label=loss, **style)
        if "scores" in curve:
            axes[1].plot(curve["epoch"], curve["gradient"], label="at FC1", **style)
            scores = {
                **style,
                "ls": ":",
                "mfc": "white",
                "label": "at the scores (FC2)",
            }
            axes[1].plot(curve["epoch"], curve["scores"], **scores)
    axes[0].set(title="(a) gradient over the features", ylabel="mean length")
    axes[1].set(title="(b) softmax cross entropy")
    axes[2].set(title="(c) times the length of the features")
    for axis in axes:
        axis.set(xlabel="epochs trained")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.grid(alpha=0.3)
    for axis in axes[[0, 2]]:  # center loss is far above the others
        axis.set_yscale("log")
    axes[1].set_ylim(bottom=0)
    axes[0].legend()
    axes[1].legend(loc="lower left")
    save(figure, path)
