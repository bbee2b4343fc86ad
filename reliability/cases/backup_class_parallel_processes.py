"""Two processes that share the classes are killed, and end as if they never were."""

import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile

BACKENDS = ("jax",)


def check():
    with tempfile.TemporaryDirectory() as folder:
        assert train(folder, "whole") == [0, 0]
        assert -signal.SIGKILL in train(folder, "killed")
        assert train(folder, "resumed") == [0, 0]
        whole, resumed = (
            (pathlib.Path(folder) / name).read_bytes() for name in ("whole", "resumed")
        )
    assert whole == resumed


def train(folder, kind):
    """Exit codes of the two processes."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
    runs = []
    for rank in range(2):
        environment = os.environ | {
            "KERAS_DISTRIBUTION_JOB_ADDRESSES": f"127.0.0.1:{port}",
            "KERAS_DISTRIBUTION_NUM_PROCESSES": "2",
            "KERAS_DISTRIBUTION_PROCESS_ID": str(rank),
            "KERAS_BACKEND": "jax",
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": "--xla_force_host_platform_device_count=1",
        }
        command = [sys.executable, __file__, folder, kind]
        runs.append(subprocess.Popen(command, env=environment))
    try:
        return [run.wait(timeout=120 if kind != "killed" else 60) for run in runs]
    except subprocess.TimeoutExpired:  # waits for the one that was killed
        return [run.poll() for run in runs]
    finally:
        for run in runs:
            run.kill()
            run.wait()


def work(folder, kind):
    """Trains in one of the processes."""
    import keras

    keras.distribution.initialize()
    import numpy as np

    import keras_pedcc
    from keras_pedcc.centroids.files import storable

    class Kill(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if epoch == 1:
                os.kill(os.getpid(), signal.SIGKILL)

    distribution = keras_pedcc.class_parallel()
    distribution.auto_shard_dataset = False
    keras.distribution.set_distribution(distribution)
    keras.utils.set_random_seed(2)
    inputs = keras.Input((4,))
    head = keras_pedcc.PEDCCDense(20, trainable=True, scores="blockwise")
    model = keras_pedcc.PEDCCModel(inputs, head(keras.layers.Dense(6)(inputs)))
    model.compile(keras.optimizers.Adam(0.1), keras_pedcc.PEDCCLoss("auto"))
    callbacks = [] if kind == "whole" else [keras_pedcc.AtomicBackup(folder + "/b")]
    callbacks += [Kill()] if kind == "killed" else []
    x, y = np.random.default_rng(0).normal(size=(16, 4)), np.arange(16)
    arguments = {"epochs": 3, "batch_size": 8, "verbose": 0}
    history = model.fit(x, y, callbacks=callbacks, **arguments)
    assert history.epoch[0] == (1 if kind == "resumed" else 0)
    data = b"".join(storable(v).tobytes() for v in model.variables)
    if int(os.environ["KERAS_DISTRIBUTION_PROCESS_ID"]) == 0:
        (pathlib.Path(folder) / kind).write_bytes(data)


if __name__ == "__main__":
    work(*sys.argv[1:])
