"""Tables of `docs/results/pretrained_features.md` and `later_classes.md`.

`experiments/results_table.py --write` puts them into the page.
"""

import json
import pathlib

import feature_heads
import few_images
import incremental
import new_network
import unseen_classes

FOLDER = pathlib.Path(__file__).parent / "results" / "features"
FEW = "few_images*.json"


def blocks(folder=FOLDER):
    """Markdown of each block of the page, by its name."""
    few = read(FEW, folder)
    [unseen], [new] = (
        read("unseen_classes.json", folder),
        read("new_network.json", folder),
    )
    return {
        "few images": few_images.table(few) + conditions(*few),
        "which recipe": which_recipe(few),
        "choice": choice(few),
        "retrieval": unseen_classes.retrieval_table(unseen) + conditions(unseen),
        "strangers": unseen_classes.strangers_table(unseen) + conditions(unseen),
        "new network": new_network.table(new) + conditions(new),
    }


def later_blocks(folder=FOLDER):
    """Markdown of each block of `later_classes.md`, by its name."""
    names = {"features": "incremental", "characters": "incremental_characters"}
    found = {name: read(f"{file}.json", folder)[0] for name, file in names.items()}
    return {
        name: incremental.table(each) + conditions(each) for name, each in found.items()
    }


def read(pattern, folder=FOLDER):
    """Contents of the files that match, in the order of their names."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob(pattern))]


def which_recipe(studies):
    """Markdown: for each number of images, the best and what cannot be told from it."""
    rows = [row for study in studies for row in study["rows"]]
    lines = []
    for number in sorted({row["per_class"] for row in rows}):
        own = [row for row in rows if row["per_class"] == number]
        best = next(row for row in own if row["best"])
        tied = [row["kind"] for row in own if not row["best"] and few_images.tied(row)]
        gained = best["minus_cross_entropy"]
        gain = (
            "-" if gained is None else f"{gained['mean']:+.1f} (p = {gained['p']:.2g})"
        )
        lines.append([str(number), best["kind"], ", ".join(tied) or "nothing", gain])
    head = ["images per class", "first", "not significantly behind it"]
    return feature_heads.markdown([*head, "first minus cross entropy"], lines)


def choice(studies):
    """Markdown: the learning rate, and the margin where it was chosen, of each loss."""
    chosen = [each for study in studies for each in study["choice"]]
    numbers = sorted({each["per_class"] for each in chosen})
    found = {(each["kind"], each["per_class"]): _chosen(each) for each in chosen}
    kinds = dict.fromkeys(each["kind"] for each in chosen)
    head = ["loss", *(f"{number} per class" for number in numbers)]
    lines = [[kind, *(found.get((kind, n), "-") for n in numbers)] for kind in kinds]
    return feature_heads.markdown(head, lines)


def _chosen(each):
    margin = "" if each["margin"] is None else f", margin {each['margin']:g}"
    return f"{each['rate']:g}{margin}"


def conditions(*studies):
    """A paragraph: how, and where, the numbers were made."""
    commands = "; ".join(f"`{study['command']}`" for study in studies)
    places = sorted({_place(study["environment"]) for study in studies})
    return f"\nMade by {commands}, on {'; '.join(places)}.\n"


def _place(environment):
    backend, cpus = environment["backend"], environment["cpus"]
    cores = f"{cpus} CPU core{'s' if cpus > 1 else ''} ({environment['cpu']})"
    return (
        f"{cores} beside other work, "
        f"{backend} {environment[backend]}, Keras {environment['keras']}"
    )
