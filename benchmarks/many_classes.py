"""Time and memory of a training step against the number of classes, and the batch.

    KERAS_BACKEND=tensorflow python benchmarks/many_classes.py --result FILE
    python benchmarks/many_classes.py --draw FILE --figure growth.png

Heads on one linear layer: `softmax`, a `Dense` layer with sparse cross entropy;
`pedcc`, frozen centroids with PEDCC-Loss; `streaming`, the same by blocks of classes;
where they are asked for, `sampled`, the same with a part of the classes, and `kerdock`,
by blocks of bases without the centroids' array. A step is `train_on_batch` with SGD and
momentum. Each case runs in a process of its own, the cases in turn, `--rounds` times;
time is the median over the steps of all rounds, `growth_mib` by how much the process
grows during the steps, `peak_mib` the most that it holds from its start on, with
imports and the making of the centroids. glibc keeps what is freed, unless
`MALLOC_TRIM_THRESHOLD_` says otherwise. Batches other than the first size are measured
with `--batch-classes` classes. `--figure` draws the numbers, of this run or of the file
that `--draw` names.
"""

import argparse
import ctypes
import json
import os
import pathlib
import re
import statistics
import subprocess
import sys
import time

HEADS = {
    "softmax": "Dense, cross entropy",
    "pedcc": "PEDCC",
    "streaming": "PEDCC, by blocks of classes",
    "sampled": "PEDCC, sampled classes",
    "kerdock": "Kerdock, by blocks of bases",
}
COLORS = ("#8d99ae", "#d1495b", "#30638e", "C4", "C8")
DEFAULT_HEADS = ("softmax", "pedcc", "streaming")
QUANTITIES = {"milliseconds": "step (ms)", "growth_mib": "growth in memory (MiB)"}
# Of glibc: what is freed stays with the process, as after a model has freed one array
# of 16 to 32 MiB. Else it may return each temporary array to the system.
KEEPING = {
    "MALLOC_TRIM_THRESHOLD_": str(2**26),
    "MALLOC_MMAP_THRESHOLD_": str(2**25),
}
CENTROIDS = ("random", "array", "generated")


def main(argv=None):
    args = parse_args(argv)
    if args.case:
        print(json.dumps(measure(args.case, args)))
        return
    result = json.loads(args.draw.read_text()) if args.draw else measure_all(args)
    if args.result:
        args.result.write_text(json.dumps(result, indent=1) + "\n")
    if args.figure:
        draw(result, args.figure)


def measure_all(args):
    """All rows, and what they depend on."""
    cases = [(head, *point) for point in points(args) for head in args.heads]
    found = {case: [] for case in cases}
    for _ in range(args.rounds):
        for case in cases:
            found[case].append(in_process(case, args))
    rows = [row(case, found[case]) for case in cases]
    for each in rows:
        each["ratio"] = ratio(each, rows)
        print(json.dumps(each), flush=True)
    flags = " ".join(sys.argv[1:])
    return {
        "command": f"python benchmarks/many_classes.py {flags}",
        "dim": args.dim,
        "batch_size": args.batch_size[0],
        "batch_classes": args.batch_classes,
        "rows": rows,
        "environment": found[cases[0]][0]["environment"],
    }


def points(args):
    """Classes and batch of each case: one grows while the other stays."""
    first, *others = args.batch_size
    along_classes = [(number, first) for number in args.classes]
    along_batch = [(args.batch_classes, batch) for batch in others]
    return list(dict.fromkeys(along_classes + along_batch))


def in_process(case, args):
    """What one case measures, in a fresh process."""
    head, number, batch = case
    flags = ["--case", head, "--classes", number, "--dim", args.dim]
    flags += ["--batch-size", batch, "--steps", args.steps]
    flags += ["--centroids", args.centroids]
    flags += ["--centroids-dtype", args.centroids_dtype]
    flags += ["--sample-rate", args.sample_rate]
    command = [sys.executable, __file__, *map(str, flags)]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, text=True, check=True, env=KEEPING | os.environ
    )
    return json.loads(done.stdout.splitlines()[-1])


def row(case, rounds):
    seconds = [second for each in rounds for second in each["seconds"]]
    return {
        "head": case[0],
        "classes": case[1],
        "batch_size": case[2],
        "milliseconds": 1000 * statistics.median(seconds),
        "growth_mib": statistics.median(each["growth_mib"] for each in rounds),
        "peak_mib": statistics.median(each["peak_mib"] for each in rounds),
    }


def ratio(each, rows):
    """Time and growth over those of softmax with as many classes and samples."""
    for base in rows:
        same = all(base[key] == each[key] for key in ("classes", "batch_size"))
        if same and base["head"] == "softmax":
            return {
                key: each[key] / base[key] for key in ("milliseconds", "growth_mib")
            }
    return None


def measure(head, args):
    import keras
    import numpy as np

    number, batch = args.classes[0], args.batch_size[0]
    keras.utils.set_random_seed(0)
    model = make_model(head, args)
    draws = np.random.default_rng(0)
    features = draws.normal(size=(batch, args.dim)).astype("float32")
    labels = draws.integers(0, number, batch)
    for weight in model.weights:
        keras.ops.convert_to_numpy(weight[:1])  # waits for JAX
    ctypes.CDLL(None).malloc_trim(0)  # what making the model has freed is no memory
    before, built = memory("VmRSS"), memory("VmHWM")
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    seconds = []
    for _ in range(args.steps + 2):
        begun = time.perf_counter()
        model.train_on_batch(features, labels)
        seconds.append(time.perf_counter() - begun)
    peak = memory("VmHWM")
    from environment import environment

    return {
        "seconds": seconds[2:],  # without tracing and compiling
        "growth_mib": peak - before,
        "peak_mib": max(built, peak),
        "environment": environment(),
    }


