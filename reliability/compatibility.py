"""The test suite under other versions of Python, Keras, NumPy and the backends.

    python reliability/compatibility.py tensorflow:PYTHON jax:PYTHON --result FILE

Each cell is a backend and an interpreter in whose environment the package, the backend
and pytest are installed; its suite (`--tests` for a part of it) must pass. `.ci/run`
makes such environments: the newest versions, and the oldest supported ones.
"""

import argparse
import json
import os
import pathlib
import re
import subprocess

from recording import ROOT, Record

VERSIONS = """
import json, platform, sys, numpy, keras
backend = __import__(keras.backend.backend())
found = {"python": platform.python_version(), "keras": keras.__version__}
found |= {"numpy": numpy.__version__, backend.__name__: backend.__version__}
print(json.dumps(found))
"""


def main(argv=None):
    args = parse_args(argv)
    record = Record("tests under other versions", "all pass")
    record.details = [run(cell, args, record) for cell in args.cells]
    record.write(args.result)
    return len(record.failures)


def run(cell, args, record):
    """Runs the tests of a cell; its versions, and how many passed and failed."""
    backend, python = cell.split(":", 1)
    environment = os.environ | {"KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"}
    options = {"cwd": ROOT, "env": environment, "capture_output": True, "text": True}
    command = [python, "-c", VERSIONS]
    told = subprocess.run(command, check=True, **options).stdout
    command = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *args.tests]
    done = subprocess.run(command, check=False, **options)
    counts = summary(done.stdout)
    record.add(counts.get("passed", 0) + counts.get("failed", 0))
    for line in re.findall(r"^(?:FAILED|ERROR) .*", done.stdout, re.MULTILINE):
        record.fail(line)
    if done.returncode and not record.failures:
        record.fail(done.stdout[-1000:] + done.stderr[-1000:])
    return {**json.loads(told.splitlines()[-1]), **counts}


def summary(text):
    """Counts of pytest's last line, by what they count."""
    last = text.strip().splitlines()[-1] if text.strip() else ""
    found = re.findall(r"(\d+) (passed|failed|errors?|skipped)", last)
    return {name: int(number) for number, name in found}


def parse_args(argv):
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("cells", nargs="+", help="backend:interpreter")
    add("--tests", nargs="+", default=[], help="arguments of pytest")
    add("--result", type=pathlib.Path, help="JSON file to write")
    args = parser.parse_args(argv)
    if not all(":" in cell for cell in args.cells):
        parser.error("a cell is backend:interpreter, as jax:python3.13")
    return args


if __name__ == "__main__":
    raise SystemExit(main())
