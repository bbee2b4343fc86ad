"""A backup stays whole if another one overtakes it, or the disk is full."""

import errno
import os
import pathlib
import tempfile
from unittest import mock

import keras
import numpy as np
import pytest

import keras_pedcc

BACKENDS = ("tensorflow", "jax", "torch")


def check():
    inputs = keras.Input((8,))
    head = keras_pedcc.PEDCCDense(4, return_features=False)
    model = keras.Model(inputs, head(keras.layers.Dense(500)(inputs)))
    model.compile("sgd", keras_pedcc.PEDCCLoss())
    with tempfile.TemporaryDirectory() as folder:
        overtake(model, folder)
        fill_disk(model, folder)
        assert os.listdir(folder) == ["backup.npz"]


def overtake(model, folder):
    save = np.savez

    def overtaken(file, *args, **kwargs):
        file.write(bytes(1000))
        file.flush()
        with mock.patch.object(np, "savez", save):
            begin_epoch(model, folder)
            begin_epoch(model, folder)  # reads the first
        file.seek(0)
        save(file, *args, **kwargs)

    with mock.patch.object(np, "savez", overtaken):
        begin_epoch(model, folder)
    begin_epoch(model, folder)


def fill_disk(model, folder):
    before = (pathlib.Path(folder) / "backup.npz").read_bytes()
    full = OSError(errno.ENOSPC, "No space left on device")
    with (
        mock.patch.object(np, "savez", side_effect=full),
        pytest.raises(OSError, match="No space left"),
    ):
        begin_epoch(model, folder)
    assert (pathlib.Path(folder) / "backup.npz").read_bytes() == before


def begin_epoch(model, folder):
    """What `fit` calls: reads a backup if there is one, then writes one."""
    backup = keras_pedcc.AtomicBackup(folder)
    backup.set_model(model)
    backup.on_train_begin()
    backup.on_epoch_begin(0)
    backup.on_train_batch_begin(0)
