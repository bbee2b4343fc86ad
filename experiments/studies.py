"""What the runs of `experiments/centroid_study.py` on test images found, together.

`experiments/results_table.py --write` puts table and figure into the site.
"""

from centroid_study import BASELINE
from compare_losses import as_text

RECIPE = "with the network, margin 0.2, lambda 3"
COLUMNS = {
    BASELINE: "cross entropy",
    "AM-Softmax": "AM-Softmax",
    "frozen": "frozen",
    RECIPE: "trained",
}
SLOWER = ", rate 0.02"  # ends the name of a recipe that has this learning rate


def rows(studies):
    """A dict for each number of images: conditions, and `values` by column.

    A study with recipes at a rate of their own has two: one where each column is at
    the rate of all, and one where these recipes stand beside cross entropy, which is
    at the rate of all in both.
    """
    found = []
    for study in studies:
        if study["data"]["scored_on"] == "test images":
            for ending in ("", SLOWER):
                if {BASELINE, RECIPE + ending} <= study["rows"].keys():
                    found += _rows(study, ending)
    return sorted(found, key=lambda row: (row["images"], row["number"], row["steps"]))


def _rows(study, ending):
    names = {name: name if name == BASELINE else name + ending for name in COLUMNS}
    for number, steps in zip(study["per_class"], study["steps"], strict=True):
        yield {
            "dataset": study["dataset"],
            "images": study["dataset"] + _condition(study) + ending,
            "number": number,
            "fewest": max(1, round(number / study["settings"]["imbalance"])),
            "steps": steps,
            "values": {
                name: study["rows"][own][str(number)]
                for name, own in names.items()
                if own in study["rows"]
            },
        }


def _condition(study):
    settings = study["settings"]
    if settings["imbalance"] > 1:
        return f", unequal {settings['imbalance']:g} to 1"
    usual = study["dataset"] == "cifar100"  # crops and flips, as in the paper
    return "" if usual or not settings["pad"] else ", shifted"


def summary(studies):
    """Markdown of all rows, the best of each in bold."""
    head = [
        "images",
        "per class",
        "steps, about",
        *COLUMNS.values(),
        "minus cross entropy",
    ]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for row in rows(studies):
        values = row["values"]
        best = max(value["mean"] for value in values.values())
        texts = [row["images"], _number(row), f"{row['steps']:,}"]
        texts += [_text(values.get(name), best) for name in COLUMNS]
        texts.append(as_text(values[RECIPE]["difference"], digits=1))
        lines.append("| " + " | ".join(texts) + " |")
    return "\n".join(lines) + "\n"


def _number(row):
    """Images of a class, or of the first and of the last."""
    number = f"{row['number']:,}"
    return number if row["fewest"] == row["number"] else f"{number} to {row['fewest']}"


def _text(value, best):
    if value is None:
        return "-"
    mean = f"{value['mean']:.1f}"
    return f"**{mean}**" if value["mean"] == best else mean


def draw(studies, path):
    """Accuracy minus that of cross entropy, a panel for each set of images."""
    from image_experiment.figures import plt, save

    found = rows(studies)
    sets = sorted({row["dataset"] for row in found})
    shape = {"figsize": (3.5 * len(sets), 3.6), "sharey": True, "squeeze": False}
    figure, [axes] = plt.subplots(1, len(sets), layout="constrained", **shape)
    lines = {}
    for axis, dataset in zip(axes, sets, strict=True):
        numbers = set()
        for ending, style in (("", "o-"), (SLOWER, "s--")):
            own = [row for row in found if row["images"] == dataset + ending]
            lines |= _draw_lines(axis, own, style, ending)
            numbers |= {row["number"] for row in own}
        _draw_frame(axis, sorted(numbers))
        axis.set_title(dataset)
    axes[0].set_ylabel("accuracy minus cross entropy (points)")
    figure.legend(lines.values(), lines, loc="outside lower center", ncols=5)
    save(figure, path)


def _draw_lines(axis, rows, style, ending):
    """The lines, by what they are of."""
    lines = {}
    for place, (name, label) in enumerate(COLUMNS.items()):
        points = [
            (row["number"], row["values"][name]["difference"]["mean"])
            for row in rows
            if name != BASELINE and name in row["values"]
        ]
        if points:
            [line] = axis.plot(
                *zip(*points, strict=True), style, ms=4, color=f"C{place}"
            )
            lines[label + ending] = line
    return lines


def _draw_frame(axis, numbers):
    axis.axhline(0, color="0.5", lw=1)
    axis.set(xscale="log", xlabel="training images per class")
    axis.set_xticks(numbers, [f"{number:,}" for number in numbers])
    axis.minorticks_off()
