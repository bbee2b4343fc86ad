"""Arrangements of unit vectors that are known in closed form, in NumPy."""

import itertools

import numpy as np

from keras_pedcc.common import Array


def simplex(num_classes: int) -> Array:
    """Corners of a regular simplex, shape `(num_classes, num_classes - 1)`."""
    k = np.arange(1, num_classes)
    helmert = np.tri(num_classes - 1, num_classes)
    helmert[k - 1, k] = -k
    helmert *= np.sqrt(num_classes / (num_classes - 1) / (k * (k + 1)))[:, None]
    return helmert.T


def orthogonal_simplices(num_classes: int, dim: int) -> Array:
    """`num_classes - dim` regular simplices in mutually orthogonal subspaces.

    Sizes as equal as possible; shape `(num_classes, dim)`.
    """
    centroids = np.zeros((num_classes, dim))
    column = 0
    for rows in np.array_split(np.arange(num_classes), num_classes - dim):
        width = len(rows) - 1
        centroids[rows, column : column + width] = simplex(len(rows))
        column += width
    return centroids


def polygon(num_classes: int) -> Array:
    """Corners of a regular polygon, shape `(num_classes, 2)`."""
    angle = 2 * np.pi * np.arange(num_classes) / num_classes
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)


def random_rotation(rng: np.random.Generator, dim: int, rows: int) -> Array:
    """`rows` orthonormal vectors of length `dim`, uniform over all such sets."""
    gauss = rng.standard_normal((dim, rows))
    lower = np.linalg.cholesky(gauss.T @ gauss)
    # The error is about 1e-16 (2 sqrt(dim) / s)^2, with s the least singular value.
    if lower.diagonal().min() > 0.05:
        return _inverse_of_lower(lower) @ gauss.T
    q, r = np.linalg.qr(gauss)  # the same, in two to six times the time
    return (q * np.sign(np.diag(r))).T


def _inverse_of_lower(lower: Array) -> Array:
    """Inverse of a lower triangular matrix, by halves."""
    half = len(lower) // 2
    if half < 64:
        return np.linalg.inv(lower)
    first, last = _inverse_of_lower(lower[:half, :half]), lower[half:, half:]
    last = _inverse_of_lower(last)
    corner = -last @ (lower[half:, :half] @ first)
    return np.block([[first, np.zeros((half, len(last)))], [corner, last]])


def kerdock_dim(dim: int) -> int:
    """The largest power of two up to `dim`: the number of dimensions of a set."""
    return 1 << (dim.bit_length() - 1)


def kerdock_capacity(dim: int) -> int:
    """Number of vectors of a full set: `d (d + 2)`, or `2 d (d + 1)`, d = 2^m.

    The first for even m (Kerdock), the second for odd m (Gold); none below d = 4.
    """
    if dim < 4:
        return 0
    return 2 * kerdock_dim(dim) * (_field_size(dim) + 1)


def union_capacity(dim: int) -> int:
    """Number of vectors of all sets together, about `d^3 / 2` or `2 d^3`; d >= 16."""
    if dim < 16:
        return kerdock_capacity(dim)
    return 2 * kerdock_dim(dim) * (_field_size(dim) ** 2 + 1)


def _field_size(dim: int) -> int:
    """Number of elements of the field behind the forms of Kerdock or Gold."""
    d = kerdock_dim(dim)
    return d // 2 if d.bit_length() % 2 else d


def kerdock_cosine(num_classes: int, dim: int) -> float:
    """Largest cosine of more than `2 d` vectors, d = 2^m.

    `1 / sqrt(d)` for even m, `sqrt(2 / d)` for odd m; twice as much for more vectors
    than a full set.
    """
    d = kerdock_dim(dim)
    one_set = d**-0.5 if d.bit_length() % 2 else (2 / d) ** 0.5
    return one_set if num_classes <= kerdock_capacity(dim) else 2 * one_set


def kerdock(
    num_classes: int, dim: int, rng: np.random.Generator, dtype: str = "float32"
) -> Array:
    """A set of orthonormal bases, any two of them as far apart as bases can be.

    The standard basis, then bases `diag((-1)^Q_a) H / sqrt(d)`, with H the Hadamard
    matrix of order `d = 2^m` and a quadratic form Q_a over GF(2) for each a of a
    finite field; every vector is followed by its negative. For even m the forms are
    those of Kerdock, `Q_a(x, x0) = sum_{1 <= i < m/2} Tr((a x)^(2^i + 1)) + x0 Tr(a x)`
    over GF(2^(m-1)), whose differences have rank m. For odd m they are those of Gold,
    `Q_a(x) = Tr(a x^3)` over GF(2^m), of rank m - 1.

    More vectors than a full set come from several sets: `Tr(b x^3)` (even m) or `Tr(b
    x^5)` (odd m) is added to the forms of each, with a different b. Between the sets
    the ranks are at least m - 2 or m - 3 (Delsarte and Goethals), so the largest cosine
    doubles.

    Fewer vectors than a full set are bases chosen by `rng`; the last may be incomplete.
    `rng` also shuffles the coordinates and draws their signs. Coordinates beyond `d`
    are 0.
    """
    d = kerdock_dim(dim)
    signs, columns, flips = kerdock_signs(num_classes, dim, rng)
    rows_of_all = hadamard(d)
    centroids = np.zeros((num_classes, dim), dtype)
    for index in range(len(signs) + 1):
        rows = slice(2 * d * index, min(2 * d * (index + 1), num_classes))
        first = index == 0
        basis = np.eye(d, dtype="int8") if first else rows_of_all * signs[index - 1]
        both = np.stack([basis, -basis], axis=1).reshape(-1, d) * flips
        length = 1.0 if first else d**-0.5
        part = np.zeros((rows.stop - rows.start, dim), "float32")
        part[:, columns] = both[: len(part)] * np.float32(length)
        centroids[rows] = part
    return centroids


