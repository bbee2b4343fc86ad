"""Time and memory of a training step against the number of classes.

    KERAS_BACKEND=tensorflow python benchmarks/many_classes.py --result FILE

Heads on one linear layer: `softmax`, a `Dense` layer with sparse cross entropy;
`pedcc`, frozen centroids with PEDCC-Loss; `streaming`, the same by blocks of classes;
`sampled`, where it is asked for, the same with a part of the classes. A step is
`train_on_batch` with SGD and momentum. Each case runs in a process of its own, the
cases in turn, `--rounds` times; time is the median over the steps of all rounds, memory
the largest growth of the process during the steps.
"""

import argparse
import json
import os
import pathlib
import re
import statistics
import subprocess
import sys
import time

HEADS = ("softmax", "pedcc", "streaming")
ALL_HEADS = (*HEADS, "sampled")


def main(argv=None):
    args = parse_args(argv)
    if args.case:
        print(json.dumps(measure(args.case, args)))
        return
    cases = [(head, number) for number in args.classes for head in args.heads]
    found = {case: [] for case in cases}
    for _ in range(args.rounds):
        for case in cases:
            found[case].append(in_process(case, args))
    rows = [row(case, found[case]) for case in cases]
    for each in rows:
        each["ratio"] = ratio(each, rows)
        print(json.dumps(each), flush=True)
    if args.result:
        place = found[cases[0]][0]["environment"]
        args.result.write_text(
            json.dumps({"rows": rows, "environment": place}, indent=1)
        )


def in_process(case, args):
    """What one case measures, in a fresh process."""
    head, number = case
    flags = ["--case", head, "--classes", number, "--dim", args.dim]
    flags += ["--batch-size", args.batch_size, "--steps", args.steps]
    flags += ["--centroids-dtype", args.centroids_dtype]
    flags += ["--sampling-rate", args.sampling_rate]
    command = [sys.executable, __file__, *map(str, flags)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def row(case, rounds):
    seconds = [second for each in rounds for second in each["seconds"]]
    return {
        "head": case[0],
        "classes": case[1],
        "milliseconds": 1000 * statistics.median(seconds),
        "growth_mib": statistics.median(each["growth_mib"] for each in rounds),
        "peak_mib": statistics.median(each["peak_mib"] for each in rounds),
    }


def ratio(each, rows):
    """Time and growth over those of softmax with as many classes."""
    for base in rows:
        if (base["head"], base["classes"]) == ("softmax", each["classes"]):
            return {
                key: each[key] / base[key] for key in ("milliseconds", "growth_mib")
            }
    return None


def measure(head, args):
    import keras
    import numpy as np

    sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "examples"))
    from image_experiment.reporting import environment

    keras.utils.set_random_seed(0)
    model = make_model(head, args)
    draw = np.random.default_rng(0)
    features = draw.normal(size=(args.batch_size, args.dim)).astype("float32")
    labels = draw.integers(0, args.classes[0], args.batch_size)
    before = memory("VmRSS")
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    seconds = []
    for _ in range(args.steps + 2):
        begun = time.perf_counter()
        model.train_on_batch(features, labels)
        seconds.append(time.perf_counter() - begun)
    peak = memory("VmHWM")
    return {
        "seconds": seconds[2:],  # without tracing and compiling
        "growth_mib": peak - before,
        "peak_mib": peak,
        "environment": environment(),
    }


def make_model(head, args):
    import keras

    import keras_pedcc

    number = args.classes[0]
    inputs = keras.Input((args.dim,))
    x = keras.layers.Dense(args.dim, use_bias=False)(inputs)
    if head == "softmax":
        model = keras.Model(inputs, keras.layers.Dense(number, use_bias=False)(x))
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    else:
        # Random directions: how they lie changes no time.
        layer = keras_pedcc.CosineDense(
            number,
            trainable=False,
            streaming=head in ("streaming", "sampled"),
            sampling_rate=args.sampling_rate if head == "sampled" else None,
            centroids_dtype=args.centroids_dtype,
        )
        model, loss = keras_pedcc.PEDCCModel(inputs, layer(x)), keras_pedcc.PEDCCLoss()
    model.compile(keras.optimizers.SGD(0.01, momentum=0.9), loss)
    return model


def memory(name):
    """A figure of this process, in MiB, from the Linux kernel."""
    status = pathlib.Path("/proc/self/status").read_text()
    return int(re.search(rf"{name}:\s+(\d+) kB", status)[1]) / 1024


def parse_args(argv):
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--classes", type=int, nargs="+", default=[10_000, 50_000, 131_072])
    add("--heads", nargs="+", choices=ALL_HEADS, default=list(HEADS))
    add("--dim", type=int, default=256)
    add("--batch-size", type=int, default=256)
    add("--centroids-dtype", default="float32")
    add("--sampling-rate", type=float, default=0.1, help="of the head `sampled`")
    add("--steps", type=int, default=5, help="timed, of each round")
    add("--rounds", type=int, default=3)
    add("--result", type=pathlib.Path, help="JSON file to write")
    add("--case", choices=ALL_HEADS, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    for name in ("dim", "batch_size", "steps", "rounds"):
        if getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1")
    if min(args.classes) < 2:
        parser.error("--classes must be at least 2")
    return args


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    main()
