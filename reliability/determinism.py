"""Do two runs agree bit for bit, with one seed and the backend's deterministic mode?

    python reliability/determinism.py --result reliability/results/determinism_jax.json

Two processes do the same: they train a small convolutional network, with dropout, noise
and random flips and shifts, under each head, frozen and unfrozen, in float32 and
mixed_bfloat16, save and load it, and generate centroids by every method. Every weight,
state of the optimizer, loss and prediction is compared, byte by byte. Then the same is
looked at where nothing is promised: without the deterministic mode, and on one core
beside all of them.
"""

import argparse
import os
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
from recording import ROOT, Record

CLASSES, DIM = 40, 16
MODES = ("deterministic", "plain")
POLICIES = ("float32", "mixed_bfloat16")
# What is run where nothing is promised: enough to see that it may differ.
LOOKED_AT = ("plain, float32", "generate_pedcc")
SIZES = {
    "auto": (10, 16),
    "simplex": (17, 16),
    "orthogonal_simplices": (24, 16),
    "polygon": (7, 2),
    "kerdock": (300, 16),
    "max_angle": (40, 8),
    "energy": (40, 8),
    "random": (40, 8),
}


def heads():
    """Each head that is trained, and whether it can be unfrozen."""
    from keras_pedcc import Blockwise, KerdockDense, PEDCCDense, Sampled

    made = {"centroids": "kerdock"}
    return {
        "plain": (lambda: PEDCCDense(CLASSES, **made), True),
        "streaming": (
            lambda: PEDCCDense(CLASSES, scores=Blockwise(16), **made),
            True,
        ),
        "sampled": (lambda: PEDCCDense(CLASSES, scores=Sampled(0.3), **made), True),
        "kerdock": (lambda: KerdockDense(CLASSES), False),
        "kerdock_streaming": (lambda: KerdockDense(CLASSES, scores="blockwise"), False),
    }


def cases():
    """Name and function of all that is done in one process."""
    found = {}
    for head, (make, unfreezes) in heads().items():
        for policy in POLICIES:
            for unfrozen in (False, True) if unfreezes else (False,):
                name = f"{head}, {policy}, {'unfrozen' if unfrozen else 'frozen'}"
                found[name] = lambda m=make, p=policy, u=unfrozen: trained(m, p, u)
    for method, size in SIZES.items():
        found[f"generate_pedcc, {method}"] = lambda m=method, s=size: generated(m, s)
    return found


def deterministic_mode():
    """What each backend has for it; XLA on a CPU needs nothing."""
    import keras

    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        tf.config.experimental.enable_op_determinism()
    if backend == "torch":
        import torch

        torch.use_deterministic_algorithms(True)


def network(head):
    import keras

    import keras_pedcc

    layers = keras.layers
    inputs = keras.Input((12, 12, 1))
    x = layers.RandomFlip("horizontal")(inputs)
    x = layers.RandomTranslation(0.1, 0.1)(x)
    x = layers.GaussianNoise(0.1)(x)
    x = layers.Conv2D(8, 3, use_bias=False)(x)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.Dropout(0.2)(layers.MaxPooling2D()(x))
    x = layers.Dense(DIM)(layers.Flatten()(x))
    return keras_pedcc.PEDCCModel(inputs, head(x))


def trained(make, policy, unfrozen):
    """Everything that training, saving and loading leaves, as named arrays."""
    import keras

    import keras_pedcc

    keras.utils.set_random_seed(1)
    keras.config.set_dtype_policy(policy)
    images = np.random.default_rng(0).random((160, 12, 12, 1), "float32")
    labels = np.arange(160) % CLASSES
    model = network(make())
    model.compile("adam", keras_pedcc.PEDCCLoss(scale=8.0), metrics=["accuracy"])
    finetune = [keras_pedcc.FinetuneCallback(epoch=1, learning_rate=0.1)]
    history = model.fit(
        images, labels, epochs=3, verbose=0, callbacks=finetune if unfrozen else None
    )
    found = state(model, images)
    found |= {f"history {name}": v for name, v in history.history.items()}
    with tempfile.TemporaryDirectory() as folder:
        model.save(f"{folder}/model.keras")
        loaded = keras.saving.load_model(f"{folder}/model.keras")
    keras.config.set_dtype_policy("float32")
    same_as_saved(found, state(loaded, images))
    return found