def kerdock_signs(
    num_classes: int, dim: int, rng: np.random.Generator
) -> tuple[Array, Array, Array]:
    """The signs and coordinates from which `kerdock` makes its vectors.

    Returns:
        `(signs, columns, flips)`: `(-1)^Q_a` for each basis but the first, int8, shape
        `(bases - 1, d)`; the dimension of each coordinate, int32, and its sign, int8,
        both of shape `(d,)`.
    """
    d = kerdock_dim(dim)
    signs = _form_signs(d, rng, -(-num_classes // (2 * d)) - 1)
    columns = rng.permutation(dim)[:d].astype("int32")
    return signs.astype("int8"), columns, rng.choice([-1, 1], d).astype("int8")


def hadamard(d: int) -> Array:
    """Sylvester's matrix: entry (i, j) is -1 to the number of common bits."""
    matrix = np.ones((1, 1), "int8")
    while len(matrix) < d:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix


def _form_signs(d: int, rng: np.random.Generator, number: int) -> Array:
    """`(-1)^Q` for `number` forms: random a, and several b if one set is too small."""
    m = d.bit_length() - 1
    field = _Field(m - 1 if m % 2 == 0 else m)
    form = _gold_form if m % 2 else _kerdock_form
    chosen = rng.permutation(field.size)[:number]
    bits = np.array([form(field, a, m) for a in chosen], "int8").reshape(-1, d)
    if number > field.size:
        sets = -(-number // field.size)
        added = [0, *rng.permutation(np.arange(1, field.size))[: sets - 1]]
        shifts = np.array([_shift(field, b, m) for b in added], "int8")
        bits = (shifts[:, None] ^ bits).reshape(-1, d)[:number]
    return 1 - 2 * bits


def _gold_form(field: "_Field", a: int, m: int) -> Array:
    return field.trace(field.times(a, field.power(np.arange(field.size), 3)))


def _shift(field: "_Field", b: int, m: int) -> Array:
    """The form that distinguishes one set from another."""
    exponent = 5 if m % 2 else 3
    bits = field.trace(field.times(b, field.power(np.arange(field.size), exponent)))
    return bits if m % 2 else np.concatenate([bits, bits])


def _kerdock_form(field: "_Field", a: int, m: int) -> Array:
    ax = field.times(a, np.arange(field.size))
    quadratic = np.zeros(field.size, "int64")
    for i in range(1, m // 2):
        quadratic ^= field.trace(field.power(ax, 2**i + 1))
    return np.concatenate([quadratic, quadratic ^ field.trace(ax)])


class _Field:
    """The field of 2^k elements, as bit patterns, by a table of logarithms."""

    def __init__(self, k: int) -> None:
        self.size = 2**k
        powers = next(p for p in map(self._powers, itertools.count(self.size)) if p)
        self.exp = np.array(powers)
        self.log = np.zeros(self.size, "int64")
        self.log[self.exp] = np.arange(self.size - 1)
        traces = np.arange(self.size)
        conjugate = traces
        for _ in range(k - 1):
            conjugate = self.power(conjugate, 2)
            traces = traces ^ conjugate
        self._traces = traces

    def _powers(self, polynomial: int) -> list[int] | None:
        """Powers of x modulo `polynomial`, or `None` if they are not all elements."""
        powers, element = [], 1
        for _ in range(self.size - 1):
            powers.append(element)
            element <<= 1
            element ^= polynomial if element & self.size else 0
        whole = element == 1 and len(set(powers)) == self.size - 1
        return powers if whole else None

    def times(self, a: int | Array, b: Array) -> Array:
        product = self.exp[(self.log[a] + self.log[b]) % (self.size - 1)]
        return np.where((np.asarray(a) == 0) | (np.asarray(b) == 0), 0, product)

    def power(self, a: Array, exponent: int) -> Array:
        result = self.exp[self.log[a] * exponent % (self.size - 1)]
        return np.where(np.asarray(a) == 0, 0, result)

    def trace(self, a: Array) -> Array:
        """Absolute trace, 0 or 1: the sum of the conjugates."""
        return self._traces[a]
