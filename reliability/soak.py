"""Many steps on real digits with everything extreme that the contract allows.

    KERAS_BACKEND=jax python reliability/soak.py --steps 20000 --result FILE

For each dtype policy a small network is trained by `fit`, its gradients clipped to
length 1, half of the steps with frozen centroids and half with trained ones. Of the
batches every second one is spoilt: some features times a huge or tiny number or zero,
all images times 255, or divided by it (16 in float16), one image throughout with many
labels, one class alone, one sample alone. Nothing may become NaN; from the second epoch
of each half on, no function may be compiled anew and the process may grow by `--growth`
MiB at most; and the network must have learned.
"""

import argparse
import pathlib

POLICIES = ("float32", "mixed_bfloat16", "mixed_float16")


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--steps", type=int, default=20_000, help="of each policy")
    add("--policies", nargs="+", choices=POLICIES, default=list(POLICIES))
    add("--head", choices=("pedcc", "streaming", "kerdock"), default="pedcc")
    add("--growth", type=float, default=16.0, help="most MiB within eight epochs")
    add("--accuracy", type=float, default=0.85, help="least, on held-out digits")
    add("--seed", type=int, default=0)
    add("--result", type=pathlib.Path, help="JSON file to write")
    return parser.parse_args(argv)


if __name__ == "__main__":
    parse_args()  # `--help` ends here, before the imports that take seconds


import keras
import numpy as np
from recording import Record

import keras_pedcc

EPOCHS = 20  # the centroids are trained from the middle one on
KINDS = ("features", "scale", "duplicates", "one_class", "one_sample")
# What features and images are multiplied by. In float16 the network itself, before any
# head, overflows at more.
HUGE = {"float32": 1e15, "mixed_bfloat16": 1e15, "mixed_float16": 1e3}
SCALE = {"float32": 255, "mixed_bfloat16": 255, "mixed_float16": 16}


def main(argv=None):
    args = parse_args(argv)
    record = Record(
        "steps with extreme batches, in " + ", ".join(args.policies),
        "no NaN, memory flat, nothing compiled anew, and something learned",
    )
    for policy in args.policies:
        keras.utils.set_random_seed(args.seed)
        keras.mixed_precision.set_global_policy(policy)
        record.details[policy] = soak(policy, args, record)
    keras.mixed_precision.set_global_policy("float32")
    record.write(args.result)
    return len(record.failures)


