"""Tables of the results, in Markdown."""

import statistics

from upgrade_study.heads import UPGRADES

WHERE = ("known", "unseen")
SEARCHES = ("new_in_old", "new_in_new", "old_in_old")


def blocks(runs):
    """All tables that the runs allow, by title."""
    made = {
        "heads": table(runs, "heads", recall_columns()),
        "criteria": table(runs, "heads", other_columns()),
        "changes": table(runs, "changes", recall_columns()),
        "backend": table(runs, "backend", recall_columns()),
        "reserve": table(reserve_runs(runs), "reserve", reserve_columns()),
        "strangers": strangers_table(runs),
    }
    return {title: text for title, text in made.items() if text}


def table(runs, part, columns):
    """A row for each name, with means over the seeds."""
    chosen = [run for run in runs if run["part"] == part]
    if not chosen:
        return ""
    lines = [line(["", *columns]), "|---" * (len(columns) + 1) + "|"]
    for name in names_of(chosen):
        own = [run for run in chosen if run["name"] == name]
        lines.append(line([name, *(text_of(own, each) for each in columns.values())]))
    return "\n".join(lines) + "\n"


def names_of(runs):
    """The heads in the order of `UPGRADES`; other names in that of the runs."""
    names = dict.fromkeys(run["name"] for run in runs)
    places = list(UPGRADES)
    return sorted(names, key=lambda n: places.index(n) if n in places else len(places))


def line(cells):
    return "| " + " | ".join(cells) + " |"


def text_of(runs, column):
    """Mean and standard deviation, or a count where the values are bool."""
    value, digits = column
    values = [value(run) for run in runs]
    if isinstance(values[0], bool):
        return f"{sum(values)} of {len(values)}"
    mean = f"{statistics.fmean(values):.{digits}f}"
    if len(values) == 1:
        return mean
    return f"{mean} ± {statistics.stdev(values):.{digits}f}"


def recall(search, where):
    return lambda run: 100 * run["report"][where][search]["recall_at_1"]


def precision(search, where):
    name = "mean_average_precision_at_r"
    return lambda run: 100 * run["report"][where][search][name]


def recall_columns():
    columns = {
        f"{search.replace('_', ' ')}, {where}": (recall(search, where), 1)
        for search in SEARCHES
        for where in WHERE
    }
    return {**columns, "accuracy": (lambda run: run["accuracy"], 1)}


def other_columns():
    columns = {
        f"mAP@R {search.replace('_', ' ')}, {where}": (precision(search, where), 1)
        for search in SEARCHES[:2]
        for where in WHERE
    }
    shares = {
        f"{name.replace('_', ' ')}": (
            lambda run, name=name: 100 * run["report"][name],
            1,
        )
        for name in ("same_not_farther", "others_not_nearer")
    }
    return {
        **columns,
        "compatible": (lambda run: run["report"]["compatible"], 0),
        **shares,
        "EER across": (lambda run: 100 * run["verification"]["eer"], 1),
    }


def faces_table(runs):
    """The heads on LFW, with verification across the networks."""
    columns = {**recall_columns(), **other_columns()}
    shown = [name for name in columns if name.startswith(("new in", "old in"))]
    shown += ["EER across", "accuracy"]
    return table(runs, "heads", {name: columns[name] for name in shown})


def reserve_runs(runs):
    """Those of the part, and before them the frozen heads without more rows."""
    without = [
        {**run, "part": "reserve", "name": "0 % more"}
        for run in runs
        if (run["part"], run["name"]) == ("heads", "frozen")
    ]
    more = [run for run in runs if run["part"] == "reserve"]
    return [*without, *more] if more else []


def reserve_columns():
    return {
        "accuracy": (lambda run: run["accuracy"], 1),
        "test loss": (lambda run: run["loss"], 3),
        "mAP@R new in new, known": (precision("new_in_new", "known"), 1),
        "mAP@R new in new, unseen": (precision("new_in_new", "unseen"), 1),
    }


def strangers_table(runs, networks=None):
    """A row for each score of the old networks, of all or of those named."""
    rows = [
        {"part": "novelty", "name": f"{run['name']}: {score}", **report}
        for run in runs
        if run["part"] == "novelty" and run["name"] in (networks or [run["name"]])
        for score, report in run["scores"].items()
    ]
    names = {
        "AUROC": "auc",
        "FPR at 95 % TPR": "fpr_at_95_tpr",
        "false alarms": "false_alarms",
        "refused": "refused",
    }
    columns = {
        title: (lambda run, name=name: 100 * run[name], 1)
        for title, name in names.items()
    }
    return table(rows, "novelty", columns)
