import itertools

import numpy as np
import pytest

from keras_pedcc import assign_classes


def problem(rng, num_classes, dim):
    centroids = rng.standard_normal((num_classes, dim))
    centroids /= np.linalg.norm(centroids, axis=1, keepdims=True)
    alike = rng.random((num_classes, num_classes))
    return centroids, alike + alike.T


def agreement(centroids, alike):
    i, j = np.triu_indices(len(alike), 1)
    return np.sum(alike[i, j] * (centroids @ centroids.T)[i, j])


@pytest.mark.parametrize("goal", ["apart", "together"])
def test_order_is_a_permutation_that_no_exchange_betters(rng, goal):
    centroids, alike = problem(rng, 20, 3)
    ordered = assign_classes(centroids, alike, goal=goal)
    assert sorted(map(tuple, ordered)) == sorted(map(tuple, centroids))
    sign = 1 if goal == "apart" else -1
    reached = sign * agreement(ordered, alike)
    assert reached < sign * agreement(centroids, alike) - 1
    for i, j in itertools.combinations(range(20), 2):
        other = ordered.copy()
        other[[i, j]] = other[[j, i]]
        assert sign * agreement(other, alike) >= reached - 1e-7


def test_order_is_among_the_best_tenth_of_all(rng):
    for _ in range(5):
        centroids, alike = problem(rng, 6, 2)
        orders = itertools.permutations(range(6))
        values = sorted(agreement(centroids[list(order)], alike) for order in orders)
        found = agreement(assign_classes(centroids, alike), alike)
        assert found <= values[len(values) // 10]


@pytest.mark.parametrize("factor", [1e-10, 1e10])
def test_scale_and_diagonal_of_the_similarity_do_not_matter(rng, factor):
    centroids, alike = problem(rng, 12, 3)
    expected = assign_classes(centroids, alike)
    np.fill_diagonal(alike, np.nan)
    np.testing.assert_array_equal(assign_classes(centroids, factor * alike), expected)


def test_rounds_limit_the_exchanges(rng):
    centroids, alike = problem(rng, 20, 3)
    moved = np.any(assign_classes(centroids, alike, rounds=1) != centroids, axis=1)
    assert moved.sum() == 2


@pytest.mark.parametrize(
    ("similarity", "goal", "message"),
    [
        (np.ones((3, 4)), "apart", r"must have shape \(num_classes, num_classes\)"),
        (np.full((4, 4), np.nan), "apart", "must be finite and symmetric"),
        (np.arange(16.0).reshape(4, 4), "apart", "must be finite and symmetric"),
        (np.ones((4, 4)), "near", "`goal` must be one of .* goal='near'"),
    ],
)
def test_assignment_refuses(similarity, goal, message):
    with pytest.raises(ValueError, match=message):
        assign_classes(np.eye(4), similarity, goal=goal)
