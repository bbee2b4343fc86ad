"""What a run leaves behind in numbers, and what it prints."""

import csv
import datetime
import json
import math
import statistics
import time

import keras
import numpy as np

from benchmarks.environment import environment
from image_experiment.data import BadInputError
from image_experiment.settings import flags_of, of_the_run
from keras_pedcc.common.atomic import write_file

SPEEDS = ("train_seconds", "images_per_second")


class History(keras.callbacks.Callback):
    """One row of `history.csv` per epoch, also over several starts of one run."""

    def __init__(self, path, batches):
        super().__init__()
        self.path = path
        self.images = len(batches) * batches.batch_size
        self.rows = None

    def on_epoch_begin(self, epoch, logs=None):
        if self.rows is None:
            # An epoch that was killed after its row is trained once more.
            self.rows = [r for r in read_history(self.path) if r["epoch"] < epoch]
        self.begun, self.trained = time.perf_counter(), None

    def on_test_begin(self, logs=None):
        self.trained = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        seconds = (self.trained or time.perf_counter()) - self.begun
        speed = dict(zip(SPEEDS, (seconds, self.images / seconds), strict=True))
        values = {name: float(value) for name, value in {**logs, **speed}.items()}
        self.rows.append({"epoch": epoch, **values})
        write_history(self.path, self.rows)


def read_history(path):
    """Rows of a `history.csv`, as dicts of numbers; none if there is no file."""
    if not path.exists():
        return []
    try:
        with path.open() as file:
            rows = [
                {k: float(v) for k, v in row.items()} for row in csv.DictReader(file)
            ]
        return [{**row, "epoch": int(row["epoch"])} for row in rows]
    except (KeyError, TypeError, ValueError) as error:
        raise BadInputError(f"{path} is no history of a run ({error!r}).") from error


def write_history(path, rows):
    """Writes what `read_history` reads; the first row names the columns."""
    lines = [",".join(rows[0])]
    lines += [",".join(map(repr, row.values())) for row in rows]
    write_whole(path, "\n".join(lines))


def write_whole(path, text):
    """Writes a text file by one rename: never half of it."""
    write_file(path, lambda file: file.write(f"{text}\n".encode()))


def write_result(experiment, args, images, model, predicted, replicas):
    """Writes `result.json`; returns what is in it."""
    history = read_history(args.output_dir / "history.csv")
    own = [row for row in history if math.isfinite(row["train_seconds"])]
    speeds = [row["images_per_second"] for row in own]
    scores = experiment.score(args, images, predicted)
    # Keras stops a run whose loss is no longer finite.
    scores["diverged"] |= len(history) < args.epochs
    chosen, script = of_the_run(args), f"experiments/{experiment.name}.py"
    result = {
        "experiment": experiment.name,
        "command": " ".join([f"python {script}", *flags_of(experiment, chosen)]),
        "settings": chosen,
        "data": {
            "origin": images.origin,
            "fingerprint": images.fingerprint(),
            "training_images": len(images.y_train),
            **experiment.data_facts(args, images),
        },
        **scores,
        "accuracy_per_epoch": [
            row["val_accuracy"] for row in history if "val_accuracy" in row
        ],
        "epochs": len(history),
        # The first epoch compiles.
        "images_per_second": statistics.median(speeds[1:] or speeds or [math.nan]),
        "seconds": sum(row["train_seconds"] for row in own),
        "parameters": model.count_params(),
        "replicas": replicas,
        "environment": environment(),
        "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    write_whole(args.output_dir / "result.json", json.dumps(result, indent=1))
    return result


def unit_rows(features):
    """Divides each row by its length."""
    features = np.asarray(features, "float32")
    return features / np.linalg.norm(features, axis=1, keepdims=True)


def environment_of(results):
    """What the runs were made with; where they differ, a list of what there was."""
    places = [result["environment"] for result in results.values()]
    merged = {}
    for name in dict.fromkeys(name for place in places for name in place):
        found = [place[name] for place in places if name in place]
        distinct = [v for i, v in enumerate(found) if v not in found[:i]]
        merged[name] = distinct[0] if len(distinct) == 1 else distinct
    return merged


def place_of(environment):
    """Hardware and versions in words."""
    told = {name: in_words(value) for name, value in environment.items()}
    backend, devices = told["backend"], environment["devices"]
    if isinstance(devices[0], str):  # those of one run
        told["devices"] = ", ".join(devices)
    return (
        f"{told['cpus']} CPU cores ({told['cpu']}), devices {told['devices']}, "
        f"{backend} {told[backend]}, Keras {told['keras']}"
    )


def in_words(value):
    """A value of `environment_of` that may be a list of several."""
    if not isinstance(value, list):
        return str(value)
    parts = [", ".join(v) if isinstance(v, list) else str(v) for v in value]
    return " or ".join(parts)


def print_start(experiment, args, images, model):
    print(
        f"{experiment.title(images)} from {images.origin}: "
        f"{experiment.sizes(args, images)}. "
        f"{model.count_params():,} parameters, Keras on {keras.backend.backend()}."
    )


def print_end(experiment, args, result, drawn):
    """What came out, and which files hold it; `drawn`: figures by name."""
    print(
        f"\n{experiment.summary(result)}; {result['images_per_second']:.0f} images/s "
        "in training."
    )
    if result["diverged"]:
        print("The loss became NaN and training stopped: lower --learning-rate.")
    files = {
        "model.keras": "the model: raw pixels in, features and cosines out",
        "result.json": "all settings, versions and numbers",
        "history.csv": "the numbers of each epoch",
        **drawn,
    }
    print(f"Written to {args.output_dir}:")
    for name, what in files.items():
        print(f"  {name:<23} {what}")
