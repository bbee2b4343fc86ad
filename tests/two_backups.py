"""One of two processes with a backup: `python two_backups.py KIND FOLDER`.

KIND is `both` (classes and batch are cut over the processes) or `batch`. Trains a model
whole; interrupted and resumed, in `FOLDER/shared`; and from folders that the processes
do not share. Each process leaves `FOLDER/RANK.json`.
"""

import hashlib
import json
import os
import pathlib
import sys

import keras
import numpy as np

kind, folder = sys.argv[1], pathlib.Path(sys.argv[2])
rank = int(os.environ["KERAS_DISTRIBUTION_PROCESS_ID"])
keras.distribution.initialize()

import keras_pedcc  # noqa: E402
from keras_pedcc.centroids.files import storable  # noqa: E402

CLASSES, BATCH = 40, 16


class Stop(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if self.epoch == 1:
            raise KeyboardInterrupt


def distribute():
    distribution = {
        "both": keras_pedcc.class_parallel,
        "batch": keras.distribution.DataParallel,
    }[kind]()
    distribution.auto_shard_dataset = False
    keras.distribution.set_distribution(distribution)


def make_model():
    keras.utils.set_random_seed(3)
    inputs = keras.Input((5,))
    x = keras.layers.Dropout(0.3)(keras.layers.Dense(6)(inputs))
    model = keras_pedcc.PEDCCModel(
        inputs, keras_pedcc.PEDCCDense(CLASSES, scores=keras_pedcc.Blockwise(8))(x)
    )
    sgd = keras.optimizers.SGD(0.1, momentum=0.9)
    model.compile(sgd, keras_pedcc.PEDCCLoss("auto"))
    return model


def train(*callbacks):
    """Epochs that were trained, and a digest of all that they changed."""
    model = make_model()
    # Each process has samples of its own, and shuffles them in its own way.
    np.random.seed(rank)  # noqa: NPY002
    rng = np.random.default_rng(rank)
    x, y = rng.normal(size=(32, 5)), rng.integers(0, CLASSES, 32)
    finetune = keras_pedcc.FinetuneCallback(2, 0.1)
    arguments = {"batch_size": BATCH // 2, "epochs": 3, "verbose": 0}
    history = model.fit(x, y, callbacks=[finetune, *callbacks], **arguments)
    variables = [*model.variables, *model.optimizer.variables]
    data = b"".join(storable(v).tobytes() for v in variables)
    return history.epoch, hashlib.sha256(data).hexdigest()


def main():
    distribute()
    found = {}
    _, found["whole"] = train()
    backup = keras_pedcc.AtomicBackup(folder / "shared", delete_checkpoint=False)
    try:
        train(backup, Stop())
    except KeyboardInterrupt:
        found["epochs"], found["resumed"] = train(backup)
    found["done"], _ = train(backup)
    own = keras_pedcc.AtomicBackup(folder / ("shared" if rank == 0 else "own"))
    try:
        train(own)
    except ValueError as error:
        found["error"] = str(error)
    (folder / f"{rank}.json").write_text(json.dumps(found))


main()
