"""A gallery that is kept: enrol, identify, refuse strangers, replace the network.

    pip install "keras-pedcc[gallery]"
    python examples/gallery.py                      all of the following, two minutes
    python examples/gallery.py train enrol          an old network, and its embeddings
    python examples/gallery.py identify             who is it, or a stranger?
    python examples/gallery.py upgrade              a new network, trained by itself
    python examples/gallery.py identify --network new               in the old index
    python examples/gallery.py remove --classes 3

The images are scikit-learn's digits, or `--data FILE.npz` with `images` and `labels`.
The last fifth of the classes are strangers: neither trained on nor enrolled. The old
network is trained on three quarters of the others, the new one on all of them. Of their
images half are for training, a quarter is enrolled, a quarter is asked for.

The gallery is a folder, or `--store postgresql://USER@HOST/DATABASE`, and holds the
fingerprint of its centroids: a network with others is refused, and nothing is written.
"""

import argparse
import pathlib

WIDTHS = {"old": 8, "new": 24}
HEADS = ("frozen", "trained", "dense")
STEPS = ("train", "enrol", "identify", "upgrade", "remove")


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("steps", nargs="*", help=f"of {', '.join(STEPS)}; all but the last if left out")
    add("--data", metavar="FILE.npz", help="in place of the digits")
    add("--output-dir", type=pathlib.Path, default=pathlib.Path("runs/gallery"))
    add("--store", help="folder or postgresql:// address; in the output folder if none")
    add("--network", choices=WIDTHS, default="old", help="that enrols or identifies")
    add("--classes", nargs="+", default=[], help="to be enrolled or removed")
    add("--false-alarms", type=float, default=0.05, help="share of strangers let in")
    add("--heads", choices=HEADS, nargs="+", default=HEADS, help="to be compared")
    add("--epochs", type=int, default=15)
    add("--verbose", type=int, default=1, help="Keras: 0 silent, 1 bars, 2 lines")
    args = parser.parse_args(argv)
    if not set(args.steps) <= set(STEPS):
        parser.error(f"steps must be of {', '.join(STEPS)}")
    args.store = args.store or str(args.output_dir / "store")
    return args


if __name__ == "__main__":
    parse_args()  # `--help` ends here, before the imports that take seconds


import keras
import numpy as np
from gallery_store import open_store
from keras import layers

import keras_pedcc

DIM, CHUNK, BATCH_SIZE = 64, 256, 64
SEEDS = {"old": 0, "new": 1}  # of all but the centroids


def main(argv=None):
    args = parse_args(argv)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    data = load_data(args.data)
    steps = (train, enrol, identify, upgrade, remove)
    named = dict(zip(STEPS, steps, strict=True))
    for step in args.steps:
        named[step](args, data)
    if not args.steps:
        run_all(args, data)


def run_all(args, data):
    for step in (train, enrol, identify, upgrade):
        step(args, data)
    args.network = "new"
    identify(args, data)
    args.classes = sorted(set(data["enrol"][1]) - set(data["names"][: data["known"]]))
    print(f"The old network never saw {', '.join(args.classes)}: enrolled anew.")
    enrol(args, data)
    identify(args, data)


def train(args, data):
    """Trains the old network and keeps its embedder."""
    print(f"The old network is trained on {data['known']} of the classes.")
    trained("frozen", "old", args, data).save(args.output_dir / "old.keras")


def enrol(args, data):
    """Puts embeddings into the store, in place of those of the same images."""
    embed = keras_pedcc.load_model(args.output_dir / f"{args.network}.keras")
    store = open_store(args.store, embed, create=True)
    images, labels = data["enrol"]
    which = np.flatnonzero(np.isin(labels, args.classes or labels))
    bar = keras.utils.Progbar(len(which), verbose=args.verbose, unit_name="image")
    for start in range(0, len(which), CHUNK):
        part = which[start : start + CHUNK]
        features = keras_pedcc.embed(embed, images[part])
        store.add(part.astype(str), labels[part], features)
        bar.add(len(part))
    print(f"The {args.network} network has enrolled {len(which)} images.")


def identify(args, data):
    """Asks for images of enrolled classes, and for strangers."""
    embed = keras_pedcc.load_model(args.output_dir / f"{args.network}.keras")
    store = open_store(args.store, embed)
    # One half of the strangers sets the threshold, the other one tests it.
    _, cosines = search(store, embed, data["strangers"][0][::2], args)
    threshold = np.quantile(cosines, 1 - args.false_alarms, method="higher")
    _, cosines = search(store, embed, data["strangers"][0][1::2], args)
    alarms = np.mean(cosines > threshold)
    images, labels = data["query"]
    found, cosines = search(store, embed, images, args)
    taken, right = cosines > threshold, found == labels
    known = np.isin(labels, data["names"][: data["known"]])
    print(f"The {args.network} network asks the gallery; threshold {threshold:.3f}:")
    for name, which in (("classes that the old one knows", known), ("others", ~known)):
        shares = [np.mean(each[which]) for each in (taken & right, taken & ~right)]
        print(f"  {name}: {shares[0]:.1%} identified, {shares[1]:.1%} wrongly")
    print(f"  strangers let in: {alarms:.1%}, asked for {args.false_alarms:.1%}")


