"""Memory of a training step on each of several devices, measured and on paper.

    KERAS_BACKEND=jax python benchmarks/class_parallel.py --devices 4

The devices are parts of the CPU, made by XLA for the purpose. Measured are the bytes of
the centroids on a device, from the array itself, and what XLA plans for the compiled
step on a device: its arguments, and beside them its temporary arrays.
"""

import argparse
import json
import os

# Arrays of the size of a block of cosines, of a block of centroids, of the features,
# and of a device's centroids where these are trained, that a step holds at once.
COSINES, ROWS, FEATURES, GRADIENTS = 3, 1, 6, 1


def main(argv=None):
    args = parse_args(argv)
    flags = f" --xla_force_host_platform_device_count={args.devices}"
    os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + flags
    for dtype, trained in (("float32", False), ("bfloat16", False), ("float32", True)):
        print(json.dumps(measure(args, dtype, trained)), flush=True)


def on_paper(args, dtype, trained):
    """Bytes on each device: of the centroids, and beside them."""
    bytes_of = {"float32": 4, "bfloat16": 2}[dtype]
    elements = args.classes * args.dim // args.devices
    block = min(args.block_size, args.classes // args.devices)
    beside = block * (COSINES * args.batch_size + ROWS * args.dim)
    beside += FEATURES * args.batch_size * args.dim
    beside += GRADIENTS * elements * trained
    return bytes_of * elements, 4 * beside


def measure(args, dtype, trained):
    import keras

    import keras_pedcc

    keras.distribution.set_distribution(keras_pedcc.class_parallel())
    model = make_model(args, dtype, trained)
    centroids = model.layers[-1].centroids.value.addressable_shards
    memory = compiled_step(model, *samples(args)).memory_analysis()
    paper = on_paper(args, dtype, trained)
    return {
        "dtype": dtype,
        "trained": trained,
        "centroids_mib": max(part.data.nbytes for part in centroids) / 2**20,
        "centroids_on_paper_mib": paper[0] / 2**20,
        "arguments_mib": memory.argument_size_in_bytes / 2**20,
        "temporary_mib": memory.temp_size_in_bytes / 2**20,
        "temporary_on_paper_mib": paper[1] / 2**20,
    }


def make_model(args, dtype, trained):
    import keras

    import keras_pedcc

    inputs = keras.Input((args.dim,))
    head = keras_pedcc.PEDCCDense(
        args.classes,
        centroids="random",
        scores=keras_pedcc.Blockwise(args.block_size),
        dtype=dtype,
        trainable=trained,
    )
    model = keras_pedcc.PEDCCModel(inputs, head(keras.layers.Dense(args.dim)(inputs)))
    loss = keras_pedcc.PEDCCLoss("auto")
    model.compile(keras.optimizers.SGD(0.01), loss, metrics=["accuracy"])
    return model


def samples(args):
    """A batch of random features and labels."""
    import numpy as np

    draw = np.random.default_rng(0)
    features = draw.normal(size=(args.batch_size, args.dim)).astype("float32")
    return features, draw.integers(0, args.classes, args.batch_size).astype("int32")


def compiled_step(model, x, y):
    """The training step as XLA compiles it, on Keras' placement of all variables."""
    import jax
    import keras

    model.fit(x, y, batch_size=len(y), verbose=0)  # builds what Keras builds late
    layout = keras.distribution.distribution().get_data_layout
    place = keras.distribution.distribute_tensor
    data = (place(x, layout(x.shape)), place(y, layout(y.shape)), None)
    variables = (
        model.trainable_variables,
        model.non_trainable_variables,
        model.optimizer.variables,
        model.metrics_variables,
    )
    state = tuple([v.value for v in each] for each in variables)
    placed = (None, tuple([v.value.sharding for v in each] for each in variables))
    step = jax.jit(model.train_step, donate_argnums=0, out_shardings=placed)
    return step.lower(state, data).compile()


def parse_args(argv):
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    for name, value in {
        "devices": 4,
        "classes": 2**18,
        "dim": 128,
        "batch-size": 256,
        "block-size": 4096,
    }.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args(argv)
    if min(vars(args).values()) < 1 or args.classes % args.devices:
        parser.error("the numbers must be positive, and --devices divide --classes")
    return args


if __name__ == "__main__":
    main()
