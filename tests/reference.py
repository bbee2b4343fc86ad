"""Slow float64 NumPy twins of the equations, written from the paper."""

import keras
import numpy as np


def am_softmax(labels, cosines, scale, margin):
    """Eq. 8 for each sample, with the sum over the other classes taken apart."""
    cosines = np.asarray(cosines, "float64")
    losses = []
    for label, row in zip(np.asarray(labels, int), cosines, strict=True):
        exponents = scale * (np.delete(row, label) - (row[label] - margin))
        top = max(0.0, exponents.max())
        if top == 0:
            losses.append(np.log1p(np.exp(exponents).sum()))
        else:
            losses.append(top + np.log(np.exp(-top) + np.exp(exponents - top).sum()))
    return np.array(losses)


def soft_am_softmax(targets, cosines, scale, margin):
    """Eq. 8 for soft labels: `logsumexp(z) - sum_j t_j z_j`."""
    targets = np.asarray(targets, "float64")
    z = scale * (np.asarray(cosines, "float64") - margin * targets)
    top = z.max(axis=1, keepdims=True)
    total = top[:, 0] + np.log(np.exp(z - top).sum(axis=1))
    return total - (targets * z).sum(axis=1)


def distance(labels, cosines):
    """Eq. 9 for each sample."""
    return 1 - np.asarray(cosines, "float64")[np.arange(len(labels)), labels]


def pedcc(labels, cosines, scale, margin, mse_weight, mse_root, sample_weight=None):
    """Eq. 10, with means over the batch."""
    weight = np.ones(len(labels)) if sample_weight is None else sample_weight
    am = np.mean(weight * am_softmax(labels, cosines, scale, margin))
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
