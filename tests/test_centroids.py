import os
import subprocess
import sys
import time

import keras
import numpy as np
import pytest
from hypothesis import given, settings, strategies
from reference import cosines_of_pairs, coulomb_energy
from tensors import assert_allclose, only_once, slope_of

import keras_pedcc
from keras_pedcc import centroid_report, generate_pedcc
from keras_pedcc.centroids import closed_forms as constructions
from keras_pedcc.centroids import descent as relaxation
from keras_pedcc.centroids import generate as centroids_module
from keras_pedcc.centroids.methods import METHODS, resolve_method

# Least known Coulomb energies of n points on the sphere (Thomson problem).
THOMSON = {5: 6.474691495, 12: 49.165253058, 32: 412.261274651, 50: 1055.182314726}


def numpy_of(tensor):
    return keras.ops.convert_to_numpy(tensor)


def make(*args, **kwargs):
    return numpy_of(generate_pedcc(*args, **kwargs)).astype("float64")


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


def test_rotation_is_orthonormal_also_where_gauss_is_nearly_singular():
    class Flat:
        def standard_normal(self, shape):
            gauss = np.random.default_rng(0).standard_normal(shape)
            gauss[:, -1] = gauss[:, 0] + 1e-6 * gauss[:, -1]
            return gauss

    for rng in (np.random.default_rng(0), Flat()):
        for shape in ((300, 299), (300, 300), (512, 46), (3, 2)):
            rows = constructions.random_rotation(rng, *shape)
            np.testing.assert_allclose(rows @ rows.T, np.eye(shape[1]), atol=1e-9)


def test_both_ways_to_a_rotation_agree(rng):
    gauss = rng.standard_normal((12, 8))

    class Drawn:
        def __init__(self, factor):
            self.factor = factor

        def standard_normal(self, shape):
            return self.factor * gauss

    # So short that it seems singular; the length of the draw does not matter.
    long, short = (constructions.random_rotation(Drawn(f), 12, 8) for f in (1.0, 1e-3))
    np.testing.assert_allclose(short, long, atol=1e-9)


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


@pytest.mark.parametrize("method", METHODS[1:])
def test_rows_are_unit_float32(method):
    num_classes = {"simplex": 9, "orthogonal_simplices": 12}.get(method, 40)
    dim = 2 if method == "polygon" else 8
    centroids = numpy_of(generate_pedcc(num_classes, dim, method=method, steps=200))
    assert centroids.dtype == "float32"
    assert centroids.shape == (num_classes, dim)
    np.testing.assert_allclose(np.linalg.norm(centroids, axis=1), 1, atol=1e-6)


@pytest.mark.parametrize(
    ("num_classes", "exponent"), [(3, 1.0), (8, 4.0), (11, 0.5), (16, 1.0)]
)
def test_energy_gradient_is_zero_at_rest(num_classes, exponent):
    points = make(num_classes, 3, method="energy", exponent=exponent)
    apart = points[:, None] - points
    squared = np.sum(apart**2, axis=2) + 1e30 * np.eye(num_classes)
    force = np.sum(apart * squared[..., None] ** (-exponent / 2 - 1), axis=1)
    along = force - np.sum(force * points, axis=1)[:, None] * points
    assert np.abs(along).max() < 1e-3 * np.abs(force).max()


def soft_largest_cosine(points, sharpness):
    cosines = points @ points.T - 1e9 * np.eye(len(points))
    return np.log(np.sum(np.exp(sharpness * cosines))) / sharpness


@pytest.mark.parametrize(
    ("objective", "twin", "parameter"),
    [
        (relaxation._energy, lambda points, _: coulomb_energy(points), 1.0),
        (relaxation._soft_largest_cosine, soft_largest_cosine, 8.0),
    ],
)
def test_descent_follows_the_slope_along_the_sphere(rng, objective, twin, parameter):
    points = rng.standard_normal((6, 3))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    top = np.full((1, 1, 1), cosines_of_pairs(points).max(), "float32")
    given = keras.ops.convert_to_tensor(points[None].astype("float32"))
    value, gradient, *_ = objective(given, keras.ops.convert_to_tensor(top), parameter)

    def on_the_sphere(x):
        return twin(x / np.linalg.norm(x, axis=1, keepdims=True), parameter)

    assert_allclose(value[0], twin(points, parameter), rtol=1e-5)
    assert_allclose(gradient[0], slope_of(on_the_sphere, points), rtol=1e-3, atol=1e-4)


