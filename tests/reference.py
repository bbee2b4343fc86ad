"""Slow float64 NumPy twins of the equations, written from the paper."""

import keras
import numpy as np


def log_priors(priors):
    """Logarithms of frequencies, given counts."""
    priors = np.asarray(priors, "float64")
    return np.log(priors / priors.sum())


def am_softmax(labels, cosines, scale, margin, shift=None):
    """Eq. 8 for each sample, with the sum over the other classes taken apart."""
    cosines = np.asarray(cosines, "float64")
    shift = np.zeros(cosines.shape[1]) if shift is None else shift
    losses = []
    for label, row in zip(np.asarray(labels, int), cosines, strict=True):
        exponents = scale * (np.delete(row, label) - (row[label] - margin))
        exponents += np.delete(shift, label) - shift[label]
        top = max(0.0, exponents.max())
        if top == 0:
            losses.append(np.log1p(np.exp(exponents).sum()))
        else:
            losses.append(top + np.log(np.exp(-top) + np.exp(exponents - top).sum()))
    return np.array(losses)


def soft_am_softmax(targets, cosines, scale, margin, shift=0.0):
    """Eq. 8 for soft labels: `logsumexp(z) - sum_j t_j z_j`."""
    targets = np.asarray(targets, "float64")
    z = scale * (np.asarray(cosines, "float64") - margin * targets) + shift
    top = z.max(axis=1, keepdims=True)
    total = top[:, 0] + np.log(np.exp(z - top).sum(axis=1))
    return total - (targets * z).sum(axis=1)


def margin_entropy(labels, cosines, lower, scales, shift=None):
    """Cross entropy of each sample, with `lower(cosine, label)` for its own class."""
    cosines = np.asarray(cosines, "float64")
    scales = np.broadcast_to(np.asarray(scales, "float64"), cosines.shape)
    shift = np.zeros(cosines.shape[1]) if shift is None else shift
    losses = []
    for label, row, scale in zip(np.asarray(labels, int), cosines, scales, strict=True):
        own = scale[label] * lower(row[label], label) + shift[label]
        exponents = np.append(np.delete(scale * row + shift, label) - own, 0.0)
        top = exponents.max()
        rest = np.exp(exponents - top)
        losses.append(
            np.log1p(rest[:-1].sum()) if top == 0 else top + np.log(rest.sum())
        )
    return np.array(losses)


