"""`kill -9` at random moments: nothing is lost, and nothing half-written is read.

    KERAS_BACKEND=jax python reliability/kills.py --kills 50 --result FILE

`--of training` trains `experiments/emnist.py` on handwritten digits, kills it, starts
it again with `--resume`, and kills that, until it comes to its end; then begins anew. A
kill comes at any moment (`any`), as soon as a file is being written (`writing`), or
within a second of the unfreezing of the centroids (`unfreezing`). Every run must end
with the weights, history and result of one that was not killed, and after each kill
every file under its own name must be whole. `--of files` does the same to a process
that writes centroids, and the cache of `generate_pedcc`, without end.
"""

import argparse
import csv
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time
import zipfile

from recording import ROOT, Record

EPOCHS, UNFREEZE = 6, 3
MOMENTS = ("any", "writing", "unfreezing")
WRITER = """
import itertools, numpy as np, keras_pedcc
from keras_pedcc.centroids import files as storage
storage.WORTH_KEEPING = 0.0
for i in itertools.count():
    rows = np.random.default_rng(i).standard_normal((2000, 128), "float32")
    keras_pedcc.save_centroids("centroids.npz", rows)
    keras_pedcc.save_centroids("centroids.npy", rows)
    keras_pedcc.generate_pedcc(60, 8, seed=i % 3, steps=2, method="max_angle")
    print(i, flush=True)
"""


def main(argv=None):
    args = parse_args(argv)
    random.seed(args.seed)
    with tempfile.TemporaryDirectory() as folder:
        attack = {"training": kill_training, "files": kill_writers}[args.of]
        record = attack(pathlib.Path(folder), args)
    record.write(args.result)
    return len(record.failures)


# Training


def kill_training(folder, args):
    record = Record(
        "`kill -9` while `experiments/emnist.py` trains",
        "the run ends as one that was not killed; no half-written file",
    )
    write_digits(folder / "emnist47.npz", args.images)
    begun = time.perf_counter()
    whole = finish(folder, folder / "whole", record)
    duration = time.perf_counter() - begun
    counts, runs = dict.fromkeys(MOMENTS, 0), 0
    while record.tried < args.kills:
        runs += 1
        run = folder / f"run{runs}"
        for moment in MOMENTS:
            if record.tried < args.kills and kill(folder, run, moment, duration):
                record.add()
                counts[moment] += 1
                look_at(run, record)
        compare(whole, finish(folder, run, record), record, runs)
    record.details = {"kills": counts, "runs": runs, "seconds_of_a_run": duration}
    return record


def write_digits(path, number):
    """Real digits, enlarged to the size of EMNIST."""
    import numpy as np
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.kron(digits.images[:number] * 15, np.ones((3, 3))).astype("uint8")
    images = np.pad(images, ((0, 0), (2, 2), (2, 2)))
    labels = (np.arange(number) % 47).astype("uint8")  # any will do
    split = 4 * number // 5
    np.savez(
        path,
        x_train=images[:split],
        y_train=labels[:split],
        x_test=images[split:],
        y_test=labels[split:],
    )


def start(data, run):
    flags = ["--data-dir", data, "--output-dir", run, "--resume", "--verbose", 2]
    flags += ["--width", 0.05, "--dim", 16, "--batch-size", 32, "--no-figures"]
    flags += ["--epochs", EPOCHS, "--finetune-epoch", UNFREEZE]
    if os.environ.get("KERAS_BACKEND", "tensorflow") == "tensorflow":
        flags.append("--no-jit")
    log = data / "log.txt"
    command = [sys.executable, ROOT / "experiments" / "emnist.py", *flags]
    with log.open("w") as file:
        return subprocess.Popen(
            list(map(str, command)), stdout=file, stderr=subprocess.STDOUT
        )


def finish(data, run, record):
    """Lets a run come to its end; its folder."""
    if start(data, run).wait():
        record.fail(f"{run.name} failed:\n" + (data / "log.txt").read_text()[-2000:])
    return run