def test_energy_never_rises_with_more_steps():
    energies = [
        coulomb_energy(make(30, 3, method="energy", starts=1, steps=steps))
        for steps in range(1, 16)
    ]
    assert np.max(np.diff(energies)) < 1e-3
    assert energies[-1] < energies[0] - 1


@pytest.mark.parametrize(
    ("num_classes", "dim", "cosine"),
    # Icosahedron, square antiprism, snub cube (Tammes problem), cross-polytope.
    [(12, 3, 5**-0.5), (8, 3, 0.2612038749637414), (24, 3, 0.7232), (8, 4, 0.0)],
)
def test_max_angle_finds_the_best_known(num_classes, dim, cosine):
    found = cosines_of_pairs(make(num_classes, dim, method="max_angle")).max()
    assert found == pytest.approx(cosine, abs=1e-3)


@only_once
@pytest.mark.slow
def test_max_angle_beats_energy_where_no_form_is_known():
    ours = cosines_of_pairs(make(100, 32)).max()
    charges = cosines_of_pairs(make(100, 32, method="energy")).max()
    assert ours < 0.078
    assert charges > ours + 0.02


@pytest.mark.parametrize("method", ["max_angle", "energy"])
def test_blocks_of_rows_change_nothing(method, monkeypatch):
    whole = make(50, 6, method=method, steps=4)
    monkeypatch.setattr(relaxation, "BLOCK_ELEMENTS", 50 * 7)
    relaxation._compiled.cache_clear()
    blocks = make(50, 6, method=method, steps=4)
    relaxation._compiled.cache_clear()
    np.testing.assert_allclose(blocks, whole, atol=1e-4)


@pytest.mark.parametrize("dim", [4, 5, 8, 16, 20, 32])
def test_full_kerdock_set_has_its_cosine_and_mean_zero(dim):
    capacity = constructions.kerdock_capacity(dim)
    assert capacity == {4: 24, 5: 24, 8: 144, 16: 288, 20: 288, 32: 2112}[dim]
    centroids = make(capacity, dim, method="kerdock")
    cosine = {4: 0.5, 5: 0.5, 8: 0.5, 16: 0.25, 20: 0.25, 32: 0.25}[dim]
    assert constructions.kerdock_cosine(capacity, dim) == pytest.approx(cosine)
    cosines = cosines_of_pairs(centroids)
    assert cosines.max() == pytest.approx(cosine, abs=1e-6)
    assert np.linalg.norm(centroids.mean(axis=0)) < 1e-6
    levels = np.unique(np.round(np.abs(cosines), 6))
    allowed = {0.0, 1.0, np.round(cosine, 6), np.round(cosine / 2**0.5, 6)}
    assert set(levels) <= allowed


@pytest.mark.parametrize(
    ("num_classes", "dim"), [(289, 16), (2_080, 16), (3_000, 32), (4_300, 64)]
)
def test_several_kerdock_sets_have_twice_the_cosine_of_one(num_classes, dim):
    assert num_classes > constructions.kerdock_capacity(dim)
    cosine = {16: 0.5, 32: 0.5, 64: 0.25}[dim]
    assert constructions.kerdock_cosine(num_classes, dim) == pytest.approx(cosine)
    centroids = make(num_classes, dim, method="kerdock")
    assert cosines_of_pairs(centroids).max() == pytest.approx(cosine, abs=1e-6)


def test_more_classes_than_a_kerdock_set_begin_with_it():
    several = constructions.kerdock(2_080, 16, np.random.default_rng(0))
    assert cosines_of_pairs(several[:288]).max() == pytest.approx(0.25, abs=1e-6)


@pytest.mark.parametrize(("num_classes", "dim"), [(66_048, 256), (9_001, 512)])
def test_kerdock_for_very_many_classes(num_classes, dim):
    centroids = numpy_of(generate_pedcc(num_classes, dim))
    assert centroids.shape == (num_classes, dim)
    rows = np.random.default_rng(0).choice(num_classes, 300, replace=False)
    cosines = centroids[rows] @ centroids.T
    cosines[np.arange(300), rows] = -1
    assert cosines.max() <= 1 / 16 + 1e-6


