"""The headline figure: new features found among old ones, and among new ones."""

import statistics

from image_experiment.figures import plt, save

from upgrade_study.tables import names_of, recall

# Those drawn: their colours, and where their names stand.
FAMILIES = {
    "frozen": "#30638e",
    "trained": "#5b9279",
    "AM-Softmax": "#edae49",
    "cross entropy": "#d1495b",
}
PANELS = {"known": "classes the old network knows", "unseen": "classes it never saw"}


# The tables have all heads.
SHOWN = (
    "frozen",
    "frozen, unseen at old means",
    "frozen, random directions",
    "trained from predefined",
    "AM-Softmax, shared start",
    "AM-Softmax, own starts",
    "cross entropy, shared start",
    "cross entropy, own starts",
    "cross entropy + BCT",
)


def draw(runs, path):
    """A panel for known and one for unseen classes, a bar for each head of `SHOWN`."""
    heads = [run for run in runs if run["part"] == "heads"]
    chosen = [run for run in heads if run["name"] in SHOWN]
    names = names_of(chosen)[::-1]
    height = 1.2 + 0.3 * len(names)
    figure, axes = plt.subplots(
        1, 2, figsize=(10, height), layout="constrained", sharey=True
    )
    for axis, (where, title) in zip(axes, PANELS.items(), strict=True):
        _draw_panel(axis, chosen, names, where)
        axis.set(title=title, xlabel="recall@1 (%)", xlim=(0, 100))
    handles = [plt.Rectangle((0, 0), 1, 1, color="0.45"), _tick()]
    labels = ["new features, searched among old ones", "among new ones"]
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
    save(figure, path)


def _draw_panel(axis, runs, names, where):
    for place, name in enumerate(names):
        own = [run for run in runs if run["name"] == name]
        old, new = ([recall(s, where)(run) for run in own] for s in SEARCHES)
        axis.barh(place, statistics.fmean(old), 0.7, color=color_of(name))
        bars = {"fmt": "none", "ecolor": "0.2", "capsize": 2, "lw": 1}
        if len(own) > 1:
            axis.errorbar(
                statistics.fmean(old), place, xerr=statistics.stdev(old), **bars
            )
        mean = statistics.fmean(new)
        axis.plot([mean, mean], [place - 0.35, place + 0.35], color="black", lw=2)
    axis.set_yticks(range(len(names)), names)
    axis.spines[["top", "right"]].set_visible(False)


SEARCHES = ("new_in_old", "new_in_new")


def color_of(name):
    """The colour of the family whose name comes first."""
    for family, color in FAMILIES.items():
        if family in name:
            return color
    return "0.5"


def _tick():
    return plt.Line2D(
        [], [], color="black", marker="|", ls="none", markersize=10, markeredgewidth=2
    )
