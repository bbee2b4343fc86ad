"""The properties of `fuzz.py` of logits by blocks, and of a drawn part of them."""

import dataclasses

import fuzz_cases
import numpy as np
from fuzz_cases import COSINE, Arrays, labels_of
from keras import ops

from keras_pedcc import KerdockDense
from keras_pedcc.common.vectors import cosines
from keras_pedcc.scores.blockwise import BlockwiseScores
from keras_pedcc.scores.kerdock import KerdockScores
from keras_pedcc.scores.sampled import SampledScores, drawn_classes

from tensors import gradient_of, numpy_of  # isort: skip  # of the tests

heads = {}  # of each size


def streamed(case):
    """Logits by blocks of classes give the loss and the gradients of all at once."""
    case, arrays = with_indices(case)
    features, centroids = arrays.features, arrays.centroids
    block = block_of(case)
    trained = bool(case.seed % 2)

    def loss(features, centroids, stream):
        logits = cosines(features, centroids)
        if stream:
            logits = BlockwiseScores(
                features, centroids, trained=trained, block_size=block
            )
        return apply(case, arrays, logits)

    rows = ops.convert_to_tensor(centroids)
    compare(*(lambda x, s=s: loss(x, rows, s) for s in (True, False)), features, case)
    if trained:
        x = ops.convert_to_tensor(features)
        compare(*(lambda c, s=s: loss(x, c, s) for s in (True, False)), centroids, case)


def block_of(case):
    """A size of blocks of classes that cuts them into 1 to 5."""
    return -(-case.num_classes // (1 + case.seed % 5)) + case.seed % 3


def with_indices(case):
    """The case with labels and features that streamed logits take, in float64."""
    # In so many dimensions none is next to a centroid, where slopes are steep.
    changes = {"form": "index", "place": "random", "dtype": "float64"}
    case = dataclasses.replace(case, dim=max(case.dim, 6), **changes)
    return case, Arrays(case)


def compare(function, other, array, case, rounding=COSINE):
    """Values and gradients of two functions are the same."""
    tensor = ops.convert_to_tensor(array)
    value, expected = numpy_of(function(tensor)), numpy_of(other(tensor))
    slack = 16 * rounding * (1 + case.scale + case.weight)
    np.testing.assert_allclose(value, expected, rtol=100 * rounding, atol=slack)
    slope, expected = gradient_of(function, array), gradient_of(other, array)
    slack *= 10 * (1 + case.scale)
    np.testing.assert_allclose(slope, expected, rtol=1e4 * rounding, atol=slack)


def kerdock(case):
    """Kerdock's vectors without their array give what the array does."""
    case, arrays = with_kerdock(case)
    head = kerdock_head(case)
    rows = ops.convert_to_tensor(np.asarray(head.centroids, "float64"))
    block = block_of(case)

    def streamed(features):
        logits = KerdockScores(
            features, head.centroids, block_size=block, training=True, ranked=False
        )
        return apply(case, arrays, logits)

    compare(
        streamed,
        lambda features: apply(case, arrays, cosines(features, rows)),
        arrays.features,
        case,
        np.finfo("float32").eps,
    )


def with_kerdock(case):
    """The case with as many classes as such a head has: more than 2 d."""
    dim = 4 + case.dim
    d = 1 << (dim.bit_length() - 1)
    number = 2 * d + 1 + case.num_classes % 8
    case = dataclasses.replace(case, dim=dim, num_classes=number)
    return with_indices(case)


def kerdock_head(case):
    key = "kerdock", case.num_classes, case.dim
    if key not in heads:
        heads[key] = KerdockDense(case.num_classes)
        heads[key].build((None, case.dim))
    return heads[key]


def apply(case, arrays, logits):
    """The loss of each sample, as a tensor."""
    options = fuzz_cases.options_of(case, arrays)
    return fuzz_cases.function_of(case)(labels_of(case, arrays), logits, **options)


def sampled(case):
    """A drawn part of the classes: each once, with its weight; the loss of these."""
    case, arrays = with_indices(case)
    number, seed = 1 + case.seed % (case.num_classes - 1), case.seed % 2**31
    index = ops.convert_to_tensor(arrays.labels.astype("int32"))
    drawn = drawn_classes(index, case.num_classes, number, seed)
    classes, weights = (numpy_of(each) for each in drawn)
    check_drawn(case, arrays, classes, weights, number)
    features, centroids = map(
        ops.convert_to_tensor, (arrays.features, arrays.centroids)
    )
    logits = SampledScores(features, centroids, trained=True, number=number, seed=seed)
    loss = numpy_of(apply(case, arrays, logits))
    weights = np.exp(weights.astype("float64"))
    expected = sampled_twin(case, arrays, classes, weights)
    slack = 2e-6 * (1 + case.scale + case.weight)
    np.testing.assert_allclose(loss, expected, rtol=1e-6, atol=slack)


def check_drawn(case, arrays, classes, weights, number):
    """The classes of the batch with weight 1, and others, as many as wanted."""
    there, own = weights > -np.inf, np.unique(arrays.labels)
    wanted = min(number, case.num_classes - len(own))
    assert len(set(classes[there])) == there.sum() == len(own) + wanted
    assert set(own) <= set(classes[there][weights[there] == 0])


def sampled_twin(case, arrays, classes, weights):
    """Eq. 8 with weights, each drawn class as often as it counts."""
    number = case.num_classes
    counts = np.zeros(number)
    np.add.at(counts, classes, weights)
    own = arrays.cosines[np.arange(case.batch), arrays.labels]
    lower = fuzz_cases.lowering_of(case, arrays)
    lowered = np.array([lower(c, j) for c, j in zip(own, arrays.labels, strict=True)])[
        :, None
    ]
    counts = np.where(np.eye(number, dtype=bool)[arrays.labels], 0, counts)
    terms = counts * np.exp(case.scale * (arrays.cosines - lowered))
    entropy = np.log1p(terms.sum(axis=1))
    if case.loss != "pedcc":
        return entropy
    sample = np.ones(case.batch) if arrays.weights is None else arrays.weights
    if case.root == 1:
        return sample * (entropy + case.weight * (1 - own))
    mean = np.mean(sample * (1 - own))
    return sample * entropy + case.weight * mean ** (1 / case.root)
