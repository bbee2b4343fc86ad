"""One training step of a classification head and its loss, PEDCC beside Dense.

    KERAS_BACKEND=tensorflow python benchmarks/head_step.py

A step is the loss, its gradients with respect to the features and to every
trainable weight, and the update of these weights by SGD with momentum 0.9, as the
paper trains; compiled on TensorFlow and JAX, eager on PyTorch. Frozen centroids
are not updated. `--no-update` leaves the update out for both.
The two heads take alternating steps in one process; the medians and their ratio are
printed as JSON.
"""

import argparse
import json
import statistics
import time

import keras
import numpy as np

import keras_pedcc


def training_step(head, loss, optimizer):
    """Returns `step(features, labels)`, compiled where the backend compiles."""
    make = {"tensorflow": _tensorflow_step, "jax": _jax_step, "torch": _torch_step}
    return make[keras.backend.backend()](head, loss, optimizer)


def _tensorflow_step(head, loss, optimizer):
    import tensorflow as tf

    @tf.function
    def step(features, labels):
        with tf.GradientTape() as tape:
            tape.watch(features)
            value = loss(labels, head(features, training=True))
        trained = [v.value for v in head.trainable_variables]
        slope, *slopes = tape.gradient(value, [features, *trained])
        if optimizer:
            optimizer.apply(slopes, head.trainable_variables)
        return value, slope, slopes

    return step


def _jax_step(head, loss, optimizer):
    import jax

    fixed = [v.value for v in head.non_trainable_variables]

    def value_of(features, trained, labels):
        outputs, _ = head.stateless_call(trained, fixed, features, training=True)
        return loss(labels, outputs)

    @jax.jit
    def compiled(features, labels, trained, state):
        value, (slope, slopes) = jax.value_and_grad(value_of, (0, 1))(
            features, trained, labels
        )
        if optimizer:
            trained, state = optimizer.stateless_apply(state, slopes, trained)
        return value, slope, slopes, trained, state

    trained = [v.value for v in head.trainable_variables]
    state = [v.value for v in optimizer.variables] if optimizer else []

    def step(features, labels):
        nonlocal trained, state
        results = compiled(features, labels, trained, state)
        *_, trained, state = jax.block_until_ready(results)

    return step


def _torch_step(head, loss, optimizer):
    def step(features, labels):
        features = features.detach().requires_grad_()
        head.zero_grad()
        loss(labels, head(features, training=True)).backward()
        if optimizer:
            slopes = [v.value.grad for v in head.trainable_variables]
            optimizer.apply(slopes, head.trainable_variables)

    return step


def compare(num_classes, batch, dim, steps, update):
    """Median seconds of both heads over alternating steps."""
    rng = np.random.default_rng(0)
    features = keras.ops.convert_to_tensor(
        rng.standard_normal((batch, dim)).astype("float32")
    )
    labels = keras.ops.convert_to_tensor(rng.integers(0, num_classes, batch), "int32")
    # The time of a step does not depend on where the centroids are.
    centroids = rng.standard_normal((num_classes, dim))
    heads = {
        "dense": keras.layers.Dense(num_classes),
        "pedcc": keras_pedcc.PEDCCDense(num_classes, centroids=centroids),
    }
    losses = {
        "dense": keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        "pedcc": keras_pedcc.PEDCCLoss(),
    }
    step = {}
    for name, head in heads.items():
        head.build((batch, dim))
        optimizer = None
        if update and head.trainable_variables:
            optimizer = keras.optimizers.SGD(1e-6, momentum=0.9)
            optimizer.build(head.trainable_variables)
        step[name] = training_step(head, losses[name], optimizer)
    seconds = alternate(step, steps, features, labels)
    median = {name: statistics.median(times) for name, times in seconds.items()}
    return {
        "num_classes": num_classes,
        "batch": batch,
        "dim": dim,
        "steps": steps,
        "update": update,
        "dense_ms": round(1e3 * median["dense"], 3),
        "pedcc_ms": round(1e3 * median["pedcc"], 3),
        "ratio": round(median["pedcc"] / median["dense"], 3),
    }


def alternate(step, steps, *args, warm_up=5):
    """Seconds of each call of each function, which take turns."""
    seconds = {name: [] for name in step}
    for _ in range(steps + warm_up):
        for name, run in step.items():
            start = time.perf_counter()
            run(*args)
            seconds[name].append(time.perf_counter() - start)
    return {name: times[warm_up:] for name, times in seconds.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--num-classes", type=int, nargs="+", default=[100, 10000])
    add("--batch", type=int, default=128)
    add("--dim", type=int, default=512)
    add("--steps", type=int, default=200)
    add("--no-update", action="store_true", help="time loss and gradients alone")
    args = parser.parse_args()
    for num_classes in args.num_classes:
        result = compare(
            num_classes, args.batch, args.dim, args.steps, not args.no_update
        )
        result["backend"] = keras.backend.backend()
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
