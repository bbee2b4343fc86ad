"""How a batch walks through the package: functions, files, and changes of file.

    KERAS_BACKEND=tensorflow python benchmarks/file_changes.py [--path]

Profiles one eager `train_on_batch` of a `PEDCCModel`, once for a head that holds all
cosines and once for one that takes them by blocks of classes. Counts the calls of the
package's own functions, and how often a call is in another file than the one before.
`--path` lists the calls.
"""

import argparse
import itertools
import json
import pathlib
import sys


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--path", action="store_true", help="list the calls")
    return parser.parse_args(argv)


if __name__ == "__main__":
    parse_args()  # `--help` ends here, before the imports that take seconds


import keras
import numpy as np

import keras_pedcc

PACKAGE = pathlib.Path(keras_pedcc.__file__).parent


def calls_of(function):
    """The `(file, function)` of each call into the package, in order."""
    calls = []

    def note(frame, event, argument):
        path = pathlib.Path(frame.f_code.co_filename)
        if event == "call" and path.is_relative_to(PACKAGE):
            name = frame.f_code.co_qualname
            calls.append((str(path.relative_to(PACKAGE)), name))

    sys.setprofile(note)
    try:
        function()
    finally:
        sys.setprofile(None)
    return calls


def model_of(**arguments):
    """A compiled model that has seen its first batch."""
    inputs = keras.Input((64,))
    head = keras_pedcc.PEDCCDense(10, **arguments)
    model = keras_pedcc.PEDCCModel(inputs, head(keras.layers.Dense(32)(inputs)))
    model.compile(
        "sgd", keras_pedcc.PEDCCLoss(), metrics=["accuracy"], run_eagerly=True
    )
    return model


def profile(model):
    """Calls in one `train_on_batch`, after one that has built everything."""
    images = np.random.default_rng(0).standard_normal((32, 64))
    batch = images.astype("float32"), np.arange(32) % 10
    model.train_on_batch(*batch)
    return calls_of(lambda: model.train_on_batch(*batch))


def summary(calls):
    """Numbers of calls, of files, and of changes of file."""
    files = [file for file, _ in calls]
    changes = sum(a != b for a, b in itertools.pairwise(files))
    return {"calls": len(calls), "files": len(set(files)), "changes": changes}


def main():
    path = parse_args().path
    for name, arguments in {"dense": {}, "blocks": {"scores": "blockwise"}}.items():
        calls = profile(model_of(**arguments))
        print(json.dumps({"head": name, **summary(calls)}))
        if path:
            print("\n".join(f"    {file}: {function}" for file, function in calls))


if __name__ == "__main__":
    main()