def margin_gradient(labels, cosines, lower, slope, scales):
    """Gradient of `margin_entropy` over the cosines; `slope` is that of `lower`.

    `s_j p_j` for the other classes, with p the softmax, `-s_y (1 - p_y) slope_y` for
    the own one.
    """
    cosines = np.asarray(cosines, "float64")
    scales = np.broadcast_to(np.asarray(scales, "float64"), cosines.shape)
    own = np.arange(len(cosines)), np.asarray(labels, int)
    scores = scales * cosines
    scores[own] = scales[own] * [lower(cosine) for cosine in cosines[own]]
    shares = np.exp(scores - scores.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    shares[own] = 0
    gradient = scales * shares
    slopes = np.array([slope(cosine) for cosine in cosines[own]])
    gradient[own] = -scales[own] * shares.sum(axis=1) * slopes
    return gradient


def soft_margin_entropy(targets, cosines, lower, scales, shift=0.0):
    """The same for soft labels: each class gets its share of the lowering."""
    shift = 0.0 if shift is None else shift
    targets, cosines = np.asarray(targets, "float64"), np.asarray(cosines, "float64")
    scales = np.broadcast_to(np.asarray(scales, "float64"), cosines.shape)
    scores = np.zeros(cosines.shape)
    for i, j in np.ndindex(cosines.shape):
        lowering = lower(cosines[i, j], j) - cosines[i, j]
        scores[i, j] = scales[i, j] * (cosines[i, j] + targets[i, j] * lowering)
    return soft_am_softmax(targets, scores, 1.0, 0.0, shift)


def turned(cosine, margin):
    """The cosine of ArcFace."""
    angle = np.arccos(np.clip(cosine, -1, 1))
    if angle + margin <= np.pi:
        return np.cos(angle + margin)
    return np.cos(angle) + np.cos(margin) - 1


def turned_slope(cosine, margin):
    """The slope of `turned` over the cosine, with a sine of at least 1e-3."""
    angle = np.arccos(np.clip(cosine, -1, 1))
    if angle + margin > np.pi:
        return 1.0
    if np.sin(angle) < 1e-3:
        return np.cos(margin) + np.sin(margin) * cosine / 1e-3
    return np.sin(angle + margin) / np.sin(angle)


def multiplied(cosine, multiple):
    """The cosine of A-Softmax and L-Softmax."""
    angle = np.arccos(np.clip(cosine, -1, 1))
    for k in range(multiple):
        if angle <= (k + 1) * np.pi / multiple or k == multiple - 1:
            return (-1) ** k * np.cos(multiple * angle) - 2 * k


def multiplied_slope(cosine, multiple):
    """The slope of `multiplied` over the cosine; 0 at each kink, on both sides."""
    angle = np.arccos(np.clip(cosine, -1, 1))
    if np.sin(angle) < 1e-7:
        return multiple**2  # what the quotient goes to
    k = min(int(angle * multiple / np.pi), multiple - 1)
    return (-1) ** k * multiple * np.sin(multiple * angle) / np.sin(angle)


def arcface(labels, cosines, scale, margin, shift=None):
    margin = np.broadcast_to(margin, np.shape(cosines)[1])
    return margin_entropy(
        labels, cosines, lambda cosine, j: turned(cosine, margin[j]), scale, shift
    )


def adapted(cosine, margin, quality):
    """The cosine of AdaFace."""
    angle = np.arccos(np.clip(cosine, -1, 1)) - margin * quality
    if quality < 0:
        return turned(cosine, -margin * quality) - margin * (1 + quality)
    return np.cos(max(angle, 0.0)) - margin * (1 + quality)


def adaface(labels, cosines, qualities, scale, margin, shift=None):
    """AdaFace of each sample; labels are indices or rows of soft ones."""
    margin = np.broadcast_to(margin, np.shape(cosines)[1])
    entropy = margin_entropy if np.ndim(labels) == 1 else soft_margin_entropy
    losses = []
    for i, q in enumerate(qualities):
        lower = lambda cosine, j, q=q: adapted(cosine, margin[j], q)  # noqa: E731
        one = entropy(labels[i : i + 1], cosines[i : i + 1], lower, scale, shift)
        losses.append(one[0])
    return np.array(losses)


def multiple_angle(labels, cosines, norms, multiple, annealing):
    """A-Softmax with norms |x|, shape (batch, 1); L-Softmax with |w||x|."""

    def lower(cosine, _):
        psi = multiplied(cosine, multiple)
        return (annealing * cosine + psi) / (1 + annealing)

    return margin_entropy(labels, cosines, lower, norms)


def class_contrast(targets, cosines, scale, negatives_only):
    """NTCE or NONL of each sample, for one-hot or soft labels."""
    targets, cosines = np.asarray(targets, "float64"), np.asarray(cosines, "float64")
    losses = []
    for row, own in zip(cosines, targets, strict=True):
        loss = 0.0
        for j, share in enumerate(own):
            counts = 1 - targets[:, j] if negatives_only else np.ones(len(targets))
            total = np.sum(counts * np.exp(scale * (cosines[:, j] - row[j])))
            loss += share * np.log(total) if share else 0.0
        losses.append(loss)
    return np.array(losses)


def hinge(labels, logits, margin):
    logits = np.asarray(logits, "float64")
    return np.array(
        [
            max(0.0, margin + np.delete(row, label).max() - row[label])
            for label, row in zip(labels, logits, strict=True)
        ]
    )


def center_step(labels, features, centers, rate):
    """The centres after one published step."""
    after = np.array(centers, "float64")
    for j in range(len(centers)):
        mine = np.asarray(features, "float64")[labels == j]
        after[j] -= rate * (centers[j] - mine).sum(axis=0) / (1 + len(mine))
    return after


def distance(labels, cosines):
    """Eq. 9 for each sample."""
    return 1 - np.asarray(cosines, "float64")[np.arange(len(labels)), labels]


def pedcc(
    labels,
    cosines,
    scale,
    margin,
    mse_weight,
    mse_root,
    sample_weight=None,
    shift=None,
):
    """Eq. 10, with means over the batch."""
    weight = np.ones(len(labels)) if sample_weight is None else sample_weight
    am = np.mean(weight * am_softmax(labels, cosines, scale, margin, shift))
    d = np.mean(weight * distance(labels, cosines))
    return am + mse_weight * max(d, 0.0) ** (1 / mse_root)


def cosines_of_pairs(points):
    points = np.asarray(keras.ops.convert_to_numpy(points), "float64")
    return (points @ points.T)[np.triu_indices(len(points), 1)]


def coulomb_energy(points):
    points = np.asarray(points, "float64")
    i, j = np.triu_indices(len(points), 1)
    return np.sum(1 / np.linalg.norm(points[i] - points[j], axis=1))


def intra_class_distance(features, labels, weights=None):
    """Eq. 7."""
    return _scatter(features, labels, weights)[0]


def inter_class_distance(features, labels, weights=None):
    """Eq. 6."""
    return _scatter(features, labels, weights)[1]


def _scatter(features, labels, weights):
    weights = np.ones(len(labels)) if weights is None else weights
    share = weights / weights.sum()
    mean = share @ features
    within = between = 0.0
    for label in np.unique(labels):
        mine = labels == label
        prior = share[mine].sum()
        center = share[mine] @ features[mine] / prior
        within += share[mine] @ np.sum((features[mine] - center) ** 2, axis=1)
        between += prior * np.sum((center - mean) ** 2)
    return within, between