def kill(data, run, moment, duration):
    """Starts a run and kills it; False if it was faster."""
    process = start(data, run)
    if moment == "any":
        wait(process, random.uniform(0, duration))
    elif moment == "writing":
        number = random.randint(1, EPOCHS)
        wait(process, 2 * duration, lambda: written(run) >= number and unfinished(run))
    else:
        wait(process, 2 * duration, lambda: len(history(run)) >= UNFREEZE)
        wait(process, random.uniform(0, 1))
    process.send_signal(signal.SIGKILL)
    return process.wait() == -signal.SIGKILL


def wait(process, seconds, until=lambda: False):
    end = time.perf_counter() + seconds
    while time.perf_counter() < end and process.poll() is None and not until():
        time.sleep(0.0005)


def written(run):
    """How many epochs a run has finished."""
    return 1 + len(history(run))


def unfinished(run):
    return run.exists() and any("unfinished" in name for name in os.listdir(run))


def history(run):
    try:
        with (run / "history.csv").open(newline="") as file:
            return list(csv.DictReader(file))
    except FileNotFoundError:
        return []


def look_at(run, record):
    """Fails unless every file under its own name is whole."""
    for path in run.glob("*") if run.exists() else []:
        try:
            if "unfinished" not in path.name:
                read_whole(path)
        except Exception as error:  # whatever half a file makes its reader raise
            record.fail(f"{path.name} after a kill: {error!r}")


def read_whole(path):
    if path.suffix in (".npz", ".keras"):
        with zipfile.ZipFile(path) as archive:
            if bad := archive.testzip():
                raise ValueError(f"{bad} is damaged")
    elif path.suffix == ".json":
        json.loads(path.read_text())
    elif path.suffix == ".csv":
        rows = history(path.parent)
        if any(None in row.values() or None in row for row in rows):
            raise ValueError("a row is cut")


def compare(whole, run, record, number):
    """Fails unless two runs have ended alike."""
    import keras
    import numpy as np

    import keras_pedcc  # noqa: F401 (its classes are in the files)

    if not (run / "result.json").exists():
        return
    models = [keras.saving.load_model(each / "model.keras") for each in (whole, run)]
    sets = [[*m.variables, *m.optimizer.variables] for m in models]
    pairs = zip(*sets, strict=True)
    convert = keras.ops.convert_to_numpy
    if not all(np.array_equal(convert(a), convert(b)) for a, b in pairs):
        record.fail(f"run {number} has ended with other weights")
    if keep(history(whole)) != keep(history(run)):
        record.fail(f"run {number} has another history")


def keep(rows):
    """What does not depend on the clock."""
    return [{k: v for k, v in row.items() if "second" not in k} for row in rows]


# Files


def kill_writers(folder, args):
    record = Record(
        "`kill -9` while centroids and the cache are written",
        "what is under a name is whole, or the old file",
    )
    environment = os.environ | {"KERAS_PEDCC_CACHE": str(folder / "cache")}
    environment["PYTHONPATH"] = os.pathsep.join(
        [str(ROOT), os.environ.get("PYTHONPATH", "")]
    )
    seen = 0
    for _ in range(args.kills):
        command = [sys.executable, "-c", WRITER]
        with subprocess.Popen(
            command, cwd=folder, env=environment, stdout=subprocess.PIPE
        ) as process:
            process.stdout.readline()
            time.sleep(random.uniform(0, 0.3))
            process.kill()
        record.add()
        seen += unfinished(folder) or unfinished(folder / "cache")
        look_at_centroids(folder, record)
    record.details = {"kills_in_the_middle_of_a_file": int(seen)}
    return record


def look_at_centroids(folder, record):
    import keras_pedcc

    for path in [*folder.glob("*.np[yz]"), *(folder / "cache").glob("*.npz")]:
        try:
            keras_pedcc.load_centroids(path)
        except ValueError as error:
            record.fail(f"{path.name} after a kill: {error}")
    for each in (folder, folder / "cache"):
        for path in each.glob("*unfinished*"):
            path.unlink()


def parse_args(argv):
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--of", choices=("training", "files"), default="training")
    add("--kills", type=int, default=50)
    add("--images", type=int, default=1500, help="digits to train on and test")
    add("--seed", type=int, default=0)
    add("--result", type=pathlib.Path, help="JSON file to write")
    return parser.parse_args(argv)


if __name__ == "__main__":
    raise SystemExit(main())
