"""One training step of a classification head and its loss, PEDCC beside Dense.

    KERAS_BACKEND=tensorflow python benchmarks/head_step.py --result FILE

A step is the loss, its gradients with respect to the features and to every
trainable weight, and the update of these weights by SGD with momentum 0.9, as the
paper trains; compiled on TensorFlow and JAX, eager on PyTorch. Frozen centroids
are not updated. `--no-update` leaves the update out for all.
`dense` is a Dense layer with sparse cross entropy, `pedcc` a PEDCCDense with
PEDCC-Loss that gives all cosines, `streaming` one that leaves them to the loss, and
`kerdock` a KerdockDense that does, where there are classes enough; on PyTorch,
`am_softmax` is AM-Softmax with trained weights in plain functions of PyTorch, of
`peers.py`. They take alternating steps in one process; the medians and their ratios are
printed as JSON. `--policy mixed_bfloat16` is that of the layers before the heads, too:
the features come in bfloat16.
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
    add("--num-classes", type=int, nargs="+", default=[100, 1000, 10000, 50000])
    add("--batch", type=int, default=128)
    add("--dim", type=int, default=512)
    add("--steps", type=int, default=200, help="fewer of many classes")
    add("--result", type=pathlib.Path, help="JSON file to write")
    add("--no-update", action="store_true", help="time loss and gradients alone")
    add("--policy", default="float32", help="dtype policy, as mixed_bfloat16")
    return parser.parse_args(argv)


if __name__ == "__main__":
    parse_args()  # `--help` ends here, before the imports that take seconds


import keras
import numpy as np
from environment import environment
from turns import alternate

import keras_pedcc


def streamed(head, features):
    """What a head that streams leaves to the loss."""
    return head.for_loss(head(features, training=True))


def dense(head, features):
    return head(features)


def whole(head, features):
    return head(features, training=True)


def streamed_loss(labels, logits):
    return keras.ops.mean(keras_pedcc.losses.pedcc_loss(labels, logits, scale=15))


def training_step(head, forward, loss, optimizer):
    """Returns `step(features, labels)`, compiled where the backend compiles."""
    make = {"tensorflow": _tensorflow_step, "jax": _jax_step, "torch": _torch_step}
    return make[keras.backend.backend()](head, forward, loss, optimizer)


def _tensorflow_step(head, forward, loss, optimizer):
    import tensorflow as tf

    @tf.function
    def step(features, labels):
        with tf.GradientTape() as tape:
            tape.watch(features)
            value = loss(labels, forward(head, features))
        trained = [v.value for v in head.trainable_variables]
        slope, *slopes = tape.gradient(value, [features, *trained])
        if optimizer:
            optimizer.apply(slopes, head.trainable_variables)
        return value, slope, slopes

    return step


def _jax_step(head, forward, loss, optimizer):
    import jax

    variables = [*head.trainable_variables, *head.non_trainable_variables]
    fixed = [v.value for v in head.non_trainable_variables]

    def value_of(features, trained, fixed, labels):
        values = zip(variables, [*trained, *fixed], strict=True)
        with keras.StatelessScope(list(values)):
            return loss(labels, forward(head, features))

    @jax.jit
    def compiled(features, labels, trained, fixed, state):
        value, (slope, slopes) = jax.value_and_grad(value_of, (0, 1))(
            features, trained, fixed, labels
        )
        if optimizer:
            trained, state = optimizer.stateless_apply(state, slopes, trained)
        return value, slope, slopes, trained, state

    trained = [v.value for v in head.trainable_variables]
    state = [v.value for v in optimizer.variables] if optimizer else []

    def step(features, labels):
        nonlocal trained, state
        results = compiled(features, labels, trained, fixed, state)
        *_, trained, state = jax.block_until_ready(results)

    return step


def _torch_step(head, forward, loss, optimizer):
    def step(features, labels):
        features = features.detach().requires_grad_()
        head.zero_grad()
        loss(labels, forward(head, features)).backward()
        if optimizer:
            slopes = [v.value.grad for v in head.trainable_variables]
            optimizer.apply(slopes, head.trainable_variables)

    return step


def plain_peer(num_classes, dim, update):
    """`step(features, labels)` of AM-Softmax as one writes it in PyTorch."""
    import peers

    loss, weights = peers.plain(num_classes, dim)
    step = peers.training_step(loss, weights if update else [])
    return lambda features, labels: step(features.float(), labels.long())


def compare(num_classes, batch, dim, steps, update):
    """Median milliseconds of the heads over alternating steps, and their ratios."""
    rng = np.random.default_rng(0)
    features = keras.ops.convert_to_tensor(
        rng.standard_normal((batch, dim)).astype("float32"),
        keras.config.dtype_policy().compute_dtype,
    )
    labels = keras.ops.convert_to_tensor(rng.integers(0, num_classes, batch), "int32")
    # The time of a step does not depend on where the centroids are.
    centroids = rng.standard_normal((num_classes, dim), dtype="float32")
    entropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    cases = {"dense": (keras.layers.Dense(num_classes), dense, entropy)}
    given = {"centroids": centroids}
    head = keras_pedcc.PEDCCDense(num_classes, **given, scores="dense")
    cases["pedcc"] = (head, whole, keras_pedcc.PEDCCLoss())
    head = keras_pedcc.PEDCCDense(num_classes, **given, scores="blockwise")
    cases["streaming"] = (head, streamed, streamed_loss)
    if num_classes > 2 * dim:
        head = keras_pedcc.KerdockDense(num_classes, scores="blockwise")
        cases["kerdock"] = (head, streamed, streamed_loss)
    step = {}
    for name, (head, forward, loss) in cases.items():
        head.build((batch, dim))
        optimizer = None
        if update and head.trainable_variables:
            optimizer = keras.optimizers.SGD(1e-6, momentum=0.9)
            optimizer.build(head.trainable_variables)
        step[name] = training_step(head, forward, loss, optimizer)
    if keras.backend.backend() == "torch":
        step["am_softmax"] = plain_peer(num_classes, dim, update)
    seconds = alternate(step, steps, features, labels)
    median = {name: 1e3 * statistics.median(times) for name, times in seconds.items()}
    return {
        "backend": keras.backend.backend(),
        "num_classes": num_classes,
        "batch": batch,
        "dim": dim,
        "steps": steps,
        "update": update,
        "policy": keras.config.dtype_policy().name,
        "milliseconds": {name: round(value, 3) for name, value in median.items()},
        "ratio": {n: round(v / median["dense"], 3) for n, v in median.items()},
        "streams_by_itself": keras_pedcc.PEDCCDense(num_classes).streams,
    }


def main():
    args = parse_args()
    keras.config.set_dtype_policy(args.policy)
    rows = []
    for num_classes in args.num_classes:
        steps = max(10, min(args.steps, 1_000_000 // num_classes))
        rows.append(
            compare(num_classes, args.batch, args.dim, steps, not args.no_update)
        )
        print(json.dumps(rows[-1]), flush=True)
    if args.result:
        command = "python benchmarks/head_step.py " + " ".join(sys.argv[1:])
        result = {"command": command, "rows": rows, "environment": environment()}
        args.result.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
