"""Cosines to Kerdock's vectors by the Walsh-Hadamard transform, without their matrix.

    KERAS_BACKEND=tensorflow python benchmarks/walsh_hadamard.py --result FILE

The vectors are `d^2`, for d = 2^m, m even: `d / 2` bases `diag((-1)^Q_a) H / sqrt(d)`
and the negatives of their vectors. (The standard basis, whose cosines are the features
themselves, is left out.) Their cosines are taken in four ways: `product`, with the
matrix of all vectors; `half_product`, with that of one of each pair, the others being
negatives; `kronecker`, for each basis the signs and `H = H_r x H_q` as two products
with small matrices; `butterflies`, the same by log2(d) rounds of sums and differences.
The last two hold the signs alone, as int8.

`forward` is the cosines, `gradient` what a gradient over all cosines makes of the
features, `streaming` the sum of `exp(s cos)` over all classes and its gradient, by
blocks of bases, which is what a head for very many classes needs. The ways take turns
in one process; printed are medians in milliseconds, the largest error beside
`half_product`, and its time over that of each. Also runs with KERAS_BACKEND=numpy.
"""

import argparse
import json
import pathlib
import statistics
import sys

BLOCK_CLASSES = 4096


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--dim", type=int, nargs="+", default=[64, 256], choices=[16, 64, 256, 1024])
    add("--batch", type=int, default=128)
    add("--block", type=int, default=BLOCK_CLASSES, help="classes, when streaming")
    add("--steps", type=int, default=20)
    add("--result", type=pathlib.Path, help="JSON file to write")
    args = parser.parse_args(argv)
    if min(args.batch, args.block, args.steps) < 1:
        parser.error("--batch, --block and --steps must be at least 1")
    return args


if __name__ == "__main__":
    parse_args()  # `--help` ends here, before the imports that take seconds


import keras
import numpy as np
from keras import ops
from turns import alternate

from keras_pedcc.centroids import closed_forms as constructions
from keras_pedcc.centroids.kerdock import KerdockCentroids

SCALE = 30.0
LARGEST_MATRIX = 2**31 + 1  # bytes


def hadamard(d):
    """Sylvester's matrix: entry (i, j) is -1 to the number of common bits."""
    return constructions.hadamard(d).astype("float32")


class Product:
    """Cosines to the rows of a matrix; features and cosines are columns."""

    sides = 2

    def __init__(self, signs):
        d = signs.shape[1]
        half = hadamard(d) * signs[:, None] * np.float32(d**-0.5)
        whole = half if self.sides == 1 else np.concatenate([half, -half], axis=1)
        self.held = ops.convert_to_tensor(whole)
        self.d = d

    def cosines(self, rows, x):
        """Of the bases in `rows` (part of `held`) with `x`, shape `(d, batch)`."""
        return ops.matmul(ops.reshape(rows, (-1, self.d)), x)

    def pull(self, rows, slopes):
        """Gradient over `x` from that over the cosines."""
        return ops.matmul(ops.transpose(ops.reshape(rows, (-1, self.d))), slopes)


class HalfProduct(Product):
    """The same for one of each pair of opposite vectors."""

    sides = 1


class Kronecker:
    """Signs, then `H_r x H_q`: for each of r parts, then across them. As the head."""

    sides = 1

    def __init__(self, signs):
        self.d = signs.shape[1]
        self.held = ops.convert_to_tensor(signs)
        self.centroids = KerdockCentroids(None, self.d, self.held, None, None)

    def cosines(self, signs, x):
        return self.centroids.products(signs, x)

    def pull(self, signs, slopes):
        return self.centroids.sums(signs, slopes)


class Butterflies:
    """Signs, then sums and differences of pairs, pairs of pairs, and so on."""

    sides = 1

    def __init__(self, signs):
        self.d = signs.shape[1]
        self.held = ops.convert_to_tensor(signs[:, :, None])

    def transform(self, x):
        shape, length = x.shape, 1
        while length < self.d:
            pairs = ops.reshape(x, (shape[0], -1, 2, length * shape[2]))
            a, b = pairs[:, :, 0], pairs[:, :, 1]
            x = ops.stack([a + b, a - b], axis=2)
            length *= 2
        return ops.reshape(x, shape) * self.d**-0.5

    def cosines(self, signs, x):
        signed = ops.cast(signs, "float32") * x
        return ops.reshape(self.transform(signed), (-1, x.shape[1]))

    def pull(self, signs, slopes):
        parts = ops.reshape(slopes, (signs.shape[0], self.d, -1))
        parts = self.transform(parts)
        return ops.sum(ops.cast(signs, "float32") * parts, axis=0)


WAYS = {
    "product": Product,
    "half_product": HalfProduct,
    "kronecker": Kronecker,
    "butterflies": Butterflies,
}