def make_model(head, args):
    import keras

    import keras_pedcc

    inputs = keras.Input((args.dim,))
    x = keras.layers.Dense(args.dim, use_bias=False)(inputs)
    if head == "softmax":
        outputs = keras.layers.Dense(args.classes[0], use_bias=False)(x)
        model = keras.Model(inputs, outputs)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    else:
        outputs = make_head(head, args)(x)
        model, loss = (
            keras_pedcc.PEDCCModel(inputs, outputs),
            keras_pedcc.PEDCCLoss("auto"),
        )
    model.compile(keras.optimizers.SGD(0.01, momentum=0.9), loss)
    return model


def make_head(name, args):
    """A head with frozen centroids; how these lie changes no time."""
    import numpy as np

    import keras_pedcc

    number = args.classes[0]
    if name == "kerdock":
        return keras_pedcc.KerdockDense(number, scores="blockwise")
    options = {"scores": "blockwise" if name == "streaming" else "dense"}
    if name == "sampled":
        options = {"scores": keras_pedcc.Sampled(args.sample_rate)}
    options["dtype"] = args.centroids_dtype
    if args.centroids == "random":
        return keras_pedcc.CosineDense(number, trainable=False, **options)
    if args.centroids == "array":
        shape = (number, args.dim)
        options["centroids"] = np.random.default_rng(0).standard_normal(
            shape, dtype="float32"
        )
    return keras_pedcc.PEDCCDense(number, **options)


def draw(result, path):
    """Time and growth against the classes and, where measured, the batch; log-log."""
    import matplotlib
    from matplotlib import pyplot as plt

    matplotlib.use("Agg")

    columns = [
        each for each in panels(result) if len({r[each[0]] for r in each[2]}) > 1
    ]
    if not columns:
        sys.exit("many_classes: nothing grows: give several --classes or --batch-size")
    size = 4.2 * len(columns) + 0.3, 6.2
    figure, axes = plt.subplots(
        2, len(columns), figsize=size, layout="constrained", squeeze=False, sharey="row"
    )
    for key, cells in zip(QUANTITIES, axes, strict=True):
        for cell, (along, _, rows) in zip(cells, columns, strict=True):
            draw_panel(cell, rows, along, key)
        cells[0].set_ylabel(QUANTITIES[key])
    for cells, (along, kept, _) in zip(axes.T, columns, strict=True):
        cells[0].set_title(kept)
        cells[1].set_xlabel(along.replace("_", " "))
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(handles))
    figure.savefig(path, dpi=130)
    plt.close(figure)


def panels(result):
    """What grows, what stays, and the rows of that, of each column of panels."""
    batch, number = result["batch_size"], result["batch_classes"]
    rows = result["rows"]
    return [
        ("classes", f"batch {batch:,}", [r for r in rows if r["batch_size"] == batch]),
        (
            "batch_size",
            f"{number:,} classes",
            [r for r in rows if r["classes"] == number],
        ),
    ]


def draw_panel(axis, rows, along, key):
    """One line for each head, and the slope of what grows in proportion."""
    from matplotlib.ticker import FixedLocator, NullLocator

    for (head, label), color in zip(HEADS.items(), COLORS, strict=True):
        own = sorted((row[along], row[key]) for row in rows if row["head"] == head)
        if own:
            x, y = zip(*own, strict=True)
            # Below a megabyte the growth is that of the allocator.
            y = [max(value, 1.0) if key == "growth_mib" else value for value in y]
            axis.plot(x, y, "o-", ms=4, color=color, label=label)
    ticks = sorted({row[along] for row in rows})
    top = max(row[key] for row in rows)
    ends = [ticks[0], ticks[-1]]
    slope = [2 * top * end / ticks[-1] for end in ends]
    axis.plot(ends, slope, ":", color="0.5", label="in proportion")
    axis.set(xscale="log", yscale="log")
    axis.xaxis.set_major_locator(FixedLocator(ticks))
    axis.xaxis.set_minor_locator(NullLocator())
    for each in (axis.xaxis, axis.yaxis):
        each.set_major_formatter(lambda value, _: short(value))
    axis.grid(axis="y", color="0.9", lw=0.8)


def short(number):
    """131072 as "131k"."""
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{letter}"
    return f"{number:.3g}"


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
    add("--heads", nargs="+", choices=HEADS, default=list(DEFAULT_HEADS))
    add("--dim", type=int, default=256)
    add("--batch-size", type=int, nargs="+", default=[256], help="others: see above")
    add("--batch-classes", type=int, default=50_000, help="with other batch sizes")
    add("--centroids", choices=CENTROIDS, default="array")
    add("--centroids-dtype", default="float32")
    add("--sample-rate", type=float, default=0.1, help="of the head `sampled`")
    add("--steps", type=int, default=5, help="timed, of each round")
    add("--rounds", type=int, default=3)
    add("--result", type=pathlib.Path, help="JSON file to write")
    add("--draw", type=pathlib.Path, help="JSON file to draw, instead of measuring")
    add("--figure", type=pathlib.Path, help="image file to write")
    add("--case", choices=HEADS, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    least = {"dim": 2, "batch_size": 1, "steps": 1, "rounds": 1}
    for name, number in (least | {"classes": 2, "batch_classes": 2}).items():
        given = getattr(args, name)
        if min(given if isinstance(given, list) else [given]) < number:
            parser.error(f"--{name.replace('_', '-')} must be at least {number}")
    if args.draw and not args.figure:
        parser.error("--draw needs --figure, the file to write")
    return args


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    main()
