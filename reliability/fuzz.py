"""Random cases of every loss: value, NaN, invariances, gradient, parts, blocks.

    KERAS_BACKEND=torch python reliability/fuzz.py --examples 100000 --result FILE

Hypothesis draws the loss, shapes, dtypes, form of the labels, scale, margins, root,
weights and the place of the features (see `fuzz_cases.py`), NumPy the numbers. Each
property has its share of the examples. What fails is shrunk, and is in the result.
"""

import argparse
import warnings


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--examples", type=int, default=2_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", help="names of properties")
    parser.add_argument("--result", help="JSON file for what was tried")
    return parser.parse_args(argv)


if __name__ == "__main__":
    parse_args()  # `--help` ends here, before the imports that take seconds


import fuzz_cases
import hypothesis
import keras
import numpy as np
from fuzz_cases import COSINE, Arrays, cases, labels_of, loss_of, outputs_of, twin_of
from fuzz_streaming import kerdock, sampled, streamed
from keras import ops
from recording import Record

from keras_pedcc import CosineDense, losses
from keras_pedcc.common.vectors import cosines, unit_vectors

from tensors import gradient_of, numpy_of  # isort: skip  # of the tests

CHUNK = 2_000  # examples; hypothesis remembers all of a run and slows down
# How many roundings of its largest exponent a loss may be off; 1.5 were seen.
ROUNDINGS = 4
SHRINKS = True  # whether a case that fails is made simpler
SIMPLER = (hypothesis.Phase.shrink, hypothesis.Phase.explain)
CLASSES = {
    "pedcc": losses.PEDCCLoss,
    "am_softmax": losses.AMSoftmaxLoss,
    "arcface": losses.ArcFaceLoss,
    "a_softmax": losses.ASoftmaxLoss,
    "l_softmax": losses.LSoftmaxLoss,
    "hinge": losses.HingeLoss,
}
worst = {}  # largest error of each loss and dtype, in such roundings
heads = {}  # of each size


def value(case):
    """The loss is that of the twin, finite, and not negative."""
    arrays = Arrays(case)
    loss, twin = loss_of(case, arrays), twin_of(case, arrays)
    assert loss.shape == (case.batch,)
    if arrays.dtype != "float64" or keras.backend.backend() != "jax":
        assert loss.dtype == ("float64" if arrays.dtype == "float64" else "float32")
    assert np.isfinite(loss).all()
    assert (loss >= 0).all(), loss
    close(case, arrays, loss, twin)


def close(case, arrays, loss, twin):
    error = np.abs(loss - twin) / fuzz_cases.rounding_of(case, arrays, twin)
    name = f"{case.loss}, {arrays.dtype}"
    worst[name] = max(worst.get(name, 0.0), float(error.max()))
    assert error.max() <= ROUNDINGS, (loss, twin)


def invalid(case):
    """A label that is none, or a logit of NaN, makes its own loss NaN alone."""
    arrays = Arrays(case)
    row = case.seed % case.batch
    labels, outputs = labels_of(case, arrays), outputs_of(case, arrays)
    expected = loss_of(case, arrays, labels, outputs)
    labels, outputs = spoiled(case, labels, outputs, row)
    loss = loss_of(case, arrays, labels, outputs)
    expected[row] = np.nan
    distance = numpy_of(losses.centroid_distance(labels, outputs))
    if case.loss == "pedcc" and case.root > 1 and np.isnan(distance).any():
        expected[:] = np.nan  # the mean of the batch is in each
    np.testing.assert_array_equal(loss, expected)


def spoiled(case, labels, outputs, row):
    """With one label that is no class or distribution, or one logit of NaN."""
    if case.seed % 3 == 0 and case.loss != "distance":
        logits = outputs["logits"] if isinstance(outputs, dict) else outputs
        logits[row, case.seed % case.num_classes] = np.nan
        return labels, outputs
    number = case.num_classes
    if case.form in ("one_hot", "soft"):
        labels = labels.astype("float32")
        ways = (2 * labels[row], labels[row] - np.eye(number)[0] + np.eye(number)[1])
        ways = (*ways, np.nan * labels[row], 0 * labels[row])
        labels[row] = ways[case.seed % 4]
        labels[row, 0] -= 2 * (case.seed % 4 == 1)  # negative for certain
        return labels, outputs
    wrong = {"u": (255, number), "i": (-1, number, 2**31 - 1)}
    numbers = wrong.get(labels.dtype.kind, (-1, number, np.nan, 0.5, 1e30, -np.inf))
    numbers = (*numbers, 2**32) if labels.dtype == "int64" else numbers
    labels[row] = numbers[case.seed % len(numbers)]
    return labels, outputs


