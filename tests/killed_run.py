"""A training run that kills itself: `python killed_run.py FOLDER MOMENT`.

MOMENT is `never`, `batch:E` (inside epoch E), or `before:N` and `after:N` (just
before and just after the process's N-th backup, counted from 0, gets its name). A
run that is not killed leaves its final weights in `FOLDER/weights.npz`.
"""

import itertools
import os
import pathlib
import signal
import sys

import keras
import numpy as np

import keras_pedcc

EPOCHS, UNFREEZE = 4, 2


def die():
    os.kill(os.getpid(), signal.SIGKILL)


class Killer(keras.callbacks.Callback):
    """Kills the process in the second batch of an epoch."""

    def __init__(self, epoch):
        super().__init__()
        self.epoch = self.current = epoch

    def on_epoch_begin(self, epoch, logs=None):
        self.current = epoch

    def on_train_batch_end(self, batch, logs=None):
        if batch == 1 and self.current == self.epoch:
            die()


def kill_at_rename(kind, number):
    """Kills just before or after the backup of this number is renamed."""
    rename, numbers = os.replace, itertools.count()

    def replace(source, target):
        at_hand = next(numbers) == number
        if at_hand and kind == "before":
            die()
        rename(source, target)
        if at_hand:
            die()

    os.replace = replace


def make_model():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((4,))
    x = keras.layers.BatchNormalization()(keras.layers.Dense(16)(inputs))
    x = keras.layers.Dense(8)(keras.layers.Dropout(0.3)(x))
    model = keras_pedcc.PEDCCModel(inputs, keras_pedcc.PEDCCDense(3)(x))
    schedule = keras.optimizers.schedules.CosineDecay(0.05, 32)
    model.compile(keras.optimizers.SGD(schedule, momentum=0.9), keras_pedcc.PEDCCLoss())
    return model


def main(folder, moment):
    kind, _, number = moment.partition(":")
    callbacks = [
        keras_pedcc.FinetuneCallback(UNFREEZE, 1e-2),
        keras_pedcc.AtomicBackup(folder / "backup"),
    ]
    if kind == "batch":
        callbacks.append(Killer(int(number)))
    elif kind != "never":
        kill_at_rename(kind, int(number))
    model = make_model()
    images = np.random.default_rng(0).standard_normal((64, 4)).astype("float32")
    model.fit(
        images,
        np.arange(64) % 3,
        batch_size=8,
        epochs=EPOCHS,
        shuffle=False,
        verbose=0,
        callbacks=callbacks,
    )
    variables = [*model.variables, *model.optimizer.variables]
    np.savez(folder / "weights.npz", *map(keras.ops.convert_to_numpy, variables))


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), sys.argv[2])
