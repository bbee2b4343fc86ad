"""Making centroids: `generate_pedcc` beside charges that move for 200 steps.

    python benchmarks/generate_pedcc.py

The charges are those of the paper's section III-B in plain NumPy: at each step every
charge is pushed along the sphere by the others, with a force of one over the squared
distance, gains speed, moves and is put back on the sphere. Once pair by pair in Python
loops, once with arrays. All three take turns in one process, twenty calls at a time of
the one that needs a millisecond; the medians are printed as JSON, with the largest
cosine that each has reached.
"""

import argparse
import json
import statistics
import time


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num-classes", type=int, default=47)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=5)
    return parser.parse_args(argv)


if __name__ == "__main__":
    parse_args()  # `--help` ends here, before the imports that take seconds


import keras
import numpy as np

import keras_pedcc

FORCE, STEPS = 1e-2, 200
TURNS = {"generate_pedcc": 20, "arrays": 1, "loops": 1}


def push_by_loops(points):
    """Sum of `(x_i - x_j) / |x_i - x_j|^3` over the other charges, pair by pair."""
    push = np.zeros_like(points)
    for i in range(len(points)):
        for j in range(i + 1, len(points)):
            apart = points[i] - points[j]
            force = apart / np.sqrt(apart @ apart) ** 3
            push[i] += force
            push[j] -= force
    return push


def push_by_arrays(points):
    """The same from the Gram matrix."""
    squared = np.maximum(2 - 2 * points @ points.T, 1e-12)
    np.fill_diagonal(squared, np.inf)
    weight = squared**-1.5
    return weight.sum(axis=1, keepdims=True) * points - weight @ points


def move_charges(num_classes, dim, push, seed=0):
    """Where the charges are after `STEPS` steps from a random start."""
    points = np.random.default_rng(seed).standard_normal((num_classes, dim))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    speed = np.zeros_like(points)
    for _ in range(STEPS):
        force = push(points)
        speed += FORCE * (force - np.sum(force * points, axis=1)[:, None] * points)
        points = points + speed
        points /= np.linalg.norm(points, axis=1, keepdims=True)
    return points


def compare(num_classes, dim, repeats):
    """Median milliseconds and largest cosine of each way."""
    makers = {
        "generate_pedcc": lambda: keras.ops.convert_to_numpy(
            keras_pedcc.generate_pedcc(num_classes, dim)
        ),
        "arrays": lambda: move_charges(num_classes, dim, push_by_arrays),
        "loops": lambda: move_charges(num_classes, dim, push_by_loops),
    }
    seconds, cosine = {name: [] for name in makers}, {}
    makers["generate_pedcc"]()  # warm
    for _ in range(repeats):
        for name, make in makers.items():
            for _ in range(TURNS[name]):
                start = time.perf_counter()
                made = make()
                seconds[name].append(time.perf_counter() - start)
            cosine[name] = keras_pedcc.centroid_report(made)["largest_cosine"]
    median = {name: statistics.median(times) for name, times in seconds.items()}
    return {
        "num_classes": num_classes,
        "dim": dim,
        "repeats": repeats,
        "backend": keras.backend.backend(),
        "milliseconds": {name: round(1e3 * t, 3) for name, t in median.items()},
        "times_faster": {
            name: round(median[name] / median["generate_pedcc"], 1)
            for name in ("loops", "arrays")
        },
        "largest_cosine": cosine,
    }


def main():
    args = parse_args()
    print(json.dumps(compare(args.num_classes, args.dim, args.repeats), indent=1))


if __name__ == "__main__":
    main()
