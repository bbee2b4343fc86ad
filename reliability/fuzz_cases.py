"""What `fuzz.py` draws: a loss with its arguments, arrays for it, and its twin."""

import dataclasses
import math
import pathlib
import sys

import keras
import numpy as np
from hypothesis import strategies as st
from keras import ops

from keras_pedcc import losses

sys.path.append(str(pathlib.Path(__file__).parents[1] / "tests"))
import reference

LOSSES = (
    "pedcc",
    "am_softmax",
    "arcface",
    "a_softmax",
    "l_softmax",
    "hinge",
    "center",
    "distance",
)
OF_COSINES = ("pedcc", "am_softmax", "arcface")  # those that take streamed logits
OF_NORMS = ("a_softmax", "l_softmax", "center")  # those that need a head's dict
PLACES = ("random", "own", "opposite", "duplicates", "zero", "signs", "equal")
# Keras multiplies, and compares, in float32 on JAX and PyTorch.
PRECISE = keras.backend.backend() == "tensorflow"
# Spacing of cosines that are asked for in float64.
COSINE = np.finfo("float64" if PRECISE else "float32").eps
LABEL_DTYPES = ("uint8", "int32", "int64", "float32", "float64")


@dataclasses.dataclass(frozen=True)
class Case:
    """A loss with its arguments, and what its arrays are drawn from."""

    loss: str
    batch: int
    num_classes: int
    dim: int
    dtype: str  # of the logits
    place: str  # of the features
    form: str  # of the labels
    label_dtype: str
    scale: float  # or the length of the features
    share: float  # of the largest margin
    margins: str  # "one", "tensor" or "per_class"
    multiple: int  # of the angle, in A- and L-Softmax
    annealing: float
    root: int
    weight: float  # of the second term
    weighted: bool  # whether samples have weights
    as_dict: bool
    parts: int
    seed: int


def cases(names=LOSSES):
    """Strategy for cases of these losses."""
    return st.builds(
        Case,
        loss=st.sampled_from(names),
        batch=st.integers(1, 8),
        num_classes=st.integers(2, 40),
        dim=st.integers(2, 16),
        dtype=st.sampled_from(("float32", "float16", "float64")),
        place=st.sampled_from(PLACES),
        form=st.sampled_from(("index", "column", "one_hot", "soft")),
        label_dtype=st.sampled_from(LABEL_DTYPES),
        scale=st.sampled_from((1.0, 15.0, 64.0)) | st.floats(0.1, 200.0),
        share=st.floats(0.0, 1.0),
        margins=st.sampled_from(("one", "tensor", "per_class")),
        multiple=st.integers(1, 8),
        annealing=st.sampled_from((0.0, 5.0)) | st.floats(0.0, 1000.0),
        root=st.integers(1, 4),
        weight=st.floats(0.0, 20.0),
        weighted=st.booleans(),
        as_dict=st.booleans(),
        parts=st.sampled_from((1, 2, 4)),
        seed=st.integers(0, 2**32 - 1),
    )


