"""Centroids at random, drawn in little more memory than they take."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import keras

from keras_pedcc.common import Tensor

BLOCK_ROWS = 4096


def by_blocks(initializer: Any) -> Callable[..., Tensor]:
    """`initializer`; on JAX a `RandomNormal` is drawn by blocks of rows.

    Keras draws with three more arrays of the whole size there. Rows of one block are
    left to Keras, as are those that a distribution cuts, and other initializers, which
    may need the whole shape.
    """
    if keras.backend.backend() != "jax" or keras.distribution.distribution():
        return initializer
    if type(initializer) is not keras.initializers.RandomNormal:
        return initializer
    if not isinstance(initializer.seed, int):
        return initializer  # a generator, which counts what is drawn
    return functools.partial(_drawn, initializer)


def _drawn(
    normal: keras.initializers.RandomNormal, shape: Sequence[int], dtype: str
) -> Tensor:
    if shape[0] <= BLOCK_ROWS:
        return normal(shape, dtype)
    import jax

    key = jax.random.key(normal.seed)

    def add(number: Tensor, rows: Tensor) -> Tensor:
        block = jax.random.normal(
            jax.random.fold_in(key, number), (BLOCK_ROWS, *shape[1:]), dtype
        )
        block = (normal.mean + normal.stddev * block).astype(dtype)
        # The last block ends with the last row, and draws some rows again.
        return jax.lax.dynamic_update_slice_in_dim(rows, block, number * BLOCK_ROWS, 0)

    @jax.jit
    def draw() -> Tensor:
        blocks = -(-shape[0] // BLOCK_ROWS)
        return jax.lax.fori_loop(0, blocks, add, jax.numpy.empty(shape, dtype))

    return draw()