def order(case):
    """Neither the order of the classes nor that of the samples changes a loss."""
    arrays = Arrays(case)
    labels, outputs = labels_of(case, arrays), outputs_of(case, arrays)
    before = loss_of(case, arrays, labels, outputs)
    samples = arrays.rng.permutation(case.batch)
    classes = arrays.rng.permutation(case.num_classes)
    moved = Arrays(case)
    if isinstance(moved.margin, np.ndarray):
        moved.margin = moved.margin[classes]
    if case.weighted:
        moved.weights = moved.weights[samples]
    labels, outputs = in_order(case, labels, outputs, samples, classes)
    after = loss_of(case, moved, labels, outputs)
    close(case, arrays, after[np.argsort(samples)], before.astype("float64"))


def in_order(case, labels, outputs, samples, classes):
    """Labels and outputs with their samples and classes in another order."""
    if not isinstance(outputs, dict):
        outputs = outputs[samples][:, classes]
    else:
        outputs = {
            name: each[samples][:, classes]
            if each.shape[1:] == (case.num_classes,) and name != "features"
            else each[samples]
            for name, each in outputs.items()
        }
    if case.form in ("one_hot", "soft"):
        return labels[samples][:, classes], outputs
    places = np.argsort(classes)[labels[samples].astype(int)]
    return places.astype(labels.dtype), outputs


def turned(case):
    """Turning features and centroids, or their length, changes no loss."""
    arrays = Arrays(case)
    turn = np.linalg.qr(arrays.rng.standard_normal((case.dim, case.dim)))[0]
    lengths = 10 ** arrays.rng.uniform(-3, 3, case.batch + case.num_classes)[:, None]
    features = lengths[: case.batch] * arrays.features
    before = loss_of(case, arrays, None, head_of(arrays.features, arrays.centroids))
    turned = head_of(features @ turn, lengths[case.batch :] * arrays.centroids @ turn)
    after = loss_of(case, arrays, None, turned)
    # Next to the centroid the loss falls as an angle, or as the root of a distance.
    degree = {"arcface": 2, "pedcc": case.root}.get(case.loss, 1)
    slack = 10 * COSINE ** (1 / degree) * (1 + case.scale + case.weight)
    np.testing.assert_allclose(after, before, rtol=50 * COSINE, atol=slack)


def head_of(features, centroids):
    """The outputs of a head of these centroids, in float64."""
    key = centroids.shape
    if key not in heads:
        heads[key] = CosineDense(key[0], dtype="float64")
        heads[key].build((None, key[1]))
    heads[key].centroids.assign(centroids)
    return heads[key](ops.convert_to_tensor(features))


def extreme(case):
    """Features of any length and dtype have a finite loss and a finite gradient."""
    arrays = Arrays(case)
    largest = 4.0 if case.dtype == "float16" else 18.0
    lengths = 10 ** arrays.rng.uniform(-30, largest, (case.batch, 1))
    dtype = "float32" if case.dtype == "float64" else case.dtype
    features = (lengths * arrays.features).astype(dtype)
    centroids = ops.convert_to_tensor(arrays.centroids.astype("float32"))
    labels, options = labels_of(case, arrays), fuzz_cases.options_of(case, arrays)

    def loss(features):
        units = unit_vectors(ops.cast(features, "float32"))
        logits = cosines(units, centroids)
        return fuzz_cases.function_of(case)(labels, logits, **options)

    assert np.isfinite(numpy_of(loss(ops.convert_to_tensor(features)))).all()
    slope = gradient_of(loss, features.astype("float32"))
    # The length of a short row is not seen, its gradient is up to 1e6 a unit.
    assert np.isfinite(slope).all()


def gradient(case):
    """The gradient over the logits is the slope of the twin."""
    arrays = Arrays(case)
    arrays.dtype = "float64"
    arrays.cosines = 0.99 * arrays.rng.uniform(-1, 1, arrays.cosines.shape)
    direction = arrays.rng.standard_normal(arrays.cosines.shape)
    options = fuzz_cases.options_of(case, arrays)
    labels, outputs = labels_of(case, arrays), outputs_of(case, arrays)
    outputs = outputs if isinstance(outputs, dict) else {"logits": outputs}
    # Of a logit that is the cosine times a factor.
    factor = outputs["logits"] / arrays.cosines

    def loss(logits):
        given = {"features": logits, **outputs, "logits": logits}
        return fuzz_cases.function_of(case)(labels, given, **options)

    slope = np.sum(gradient_of(loss, outputs["logits"]) * factor * direction)
    expected, slack = slope_of_twin(case, arrays, direction)
    assert abs(slope - expected) <= slack, (slope, expected, slack)


