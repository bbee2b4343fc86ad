import tracemalloc

import numpy as np
import pytest
from reference import cosines_of_pairs, coulomb_energy
from tensors import only_once

from keras_pedcc import centroid_report
from keras_pedcc.centroids import quality as report
from keras_pedcc.centroids.quality import largest_cosine_bound


def test_report_agrees_with_brute_force(rng):
    points = rng.standard_normal((30, 5))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    report = centroid_report(3 * points)
    cosines = cosines_of_pairs(points)
    assert report["num_classes"] == 30
    assert report["dim"] == 5
    assert report["largest_cosine"] == pytest.approx(cosines.max())
    assert report["cosine_spread"] == pytest.approx(np.ptp(cosines))
    angle = np.degrees(np.arccos(cosines.max()))
    assert report["smallest_angle_degrees"] == pytest.approx(angle)
    assert report["mean_norm"] == pytest.approx(np.linalg.norm(points.mean(axis=0)))
    assert report["coulomb_energy"] == pytest.approx(coulomb_energy(points))


def test_report_works_by_blocks(rng):
    points = rng.standard_normal((2100, 4))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    report = centroid_report(points)
    assert report["largest_cosine"] == pytest.approx(cosines_of_pairs(points).max())
    assert report["coulomb_energy"] == pytest.approx(coulomb_energy(points))


@pytest.mark.parametrize("size", [1, 2, 7, 29, 30])
def test_report_is_the_same_by_blocks_of_any_size(rng, monkeypatch, size):
    points = rng.standard_normal((30, 5))
    expected = centroid_report(points)
    monkeypatch.setattr(report, "BLOCK_ROWS", size)
    found = centroid_report(points)
    assert found == pytest.approx(expected, rel=1e-13)


def test_report_of_two_equal_centroids_has_infinite_energy():
    found = centroid_report([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0]])
    assert found["coulomb_energy"] == np.inf


@only_once
def test_report_holds_little_beside_the_centroids(rng):
    # All cosines at once would take 200 MiB; a block of rows with all others took 120.
    points = rng.standard_normal((5000, 16))
    tracemalloc.start()
    centroid_report(points)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40 * 2**20


@pytest.mark.parametrize(
    ("num_classes", "dim", "bound"),
    [
        (4, 3, -1 / 3),
        (6, 3, 0),
        (8, 2, np.cos(np.pi / 4)),
        # Linear-programming bounds that others computed numerically.
        (47, 20, 0.018),
        (100, 32, 0.034),
        (200, 64, 0.017),
        (1000, 64, 0.092),
        (4000, 128, 0.072),
    ],
)
def test_report_bound(num_classes, dim, bound):
    points = np.random.default_rng(0).standard_normal((num_classes, dim))
    report = centroid_report(points)
    assert report["largest_cosine_bound"] == pytest.approx(bound, abs=6e-4)


@pytest.mark.parametrize(
    ("num_classes", "dim", "cosine"),
    # Icosahedron, roots of E8, shortest vectors of Leech's lattice and of E7's dual.
    [(12, 3, 5**-0.5), (240, 8, 0.5), (196_560, 24, 0.5), (56, 7, 1 / 3)],
)
def test_bound_is_met_by_sharp_arrangements(num_classes, dim, cosine):
    assert largest_cosine_bound(num_classes, dim) == pytest.approx(cosine, abs=1e-9)


@pytest.mark.parametrize(
    ("num_classes", "dim", "best"), [(24, 4, 0.5), (288, 16, 0.25)]
)
def test_bound_is_just_below_the_best_known(num_classes, dim, best):
    assert 0.93 * best < largest_cosine_bound(num_classes, dim) <= best


def test_bound_rises_with_the_number_of_vectors():
    bounds = [largest_cosine_bound(n, 5) for n in range(2, 400)]
    assert np.all(np.diff(bounds) >= 0)
    assert bounds[-1] < 1


@pytest.mark.parametrize(
    ("centroids", "message"),
    [
        (np.ones(4), r"must have shape \(num_classes, dim\)"),
        (np.ones((1, 4)), r"must have shape \(num_classes, dim\)"),
        (np.array([[1.0, 0.0], [np.nan, 1.0]]), "must be finite.* index 1"),
        (np.array([[0.0, 0.0], [0.0, 1.0]]), "must be finite.* index 0"),
    ],
)
def test_report_refuses(centroids, message):
    with pytest.raises(ValueError, match=message):
        centroid_report(centroids)
