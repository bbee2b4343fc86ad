"""The results of the image experiments, from recorded runs to the README.

    python benchmarks/results_table.py            prints the tables
    python benchmarks/results_table.py --write    puts them into README.md

Each file in `benchmarks/results/images/` is the `result.json` of a run; runs that
differ in nothing but the seed make one row. Each file in `benchmarks/results/losses/`
is the `table.json` of a comparison.
"""

import argparse
import json
import pathlib
import statistics
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "examples"))

import compare_losses
from cifar100 import CIFAR100
from emnist import EMNIST
from image_experiment.settings import flags_of, of_the_run, parse

ROOT = pathlib.Path(__file__).parents[1]
EXPERIMENTS = {"cifar100": CIFAR100, "emnist": EMNIST}
RESULTS = ROOT / "benchmarks" / "results"
README = ROOT / "README.md"
# Table 2 of the paper, test accuracy in per cent, by (loss, n, fixed).
PAPER = {
    ("cross_entropy", 1, False): 69.02,
    ("pedcc", 1, True): 72.71,
    ("pedcc", 1, False): 72.66,
    ("pedcc", 2, True): 73.03,
    ("pedcc", 2, False): 73.23,
    ("pedcc", 3, True): 71.59,
    ("pedcc", 3, False): 71.89,
}
HEADER = (
    "| images | loss | test accuracy | seeds | the paper | images/s | flags |\n"
    "|---|---|---|---|---|---|---|\n"
)


def table(runs):
    """Markdown of all rows, and where the runs were made.

    Args:
        runs: Contents of `result.json` files.
    """
    groups = {}
    for run in runs:
        groups.setdefault(_key(run), []).append(run)
    rows = [_row(group) for _, group in sorted(groups.items())]
    places = sorted({_place(run["environment"]) for run in runs})
    where = "Made on " + "; on ".join(places) + "." if places else ""
    return f"{HEADER}{''.join(rows)}\n{where}\n"


def _key(run):
    # A run from before a setting was there had its default.
    defaults = of_the_run(parse(EXPERIMENTS[run["experiment"]], []))
    chosen = {**defaults, **run["settings"], "seed": None}
    place = _place(run["environment"])
    return run["experiment"], run["data"]["origin"], place, json.dumps(chosen)


def _row(group):
    run = group[0]
    chosen = {k: v for k, v in run["settings"].items() if k != "seed"}
    flags = " ".join(flags_of(EXPERIMENTS[run["experiment"]], chosen))
    cells = [
        f"{run['data']['origin'].removesuffix('.npz')}, "
        f"{run['data']['training_images']:,} to train on",
        _name(chosen),
        _accuracy([100 * each["accuracy"] for each in group]),
        ", ".join(str(each["settings"]["seed"]) for each in group),
        _paper(run, chosen),
        f"{statistics.median(each['images_per_second'] for each in group):,.0f}",
        f"`{flags}`" if flags else "none",
    ]
    return "| " + " | ".join(cells) + " |\n"


def _name(chosen):
    if chosen["loss"] != "pedcc":
        return chosen["loss"].replace("_", " ")
    return (
        f"PEDCC n={chosen['mse_root']}, {'fixed' if chosen['fixed'] else 'fine-tuned'}"
    )


def _accuracy(values):
    mean = f"{statistics.mean(values):.2f} %"
    return f"{mean} +- {statistics.stdev(values):.2f}" if values[1:] else mean


def _paper(run, chosen):
    """The paper's figure, where the run is of its size and recipe."""
    own = flags_of(EXPERIMENTS[run["experiment"]], chosen)
    neutral = {"--fixed", "--mse-root", "--loss", "--jit", "--mixed-precision"}
    others = [flag for flag in own if flag.startswith("--") and flag not in neutral]
    if run["experiment"] != "cifar100" or others:
        return "-"
    key = (chosen["loss"], chosen["mse_root"], chosen["fixed"])
    return f"{PAPER[key]:.2f} %" if key in PAPER else "-"


def _place(environment):
    devices = environment["devices"]
    cpu = f"{environment['cpus']} CPU cores ({environment['cpu']})"
    where = cpu if "cpu" in devices[0].lower() else f"{len(devices)} x {devices[0]}"
    backend = environment["backend"]
    versions = [f"{n} {environment[n]}" for n in (backend, "keras", "numpy")]
    return f"{where} with {', '.join(versions)}"


def read(folder):
    """Contents of all files of a folder of `benchmarks/results/`, by name."""
    paths = sorted((RESULTS / folder).glob("*.json"))
    return [json.loads(path.read_text()) for path in paths]


def blocks():
    """What belongs between the marks of the README, by their names."""
    comparisons = [compare_losses.as_markdown(each) for each in read("losses")]
    return {
        "image results": table(read("images")),
        "loss comparison": "\n".join(comparisons),
    }


def with_blocks(text, made):
    """The README with these blocks in the place of those it has."""
    for name, block in made.items():
        begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->\n"
        before, rest = text.split(begin)
        text = before + begin + block + rest[rest.index(end) :]
    return text


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="put them into README.md")
    if parser.parse_args(argv).write:
        README.write_text(with_blocks(README.read_text(), blocks()))
    else:
        print("\n".join(blocks().values()))


if __name__ == "__main__":
    main()