def state(model, images):
    """Weights, states of the optimizer and predictions."""
    from keras import ops

    kinds = {"weight": model.variables, "optimizer": model.optimizer.variables}
    found = {
        f"{kind} {i}, {variable.path}": ops.convert_to_numpy(variable)
        for kind, variables in kinds.items()
        for i, variable in enumerate(variables)
    }
    outputs = model.predict(images, verbose=0)
    return found | {f"predicted {name}": v for name, v in outputs.items()}


def same_as_saved(saved, loaded):
    # The states of random layers are in no file of Keras.
    held = [name for name in loaded if "seed_generator" not in name]
    different = [name for name in held if not equal(saved[name], loaded[name])]
    if different:
        raise RuntimeError(f"A loaded model differs from the saved one in {different}.")


def generated(method, size):
    from keras import ops

    import keras_pedcc

    steps = {"steps": 200} if method in ("max_angle", "energy") else {}
    made = keras_pedcc.generate_pedcc(
        *size, method=method, seed=3, cache=False, **steps
    )
    made = ops.convert_to_numpy(made)
    with tempfile.TemporaryDirectory() as folder:
        keras_pedcc.save_centroids(f"{folder}/c.npz", made)
        loaded = keras_pedcc.load_centroids(f"{folder}/c.npz")
    same_as_saved({"centroids": made}, {"centroids": loaded})
    return {"centroids": made}


def equal(first, second):
    """Whether two arrays agree bit for bit; a zero and its negative do not."""
    first, second = np.asarray(first), np.asarray(second)
    same = first.shape == second.shape and first.dtype == second.dtype
    return same and first.tobytes() == second.tobytes()


def work(options):
    """One of the processes: does every case and writes what comes out."""
    if options.cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.cores])
    if options.mode == "deterministic":
        deterministic_mode()
    arrays = {}
    for name, run in cases().items():
        if any(part in name for part in options.only):
            arrays |= {f"{name}: {what}": array for what, array in run().items()}
    np.savez(options.work, **{n.replace("/", "|"): v for n, v in arrays.items()})


def results_of(path, *flags):
    """What a process of its own has written."""
    command = [sys.executable, __file__, "--work", str(path), *flags]
    subprocess.run(command, check=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    with np.load(path) as file:
        return {name: file[name] for name in file.files}


def differences(first, second):
    """Each case, and what of it differs between two processes."""
    found = {name.split(": ")[0]: [] for name in first | second}
    for name in first | second:
        if name not in first or not equal(first[name], second.get(name)):
            case, what = name.split(": ")
            found[case].append(what)
    return found


def compare(record, first, second, promised, what):
    found = differences(first, second)
    different = {case: names for case, names in found.items() if names}
    record.details[what] = {
        "promised": promised,
        "cases": len(found),
        "arrays": len(first),
        "arrays_that_differ": sum(map(len, different.values())),
        "cases_that_differ": sorted(different),
    }
    if promised:
        record.add(len(found))
        for case, names in different.items():
            record.fail(f"{what}: {case}: {', '.join(names)}")


def check(record, folder, options):
    def results(name, mode, only, *flags):
        flags = ["--mode", mode, "--only", *only, *flags]
        return results_of(folder / f"{name}.npz", *flags)

    first = results("first", "deterministic", options.only)
    if not first:
        raise SystemExit(f"--only must be part of a case. Received: {options.only}.")
    second = results("second", "deterministic", options.only)
    compare(record, first, second, True, "deterministic mode")
    if options.promised_only:
        return
    one_core = results("one_core", "deterministic", LOOKED_AT, "--cores", "1")
    of_all = {name: first[name] for name in one_core}
    compare(record, of_all, one_core, False, "one core beside all")
    plain = [results(f"plain_{i}", "plain", LOOKED_AT) for i in range(2)]
    compare(record, *plain, False, "without the deterministic mode")


def parse_args(arguments):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--only", nargs="*", default=[""], help="parts of the names of cases"
    )
    parser.add_argument(
        "--promised-only", action="store_true", help="leave out what may differ"
    )
    parser.add_argument("--result", type=pathlib.Path)
    # What the script passes to its own processes.
    parser.add_argument("--work", type=pathlib.Path, help=argparse.SUPPRESS)
    parser.add_argument("--mode", choices=MODES, help=argparse.SUPPRESS)
    parser.add_argument("--cores", type=int, default=0, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main(arguments=None):
    options = parse_args(arguments)
    if options.work:
        work(options)
        return 0
    record = Record("cases run twice, in two processes", "every array agrees bitwise")
    with tempfile.TemporaryDirectory() as folder:
        check(record, pathlib.Path(folder), options)
    record.write(options.result)
    return len(record.failures)


if __name__ == "__main__":
    raise SystemExit(main() > 0)
