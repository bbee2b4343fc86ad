"""One training step of heads for very many classes on a GPU, over the floor.

    KERAS_BACKEND=jax python benchmarks/gpu_classes.py --result FILE
    KERAS_BACKEND=torch python benchmarks/gpu_classes.py --result FILE

A step is the loss, its gradients with respect to the features and to the trained
weights, and the update of these by SGD with momentum 0.9. `dense` is the softmax cross
entropy as one writes it in the backend (on PyTorch under `torch.compile`), with trained
weights of `--dtype`; `pedcc` frozen centroids with PEDCC-Loss, `streaming` the same by
blocks, `kerdock` without their array. The floor of frozen centroids is two products of
`batch x dim x classes` in `--dtype`: its time is measured, at the same shapes.

Each case runs in a process of its own; printed are the median time, the time over the
floor, and the most memory of the device that was in use, which a CPU does not tell.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import time

CASES = ("floor", "dense", "pedcc", "streaming", "kerdock")


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--classes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    add("--cases", nargs="+", choices=CASES, default=list(CASES))
    add("--dim", type=int, default=512)
    add("--batch", type=int, default=1024)
    add("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    add("--steps", type=int, default=20)
    add("--result", type=pathlib.Path, help="JSON file to write")
    add("--case", choices=CASES, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


if __name__ == "__main__":
    parse_args()  # `--help` ends here, before the imports that take seconds


import keras
import numpy as np

SCALE = 30.0


def main(argv=None):
    args = parse_args(argv)
    if keras.backend.backend() == "tensorflow":
        raise SystemExit("Set KERAS_BACKEND=jax or torch.")
    if args.case:
        print(json.dumps(measure(args)))
        return
    rows = []
    for classes in args.classes:
        found = {case: in_process(case, classes, args) for case in args.cases}
        floor = found.get("floor", {}).get("milliseconds")
        for case, each in found.items():
            known = floor and each["milliseconds"]
            each["over_floor"] = each["milliseconds"] / floor if known else None
            rows.append({"case": case, "classes": classes, **each})
            print(json.dumps(rows[-1]), flush=True)
    if args.result:
        args.result.write_text(json.dumps(result_of(rows, args), indent=1) + "\n")


def in_process(case, classes, args):
    """What a case measures; nothing, with the reason, where it does not fit."""
    flags = ["--case", case, "--classes", classes, "--dim", args.dim]
    flags += ["--batch", args.batch, "--dtype", args.dtype, "--steps", args.steps]
    command = [sys.executable, __file__, *map(str, flags)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason"])[-1][:300]
        return {"milliseconds": None, "peak_mib": None, "failed": reason}
    return json.loads(done.stdout.splitlines()[-1])


def measure(args):
    classes = args.classes[0]
    draw = np.random.default_rng(0)
    features = draw.standard_normal((args.batch, args.dim), "float32")
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    features = keras.ops.convert_to_tensor(features)
    labels = keras.ops.convert_to_tensor(draw.integers(0, classes, args.batch), "int32")
    make = {"floor": products, "dense": dense}.get(args.case, head_step)
    step = make(args, classes)
    for _ in range(3):
        wait(step(features, labels))
    seconds = []
    for _ in range(args.steps):
        begun = time.perf_counter()
        wait(step(features, labels))
        seconds.append(time.perf_counter() - begun)
    return {
        "milliseconds": 1e3 * statistics.median(seconds),
        "peak_mib": peak_mib(),
    }


def wait(outputs):
    """Until the device has done its work."""
    if keras.backend.backend() == "jax":
        import jax

        jax.block_until_ready(outputs)
    else:
        import torch

        if torch.cuda.is_available():
            torch.cuda.synchronize()


def peak_mib():
    """Most memory of the device, or `None`."""
    if keras.backend.backend() == "jax":
        import jax

        stats = jax.devices()[0].memory_stats() or {}
        peak = stats.get("peak_bytes_in_use")
    else:
        import torch

        peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None
    return None if peak is None else peak / 2**20


# The floor


def products(args, classes):
    """Cosines and the gradient of the features, nothing else."""
    rows = keras.random.normal((classes, args.dim), dtype="float32", seed=0)
    rows = keras.ops.cast(rows, args.dtype)

    def both(rows, features):
        features = keras.ops.cast(features, args.dtype)
        cosines = keras.ops.matmul(features, keras.ops.transpose(rows))
        return keras.ops.matmul(cosines, rows)

    run = compiled(both)
    return lambda features, labels: run(rows, features)


def compiled(function):
    if keras.backend.backend() == "jax":
        import jax

        return jax.jit(function)
    import torch

    return torch.compile(function)


# Cross entropy


def dense(args, classes):
    make = {"jax": _dense_in_jax, "torch": _dense_in_torch}
    return make[keras.backend.backend()](args, classes)


def _dense_in_jax(args, classes):
    import jax
    import jax.numpy as jnp

    weight = jax.random.normal(jax.random.key(0), (classes, args.dim), args.dtype)

    def loss(features, weight, labels):
        logits = (SCALE * features.astype(args.dtype) @ weight.T).astype("float32")
        own = jnp.take_along_axis(logits, labels[:, None], axis=1)[:, 0]
        return jnp.mean(jax.nn.logsumexp(logits, axis=1) - own)

    @jax.jit
    def run(features, labels, weight, momentum):
        slope, slopes = jax.grad(loss, (0, 1))(features, weight, labels)
        momentum = 0.9 * momentum + slopes
        return slope, weight - 1e-6 * momentum, momentum

    state = [weight, jnp.zeros_like(weight)]
    run = jax.jit(run, donate_argnums=(2, 3))

    def step(features, labels):
        slope, *state[:] = run(features, labels, *state)
        return slope

    return step


def _dense_in_torch(args, classes):
    import torch
    import torch.nn.functional as F

    dtype = getattr(torch, args.dtype)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    weight = torch.randn(classes, args.dim, device=device).to(dtype)
    weight = torch.nn.Parameter(weight)
    optimizer = torch.optim.SGD([weight], 1e-6, momentum=0.9)

    @torch.compile
    def loss(features, labels):
        logits = SCALE * features.to(dtype) @ weight.T
        return F.cross_entropy(logits.float(), labels.long())

    def step(features, labels):
        features = features.detach().requires_grad_()
        loss(features, labels).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return features.grad

    return step


# PEDCC


def head_step(args, classes):
    from head_step import streamed, streamed_loss, training_step, whole

    import keras_pedcc

    scores = "dense" if args.case == "pedcc" else "blockwise"
    if args.case == "kerdock":
        head = keras_pedcc.KerdockDense(classes, scores="blockwise")
    else:
        head = keras_pedcc.CosineDense(
            classes, trainable=False, scores=scores, dtype=args.dtype
        )
    head.build((args.batch, args.dim))
    if scores == "blockwise":
        return training_step(head, streamed, streamed_loss, None)
    return training_step(head, whole, keras_pedcc.PEDCCLoss(scale=SCALE), None)


def result_of(rows, args):
    from environment import environment

    return {
        "command": f"python benchmarks/gpu_classes.py {' '.join(sys.argv[1:])}",
        "dim": args.dim,
        "batch": args.batch,
        "dtype": args.dtype,
        "rows": rows,
        "environment": environment(),
    }


if __name__ == "__main__":
    main()
