"""One of some processes that train together: `python two_processes.py KIND FOLDER`.

KIND is `both` (classes and batch are cut over the processes), `classes`, `batch`, or
`alone`. Each process reads
KERAS_DISTRIBUTION_JOB_ADDRESSES, _NUM_PROCESSES and _PROCESS_ID, as Keras does, and
leaves `FOLDER/RANK.json`.
"""

import json
import os
import pathlib
import sys

import keras
import numpy as np

kind, folder = sys.argv[1], pathlib.Path(sys.argv[2])
rank = int(os.environ.get("KERAS_DISTRIBUTION_PROCESS_ID", 0))
if kind != "alone":
    keras.distribution.initialize()

import keras_pedcc  # noqa: E402

CLASSES, BATCH = 40, 16


def distribute():
    distribution = {
        "both": keras_pedcc.class_parallel,
        "classes": lambda: keras_pedcc.class_parallel(1),
        "batch": keras.distribution.DataParallel,
    }[kind]()
    distribution.auto_shard_dataset = False  # each process passes what is its own
    keras.distribution.set_distribution(distribution)
    assert len(keras.distribution.list_devices()) == 2


def samples():
    """Of every batch this process's share, and the size of that."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4, BATCH, 5)).astype("float32")
    y = rng.integers(0, CLASSES, (4, BATCH))
    if kind in ("both", "batch"):
        half = BATCH // 2
        x, y = (array[:, rank * half : (rank + 1) * half] for array in (x, y))
    return x.reshape(-1, 5), y.reshape(-1), x.shape[1]


def make_model():
    keras.utils.set_random_seed(3)
    inputs = keras.Input((5,))
    head = keras_pedcc.PEDCCDense(CLASSES, scores=keras_pedcc.Blockwise(8), name="head")
    model = keras_pedcc.PEDCCModel(inputs, head(keras.layers.Dense(6)(inputs)))
    loss = keras_pedcc.PEDCCLoss("auto")
    model.compile(keras.optimizers.SGD(0.1), loss, metrics=["accuracy"])
    return model


def main():
    if kind != "alone":
        distribute()
    x, y, size = samples()
    model = make_model()
    arguments = {"batch_size": size, "verbose": 0}
    finetune = keras_pedcc.FinetuneCallback(1, 0.1)
    history = model.fit(
        x, y, epochs=3, shuffle=False, callbacks=[finetune], **arguments
    ).history
    model.save(folder / f"{rank}.keras")
    loaded = keras.saving.load_model(folder / f"{rank}.keras")
    centroids = loaded.get_layer("head").centroids
    features = np.random.default_rng(1).normal(size=(4, 6))
    _, nearest = keras_pedcc.nearest_classes(features, centroids, 3)
    found = {
        "loss": history["loss"],
        "accuracy": history["accuracy"],
        "evaluated": loaded.evaluate(x, y, **arguments),
        "nearest": keras.ops.convert_to_numpy(nearest).tolist(),
        "rows": [part.data.shape[0] for part in centroids.value.addressable_shards],
    }
    (folder / f"{rank}.json").write_text(json.dumps(found))


main()
