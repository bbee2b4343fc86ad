import os
import subprocess
import sys

import keras
import numpy as np
import pytest
from reference import coulomb_energy

import keras_pedcc
from keras_pedcc import centroid_report, generate_pedcc

# Least known Coulomb energies of n points on the sphere (Thomson problem).
THOMSON = {5: 6.474691495, 12: 49.165253058, 32: 412.261274651, 50: 1055.182314726}


def numpy_of(tensor):
    return keras.ops.convert_to_numpy(tensor)


def cosines_of_pairs(centroids):
    centroids = numpy_of(centroids).astype("float64")
    return (centroids @ centroids.T)[np.triu_indices(len(centroids), 1)]


@pytest.mark.parametrize(
    ("num_classes", "dim"), [(2, 2), (3, 2), (4, 3), (10, 64), (47, 512), (513, 512)]
)
def test_simplex_is_equidistant(num_classes, dim):
    cosines = cosines_of_pairs(generate_pedcc(num_classes, dim))
    np.testing.assert_allclose(cosines, -1 / (num_classes - 1), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("num_classes", "dim"), [(4, 2), (5, 3), (6, 3), (100, 64), (1000, 512)]
)
def test_orthogonal_simplices_reach_rankins_bound_with_mean_zero(num_classes, dim):
    centroids = generate_pedcc(num_classes, dim)
    assert cosines_of_pairs(centroids).max() <= 1e-6
    assert np.linalg.norm(numpy_of(centroids).mean(axis=0)) <= 1e-6


def test_polygon_is_regular():
    cosines = cosines_of_pairs(generate_pedcc(7, 2))
    assert cosines.max() == pytest.approx(np.cos(2 * np.pi / 7), abs=1e-6)


@pytest.mark.parametrize("num_classes", THOMSON)
def test_energy_reaches_the_thomson_table(num_classes):
    centroids = generate_pedcc(num_classes, 3, method="energy")
    assert coulomb_energy(numpy_of(centroids)) == pytest.approx(
        THOMSON[num_classes], rel=1e-6
    )


def test_energy_finds_the_simplex_by_itself():
    cosines = cosines_of_pairs(generate_pedcc(10, 16, method="energy"))
    np.testing.assert_allclose(cosines, -1 / 9, rtol=0, atol=1e-3)


def test_energy_beyond_twice_the_dimension_beats_random_by_far():
    found = cosines_of_pairs(generate_pedcc(100, 16)).max()
    random = np.random.default_rng(0).standard_normal((100, 16))
    random /= np.linalg.norm(random, axis=1, keepdims=True)
    assert found < 0.6 * cosines_of_pairs(random).max()


@pytest.mark.parametrize("method", ["simplex", "orthogonal_simplices", "energy"])
def test_rows_are_unit_float32(method):
    num_classes = {"simplex": 9, "orthogonal_simplices": 12, "energy": 40}[method]
    centroids = numpy_of(generate_pedcc(num_classes, 8, method=method))
    assert centroids.dtype == "float32"
    assert centroids.shape == (num_classes, 8)
    np.testing.assert_allclose(np.linalg.norm(centroids, axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("num_classes", [5, 14, 30])
def test_seed_decides_the_centroids(num_classes):
    first = numpy_of(generate_pedcc(num_classes, 8, seed=3))
    np.testing.assert_array_equal(first, generate_pedcc(num_classes, 8, seed=3))
    assert np.abs(first - numpy_of(generate_pedcc(num_classes, 8, seed=4))).max() > 0.1


@pytest.mark.slow
def test_same_seed_gives_the_same_centroids_in_another_process():
    code = (
        "import sys, keras, keras_pedcc\n"
        "for n in (5, 14, 30):\n"
        "    c = keras_pedcc.generate_pedcc(n, 8, seed=3)\n"
        "    sys.stdout.write(keras.ops.convert_to_numpy(c).tobytes().hex() + ' ')\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"KERAS_BACKEND": keras.backend.backend()},
    )
    here = [numpy_of(generate_pedcc(n, 8, seed=3)).tobytes().hex() for n in (5, 14, 30)]
    assert run.stdout.split() == here


def test_rotation_is_uniform_over_the_sphere():
    first = np.stack([numpy_of(generate_pedcc(2, 3, seed=s))[0] for s in range(400)])
    assert np.linalg.norm(first.mean(axis=0)) < 0.15
    np.testing.assert_allclose(np.cov(first.T), np.eye(3) / 3, atol=0.08)


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


@pytest.mark.parametrize(("num_classes", "dim"), [(12, 3), (24, 4), (240, 8)])
def test_bound_is_not_above_the_best_known_arrangements(num_classes, dim):
    # Icosahedron 1/sqrt(5); 24-cell and E8 roots 1/2, which meet the bound.
    best = {3: 5**-0.5, 4: 0.5, 8: 0.5}[dim]
    points = np.random.default_rng(0).standard_normal((num_classes, dim))
    assert centroid_report(points)["largest_cosine_bound"] <= best + 1e-9


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"num_classes": 1}, ValueError, "`num_classes` must be at least 2"),
        ({"dim": 1}, ValueError, "`dim` must be at least 2"),
        ({"num_classes": 3.0}, TypeError, "`num_classes` must be a whole number"),
        ({"dim": "8"}, TypeError, "`dim` must be a whole number"),
        ({"num_classes": True}, TypeError, "`num_classes` must be a whole number"),
        ({"seed": -1}, ValueError, "`seed` must be at least 0"),
        ({"steps": 0}, ValueError, "`steps` must be at least 1"),
        ({"method": "energy", "starts": 0}, ValueError, "`starts` must be at least"),
        ({"method": "best"}, ValueError, "`method` must be one of .* method='best'"),
        ({"method": "simplex", "num_classes": 10}, ValueError, "`method` must reach"),
    ],
)
def test_generator_refuses(arguments, error, message):
    with pytest.raises(error, match=message):
        generate_pedcc(**{"num_classes": 5, "dim": 8} | arguments)


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


def test_every_public_name_is_exported_and_documented():
    for name in keras_pedcc.__all__:
        assert len(getattr(keras_pedcc, name).__doc__) > 60, name