@pytest.mark.parametrize(
    ("num_classes", "dim", "method"),
    [
        (9, 8, "simplex"),
        (16, 8, "orthogonal_simplices"),
        (17, 2, "polygon"),
        (100, 32, "max_angle"),
        (1_000, 64, "kerdock"),
        (1_000, 128, "max_angle"),
        (10_000, 512, "kerdock"),
        (288, 16, "kerdock"),
        (2_100, 60, "max_angle"),
        (5_000, 40, "max_angle"),
        (60_000, 300, "kerdock"),
        (50_000, 40, "kerdock"),
        (70_000, 40, "random"),
        (10_000, 64, "kerdock"),
        (1_000_000, 512, "kerdock"),
    ],
)
def test_auto_takes_the_best_that_is_affordable(num_classes, dim, method):
    assert resolve_method("auto", num_classes, dim) == method


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_short_dtypes_hold_kerdock_sets_exactly(dtype):
    short = generate_pedcc(288, 16, method="kerdock", dtype=dtype)
    assert keras.backend.standardize_dtype(short.dtype) == dtype
    whole = make(288, 16, method="kerdock")
    np.testing.assert_array_equal(numpy_of(keras.ops.cast(short, "float32")), whole)


@pytest.mark.parametrize("method", ["energy", "max_angle"])
def test_seconds_end_a_descent(method):
    begun = time.monotonic()
    generate_pedcc(100, 20, method=method, steps=10**9, seconds=0.2)
    assert time.monotonic() - begun < 30


@pytest.mark.parametrize(
    ("options", "hours"), [({}, 137), ({"seconds": 60.0}, 11), ({"steps": 300}, 1707)]
)
def test_descent_of_hours_is_warned_of_before_it_begins(options, hours, monkeypatch):
    begun = []

    def descent(points, *args):
        begun.append(points)
        return points[0]

    monkeypatch.setattr(centroids_module, "_physical_memory", lambda: None)
    monkeypatch.setattr(centroids_module, "relax_charges", descent)
    monkeypatch.setattr(
        centroids_module, "_random_points", lambda *_: np.ones((1, 2, 2), "float32")
    )
    with pytest.warns(UserWarning, match=f"takes about {hours} hours"):
        generate_pedcc(1_000_000, 512, method="energy", cache=False, **options)
    assert len(begun) == 1


def test_a_descent_in_many_calls_is_the_same(monkeypatch):
    whole = make(60, 12, method="energy", steps=40, starts=1)
    monkeypatch.setattr(relaxation._Descent, "_affordable", lambda self: 1)
    np.testing.assert_array_equal(
        make(60, 12, method="energy", steps=40, starts=1), whole
    )


def test_charges_that_almost_touch_fly_apart():
    points = np.random.default_rng(0).standard_normal((1, 30, 3))
    points[0, 1] = points[0, 0] + 1e-3 * points[0, 2]
    points /= np.linalg.norm(points, axis=-1, keepdims=True)
    moved = numpy_of(relaxation.relax_charges(points, 4.0, 500))
    assert cosines_of_pairs(moved).max() < 0.85


def test_numpy_numbers_are_sizes():
    first = generate_pedcc(
        np.int8(20), np.uint8(6), seed=np.int64(1), steps=np.int16(9)
    )
    np.testing.assert_array_equal(
        numpy_of(first), numpy_of(generate_pedcc(20, 6, seed=1, steps=9))
    )


def test_descents_multiply_in_full_precision_and_leave_the_setting(monkeypatch):
    def setting():
        if keras.backend.backend() == "jax":
            import jax

            return jax.config.jax_default_matmul_precision
        if keras.backend.backend() == "tensorflow":
            import tensorflow as tf

            return tf.config.experimental.tensor_float_32_execution_enabled()
        import torch

        return torch.backends.cuda.matmul.allow_tf32

    seen, before = [], setting()

    def descend(points, *args):
        seen.append(setting())
        return keras.ops.convert_to_tensor(points[0])

    monkeypatch.setattr(centroids_module, "maximize_angle", descend)
    generate_pedcc(40, 8, method="max_angle", cache=False)
    exact = {"jax": "float32", "tensorflow": False, "torch": False}
    assert seen == [exact[keras.backend.backend()]]
    assert setting() == before


