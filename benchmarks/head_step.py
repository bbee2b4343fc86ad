"""One training step of a classification head and its loss, PEDCC beside Dense.

    KERAS_BACKEND=tensorflow python benchmarks/head_step.py

A step is the loss and its gradients with respect to the features and to every
trainable weight, compiled (TensorFlow, JAX) or eager (PyTorch). The two heads
take alternating steps in one process; the medians and their ratio are printed
as JSON. No optimizer step is timed, which favours Dense: a frozen head has none.
"""

import argparse
import json
import statistics
import time

import keras
import numpy as np

import keras_pedcc


def gradient_step(head, loss):
    """Returns `step(features, labels)`, compiled where the backend compiles."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        @tf.function
        def step(features, labels):
            with tf.GradientTape() as tape:
                tape.watch(features)
                value = loss(labels, head(features))
            sources = [features] + [v.value for v in head.trainable_variables]
            return value, tape.gradient(value, sources)

        return step
    if keras.backend.backend() == "jax":
        return _jax_step(head, loss)

    def step(features, labels):
        features = features.detach().requires_grad_()
        value = loss(labels, head(features))
        head.zero_grad()
        value.backward()
        return value

    return step


def _jax_step(head, loss):
    import jax

    fixed = [v.value for v in head.non_trainable_variables]

    def value(features, trained, labels):
        outputs, _ = head.stateless_call(trained, fixed, features)
        return loss(labels, outputs)

    compiled = jax.jit(jax.value_and_grad(value, argnums=(0, 1)))
    trained = [v.value for v in head.trainable_variables]
    return lambda features, labels: jax.block_until_ready(
        compiled(features, trained, labels)
    )


def compare(num_classes, batch, dim, steps):
    """Median seconds of both heads over alternating steps."""
    rng = np.random.default_rng(0)
    features = keras.ops.convert_to_tensor(
        rng.standard_normal((batch, dim)).astype("float32")
    )
    labels = keras.ops.convert_to_tensor(rng.integers(0, num_classes, batch), "int32")
    # The time of a step does not depend on where the centroids are.
    centroids = rng.standard_normal((num_classes, dim))
    dense = keras.layers.Dense(num_classes)
    pedcc = keras_pedcc.PEDCCDense(num_classes, centroids=centroids)
    plain_loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    for head in (dense, pedcc):
        head.build((batch, dim))
    step = {
        "dense": gradient_step(dense, plain_loss),
        "pedcc": gradient_step(pedcc, keras_pedcc.PEDCCLoss()),
    }
    seconds = {name: [] for name in step}
    for _ in range(steps + 5):
        for name, run in step.items():
            start = time.perf_counter()
            run(features, labels)
            seconds[name].append(time.perf_counter() - start)
    median = {name: statistics.median(times[5:]) for name, times in seconds.items()}
    return {
        "num_classes": num_classes,
        "batch": batch,
        "dim": dim,
        "steps": steps,
        "dense_ms": round(1e3 * median["dense"], 3),
        "pedcc_ms": round(1e3 * median["pedcc"], 3),
        "ratio": round(median["pedcc"] / median["dense"], 3),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num-classes", type=int, nargs="+", default=[100, 10000])
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--steps", type=int, default=200)
    args = parser.parse_args()
    for num_classes in args.num_classes:
        result = compare(num_classes, args.batch, args.dim, args.steps)
        result["backend"] = keras.backend.backend()
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
