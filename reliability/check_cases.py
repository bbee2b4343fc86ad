"""Runs the small inputs in `cases/`, each of which an earlier version got wrong.

    KERAS_BACKEND=torch python reliability/check_cases.py

Each has the right value in it. Those of another backend are left out.
"""

import argparse
import importlib.util
import pathlib
import time
import traceback


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("name", nargs="*", help="a case; all without")
    return parser.parse_args(argv)


if __name__ == "__main__":
    parse_args()  # `--help` ends here, before the imports that take seconds


import keras

FOLDER = pathlib.Path(__file__).with_name("cases")


def names():
    """The cases, by name."""
    return sorted(path.stem for path in FOLDER.glob("*.py"))


def load(name):
    """A case as a module."""
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main(argv=None):
    failed = 0
    for name in parse_args(argv).name or names():
        case = load(name)
        if keras.backend.backend() not in case.BACKENDS:
            continue
        keras.utils.set_random_seed(0)
        start = time.perf_counter()
        try:
            case.check()
        except Exception:  # whatever is wrong is shown, and the others run
            traceback.print_exc()
            failed += 1
            print(f"WRONG {name}: {case.__doc__}", flush=True)
        else:
            print(f"right {name} ({time.perf_counter() - start:.1f} s)", flush=True)
    return failed


if __name__ == "__main__":
    raise SystemExit(main() > 0)
