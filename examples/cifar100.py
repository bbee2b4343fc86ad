"""PEDCC-Loss on photographs of 100 kinds of things: a small ResNet on CIFAR-100.

    python examples/cifar100.py                  CIFAR-100, downloaded once
    python examples/cifar100.py --data FILE.npz  x_train, y_train, x_test, y_test

The arrays are uint8 images, 32 x 32 x 3, and labels from 0. A tenth of the training
images is held out: the accuracy on it is printed after each epoch, that on the test
images once, at the end.
"""

import argparse


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--data", metavar="FILE.npz", help="in place of the download")
    heads = "cross entropy, centroids frozen at first, or trained from the start"
    add("--head", choices=("dense", "frozen", "trained"), default="trained", help=heads)
    add("--epochs", type=int, default=30)
    add("--limit", type=int, help="take only so many training images")
    add("--seed", type=int, default=0)
    add("--verbose", type=int, default=2, help="as of keras.Model.fit")
    return parser.parse_args(argv)


if __name__ == "__main__":
    parse_args()  # `--help` ends here, before the imports that take seconds


import keras
import numpy as np
from keras import layers

import keras_pedcc

NUM_CLASSES, DIM, BATCH_SIZE = 100, 128, 128


def main(argv=None):
    args = parse_args(argv)
    keras.utils.set_random_seed(args.seed)
    train, held_out, test = load_parts(args)
    model, loss = build_model(args.head)
    steps = args.epochs * -(-len(train[0]) // BATCH_SIZE)
    rate = keras.optimizers.schedules.CosineDecay(0.05, steps)
    optimizer = keras.optimizers.SGD(rate, momentum=0.9, weight_decay=5e-4)
    model.compile(optimizer, loss, metrics=["accuracy"])
    # Lets frozen centroids follow the features in the last third of the epochs.
    finetune = keras_pedcc.FinetuneCallback(epoch=2 * args.epochs // 3)
    model.fit(
        *train,
        batch_size=BATCH_SIZE,
        epochs=args.epochs,
        validation_data=held_out,
        callbacks=[finetune] if args.head == "frozen" else [],
        verbose=args.verbose,
    )
    scores = model.evaluate(*test, BATCH_SIZE, verbose=0, return_dict=True)
    right = f"{100 * scores['accuracy']:.2f} % of {len(test[0]):,} test images"
    print(f"Head {args.head}, seed {args.seed}: {right} are recognised.")
    print("Next: --head dense, frozen, trained; compare the held-out accuracy.")


def load_parts(args):
    """Training, held-out and test part, each `(images, labels)`."""
    (images, labels), test = read_npz(args.data) if args.data else download()
    order = np.random.default_rng(args.seed).permutation(len(images))[: args.limit]
    held_out, train = np.split(order, [len(order) // 10])
    return (images[train], labels[train]), (images[held_out], labels[held_out]), test


def read_npz(path):
    with np.load(path) as file:
        return [(file[f"x_{part}"], file[f"y_{part}"]) for part in ("train", "test")]


def download():
    import tensorflow as tf
    import tensorflow_datasets as tfds

    if keras.backend.backend() != "tensorflow":
        tf.config.set_visible_devices([], "GPU")  # leaves their memory to Keras
    options = {"split": ["train", "test"], "batch_size": -1, "as_supervised": True}
    return tfds.as_numpy(tfds.load("cifar100", **options))


def build_model(head):
    """The model, pixels in and logits out, and the loss that its head needs."""
    inputs = keras.Input((32, 32, 3))
    x = layers.Rescaling(1 / 64, offset=-2)(inputs)
    # Mirrors each image or not, and shifts it by up to four pixels, in training only.
    x = layers.RandomFlip("horizontal")(x)
    x = layers.RandomTranslation(1 / 8, 1 / 8, "constant", interpolation="nearest")(x)
    x = layers.ReLU()(convolution(x, 32))
    for filters, strides in ((32, 1), (32, 1), (64, 2), (64, 1), (128, 2), (128, 1)):
        x = residual_block(x, filters, strides)
    x = layers.GlobalAveragePooling2D()(x)
    # A bias or a scale here would pull the features off the predefined directions.
    x = layers.Dense(DIM, use_bias=False)(x)
    x = layers.BatchNormalization(momentum=0.9, center=False, scale=False)(x)
    if head == "dense":
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        return keras.Model(inputs, layers.Dense(NUM_CLASSES)(x)), loss
    layer, loss = keras_pedcc.recipe(head, NUM_CLASSES)
    return keras_pedcc.PEDCCModel(inputs, layer(x)), loss


def residual_block(x, filters, strides):
    y = convolution(layers.ReLU()(convolution(x, filters, strides)), filters)
    if strides > 1:
        x = convolution(layers.AveragePooling2D(strides)(x), filters, size=1)
    return layers.ReLU()(x + y)


def convolution(x, filters, strides=1, size=3):
    x = layers.Conv2D(filters, size, strides, padding="same", use_bias=False)(x)
    return layers.BatchNormalization(momentum=0.9)(x)


if __name__ == "__main__":
    main()
