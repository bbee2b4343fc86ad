"""The table of `docs/reliability.md`, from recorded runs.

    python reliability/table.py            prints it
    python reliability/table.py --write    puts it into the page

Each file in `reliability/results/` is what a script of this folder has written;
`mended.json` says of each script what its runs found and what was mended since.
"""

import argparse
import json
import pathlib

ROOT = pathlib.Path(__file__).parents[1]
RESULTS = ROOT / "reliability" / "results"
PAGE = ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- tried: begin -->\n", "<!-- tried: end -->\n"
HEADER = (
    "| what was tried | must hold | how often | failed | found and mended | command |\n"
    "|---|---|---|---|---|---|\n"
)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args(argv)
    if args.write:
        PAGE.write_text(page(PAGE.read_text()))
    else:
        print(table())


def page(text):
    """The page with the table as the results have it now."""
    before, rest = text.split(BEGIN)
    return before + BEGIN + table() + rest[rest.index(END) :]


def table():
    mended = json.loads((RESULTS / "mended.json").read_text())
    paths = sorted(set(RESULTS.glob("*.json")) - {RESULTS / "mended.json"})
    return HEADER + "".join(row(json.loads(p.read_text()), mended) for p in paths)


def row(result, mended):
    script = pathlib.Path(result["command"].split()[1]).stem
    cells = [
        f"{result['what']} ({versions(result['environment'])})",
        result["claim"],
        f"{result['tried']:,}",
        f"{result['failed']:,}",
        "; ".join(mended.get(script, [])) or "nothing",
        f"`KERAS_BACKEND={result['environment']['backend']} {result['command']}`",
    ]
    return "| " + " | ".join(cells) + " |\n"


def versions(environment):
    """Backend, Keras and Python of a run."""
    backend = environment["backend"]
    names = {"tensorflow": "TensorFlow", "jax": "JAX", "torch": "PyTorch"}
    return (
        f"{names[backend]} {environment[backend]}, Keras {environment['keras']}, "
        f"Python {environment['python']}"
    )


if __name__ == "__main__":
    main()
