"""The results of the image experiments, from recorded runs to `docs/results/`.

    python experiments/results_table.py            prints the tables
    python experiments/results_table.py --write    puts them into their pages, and draws

Each file in `experiments/results/images/` is the `result.json` of a run; runs that
differ in nothing but the seed make one row. Each file in `experiments/results/losses/`
is the `table.json` of a comparison, in `studies/` the `study.json` of a
`centroid_study.py`, in `features/` what a study on pretrained features wrote.
`upgrade_*.json` are of `upgrade.py`, and the others of the script of that name.
"""

import argparse
import json
import pathlib
import statistics


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--write", action="store_true", help="put them into their pages"
    )
    return parser.parse_args(argv)


if __name__ == "__main__":
    parse_args()  # `--help` ends here, before the imports that take seconds


import centroid_study
import compare_losses
import feature_tables
import field_losses
import frozen_priors
import gallery_table
import strangers
import studies
from cifar100 import CIFAR100
from emnist import EMNIST
from image_experiment.losses import WITH_PEDCC
from image_experiment.settings import flags_of, of_the_run, parse
from upgrade_study import figure as upgrade_figure
from upgrade_study import tables as upgrade_tables

ROOT = pathlib.Path(__file__).parents[1]
EXPERIMENTS = {"cifar100": CIFAR100, "emnist": EMNIST}
RESULTS = ROOT / "experiments" / "results"
PAGES = ROOT / "docs" / "results"
NAMES = {
    "hinge": "hinge",
    "cross_entropy": "cross entropy",
    "l_softmax": "L-Softmax m={multiple}",
    "a_softmax": "A-Softmax m={multiple}",
    "center": "center loss",
    "am_softmax": "AM-Softmax",
    "arcface": "ArcFace",
    "pedcc_am": "PEDCC-AM",
    "pedcc": "PEDCC n={mse_root}",
}
CENTROIDS = {
    "trained": "trained from the start",
    "random": "random, trained from the start",
}
# Tables 1 (EMNIST Balanced) and 2 (CIFAR-100) of the paper, test accuracy in per cent.
PAPER = {
    "hinge": {"emnist": 88.22, "cifar100": 67.10},
    "cross entropy": {"emnist": 88.42, "cifar100": 69.02},
    "L-Softmax m=2": {"emnist": 88.69, "cifar100": 70.05},
    "L-Softmax m=4": {"emnist": 88.81, "cifar100": 70.47},
    "A-Softmax m=4": {"emnist": 88.83, "cifar100": 70.86},
    "center loss": {"emnist": 89.21, "cifar100": 71.01},
    "AM-Softmax": {"emnist": 89.45, "cifar100": 71.43},
    "ArcFace": {"emnist": 89.52, "cifar100": 71.76},
    "PEDCC n=1, fixed": {"emnist": 89.60, "cifar100": 72.71},
    "PEDCC n=1, fine-tuned": {"emnist": 89.83, "cifar100": 72.66},
    "PEDCC n=2, fixed": {"emnist": 89.47, "cifar100": 73.03},
    "PEDCC n=2, fine-tuned": {"emnist": 89.66, "cifar100": 73.23},
    "PEDCC n=3, fixed": {"emnist": 89.51, "cifar100": 71.59},
    "PEDCC n=3, fine-tuned": {"emnist": 89.73, "cifar100": 71.89},
}
STRANGERS = ("frozen", "cross entropy")  # networks in the guide
GALLERY = ROOT / "benchmarks" / "results" / "gallery_torch_cpu.json"
# How the origin of the paper's images begins; emnist47.npz is another set.
OFFICIAL = {
    "emnist": ("tensorflow-datasets emnist/balanced", "emnist_balanced.npz"),
    "cifar100": ("tensorflow-datasets cifar100", "cifar100.npz"),
}
# Settings that are in the name of the row, and those of chance and hardware: whatever
# their values, the recipe is the paper's.
NEUTRAL = {
    "loss", "multiple", "mse_root", "fixed",
    "seed", "centroid_seed", "strategy", "logical_cpus", "mixed_precision", "jit",
}  # fmt: skip
HEADER = (
    "| images | loss | test accuracy | seeds | the paper | images/s | flags |\n"
    "|---|---|---|---|---|---|---|\n"
)


def table(runs):
    """Markdown of all rows, and where the runs were made.

    Args:
        runs: Contents of `result.json` files.

    Raises:
        ValueError: A run was not scored on the test images.
    """
    _check_scored(runs)
    groups = {}
    for run in runs:
        groups.setdefault(_key(run), []).append(run)
    rows = [_row(group) for _, group in sorted(groups.items())]
    places = sorted({_place(run["environment"]) for run in runs})
    where = "Made on " + "; on ".join(places) + "." if places else ""
    return f"{HEADER}{''.join(rows)}\n{where}\n"


def _check_scored(runs):
    for run in runs:
        if run["data"]["scored_on"] != "test images":
            raise ValueError(
                "The table is of accuracies on the test images. Received: a run of "
                f"{run['experiment']} with data.scored_on={run['data']['scored_on']!r} "
                f"and settings {run['settings']}. Leave its file out of the results."
            )