@pytest.mark.parametrize("floatx", ["float16", "float64"])
@pytest.mark.parametrize("method", ["energy", "max_angle"])
def test_descents_do_not_mind_floatx(floatx, method):
    expected = make(20, 6, method=method, steps=20)
    keras.config.set_floatx(floatx)
    try:
        found = make(20, 6, method=method, steps=20)
    finally:
        keras.config.set_floatx("float32")
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_progress_is_shown(capsys):
    generate_pedcc(30, 8, method="max_angle", steps=100, verbose=1)
    assert "largest_cosine" in capsys.readouterr().out


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    num_classes=strategies.integers(2, 40),
    dim=strategies.integers(2, 12),
    seed=strategies.integers(0, 2**31),
    method=strategies.sampled_from(["auto", "energy", "max_angle", "random"]),
)
def test_any_size_gives_unit_rows_that_are_never_worse_than_random(
    num_classes, dim, seed, method
):
    options = {"method": method, "seed": seed, "steps": 100, "starts": 1}
    centroids = make(num_classes, dim, **options)
    np.testing.assert_allclose(np.linalg.norm(centroids, axis=1), 1, atol=1e-6)
    np.testing.assert_array_equal(centroids, make(num_classes, dim, **options))
    cosines = cosines_of_pairs(centroids)
    report = centroid_report(centroids)
    assert report["largest_cosine"] == pytest.approx(cosines.max(), abs=1e-6)
    assert report["largest_cosine"] >= report["largest_cosine_bound"] - 1e-6
    random = make(num_classes, dim, **options | {"method": "random"})
    assert coulomb_energy(centroids) <= coulomb_energy(random) * (1 + 1e-6) or (
        cosines.max() <= cosines_of_pairs(random).max()
    )


@pytest.mark.parametrize("num_classes", [5, 14, 30])
def test_seed_decides_the_centroids(num_classes):
    first, again, other = (
        make(num_classes, 8, seed=seed, steps=99) for seed in (3, 3, 4)
    )
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0.1


@pytest.mark.slow
def test_same_seed_gives_the_same_centroids_in_another_process():
    code = (
        "import sys, keras, keras_pedcc\n"
        "for n in (5, 14, 30):\n"
        "    c = keras_pedcc.generate_pedcc(n, 8, seed=3, steps=99)\n"
        "    sys.stdout.write(keras.ops.convert_to_numpy(c).tobytes().hex() + ' ')\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"KERAS_BACKEND": keras.backend.backend()},
    )
    here = [
        numpy_of(generate_pedcc(n, 8, seed=3, steps=99)).tobytes().hex()
        for n in (5, 14, 30)
    ]
    assert run.stdout.split() == here


def test_rotation_is_uniform_over_the_sphere():
    first = np.stack([numpy_of(generate_pedcc(2, 3, seed=s))[0] for s in range(400)])
    assert np.linalg.norm(first.mean(axis=0)) < 0.15
    np.testing.assert_allclose(np.cov(first.T), np.eye(3) / 3, atol=0.08)


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
        ({"exponent": 0}, ValueError, "`exponent` must be a positive number"),
        ({"exponent": 9}, ValueError, "of at most 4. Received: exponent=9"),
        ({"method": ["energy"]}, ValueError, "`method` must be one of"),
        (
            {"num_classes": 8, "dim": 3, "method": "kerdock"},
            ValueError,
            "`method` must reach",
        ),
        ({"seconds": -1}, ValueError, "`seconds` must be a positive number"),
        ({"dtype": "int8"}, ValueError, "`dtype` must be one of"),
        ({"num_classes": 10**9, "dim": 10**5}, MemoryError, "need about .* GiB"),
        (
            {"num_classes": 25, "dim": 5, "method": "kerdock"},
            ValueError,
            "`method` must reach",
        ),
        ({"method": "best"}, ValueError, "`method` must be one of .* method='best'"),
        ({"method": "simplex", "num_classes": 10}, ValueError, "`method` must reach"),
    ],
)
def test_generator_refuses(arguments, error, message):
    with pytest.raises(error, match=message):
        generate_pedcc(**{"num_classes": 5, "dim": 8} | arguments)


def test_every_public_name_is_exported_and_documented():
    for name in keras_pedcc.__all__:
        assert len(getattr(keras_pedcc, name).__doc__) > 60, name
