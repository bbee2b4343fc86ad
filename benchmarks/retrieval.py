"""Recall@1 and mAP@R of many features, beside pytorch-metric-learning.

    KERAS_BACKEND=torch python benchmarks/retrieval.py --result FILE

The features are drawn around a centre for each class and searched among themselves.
Each way runs once, in a process of its own: `ours` is `keras_pedcc.retrieval_report`;
`theirs` is `AccuracyCalculator`, with a search by cosine in batches of 1,000 queries,
since the default needs faiss. Printed are the time that passed, the time that the
processor spent, the peak of the process' memory, imports and features included, and
the two numbers.
"""

import argparse
import json
import pathlib
import resource
import subprocess
import sys
import time

import numpy as np

WAYS = ("ours", "theirs")


def main(argv=None):
    args = parse_args(argv)
    if args.way:
        print(json.dumps(measured(args)))
        return
    rows = []
    for way in WAYS:
        flags = ["--way", way, "--items", args.items, "--dim", args.dim]
        command = [sys.executable, __file__, *flags, "--classes", args.classes]
        command = [str(each) for each in command]
        run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        rows.append({"way": way, **json.loads(run.stdout.splitlines()[-1])})
        print(json.dumps(rows[-1]), flush=True)
    if args.result:
        from environment import environment

        told = f"python benchmarks/retrieval.py {' '.join(argv or sys.argv[1:])}"
        sizes = {name: getattr(args, name) for name in ("items", "dim", "classes")}
        result = {"command": told, **sizes, "rows": rows, **environment()}
        args.result.write_text(json.dumps(result, indent=1) + "\n")


def measured(args):
    features, labels = drawn(args.items, args.dim, args.classes)
    way = {"ours": ours, "theirs": theirs}[args.way]()
    begun, before = time.perf_counter(), time.process_time()
    recall, precision = way(features, labels)
    return {
        "seconds": round(time.perf_counter() - begun, 2),
        "cpu_seconds": round(time.process_time() - before, 2),
        "peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10),
        "recall_at_1": recall,
        "mean_average_precision_at_r": precision,
    }


def drawn(items, dim, classes):
    """Features around a centre for each class, and their classes."""
    rng = np.random.default_rng(0)
    centers = rng.standard_normal((classes, dim), dtype="float32")
    labels = np.arange(items) % classes
    noise = rng.standard_normal((items, dim), dtype="float32")
    return centers[labels] + np.float32(dim**0.5 / 9) * noise, labels


def ours():
    import keras_pedcc

    def way(features, labels):
        report = keras_pedcc.retrieval_report(features, labels, k=1)
        return report["recall_at_1"], report["mean_average_precision_at_r"]

    return way


def theirs():
    import torch
    from pytorch_metric_learning.distances import CosineSimilarity
    from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
    from pytorch_metric_learning.utils.inference import CustomKNN

    names = "precision_at_1", "mean_average_precision_at_r"
    knn = CustomKNN(CosineSimilarity(), batch_size=1000)
    calculator = AccuracyCalculator(names, k="max_bin_count", knn_func=knn)

    def way(features, labels):
        tensors = torch.from_numpy(features), torch.from_numpy(labels)
        with torch.no_grad():
            found = calculator.get_accuracy(*tensors)
        return tuple(found[name] for name in names)

    return way


def parse_args(argv):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--classes", type=int, default=5_000)
    parser.add_argument("--way", choices=WAYS, help="measure this one, here")
    parser.add_argument("--result", type=pathlib.Path, help="JSON file to write")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
