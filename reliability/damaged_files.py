"""Damaged files: a clear error or the same content, never a crash or another model.

    KERAS_BACKEND=tensorflow python reliability/damaged_files.py --result FILE

Makes a file of each kind: two small trained models (`.keras`, with optimizer state),
centroids, centroids in the cache, and a backup of training. Damages each 2,000 times:
flips one bit or some, cuts it off, appends, zeroes a range, swaps two blocks. Loads it
in another process, with a limit of time and memory, which is started again if it dies.
`keras_alone` is `keras.saving.load_model`, without the check of
`keras_pedcc.load_model`: what that gives is told in the details, and is no failure.
"""

import argparse
import collections
import hashlib
import json
import os
import pathlib
import random
import resource
import signal
import subprocess
import sys
import tempfile
import warnings

NAMES = ("centroids", "cache", "backup", "model", "given_centroids", "keras_alone")


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--damages", type=int, default=2_000, help="of each kind")
    parser.add_argument("--kinds", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--result", help="JSON file for what was tried")
    parser.add_argument("--work", nargs=5, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


if __name__ == "__main__":
    parse_args()  # `--help` ends here, before the imports that take seconds


import keras
import numpy as np
from recording import Record

import keras_pedcc
from keras_pedcc.centroids import files as storage

SECONDS, MEGABYTES = 60, 500  # limits of one load
MARK = "RESULT "


class Centroids:
    """A file of `save_centroids`, which has a checksum."""

    name = "centroids.npz"

    def make(self, path):
        keras_pedcc.save_centroids(path, keras_pedcc.generate_pedcc(20, 16))

    def load(self, path):
        return fingerprint([keras_pedcc.load_centroids(path)])

    def is_clear(self, error):
        return isinstance(error, ValueError) and "Received:" in str(error)


class Cache:
    """A file in the cache of `generate_pedcc`, which damage makes it write again."""

    name = "30x8.npz"

    def make(self, path):
        os.environ["KERAS_PEDCC_CACHE"] = str(path.parent / "cache")
        storage.WORTH_KEEPING = 0.0
        keras_pedcc.generate_pedcc(30, 8, steps=50)
        (made,) = (path.parent / "cache").iterdir()
        made.rename(path)

    def load(self, path):
        key = json.loads(str(np.load(path.parent / self.name)["key"]))
        del key["version"]
        folder = path.parent / "cache"
        os.environ["KERAS_PEDCC_CACHE"] = str(folder)
        storage.WORTH_KEEPING = 1e9
        text = json.dumps(key, sort_keys=True)
        name = f"30x8-{hashlib.sha256(text.encode()).hexdigest()[:24]}.npz"
        path.replace(folder / name)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            made = storage.cached(key, self.made_again)
        return fingerprint([keras.ops.convert_to_numpy(made)])

    def made_again(self):
        raise FileNotFoundError("The cached centroids are not there")

    def is_clear(self, error):
        return isinstance(error, UserWarning) and "made again" in str(error)


class Backup:
    """A backup of `AtomicBackup`, of a model of the same kind."""

    name = "backup.npz"

    def make(self, path):
        self.train([keras_pedcc.AtomicBackup(path.parent, delete_checkpoint=False)])

    def train(self, callbacks):
        keras.utils.set_random_seed(0)
        self.model = trained_model(callbacks=callbacks)

    def load(self, path):
        if not hasattr(self, "model"):
            self.train([])
        folder = path.parent / "backup"
        folder.mkdir(exist_ok=True)
        path.replace(folder / self.name)
        variables = [*self.model.variables, *self.model.optimizer.variables]
        for variable in variables:
            variable.assign(np.zeros(variable.shape, variable.dtype))
        random.seed(0)
        backup = keras_pedcc.AtomicBackup(folder)
        backup.set_model(self.model)
        backup.on_train_begin()
        epoch = self.model._initial_epoch
        backup.on_epoch_begin(epoch)
        states = [epoch, random.getstate()]
        return fingerprint(map(numpy_of, variables), states)

    def is_clear(self, error):
        return isinstance(error, ValueError) and "The backup must be" in str(error)


class Model:
    """A `.keras` file of a `PEDCCModel`."""

    name = "model.keras"
    centroids = None

    def make(self, path):
        keras.utils.set_random_seed(0)
        trained_model(self.centroids).save(path)

    def load(self, path):
        model = self.read(path)
        optimizer = model.optimizer
        configs = [
            keras.saving.serialize_keras_object(model),
            model.get_compile_config(),
            optimizer.get_config(),
        ]
        arrays = [*model.variables, *optimizer.variables]
        return fingerprint(map(numpy_of, arrays), configs)

    def read(self, path):
        return keras_pedcc.load_model(path)

    def is_clear(self, error):
        return isinstance(error, Exception)


class GivenCentroids(Model):
    """The same with centroids of the user's own, which the file alone has."""

    name = "given.keras"
    centroids = np.random.default_rng(1).standard_normal((5, 6))


class KerasAlone(Model):
    """The first model, by Keras' own function."""

    name = "keras_alone.keras"

    def read(self, path):
        return keras.saving.load_model(path)


MADE = (Centroids(), Cache(), Backup(), Model(), GivenCentroids(), KerasAlone())
KINDS = dict(zip(NAMES, MADE, strict=True))


def trained_model(centroids=None, callbacks=()):
    inputs = keras.Input((4,))
    hidden = keras.layers.Dense(6)(inputs)
    outputs = keras_pedcc.PEDCCDense(5, centroids=centroids)(hidden)
    model = keras_pedcc.PEDCCModel(inputs, outputs)
    sgd = keras.optimizers.SGD(0.1, momentum=0.9)
    model.compile(sgd, keras_pedcc.PEDCCLoss(scale=20.0), metrics=["accuracy"])
    x, y = np.random.default_rng(0).standard_normal((20, 4)), np.arange(20) % 5
    model.fit(x, y, epochs=2, verbose=0, callbacks=list(callbacks))
    return model


def numpy_of(variable):
    return keras.ops.convert_to_numpy(variable)


def fingerprint(arrays, plain=()):
    """One number for all that a file has given."""
    digest = hashlib.sha256(json.dumps(list(plain), default=str).encode())
    for array in arrays:
        digest.update(f"{array.dtype}{array.shape}".encode() + array.tobytes())
    return digest.hexdigest()


def one_bit(data, rng):
    return flipped(data, rng.integers(0, 8 * len(data), 1))


def some_bits(data, rng):
    return flipped(data, rng.integers(0, 8 * len(data), rng.integers(2, 17)))


def bits_at_the_end(data, rng):
    """In the directory of a zip file, which no checksum covers."""
    last = 8 * min(1000, len(data))
    places = 8 * len(data) - 1 - rng.integers(0, last, rng.integers(1, 4))
    return flipped(data, places)


def flipped(data, places):
    data = bytearray(data)
    for place in places:
        data[place // 8] ^= 1 << (place % 8)
    return bytes(data)


def cut_off(data, rng):
    return data[: rng.integers(0, len(data))]


def appended(data, rng):
    return data + rng.bytes(rng.integers(1, 2000))


def zeroed(data, rng):
    start, end = np.sort(rng.integers(0, len(data) + 1, 2))
    return data[:start] + bytes(end - start) + data[end:]


def swapped(data, rng):
    a, b, c = np.sort(rng.integers(0, len(data) + 1, 3))
    return data[:a] + data[b:c] + data[a:b] + data[c:]


WAYS = (one_bit, some_bits, bits_at_the_end, cut_off, appended, zeroed, swapped)


def damage(data, seed, number):
    """The bytes after a damage that follows from the seed and the number."""
    way, rng = WAYS[number % len(WAYS)], np.random.default_rng((seed, number))
    changed = data
    while changed == data:
        changed = way(data, rng)
    return changed


def work(kind, folder, start, stop, seed):
    """Yields what becomes of each damage: `[outcome, words]`."""
    original = pathlib.Path(folder) / kind.name
    data = original.read_bytes()
    copy = original.with_name(f"damaged_{kind.name}")
    copy.write_bytes(data)
    expected = kind.load(copy)
    for number in range(start, stop):
        copy.write_bytes(damage(data, seed, number))
        signal.alarm(SECONDS)  # which ends the process, whatever it does
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        outcome = outcome_of(kind, copy, expected)
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        signal.alarm(0)
        large = grown > 1024 * MEGABYTES
        yield ["large", f"{grown // 1024} MiB more"] if large else outcome


def outcome_of(kind, path, expected):
    try:
        found = kind.load(path)
    except Exception as error:
        name = type(error).__name__
        if kind.is_clear(error):
            return ["refused", name]
        return ["unclear", f"{name}: {error}"[:300]]
    return ["same", ""] if found == expected else ["wrong", "another content"]


def outcomes(name, folder, number, seed):
    """Of each damage, from processes that are started again when they die."""
    done = 0
    while done < number:
        arguments = ["--work", name, str(folder), str(done), str(number), str(seed)]
        command = [sys.executable, __file__, *arguments]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
        with subprocess.Popen(command, **pipes) as child:
            for line in child.stdout:
                if line.startswith(MARK):
                    done += 1
                    yield json.loads(line.removeprefix(MARK))
        if child.returncode and done < number:
            done += 1
            died = "too long" if child.returncode == -signal.SIGALRM else "died"
            yield [died, f"exit status {child.returncode}"]


def try_kind(record, name, folder, number, seed):
    """All damages of one kind of file; counts what became of them."""
    KINDS[name].make(folder / KINDS[name].name)
    counts, errors = collections.Counter(), collections.Counter()
    for at, (outcome, words) in enumerate(outcomes(name, folder, number, seed)):
        counts[outcome] += 1
        errors[words] += outcome == "refused"
        wrong = outcome not in ("refused", "same")
        if name == "keras_alone":
            counts[f"{outcome} after {WAYS[at % len(WAYS)].__name__}"] += wrong
            continue
        record.add()
        if wrong:
            way = WAYS[at % len(WAYS)].__name__
            record.fail(f"{name}, damage {at} ({way}): {outcome}, {words}")
    record.details[name] = {"outcomes": +counts, "errors": +errors}


def main(arguments=None):
    options = parse_args(arguments)
    if options.work:
        name, folder, *numbers = options.work
        for outcome in work(KINDS[name], folder, *map(int, numbers)):
            print(MARK + json.dumps(outcome), flush=True)
        return None
    record = Record(
        "damaged files", "a clear error or the same content; no crash, no hang"
    )
    with tempfile.TemporaryDirectory() as folder:
        for name in options.kinds:
            path = pathlib.Path(folder) / name
            path.mkdir()
            try_kind(record, name, path, options.damages, options.seed)
    record.write(options.result)
    return record


if __name__ == "__main__":
    main()