def _key(run):
    chosen = json.dumps({**_settings(run), "seed": None})
    place = _place(run["environment"])
    return run["experiment"], run["data"]["origin"], place, chosen


def _settings(run):
    # A run from before a setting was there had its default.
    return {**_defaults(run), **run["settings"]}


def _defaults(run):
    return of_the_run(parse(EXPERIMENTS[run["experiment"]], []))


def _row(group):
    run = group[0]
    chosen = {k: v for k, v in _settings(run).items() if k != "seed"}
    flags = " ".join(flags_of(EXPERIMENTS[run["experiment"]], chosen))
    cells = [
        f"{run['data']['origin'].removesuffix('.npz')}, "
        f"{run['data']['training_images']:,} to train on",
        _name(chosen),
        _accuracy([100 * each["accuracy"] for each in group]),
        ", ".join(str(each["settings"]["seed"]) for each in group),
        _paper(run),
        f"{statistics.median(each['images_per_second'] for each in group):,.0f}",
        f"`{flags}`" if flags else "none",
    ]
    return "| " + " | ".join(cells) + " |\n"


def _name(chosen):
    name = NAMES[chosen["loss"]].format(**chosen)
    return f"{name}, {_fate(chosen)}" if chosen["loss"] in WITH_PEDCC else name


def _fate(chosen):
    """What became of the centroids."""
    if chosen["centroids"] != "pedcc":
        return CENTROIDS[chosen["centroids"]]
    never = chosen["fixed"] or chosen["finetune_epoch"] >= chosen["epochs"]
    return "fixed" if never else "fine-tuned"


def _accuracy(values):
    mean = f"{statistics.mean(values):.2f} %"
    return f"{mean} +- {statistics.stdev(values):.2f}" if values[1:] else mean


def _paper(run):
    """The paper's figure, where the run is of its images, size and recipe."""
    chosen, defaults = _settings(run), _defaults(run)
    changed = {name for name in chosen if chosen[name] != defaults.get(name)}
    official = run["data"]["origin"].startswith(OFFICIAL[run["experiment"]])
    if changed - NEUTRAL or not official or _name(chosen) not in PAPER:
        return "-"
    return f"{PAPER[_name(chosen)][run['experiment']]:.2f} %"


def _place(environment):
    devices = environment["devices"]
    cpu = f"{environment['cpus']} CPU cores ({environment['cpu']})"
    where = cpu if "cpu" in devices[0].lower() else f"{len(devices)} x {devices[0]}"
    backend = environment["backend"]
    versions = [f"{n} {environment[n]}" for n in (backend, "keras", "numpy")]
    return f"{where} with {', '.join(versions)}"


def read(folder):
    """Contents of all files of a folder of `experiments/results/`, by name."""
    paths = sorted((RESULTS / folder).glob("*.json"))
    return [recorded(path) for path in paths]


def pages():
    """What belongs between the marks of each page, by path and name."""
    found, characters = read("studies"), upgrades("emnist47")
    tables = [centroid_study.as_markdown(each) + "\n" for each in found]
    comparisons = [compare_losses.as_markdown(each) for each in read("losses")]
    return {
        PAGES / "images.md": {
            "image results": table(read("images")),
            "loss comparison": "\n".join(comparisons),
            "field losses": "\n".join(
                study(field_losses, path.name)
                for path in sorted(RESULTS.glob("field_losses_*.json"))
            ),
        },
        PAGES / "trained_centroids.md": {
            "centroid study": studies.summary(found),
            "studies": "\n".join(tables),
        },
        PAGES / "upgrade.md": {
            **upgrade_tables.blocks(characters),
            "faces": upgrade_tables.faces_table(upgrades("lfw")),
            "gallery": gallery_table.table(recorded(GALLERY)),
        },
        PAGES.parent / "guides" / "refuse.md": {
            "strangers": upgrade_tables.strangers_table(characters, STRANGERS)
        },
        PAGES / "pretrained_features.md": feature_tables.blocks(),
        PAGES / "later_classes.md": feature_tables.later_blocks(),
        PAGES / "strangers.md": {
            "all strangers": study(strangers, "strangers.json"),
        },
        PAGES / "priors.md": {
            "frozen priors": study(frozen_priors, "frozen_priors_emnist47.json"),
        },
    }


def study(module, name):
    """The table of a study, and how it was made."""
    found = recorded(RESULTS / name)
    return module.table(found) + feature_tables.conditions(found)


def upgrades(images):
    """The runs of `upgrade.py` on these images."""
    return recorded(RESULTS / f"upgrade_{images}.json")["runs"]


def recorded(path):
    return json.loads(path.read_text())


def with_blocks(text, made):
    """A page with these blocks in the place of those it has."""
    for name, block in made.items():
        begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->\n"
        before, rest = text.split(begin)
        text = before + begin + block + rest[rest.index(end) :]
    return text


def main(argv=None):
    args = parse_args(argv)
    for path, made in pages().items():
        if args.write:
            path.write_text(with_blocks(path.read_text(), made))
        else:
            print("\n".join(made.values()))
    if args.write:
        studies.draw(read("studies"), ROOT / "docs" / "centroid_study.png")
        upgrade_figure.draw(upgrades("emnist47"), ROOT / "docs" / "upgrade.png")


if __name__ == "__main__":
    main()
