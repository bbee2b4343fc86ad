"""Predefined evenly-distributed class centroids (PEDCC)."""

import contextlib
import functools
import os
import warnings
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_pedcc.centroids import closed_forms as constructions
from keras_pedcc.centroids.descent import BLOCK_ELEMENTS, maximize_angle, relax_charges
from keras_pedcc.centroids.files import cached
from keras_pedcc.centroids.methods import resolve_method
from keras_pedcc.common import Array, Shape, Tensor
from keras_pedcc.common.checks import check_positive, check_whole

DTYPES = ("float32", "bfloat16", "float16")
# Multiplications and additions per second: two cores of a CPU, a tenth of a small GPU.
USUAL_SPEED = 1e11


def generate_pedcc(
    num_classes: int,
    dim: int,
    *,
    method: str = "auto",
    seed: int = 0,
    exponent: float = 1.0,
    steps: int | None = None,
    starts: int | None = None,
    seconds: float | None = None,
    dtype: str = "float32",
    cache: bool = True,
    verbose: int = 0,
) -> Tensor:
    """Spreads class centroids over the unit sphere, as far apart as possible.

    The centroids are the equilibrium of `num_classes` equal charges that repel each
    other on the unit sphere of `dim` dimensions. Where the best arrangement is known,
    it is computed directly, with mean zero and the smallest possible largest cosine
    between two centroids:

    | `num_classes` | arrangement (`method`) | largest cosine |
    |---|---|---|
    | `<= dim + 1` | regular simplex (`"simplex"`) | `-1 / (num_classes - 1)` |
    | `<= 2 * dim` | `num_classes - dim` mutually orthogonal regular simplices
      (`"orthogonal_simplices"`) | `0` |
    | any, `dim == 2` | regular polygon (`"polygon"`) | `cos(2 pi / num_classes)` |

    Otherwise:

    - `"kerdock"`: orthonormal bases, with their negatives, in the largest power of
      two `d = 2^m` of dimensions that `dim` holds. Largest cosine `1 / sqrt(d)` for
      up to `d (d + 2)` classes if m is even, `sqrt(2 / d)` for up to `2 d (d + 1)` if
      it is odd; twice that for up to `d (d^2 / 2 + 2)` or `2 d (d^2 + 1)`, d >= 16: at
      once, also for a million classes.
    - `"max_angle"`: descent on a soft maximum of the cosines with rising sharpness. For
      few classes it comes within 0.03 to 0.06 of the lower bound. Warns if the descent
      may take more than an hour.
    - `"energy"`: the charges move, by descent on the Riesz energy
      `sum_{i<j} |c_i - c_j|^-s`, s = `exponent`; s = 1 is Coulomb's and the paper's.
    - `"random"`: independent and uniform on the sphere.

    Both descents take projected gradient steps of Barzilai and Borwein's length in
    compiled functions, on the GPU if there is one, with one block of the Gram matrix in
    memory at a time. `"auto"` uses the closed form where it is optimal. Otherwise it
    uses the Kerdock set if its cosine is within 0.04 of the lower bound (0.1 for more
    than 2,000 classes, where a descent comes less close), else `"max_angle"` for up to
    20,000 classes. For more classes it uses the Kerdock set if that is large enough,
    and `"random"` if nothing better is affordable.

    Args:
        num_classes: int, at least 2. Number of centroids.
        dim: int, at least 2. Length of each centroid.
        method: One of the names above.
        seed: int, at least 0. Seed of the random rotation of a closed form, the bases
            and signs of `"kerdock"`, or the starts of a descent. The same seed gives
            the same centroids in every process on the same backend, unless `seconds`
            ended a descent. Defaults to 0.
        exponent: Float s of `"energy"`, in (0, 4]. The higher, the more similar to
            `"max_angle"`. Defaults to 1.
        steps: int, at least 1, or `None` for a number that suits the size. Maximum
            number of steps of a descent. `"energy"` stops when no charge moves by more
            than 1e-7.
        starts: int, at least 1. Number of descents from random starts, of which the
            best is returned. `None` means 32 (`"energy"`, up to 128 classes), 8
            (`"max_angle"`, up to 32 classes) or 1 (otherwise).
        seconds: Positive float, the time limit of a descent, or `None`.
        dtype: `"float32"`, `"bfloat16"` or `"float16"`.
        cache: bool. Whether to cache the result of a descent that takes longer than a
            second, in the folder of the environment variable `KERAS_PEDCC_CACHE`, else
            in `$XDG_CACHE_HOME/keras_pedcc`, else in `~/.cache/keras_pedcc`. Defaults
            to `True`.
        verbose: 0 or 1. Whether a descent shows a progress bar.

    Returns:
        Tensor of the backend, shape `(num_classes, dim)`; the rows are unit vectors.

    Raises:
        TypeError: A size, `seed`, `steps` or `starts` is not a whole number.
        ValueError: An argument is out of range, or `method` is unknown or does not
            reach `num_classes` in `dim` dimensions.
        MemoryError: The computation would need more memory than there is.

    Example:

    >>> centroids = keras_pedcc.generate_pedcc(4, 3)
    >>> cosines = keras.ops.tensordot(centroids, centroids, axes=(1, 1))
    >>> [round(float(cosine), 3) for cosine in cosines[0]]
    [1.0, -0.333, -0.333, -0.333]

    Reference: Zhu et al., "A New Loss Function for CNN Classifier Based on
    Predefined Evenly-Distributed Class Centroids", IEEE Access 2020, section
    III-B.
    """
    _check_options(num_classes, dim, seed, exponent, seconds, dtype)
    # NumPy integers can overflow and have no `bit_length`.
    num_classes, dim, seed = int(num_classes), int(dim), int(seed)
    method = resolve_method(method, num_classes, dim)
    starts = _default_starts(method, num_classes) if starts is None else starts
    check_whole(1, starts=starts)
    if steps is None:
        steps = _default_steps(method, num_classes, dim, starts)
    check_whole(1, steps=steps)
    _check_memory(num_classes, dim, method, int(starts), dtype)
    if method not in ("energy", "max_angle"):
        centroids = _construct(method, num_classes, dim, seed, dtype)
        with _outside_of_traces():
            return ops.cast(ops.convert_to_tensor(centroids), dtype)
    key = {
        "num_classes": num_classes,
        "dim": dim,
        "method": method,
        "seed": seed,
        "exponent": float(exponent),
        "steps": int(steps),
        "starts": int(starts),
        "backend": keras.backend.backend(),
    }
    descend = functools.partial(_descend, key, seconds, verbose)
    # A result that a time limit ended is not reproducible.
    keep = cache and seconds is None
    with _outside_of_traces(), _full_precision():
        return ops.cast(cached(key, descend) if keep else descend(), dtype)