def search(store, embed, images, args):
    """Label and cosine of the nearest enrolled image, for each image."""
    bar = keras.utils.Progbar(len(images), verbose=args.verbose, unit_name="image")
    found = []
    for [(_, label, cosine)] in store.nearest(keras_pedcc.embed(embed, images)):
        found.append((label, cosine))
        bar.add(1)
    return map(np.array, zip(*found, strict=True))


def upgrade(args, data):
    """Trains the new network; compares new in old, with trained heads as controls."""
    print("Right nearest neighbours:   old in old   new in old   new in new")
    for head in args.heads:
        old, new = (trained(head, name, args, data) for name in ("old", "new"))
        if head == "frozen":
            new.save(args.output_dir / "new.keras")
        parts = {
            f"{name}{gallery}": keras_pedcc.embed(network, data[part][0])
            for name, network in (("old", old), ("new", new))
            for part, gallery in (("query", ""), ("enrol", "_gallery"))
        }
        report = keras_pedcc.compatibility_report(
            **parts,
            labels=data["query"][1],
            gallery_labels=data["enrol"][1],
            known=data["names"][: data["known"]],
            k=1,
        )
        for kind in ("known", "unseen"):
            names = ("old_in_old", "new_in_old", "new_in_new")
            shares = [report[kind][name]["recall_at_1"] for name in names]
            cells = "".join(f"{share:13.1%}" for share in shares)
            print(f"{head + ', ' + kind + ' classes':25}{cells}")


def remove(args, data):
    """Takes classes out of the gallery."""
    embed = keras_pedcc.load_model(args.output_dir / f"{args.network}.keras")
    store = open_store(args.store, embed)
    for label in args.classes:
        store.remove(label)
    print(f"{store.count()} images are left in the gallery.")


def trained(head, name, args, data):
    """The embedder of a network that was trained by itself, from its own seed."""
    keras.utils.set_random_seed(SEEDS[name])
    images, labels = data["train"]
    labels = np.searchsorted(data["names"], labels)
    if name == "old":
        which = labels < data["known"]
        images, labels = images[which], labels[which]
    inputs, features = backbone(images.shape[1:], WIDTHS[name])
    # Frozen: one seed, method, number of classes and dim give the same centroids. There
    # may be spare ones, for classes that come later.
    number = len(data["names"])
    if head == "dense":
        model = keras.Model(inputs, layers.Dense(number)(features))
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    else:
        layer, loss = keras_pedcc.recipe(head, number)
        model = keras_pedcc.PEDCCModel(inputs, layer(features))
    steps = args.epochs * -(-len(images) // BATCH_SIZE)
    rate = keras.optimizers.schedules.CosineDecay(0.05, steps)
    model.compile(keras.optimizers.SGD(rate, momentum=0.9, weight_decay=5e-4), loss)
    model.fit(images, labels, BATCH_SIZE, args.epochs, verbose=args.verbose)
    if head == "dense":
        model = keras.Model(inputs, {"features": features})
    return keras_pedcc.embedder(model)


def backbone(shape, width):
    """Two convolutions and the features, as input and output tensors."""
    inputs = x = keras.Input(shape)
    for filters, strides in ((width, 1), (2 * width, 2)):
        x = layers.Conv2D(filters, 3, strides, padding="same", use_bias=False)(x)
        x = layers.BatchNormalization(momentum=0.9)(x)
        x = layers.ReLU()(x)
    x = layers.Dense(DIM, use_bias=False)(layers.Flatten()(x))
    return inputs, layers.BatchNormalization(momentum=0.9, center=False, scale=False)(x)


def load_data(path):
    """Images in [0, 1] and labels by what they are for, and the names of classes."""
    if path is None:
        from sklearn.datasets import load_digits

        file = dict(
            zip(("images", "labels"), load_digits(return_X_y=True), strict=True)
        )
        file["images"] = file["images"].reshape(-1, 8, 8, 1)
    else:
        file = np.load(path)
    order = np.random.default_rng(0).permutation(len(file["labels"]))
    images, labels = file["images"][order], file["labels"][order].astype(str)
    images = (images.reshape(*images.shape[:3], -1) / images.max()).astype("float32")
    names = np.unique(labels)
    known = names[: len(names) - max(1, len(names) // 5)]
    place = np.zeros(len(labels), int)  # of each image among those of its class
    for name in names:
        place[labels == name] = np.arange(np.sum(labels == name)) % 4
    enrolled = np.isin(labels, known)
    parts = {"train": place < 2, "enrol": place == 2, "query": place == 3}
    parts = {name: which & enrolled for name, which in parts.items()}
    parts["strangers"] = ~enrolled
    data = {name: (images[which], labels[which]) for name, which in parts.items()}
    return {**data, "names": names, "known": 3 * len(known) // 4}


if __name__ == "__main__":
    main()