def slope_of_twin(case, arrays, direction):
    """Along a direction, and by how much it may be off."""
    rate = case.scale + case.weight
    if case.loss in ("a_softmax", "l_softmax"):
        rate = case.scale * case.multiple**2
    step = 1e-4 / (1 + rate)
    low, here, high = (
        np.sum(twin_of(case, arrays, arrays.cosines + way * step * direction))
        for way in (-1, 0, 1)
    )
    # Where a slope changes within the step, it is off by as much as it changes.
    change = abs(high - 2 * here + low) / step
    return (high - low) / (2 * step), change + 1e-6 * (1 + rate) * case.batch


def parts(case):
    """The sum of a batch is that of its parts."""
    arrays = Arrays(case)
    loss = loss_object(case, arrays)
    labels, outputs = labels_of(case, arrays), outputs_of(case, arrays)

    def total(rows):
        given = (
            {name: each[rows] for name, each in outputs.items()}
            if isinstance(outputs, dict)
            else outputs[rows]
        )
        weights = None if arrays.weights is None else arrays.weights[rows]
        return float(loss(labels[rows], given, sample_weight=weights))

    rows = np.arange(case.batch)
    whole = total(rows)
    number = min(case.parts, case.batch)
    summed = sum(total(part) for part in np.array_split(rows, number))
    np.testing.assert_allclose(summed, whole, rtol=2e-6, atol=1e-6 * case.scale)


def loss_object(case, arrays):
    kwargs = {"reduction": "sum", "dtype": "float32"}
    if case.loss in ("a_softmax", "l_softmax"):
        constant = {"annealing_base": case.annealing, "annealing_least": case.annealing}
        return CLASSES[case.loss](case.multiple, **constant, **kwargs)
    if case.loss == "hinge":
        return losses.HingeLoss(arrays.margin, **kwargs)
    if case.loss == "pedcc":
        kwargs["mse_weight"] = case.weight
    return CLASSES[case.loss](case.scale, arrays.margin, **kwargs)


OF_LOGITS = (*fuzz_cases.OF_COSINES, "hinge", "distance")
# The cases of each property, and its share of the examples in percent.
PROPERTIES = {
    value: (cases(), 25),
    invalid: (cases(), 15),
    order: (cases(), 15),
    turned: (cases(OF_LOGITS), 8),
    extreme: (cases(OF_LOGITS), 8),
    gradient: (cases(), 10),
    parts: (cases(tuple(CLASSES)), 8),
    streamed: (cases((*fuzz_cases.OF_COSINES, "distance")), 4),
    kerdock: (cases((*fuzz_cases.OF_COSINES, "distance")), 2),
    sampled: (cases(fuzz_cases.OF_COSINES), 5),
}


def try_chunk(record, name, strategy, examples, seed):
    """Runs one property on so many examples; a failure ends its chunk."""

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=examples,
        database=None,
        deadline=None,
        phases=[each for each in hypothesis.Phase if SHRINKS or each not in SIMPLER],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(strategy)
    def run(case):
        record.add()
        name(case)

    try:
        run()
    except Exception as error:
        notes = " ".join(getattr(error, "__notes__", []))
        record.fail(f"{name.__name__}: {error!r} {notes}"[:1500])


def main(arguments=None):
    options = parse_args(arguments)
    record = Record(
        "losses on random cases",
        "value of the float64 twin, the documented NaN, invariances, gradients",
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a scale that is small for the classes
        for number, name in enumerate(PROPERTIES):
            if name.__name__ in (options.only or [name.__name__]):
                try_property(record, name, options, number)
    record.details["largest error in roundings"] = worst
    record.write(options.result)
    return record


def try_property(record, name, options, number):
    """Its share of the examples, by chunks; at least one."""
    before, (strategy, share) = record.tried, PROPERTIES[name]
    left = -(-options.examples * share // 100)
    for chunk in range(-(-left // CHUNK)):
        examples = min(CHUNK, left - chunk * CHUNK)
        seed = hash((options.seed, number, chunk))
        try_chunk(record, name, strategy, examples, seed)
    record.details[name.__name__] = record.tried - before


if __name__ == "__main__":
    main()