def streaming(way, held, x, size):
    """Sum of `exp(s cos)` over all classes, and its gradient over `x`."""
    tail = held.shape[1:]

    def add(index, state):
        total, slope = state
        part = ops.slice(held, (index * size, *[0] * len(tail)), (size, *tail))
        cosines = way.cosines(part, x)
        powers = ops.exp(SCALE * cosines)
        if way.sides == 2:
            slopes, more = powers, ops.sum(powers, axis=0)
        else:
            opposite = 1 / powers
            slopes, more = powers - opposite, ops.sum(powers + opposite, axis=0)
        return total + more, slope + SCALE * way.pull(part, slopes)

    state = ops.zeros_like(x[0]), ops.zeros_like(x)
    return ops.fori_loop(0, held.shape[0] // size, add, state)


def tasks(way, block):
    """Compiled functions of the features by name."""
    number, held = way.held.shape[0], way.held
    size = max(1, min(block // way.d, number))
    return {
        "forward": compiled(lambda held, x, slopes: way.cosines(held, x), held),
        "gradient": compiled(lambda held, x, slopes: way.pull(held, slopes), held),
        "streaming": compiled(
            lambda held, x, slopes: streaming(way, held, x, size), held
        ),
    }


def compiled(function, held):
    """`f(x, slopes)`, compiled where the backend compiles, that waits for its end."""
    if keras.backend.backend() == "jax":
        import jax

        run = jax.jit(function)
        return lambda *args: jax.block_until_ready(run(held, *args))
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        function = tf.function(function, autograph=False)
    return lambda *args: function(held, *args)


def compare(d, args):
    """Medians, errors and ratios of all tasks and ways in `d` dimensions."""
    rng = np.random.default_rng(0)
    signs = constructions._form_signs(d, rng, d // 2).astype("int8")
    x = rng.standard_normal((d, args.batch)).astype("float32")
    x = ops.convert_to_tensor(x / np.linalg.norm(x, axis=0))
    ways = {name: WAYS[name](signs) for name in WAYS if fits(name, d)}
    made = {name: tasks(way, args.block) for name, way in ways.items()}
    rows = []
    for task in ("forward", "gradient", "streaming"):
        if task == "streaming" or 4 * d**2 * args.batch < LARGEST_MATRIX / 8:
            rows.append(measure(task, d, ways, made, x, args))
            print(json.dumps(rows[-1]), flush=True)
    return rows


def fits(name, d):
    held = {"product": 4 * d**3, "half_product": 2 * d**3}.get(name, d**2)
    return held < LARGEST_MATRIX


def measure(task, d, ways, made, x, args):
    half = np.random.default_rng(1).standard_normal((d**2 // 2, args.batch), "float32")
    # Those of opposite vectors have the difference of both slopes.
    both = half.reshape(-1, d, args.batch)
    both = np.concatenate([both / 2, -both / 2], axis=1).reshape(-1, args.batch)
    slopes = {1: ops.convert_to_tensor(half), 2: ops.convert_to_tensor(both)}
    steps = {
        name: lambda x, run=made[name][task], sides=way.sides: run(x, slopes[sides])
        for name, way in ways.items()
    }
    found = {
        name: in_order(step(x), d, ways[name].sides) for name, step in steps.items()
    }
    seconds = alternate(steps, args.steps, x, warm_up=2)
    median = {name: statistics.median(times) for name, times in seconds.items()}
    return {
        "task": task,
        "dim": d,
        "classes": d**2,
        "milliseconds": {name: round(1e3 * t, 3) for name, t in median.items()},
        "times_faster": {
            name: round(median["half_product"] / t, 2) for name, t in median.items()
        },
        "largest_error": {
            name: largest_error(each, found["half_product"])
            for name, each in found.items()
        },
    }


def in_order(outputs, d, sides):
    """As NumPy's; of opposite vectors the first."""
    if isinstance(outputs, tuple):
        return [ops.convert_to_numpy(each) for each in outputs]
    outputs = ops.convert_to_numpy(outputs)
    if sides == 2 and len(outputs) > d:
        outputs = outputs.reshape(-1, 2, d, outputs.shape[1])[:, 0]
    return [outputs.reshape(-1, outputs.shape[-1])]


def largest_error(found, right):
    """Of all entries, over the largest entry."""
    return max(
        float(np.abs(a - b).max() / np.abs(b).max())
        for a, b in zip(found, right, strict=True)
    )


def main(argv=None):
    args = parse_args(argv)
    rows = [row for d in args.dim for row in compare(d, args)]
    if args.result:
        args.result.write_text(json.dumps(result_of(rows, args), indent=1) + "\n")


def result_of(rows, args):
    from environment import environment

    return {
        "command": f"python benchmarks/walsh_hadamard.py {' '.join(sys.argv[1:])}",
        "batch": args.batch,
        "block": args.block,
        "steps": args.steps,
        "rows": rows,
        "environment": environment(),
    }


if __name__ == "__main__":
    main()
