"""What a run leaves behind in numbers, and what it prints."""

import csv
import datetime
import json
import os
import pathlib
import platform
import statistics
import time

import keras
import numpy as np

import keras_pedcc
from image_experiment import settings


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
        speed = {"train_seconds": seconds, "images_per_second": self.images / seconds}
        values = {name: float(value) for name, value in {**logs, **speed}.items()}
        self.rows.append({"epoch": epoch, **values})
        write_history(self.path, self.rows)


def read_history(path):
    """Rows of a `history.csv`, as dicts of numbers; none if there is no file."""
    if not path.exists():
        return []
    with path.open() as file:
        rows = [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]
    return [{**row, "epoch": int(row["epoch"])} for row in rows]


def write_history(path, rows):
    """Writes what `read_history` reads; the first row names the columns."""
    lines = [",".join(rows[0])]
    lines += [",".join(map(repr, row.values())) for row in rows]
    write_whole(path, "\n".join(lines))


def write_whole(path, text):
    """Writes a text file by one rename: never half of it."""
    unfinished = path.with_name(path.name + ".unfinished")
    unfinished.write_text(text + "\n")
    unfinished.replace(path)


def write_result(experiment, args, images, model, predicted):
    """Writes `result.json`; returns what is in it."""
    history = read_history(args.output_dir / "history.csv")
    speeds = [row["images_per_second"] for row in history]
    result = {
        "experiment": experiment.name,
        "settings": settings.of_the_run(args),
        "data": {
            "origin": images.origin,
            "fingerprint": images.fingerprint(),
            "training_images": len(images.y_train),
            **experiment.data_facts(args, images),
        },
        **experiment.score(args, images, predicted),
        "accuracy_per_epoch": [
            row["val_accuracy"] for row in history if "val_accuracy" in row
        ],
        "epochs": len(history),
        # The first epoch compiles.
        "images_per_second": statistics.median(speeds[1:] or speeds),
        "seconds": sum(row["train_seconds"] for row in history),
        "parameters": model.count_params(),
        "environment": environment(),
        "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    write_whole(args.output_dir / "result.json", json.dumps(result, indent=1))
    return result


def unit_rows(features):
    """Divides each row by its length."""
    features = np.asarray(features, "float32")
    return features / np.linalg.norm(features, axis=1, keepdims=True)


def environment():
    """Versions and hardware."""
    backend = keras.backend.backend()
    versions = {"keras": keras, "keras_pedcc": keras_pedcc, "numpy": np}
    versions[backend] = __import__(backend)
    return {
        "backend": backend,
        **{name: module.__version__ for name, module in versions.items()},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": cpu_name(),
        "cpus": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "devices": device_names(backend),
    }


def cpu_name():
    """Model of the processor, as the system tells it."""
    info = pathlib.Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if "model name" in line]
    return names[0] if names else platform.processor()


def device_names(backend):
    """What the backend computes on: each GPU by its name, or `["CPU"]`."""
    if backend == "jax":
        import jax

        return [device.device_kind for device in jax.devices()]
    if backend == "torch":
        import torch

        gpus = range(torch.cuda.device_count())
        return [torch.cuda.get_device_name(i) for i in gpus] or ["cpu"]
    import tensorflow as tf

    details = tf.config.experimental.get_device_details
    gpus = tf.config.list_physical_devices("GPU")
    names = [details(gpu).get("device_name", "gpu") for gpu in gpus]
    return names or ["cpu"] * len(tf.config.list_logical_devices("CPU"))


def print_start(experiment, args, images, model):
    print(
        f"{experiment.title()} from {images.origin}: {experiment.sizes(args, images)}. "
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
