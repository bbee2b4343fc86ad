"""What products of features and centroids in bfloat16 would save, and cost in accuracy.

    KERAS_BACKEND=jax python benchmarks/short_products.py --result FILE

The heads compute in float32. This tells what a machine would make of bfloat16 instead,
for a batch of unit features and as many unit centroids as `--classes`. In turns:

- `float32`: cosines and the gradient over the features, two products;
- `short`: the same with centroids that are held in bfloat16;
- `short_cast`: the same with float32 centroids that are cast at every step;
- `wide`: centroids held in bfloat16, cast to float32, products in float32, as the heads
  do under `dtype="bfloat16"`.

`loss_error` and `slope_error` are those of AM-Softmax at `--scale` against float64: the
error of the mean loss over it, and the longest error of a gradient over the features,
divided by the longest gradient. `rounded` has cosines in bfloat16, as most products of
bfloat16 return; `float32_sums` cosines of bfloat16 factors in float32; `own_in_float32`
rounded ones but for that of the own class.
"""

import argparse
import json
import pathlib
import statistics
import sys


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--classes", type=int, nargs="+", default=[10_000, 50_000])
    add("--dim", type=int, default=512)
    add("--batch", type=int, default=128)
    add("--scale", type=float, default=64.0)
    add("--steps", type=int, default=10)
    add("--result", type=pathlib.Path, help="JSON file to write")
    args = parser.parse_args(argv)
    if min(args.batch, args.steps, args.dim - 1, *args.classes) < 1:
        parser.error("--batch, --steps must be at least 1, --dim, --classes 2")
    return args


if __name__ == "__main__":
    parse_args()  # `--help` ends here, before the imports that take seconds


import keras
import numpy as np
from environment import environment
from keras import ops
from turns import alternate

MARGIN = 0.35


def main(argv=None):
    args = parse_args(argv)
    rows = []
    for classes in args.classes:
        features, centroids, labels = draw(classes, args)
        rows.append(
            {
                "classes": classes,
                **times(features, centroids, args),
                **errors(features, centroids, labels, args.scale),
            }
        )
        print(json.dumps(rows[-1]), flush=True)
    if args.result:
        result = {
            "command": f"python benchmarks/short_products.py {' '.join(sys.argv[1:])}",
            "batch": args.batch,
            "dim": args.dim,
            "scale": args.scale,
            "rows": rows,
            "environment": environment(),
        }
        args.result.write_text(json.dumps(result, indent=1) + "\n")


def draw(classes, args):
    """Unit features and centroids, float64, and labels."""
    rng = np.random.default_rng(0)
    centroids = unit(rng.standard_normal((classes, args.dim)))
    labels = rng.integers(0, classes, args.batch)
    noise = unit(rng.standard_normal((args.batch, args.dim)))
    # Cosines to the own centroid from 0.86 down to 0.32: losses from nearly 0 to 15.
    share = np.linspace(0.6, 3.0, args.batch)[:, None]
    return unit(centroids[labels] + share * noise), centroids, labels


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


# Time


def times(features, centroids, args):
    """Median milliseconds of each way, over those of float32."""
    features = ops.convert_to_tensor(features.astype("float32"))
    long = ops.convert_to_tensor(centroids.astype("float32"))
    short = ops.cast(long, "bfloat16")
    ways = {
        "float32": (long, "float32"),
        "short": (short, "bfloat16"),
        "short_cast": (long, "bfloat16"),
        "wide": (short, "float32"),
    }
    steps = {name: both_products(*way) for name, way in ways.items()}
    found = alternate(steps, args.steps, features, warm_up=2)
    median = {name: 1e3 * statistics.median(each) for name, each in found.items()}
    return {
        "milliseconds": {name: round(each, 2) for name, each in median.items()},
        "ratio": {n: round(each / median["float32"], 3) for n, each in median.items()},
    }


def both_products(held, dtype):
    """Function of features, compiled where the backend compiles, that waits."""

    def both(held, features):
        rows, features = ops.cast(held, dtype), ops.cast(features, dtype)
        cosines = ops.matmul(features, ops.transpose(rows))
        return ops.cast(ops.matmul(cosines, rows), "float32")

    backend = keras.backend.backend()
    if backend == "jax":
        import jax

        both = jax.jit(both)
    elif backend == "tensorflow":
        import tensorflow as tf

        both = tf.function(both)
    return lambda features: ops.convert_to_numpy(both(held, features))


# Accuracy


def errors(features, centroids, labels, scale):
    """Relative errors of loss and gradient, by how the cosines are rounded."""
    right_loss, right_slope = loss_and_slope(features @ centroids.T, labels, scale)
    right_slope = right_slope @ centroids
    factors = rounded(features).astype("float64"), rounded(centroids).astype("float64")
    sums = (factors[0] @ factors[1].T).astype("float32").astype("float64")
    short = rounded(sums).astype("float64")
    own, rows = short.copy(), np.arange(len(labels))
    own[rows, labels] = np.sum(features * centroids[labels], axis=1)
    cosines = {"rounded": short, "float32_sums": sums, "own_in_float32": own}
    found = {"loss_error": {}, "slope_error": {}}
    for name, each in cosines.items():
        loss, slope = loss_and_slope(each, labels, scale)
        # The slope is rounded before its product with the centroids, too.
        slope = rounded(slope).astype("float64") @ factors[1]
        off = np.linalg.norm(slope - right_slope, axis=1).max()
        found["loss_error"][name] = float(abs(loss.mean() / right_loss.mean() - 1))
        longest = np.linalg.norm(right_slope, axis=1).max()
        found["slope_error"][name] = float(off / longest)
    return found


def rounded(array):
    """The nearest bfloat16."""
    short = ops.cast(ops.convert_to_tensor(array.astype("float32")), "bfloat16")
    return ops.convert_to_numpy(ops.cast(short, "float32"))


def loss_and_slope(cosines, labels, scale):
    """AM-Softmax of each sample, and its gradient over the cosines."""
    rows = np.arange(len(labels))
    powers = np.exp(scale * (cosines - cosines[rows, labels][:, None] + MARGIN))
    powers[rows, labels] = 0
    total = powers.sum(axis=1)
    slope = scale * powers / (1 + total)[:, None]
    slope[rows, labels] = -slope.sum(axis=1)
    return np.log1p(total), slope


if __name__ == "__main__":
    main()