def soak(policy, args, record):
    batches = Batches(policy, max(2, args.steps // EPOCHS), args.seed)
    model = make_model(args.head)
    watch = Watch()
    unfreeze = [] if args.head == "kerdock" else [keras_pedcc.FinetuneCallback(10)]
    model.fit(batches, epochs=EPOCHS, callbacks=[watch, *unfreeze], verbose=0)
    record.add(EPOCHS * len(batches))
    images, factors, labels = batches.held_out()
    features = model.predict((images, factors), verbose=0)["features"]
    centroids = model.get_layer("head").centroids
    _, nearest = keras_pedcc.nearest_classes(features, centroids)
    accuracy = np.mean(keras.ops.convert_to_numpy(nearest)[:, 0] == labels)
    judge(policy, watch, float(accuracy), args, record)
    return {
        "spoilt": batches.spoilt,
        "growth_mib": watch.growth(),
        "traces": watch.traces,
        "accuracy": round(float(accuracy), 4),
    }


def judge(policy, watch, accuracy, args, record):
    if watch.nans:
        record.fail(f"{policy}: NaN in the losses of {watch.nans} steps")
    if watch.growth() > args.growth:
        record.fail(f"{policy}: the process grows by {watch.growth()} MiB")
    for half in (watch.traces[1:10], watch.traces[11:]):
        if keras.backend.backend() != "torch" and len(set(half)) > 1:
            record.fail(f"{policy}: compiled anew, {watch.traces} traces")
    if accuracy < args.accuracy:
        record.fail(f"{policy}: accuracy {accuracy:.3f} on held-out digits")


def make_model(head):
    heads = {
        "pedcc": lambda: keras_pedcc.PEDCCDense(10, scores="dense", name="head"),
        "streaming": lambda: keras_pedcc.PEDCCDense(
            10, scores=keras_pedcc.Blockwise(4), name="head"
        ),
        "kerdock": lambda: keras_pedcc.KerdockDense(
            300, scores=keras_pedcc.Blockwise(64), name="head"
        ),
    }
    images, factors = keras.Input((8, 8, 1)), keras.Input((1,))
    x = keras.layers.Conv2D(16, 3, activation="relu")(images)
    x = keras.layers.Dense(64, activation="relu")(keras.layers.Flatten()(x))
    x = keras.layers.LayerNormalization()(x)
    x = keras.layers.Multiply()([keras.layers.Dense(32)(x), factors])
    if x.dtype == "float16":
        x = keras.ops.clip(x, -6e4, 6e4)  # infinite ones give NaN, as documented
    model = Counting((images, factors), heads[head]()(x))
    model.compile(
        keras.optimizers.SGD(0.02, momentum=0.9, global_clipnorm=1.0),
        keras_pedcc.PEDCCLoss(),
    )
    return model


class Counting(keras_pedcc.PEDCCModel):
    """Counts how often its loss is traced."""

    traces = 0

    def compute_loss(self, *args, **kwargs):
        type(self).traces += 1
        return super().compute_loss(*args, **kwargs)


class Batches(keras.utils.PyDataset):
    """Real digits, every second batch of them spoilt."""

    def __init__(self, policy, number, seed):
        super().__init__()
        from sklearn.datasets import load_digits

        digits = load_digits()
        self.images = digits.images[..., None].astype("float32") / 16
        self.labels = digits.target.astype("int32")
        self.huge, self.scale = HUGE[policy], SCALE[policy]
        self.number, self.seed = number, seed
        self.epoch, self.spoilt = 0, dict.fromkeys(KINDS, 0)

    def __len__(self):
        return self.number

    def on_epoch_end(self):
        self.epoch += 1

    def held_out(self):
        images = self.images[1500:]
        return images, np.ones((len(images), 1), "float32"), self.labels[1500:]

    def __getitem__(self, step):
        draw = np.random.default_rng((self.seed, self.epoch, step))
        chosen = draw.integers(0, 1500, 32)
        factors = np.ones((32, 1), "float32")
        kind = KINDS[step // 2 % len(KINDS)] if step % 2 else None
        if kind:
            self.spoilt[kind] += 1
        if kind == "features":
            extremes = [0.0, 1e-30, -1.0, self.huge, 1 / self.huge]
            factors[:16, 0] = draw.choice(extremes, 16)
        if kind == "one_class":
            chosen = draw.choice(np.flatnonzero(self.labels[:1500] == step % 10), 32)
        if kind == "one_sample":
            chosen, factors = chosen[:1], factors[:1]
        images, labels = self.images[chosen], self.labels[chosen]
        if kind == "scale":
            images = images * draw.choice([self.scale, 1 / self.scale])
        if kind == "duplicates":
            images = np.repeat(images[:1], 32, axis=0)
        return (images, factors), labels


class Watch(keras.callbacks.Callback):
    """Looks for NaN after each step, for memory and traces after each epoch."""

    def on_train_begin(self, logs=None):
        self.nans, self.traces, self.mib = 0, [], []
        Counting.traces = 0

    def on_train_batch_end(self, batch, logs=None):
        self.nans += not np.isfinite(logs["loss"])

    def on_epoch_end(self, epoch, logs=None):
        self.traces.append(Counting.traces)
        status = pathlib.Path("/proc/self/statm").read_text().split()
        self.mib.append(int(status[1]) * 4096 / 2**20)

    def growth(self):
        """Of the larger half, from its third epoch on, in MiB."""
        halves = self.mib[2:10], self.mib[12:]
        return round(max(half[-1] - half[0] for half in halves), 1)


if __name__ == "__main__":
    raise SystemExit(main())