def _check_options(
    num_classes: int,
    dim: int,
    seed: int,
    exponent: float,
    seconds: float | None,
    dtype: str,
) -> None:
    check_whole(2, num_classes=num_classes, dim=dim)
    check_whole(0, seed=seed)
    check_positive(4, exponent=exponent)
    if seconds is not None:
        check_positive(seconds=seconds)
    if dtype not in DTYPES:
        raise ValueError(
            f"`dtype` must be one of {DTYPES}. Received: dtype={dtype!r}. Cast the "
            "result to any other."
        )


def _descend(key: dict[str, Any], seconds: float | None, verbose: int) -> Tensor:
    """The result of a descent, which depends on `key` alone."""
    _warn_of_hours(key, seconds)
    rng = np.random.default_rng(key["seed"])
    points = _random_points(rng, (key["starts"], key["num_classes"], key["dim"]))
    if key["method"] == "energy":
        return relax_charges(points, key["exponent"], key["steps"], seconds, verbose)
    return maximize_angle(points, key["steps"], seconds, verbose)


def _warn_of_hours(key: dict[str, Any], seconds: float | None) -> None:
    """Warns if a descent may take hours; `seconds` would end it earlier."""
    steps = key["steps"] if seconds is None else min(2, key["steps"])
    num_classes, dim = key["num_classes"], key["dim"]
    hours = steps * _operations(num_classes, dim, key["starts"]) / USUAL_SPEED / 3600
    if hours > 1:
        warnings.warn(
            f"A descent of so many centroids takes about {hours:.0f} hours at "
            f"{USUAL_SPEED:.0e} operations per second. Received: "
            f"num_classes={num_classes}, dim={dim}, method={key['method']!r}, "
            f"steps={steps}, starts={key['starts']}. Leave `method` out for an "
            "arrangement that is built at once, or take fewer steps.",
            stacklevel=4,
        )


