"""Breaks the package on purpose, one fault at a time: do the tests notice?

    python reliability/mutants.py --result reliability/results/mutants_tensorflow.json

The faults are data, in `faults.toml`, each with the tests that should fail. Package and
tests are copied to a temporary folder. Each fault is put into the copy, and its tests
run in a process that imports the copy. It is caught if a test fails that passes without
it. If none does the whole quick suite runs before it is said to have survived. A fault
that breaks the import, or whose tests do not run or do not end, stops the script: it
shows nothing.
"""

import argparse
import json
import multiprocessing
import os
import pathlib
import shutil
import sys
import tempfile
import tomllib


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--only", default="", help="part of a title, as 'sampling.py' or 'seed'"
    )
    parser.add_argument(
        "--quick", action="store_true", help="never run the whole suite"
    )
    parser.add_argument(
        "--again",
        type=pathlib.Path,
        help="result of an earlier run: only its survivors and new faults are tried",
    )
    parser.add_argument("--result", type=pathlib.Path)
    return parser.parse_args(argv)


if __name__ == "__main__":
    parse_args()  # `--help` ends here, before the imports that take seconds


import keras  # once, before the processes that run tests are forked
import pytest
from recording import ROOT, Record

FAULTS = pathlib.Path(__file__).with_name("faults.toml")
PARTS = ("keras_pedcc", "tests", "examples", "experiments", "benchmarks")
PARTS += ("reliability", "docs")
FILES = ("README.md", "CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "LICENSE")
FILES += ("SECURITY.md", "mkdocs.yml", "pyproject.toml")
# Starts this script.
OWN_TEST = "tests/test_reliability_mutants.py"
# Named tests count whether slow or not.
SLOW_TOO = ("-m", "slow or not slow")
PASSED, FAILED, NOT_THE_COPY, NO_IMPORT = 0, 1, 70, 71


def load_faults():
    """The faults of `faults.toml`, as dicts."""
    with FAULTS.open("rb") as file:
        return tomllib.load(file)["fault"]


def title(fault):
    return f"{fault['file']}: {fault['what']}"


def copy_to(folder):
    """Copies all that the tests read."""
    for name in PARTS:
        shutil.copytree(
            ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__")
        )
    for name in FILES:
        shutil.copy(ROOT / name, folder / name)


class Failures:
    """Tells `pytest` to keep the names of tests that fail."""

    def __init__(self, path):
        self.path = path
        path.write_text("")

    def pytest_runtest_logreport(self, report):
        if report.failed:
            with self.path.open("a") as file:
                file.write(f"{report.nodeid}\n")


def run_pytest(folder, arguments, log):
    """Runs the tests of a copy, in a process of its own that ends with the result."""
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    sys.dont_write_bytecode = True
    os.environ |= {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    try:
        import keras_pedcc
    except Exception as error:
        print(error, file=sys.stderr, flush=True)
        sys.exit(NO_IMPORT)
    if not pathlib.Path(keras_pedcc.__file__).is_relative_to(folder):
        sys.exit(NOT_THE_COPY)
    options = ["-x", "-q", "-p", "no:cacheprovider", "--ignore", OWN_TEST]
    failures = Failures(folder / "failed.txt")
    sys.exit(int(pytest.main([*options, *arguments], [failures])))


def result_of(folder, arguments, seconds):
    """Exit code of `pytest` with these arguments; raises where it shows nothing."""
    log = folder / "pytest.log"
    process = multiprocessing.get_context("fork").Process(
        target=run_pytest, args=(folder, arguments, log)
    )
    process.start()
    process.join(seconds)
    if process.is_alive():
        process.kill()
        process.join()
    if process.exitcode not in (PASSED, FAILED):
        raise RuntimeError(
            f"The tests must run to their end. Received: exit code {process.exitcode}"
            f" within {seconds} seconds.\n"
            f"{log.read_text()[-3000:]}"
        )
    return process.exitcode


def broken(source, fault):
    """The text of a module with a fault in it."""
    number = source.count(fault["old"])
    if number != 1:
        raise ValueError(
            f"The text of a fault must occur once. Received: {number} times in "
            f"{fault['file']}: {fault['old']!r}. Correct reliability/faults.toml."
        )
    return source.replace(fault["old"], fault["new"])


def caught_by(folder, fault, quick):
    """The test that fails by a fault, or `None`."""
    path = folder / "keras_pedcc" / fault["file"]
    source = path.read_text()
    path.write_text(broken(source, fault))
    try:
        named = [*SLOW_TOO, *(f"tests/{name}" for name in fault["tests"])]
        result = result_of(folder, named, 600)
        if result == PASSED and not quick:
            result = result_of(folder, [], 3600)
        failed = (folder / "failed.txt").read_text().splitlines()
        return failed[0] if result == FAILED else None
    except RuntimeError as error:
        raise RuntimeError(f"{title(fault)}: {error}") from error
    finally:
        path.write_text(source)


def check(record, folder, faults, quick, known):
    by = {}
    for fault in faults:
        record.add()
        test = known.get(title(fault)) or caught_by(folder, fault, quick)
        by[title(fault)] = test
        print(f"{title(fault)}: {test or 'SURVIVED'}", flush=True)
        if test is None:
            record.fail(f"survived: {title(fault)}")
    tests = sorted({test for test in by.values() if test})
    if tests and result_of(folder, [*SLOW_TOO, *tests], 3600) != PASSED:
        log = (folder / "pytest.log").read_text()
        raise RuntimeError(f"The tests must pass without a fault.\n{log[-3000:]}")
    record.details = summary(faults, by) | {"tests_that_caught": len(tests)}


def summary(faults, by):
    number, survived = len(faults), sum(test is None for test in by.values())
    added = sum(fault.get("added", False) for fault in faults)
    return {
        "modules": len({fault["file"] for fault in faults}),
        "survived_at_first": survived + added,
        "survived": survived,
        "share_caught_at_first": round(1 - (survived + added) / number, 4),
        "share_caught": round(1 - survived / number, 4),
        "caught_by": by,
    }


def chosen(only):
    """The faults of this backend whose title contains the text."""
    backend = keras.backend.backend()
    faults = [
        fault
        for fault in load_faults()
        if only in title(fault) and backend in fault.get("backends", [backend])
    ]
    if not faults:
        raise SystemExit(
            f"--only must be part of a fault's title. Received: {only!r}. See "
            f"{FAULTS.name}."
        )
    return faults


def main(arguments=None):
    options = parse_args(arguments)
    known = {}
    if options.again:
        known = json.loads(options.again.read_text())["details"]["caught_by"]
    record = Record("faults put into the package", "a test fails")
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder).resolve()
        copy_to(folder)
        check(record, folder, chosen(options.only), options.quick, known)
    record.write(options.result)
    return len(record.failures)


if __name__ == "__main__":
    raise SystemExit(main() > 0)
