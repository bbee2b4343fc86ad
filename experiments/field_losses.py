"""Losses of others beside the package's, on handwritten characters.

    python experiments/field_losses.py --data-dir FOLDER --result FILE

Network, data and steps are those of `priors.py`, with as many training images of each
class. NTCE and NONL have their published temperature, 0.1; losses with a margin that of
the package's recipe, 0.2, and `scale="auto"`. Each run is scored once, at its end:
accuracy on all test images, and mAP@R of their features among 100 of each class.
Nothing is chosen by the test images. Runs that are in the result file are not repeated.
"""

import json
import statistics
import sys

import priors

SCORES = ("accuracy", "retrieval")


def main(argv=None):
    argv = sys.argv[1:] if argv is None else argv
    args = priors.parse_args(["--imbalance", "1", *argv])
    images, runs = priors.load(args), earlier_runs(args.result)
    done = {(each["kind"], each["seed"]) for each in runs}
    for seed in args.seeds:
        for kind, make in cases(images.num_classes).items():
            if (kind, seed) in done:
                continue
            scores = run(images, make, seed, args)
            runs.append({"kind": kind, "seed": seed, **scores})
            print(json.dumps(runs[-1]), flush=True)
            priors.save(runs, args, "field_losses.py", rows)
    for row in rows(runs):
        print(json.dumps(row), flush=True)


def earlier_runs(path):
    if path is None or not path.exists():
        return []
    return json.loads(path.read_text())["runs"]


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
            kp.CosineDense(number, sub_centers=3),
            am,
        ),
        "AdaFace": lambda: (
            kp.CosineDense(number, return_norm=True),
            kp.AdaFaceLoss(**recipe),
        ),
    }


def run(images, make, seed, args):
    """Accuracy and mAP@R on test images, in percent."""
    import keras
    import numpy as np

    import keras_pedcc

    keras.utils.set_random_seed(seed)
    inputs = keras.Input((28, 28, 1))
    head, loss = make()
    model = keras_pedcc.PEDCCModel(inputs, head(priors.network(inputs)))
    rate = keras.optimizers.schedules.CosineDecay(args.learning_rate, args.steps)
    model.compile(keras.optimizers.SGD(rate, momentum=0.9, weight_decay=5e-4), loss)
    x, y = priors.drawn(images, args.steps * args.batch_size, seed)
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


def rows(runs):
    """Mean and standard deviation over the seeds, of each loss."""
    found = []
    for kind in dict.fromkeys(each["kind"] for each in runs):
        mine, row = [each for each in runs if each["kind"] == kind], {"kind": kind}
        for name in SCORES:
            values = [each[name] for each in mine]
            deviation = statistics.stdev(values) if len(values) > 1 else None
            row[name] = {"mean": statistics.fmean(values), "deviation": deviation}
        found.append(row)
    return found


if __name__ == "__main__":
    main()