def _operations(num_classes: int, dim: int, starts: int) -> int:
    """Number of operations of one step of a descent: two products with all pairs."""
    return 4 * starts * num_classes**2 * dim


def _outside_of_traces() -> contextlib.AbstractContextManager[Any]:
    """Computes eagerly, also if a layer is built while Keras traces a model."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        return tf.init_scope()
    if keras.backend.backend() == "jax":
        import jax

        return jax.ensure_compile_time_eval()
    return contextlib.nullcontext()


@contextlib.contextmanager
def _full_precision() -> Iterator[None]:
    """Computes products in float32, which GPUs otherwise round to ten bits of mantissa.

    PyTorch does so by default.
    """
    if keras.backend.backend() == "jax":
        import jax

        with jax.default_matmul_precision("float32"):
            yield
    elif keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        before = tf.config.experimental.tensor_float_32_execution_enabled()
        tf.config.experimental.enable_tensor_float_32_execution(False)
        try:
            yield
        finally:
            tf.config.experimental.enable_tensor_float_32_execution(before)
    else:
        yield


def _construct(method: str, num_classes: int, dim: int, seed: int, dtype: str) -> Array:
    """A NumPy array; float16 holds what a shorter dtype will be made of."""
    rng = np.random.default_rng(seed)
    short = "float32" if dtype == "float32" else "float16"
    if method == "kerdock":
        return constructions.kerdock(num_classes, dim, rng, short)
    if method == "random":
        return _random_points(rng, (num_classes, dim)).astype(short, copy=False)
    centroids = {
        "simplex": lambda: constructions.simplex(num_classes),
        "polygon": lambda: constructions.polygon(num_classes),
        "orthogonal_simplices": lambda: constructions.orthogonal_simplices(
            num_classes, dim
        ),
    }[method]()
    rotation = constructions.random_rotation(rng, dim, centroids.shape[1])
    return (centroids @ rotation).astype("float32")


def _random_points(rng: np.random.Generator, shape: Shape) -> Array:
    points = rng.standard_normal(shape, dtype="float32")
    points /= np.linalg.norm(points, axis=-1, keepdims=True)
    return points


def _default_starts(method: str, num_classes: int) -> int:
    # 32 find the least known energy of every n up to 100 in three dimensions.
    few, starts = {"energy": (128, 32), "max_angle": (32, 8)}.get(method, (0, 1))
    return starts if num_classes <= few else 1


def _default_steps(method: str, num_classes: int, dim: int, starts: int) -> int:
    """Enough to converge if that takes seconds; otherwise some minutes' worth."""
    usual = {"energy": 1_000, "max_angle": 6_000 if num_classes <= 256 else 4_800}
    affordable = int(4e12 / _operations(num_classes, dim, starts))
    return max(24, min(usual.get(method, 1), affordable))


def _check_memory(
    num_classes: int, dim: int, method: str, starts: int, dtype: str
) -> None:
    """Raises `MemoryError` if the estimated peak, in bytes, exceeds the RAM."""
    of_each_number = {
        "energy": 48 * starts,
        "max_angle": 48 * starts,
        "kerdock": 12 if dtype == "float32" else 8,
        "random": 12,
    }.get(method, 48)  # closed forms are made in float64
    blocks = 24 * BLOCK_ELEMENTS if method in ("energy", "max_angle") else 0
    needed = of_each_number * num_classes * dim + blocks
    there = _physical_memory()
    if there is not None and needed > there:
        raise MemoryError(
            "`num_classes` x `dim` centroids must fit in memory. Received: "
            f"num_classes={num_classes}, dim={dim}, which need about "
            f"{needed / 2**30:.1f} GiB with method={method!r}; this machine has "
            f"{there / 2**30:.1f} GiB. Take fewer classes, dimensions or `starts`."
        )


def _physical_memory() -> int | None:
    """Bytes of RAM, or `None` if unknown."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None