class Arrays:
    """The arrays of a case, in float64 but rounded to what the loss is given."""

    def __init__(self, case):
        self.rng = rng = np.random.default_rng(case.seed)
        number = case.num_classes
        self.labels = rng.integers(0, number, case.batch)
        self.centroids = unit(rng.standard_normal((number, case.dim)))
        self.features = features_of(case, rng, self.centroids[self.labels])
        self.dtype = "float32" if case.loss in OF_NORMS else case.dtype
        self.dtype = "float64" if case.dtype == "float64" else self.dtype
        self.cosines = self.rounded(cosines_of(case, self, rng))
        self.targets = np.eye(number)[self.labels]
        if case.form == "soft":
            self.targets = rng.dirichlet(np.ones(number), case.batch)
            self.targets = self.targets.astype("float32").astype("float64")
        self.weights = None
        if case.weighted:
            self.weights = self.rounded(rng.uniform(0, 3, case.batch) // 0.1 / 10)
        self.margin = margin_of(case, rng)
        shape = (case.batch, 1 if case.loss == "a_softmax" else number)
        self.norm = self.rounded(case.scale * rng.uniform(0.1, 1, shape))
        self.inputs = self.rounded(rng.standard_normal((case.batch, case.dim)))
        self.centers = self.rounded(rng.standard_normal((number, case.dim)))

    def rounded(self, array):
        """In float64, to the precision of the case."""
        return np.asarray(array, self.dtype).astype("float64")


def unit(rows):
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def features_of(case, rng, own):
    """Unit features, or zeros."""
    drawn = unit(rng.standard_normal((case.batch, case.dim)))
    places = {"own": own, "opposite": -own, "zero": 0 * drawn}
    if case.place == "duplicates":
        return np.repeat(drawn[:1], case.batch, axis=0)
    return places.get(case.place, drawn)


def cosines_of(case, arrays, rng):
    cosines = np.clip(arrays.features @ arrays.centroids.T, -1, 1)
    if case.place == "signs":
        cosines = rng.choice([-1.0, 1.0], cosines.shape)
    if case.place == "equal":
        cosines[:] = rng.uniform(-1, 1)
    if case.place in ("own", "opposite"):  # exactly
        sign = 1.0 if case.place == "own" else -1.0
        cosines[np.arange(case.batch), arrays.labels] = sign
    return cosines


def margin_of(case, rng):
    """A float, or an array of one per class; of the losses that have one."""
    if case.loss == "hinge":
        return 0.01 + 3 * case.share
    most = math.pi if case.loss == "arcface" else 2.0
    if case.margins == "per_class":
        return rng.uniform(0, most, case.num_classes)
    return case.share * most


def labels_of(case, arrays):
    """Labels in the form and dtype of the case."""
    if case.form in ("one_hot", "soft"):
        whole = case.form == "one_hot"
        return arrays.targets.astype(case.label_dtype if whole else "float32")
    labels = arrays.labels.astype(case.label_dtype)
    return labels[:, None] if case.form == "column" else labels


def outputs_of(case, arrays):
    """What a head returns, or the logits alone, as NumPy arrays."""
    logits = arrays.cosines
    if case.loss == "l_softmax":
        logits = arrays.norm * logits
    if case.loss == "hinge" or case.loss == "center":
        logits = case.scale * logits
    logits = logits.astype(arrays.dtype)
    if not (case.as_dict or case.loss in OF_NORMS):
        return logits
    norm = arrays.norm[:, 0] if case.loss == "a_softmax" else arrays.norm
    if case.loss == "center":
        norm = np.linalg.norm(arrays.inputs, axis=1)
        parts = {"features": unit(arrays.inputs), "centers": arrays.centers}
        parts |= {"logits": logits, "norm": norm}
        return {name: part.astype(arrays.dtype) for name, part in parts.items()}
    outputs = {"features": arrays.features, "logits": logits}
    return outputs | {"norm": norm.astype(arrays.dtype)}


def options_of(case, arrays):
    """The keyword arguments of the loss function."""
    margin = arrays.margin
    if case.margins == "tensor" and case.loss in OF_COSINES:
        margin = ops.convert_to_tensor(np.asarray(margin, "float32"))
    elif not isinstance(margin, float):
        margin = margin.tolist()
    angular = {"margin": case.multiple, "annealing": case.annealing}
    scaled = {"scale": case.scale, "margin": margin}
    terms = {"mse_weight": case.weight, "mse_root": case.root}
    weights = {"sample_weight": arrays.weights}
    return {
        "pedcc": scaled | terms | weights,
        "am_softmax": scaled,
        "arcface": scaled,
        "a_softmax": angular,
        "l_softmax": angular,
        "hinge": {"margin": arrays.margin},
        "center": {"center_weight": case.weight} | weights,
        "distance": {},
    }[case.loss]


def function_of(case):
    """The loss function of the package."""
    names = {"distance": "centroid_distance"}
    return getattr(losses, names.get(case.loss, f"{case.loss}_loss"))


def loss_of(case, arrays, labels=None, outputs=None, **options):
    """The loss of each sample, as NumPy's."""
    labels = labels_of(case, arrays) if labels is None else labels
    outputs = outputs_of(case, arrays) if outputs is None else outputs
    options = options_of(case, arrays) | options
    loss = function_of(case)(labels, outputs, **options)
    return keras.ops.convert_to_numpy(loss)


def lowering_of(case, arrays):
    """What the margin does to the cosine of a class, by the twins."""
    margin = np.asarray(arrays.margin, "float64")
    if case.margins == "tensor":
        margin = margin.astype("float32").astype("float64")
    margin = np.broadcast_to(margin, (case.num_classes,))
    if case.loss == "arcface":
        return lambda cosine, j: reference.turned(cosine, margin[j])
    if case.loss in ("a_softmax", "l_softmax"):
        share = 1 / (1 + case.annealing)
        return lambda cosine, j: (
            cosine + share * (reference.multiplied(cosine, case.multiple) - cosine)
        )
    if case.loss == "center":
        return lambda cosine, j: cosine
    return lambda cosine, j: cosine - margin[j]


def twin_of(case, arrays, cosines=None):
    """The loss of each sample in float64, by `tests/reference.py`."""
    cosines = arrays.cosines if cosines is None else cosines
    distance = np.sum(arrays.targets * (1 - cosines), axis=1)
    if case.loss == "distance":
        return distance
    if case.loss == "hinge":
        lowered = arrays.rounded(case.scale * cosines) - arrays.margin * arrays.targets
        return lowered.max(axis=1) - np.sum(arrays.targets * lowered, axis=1)
    scale = arrays.norm if case.loss in ("a_softmax", "l_softmax") else case.scale
    entropy = entropy_of(case, arrays, cosines, scale)
    weights = np.ones(case.batch) if arrays.weights is None else arrays.weights
    if case.loss == "center":
        squares = np.sum((arrays.inputs[:, None] - arrays.centers) ** 2, axis=2)
        pull = np.sum(arrays.targets * squares, axis=1)
        return weights * (entropy + case.weight / 2 * pull)
    if case.loss != "pedcc":
        return entropy
    if case.root == 1:
        return weights * (entropy + case.weight * distance)
    mean = max(np.mean(weights * distance), 0.0)
    return weights * entropy + case.weight * mean ** (1 / case.root)


def entropy_of(case, arrays, cosines, scale):
    lower = lowering_of(case, arrays)
    if case.form == "soft":
        return reference.soft_margin_entropy(arrays.targets, cosines, lower, scale)
    return reference.margin_entropy(arrays.labels, cosines, lower, scale)


def rounding_of(case, arrays, twin):
    """What one rounding of an exponent does to a loss of this value."""
    largest = case.scale * (2 + np.max(arrays.margin))
    if case.loss in ("a_softmax", "l_softmax"):
        largest = 2 * case.multiple**3 * case.scale
    if case.loss == "distance":
        largest = 2.0
    # A small loss is as exact as its exponents, a large one no more than they.
    part = 1.0 if case.form == "soft" or case.loss == "hinge" else np.minimum(twin, 1)
    weights = 1.0
    if case.loss in ("pedcc", "center") and case.weighted:
        weights = arrays.weights
    precise = PRECISE and arrays.dtype == "float64"
    spacing = np.finfo("float64" if precise else "float32")
    return spacing.eps * (weights * largest * part + twin) + 10 * spacing.tiny
