"""Losses of others beside the package's, on handwritten characters.

    python experiments/field_losses.py --data-dir FOLDER --result FILE

Network, data and steps are those of `priors.py`, with as many training images of each
class. NTCE and NONL have their published temperature, 0.1; losses with a margin that of
the package's recipe, 0.2, and `scale="auto"`.

Each loss has the learning rate of highest accuracy on held-out training images, 100 of
each class; more rates are tried while the best is at an end. Then it is scored once for
each seed: accuracy on all test images, and mAP@R of their features among 100 of each
class. Runs that are in the result file are not repeated.
"""

import argparse
import functools
import pathlib


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--data-dir", type=pathlib.Path, help="folder with EMNIST")
    add("--result", type=pathlib.Path, required=True, help="JSON file to write")
    add("--kinds", nargs="+", help="losses, if not all")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2])
    add("--trial-seed", type=int, default=100)
    add("--most", type=int, default=500, help="training images of each class")
    add("--steps", type=int, default=600)
    add("--batch-size", type=int, default=128)
    parser.set_defaults(imbalance=1)  # of `priors.py`
    return parser.parse_args(argv)


if __name__ == "__main__":
    parse_args()  # `--help` ends here, before the imports that take seconds


import feature_heads
import few_images
import priors
from feature_kinds import BASELINE

SCORES = ("accuracy", "retrieval")
HELD_OUT = 100  # images per class
LADDER = (0.002, 0.005, 0.015, 0.05, 0.15, 0.5, 1.5)
FIRST_TRIED = LADDER[2:5]


def main(argv=None):
    args = parse_args(argv)
    images, trial = priors.load(args), priors.load(args, HELD_OUT)
    made = cases(images.num_classes)
    record = feature_heads.Record("field_losses", args, summary)
    for kind in args.kinds or made:
        rate = chosen_rate(kind, made[kind], trial, record, args)
        for seed in args.seeds:
            key = {"scored": "test", "kind": kind, "seed": seed, "rate": rate}
            record.once(key, functools.partial(run, images, made[kind], key, args))
    record.write()
    print(table(summary(record.runs)))


def chosen_rate(kind, make, trial, record, args):
    """The learning rate of highest accuracy on the held-out images."""

    def score(rate):
        key = {"scored": "held out", "kind": kind, "seed": args.trial_seed}
        key["rate"] = rate
        found = record.once(key, functools.partial(run, trial, make, key, args))
        return found["accuracy"]

    return few_images.best_rate(score, LADDER, FIRST_TRIED)


def cases(number):
    """Functions that make a head and its loss, by name."""
    import keras

    import keras_pedcc as kp

    entropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    recipe = {"scale": "auto", "margin": 0.2}
    pedcc, am = kp.PEDCCLoss(**recipe, mse_weight=3.0), kp.AMSoftmaxLoss(**recipe)
    return {
        "cross entropy": lambda: (kp.ProductDense(number), entropy),
        "frozen": lambda: (kp.PEDCCDense(number), pedcc),
        "trained": lambda: (kp.PEDCCDense(number, trainable=True), pedcc),
        "frozen, free norm, radius 0.5": lambda: (
            kp.PEDCCProductDense(number, radius=0.5),
            entropy,
        ),
        "NTCE": lambda: (kp.CosineDense(number), kp.NTCELoss()),
        "NONL": lambda: (kp.CosineDense(number), kp.NONLLoss()),
        "AM-Softmax": lambda: (kp.CosineDense(number), am),
        "AM-Softmax, 3 sub-centres": lambda: (
            kp.SubCenterDense(number),
            am,
        ),
        "AdaFace": lambda: (
            kp.CosineDense(number, return_norm=True),
            kp.AdaFaceLoss(**recipe),
        ),
    }


def run(images, make, key, args):
    """Accuracy and mAP@R on test images, in percent."""
    import keras
    import numpy as np

    import keras_pedcc

    keras.utils.set_random_seed(key["seed"])
    inputs = keras.Input((28, 28, 1))
    head, loss = make()
    model = keras_pedcc.PEDCCModel(inputs, head(priors.network(inputs)))
    rate = keras.optimizers.schedules.CosineDecay(key["rate"], args.steps)
    model.compile(keras.optimizers.SGD(rate, momentum=0.9, weight_decay=5e-4), loss)
    x, y = priors.drawn(images, args.steps * args.batch_size, key["seed"])
    model.fit(x, y, batch_size=args.batch_size, shuffle=False, verbose=0)
    outputs = model.predict(images.x_test, batch_size=1000, verbose=0)
    right = outputs["logits"].argmax(axis=1) == images.y_test
    some = [np.flatnonzero(images.y_test == k)[:100] for k in range(images.num_classes)]
    some = np.concatenate(some)
    report = keras_pedcc.retrieval_report(
        outputs["features"][some], images.y_test[some], k=1
    )
    retrieval = report["mean_average_precision_at_r"]
    return {"accuracy": 100 * float(np.mean(right)), "retrieval": 100 * retrieval}


def summary(runs):
    """Each score of each loss beside cross entropy's, which is the first row."""
    tested = [run for run in runs if run["scored"] == "test"]
    rows = {run["kind"]: {"kind": run["kind"], "rate": run["rate"]} for run in tested}
    for name in SCORES:
        values = feature_heads.grouped(tested, ("kind",), name)
        for (kind,), own in values.items():
            found = feature_heads.spread(list(own.values()))
            baseline = values.get((BASELINE,), {})
            found["minus_cross_entropy"] = feature_heads.paired(own, baseline)
            rows[kind][name] = found
    return {"rows": sorted(rows.values(), key=_place)}


def _place(row):
    return row["kind"] != BASELINE, -row["accuracy"]["mean"]


def table(found):
    """Markdown: a row for each loss."""
    head = ["loss", "learning rate", "accuracy", "mAP@R"]
    lines = [
        [row["kind"], f"{row['rate']:g}"]
        + [feature_heads.compared(row[name]) for name in SCORES]
        for row in found["rows"]
    ]
    return feature_heads.markdown(head, lines)


if __name__ == "__main__":
    main()
