"""Groups of distinct items, drawn so that all items come equally often."""

import math
from collections.abc import Sequence

import numpy as np

from keras_pedcc.common import Array


class Rounds:
    """An endless list of groups, determined by the seed and the number of the group.

    The items are drawn in rounds. Each round is a random order of all items, and the
    concatenated rounds are cut into groups of `size`. So after any number of groups the
    counts of all items differ by at most one. If a group spans the end of one round and
    the start of the next, the next round moves the items of that end behind the group,
    so that no group contains an item twice.

    With fewer items than `size`, a group contains all of them `size // number` times,
    and the rest is drawn in rounds.

    Args:
        number: int, at least 1. The items are 0 to `number - 1`.
        size: int, at least 1. Items in a group.
        seed: Whole numbers, at least 0.
    """

    def __init__(self, number: int, size: int, seed: Sequence[int]) -> None:
        self.number = number
        self.copies, self.size = divmod(size, number)
        self.seed = tuple(seed)
        self._kept: tuple[int, Array] = (-2, np.arange(0))  # the last round asked for

    def group(self, index: int) -> Array:
        """The items of a group, shape `(size,)`."""
        all_items = np.tile(np.arange(self.number), self.copies)
        start, stop = index * self.size, (index + 1) * self.size
        first, last = start // self.number, max(stop - 1, start) // self.number
        drawn = np.concatenate([self._round(i) for i in range(first, last + 1)])
        begin = start - first * self.number
        return np.concatenate([all_items, drawn[begin : begin + self.size]])

    def _round(self, index: int) -> Array:
        """All items, in the order of a round."""
        at, order = self._kept
        if at not in (index - 1, index):
            at = self._known(index)
            order = self._drawn(at)
        for each in range(at + 1, index + 1):
            order = self._after(order, each)
        self._kept = index, order
        return order

    def _known(self, index: int) -> int:
        """The last round up to `index` that does not depend on earlier rounds."""
        period = self.size // math.gcd(self.number, self.size) if self.size else 1
        whole = index - index % period  # starts together with a group
        # Items that move stay among the first `2 size - 1` of a round.
        return max(whole, index - 1) if self.number >= 2 * self.size else whole

    def _after(self, before: Array, index: int) -> Array:
        """A round after `before`, whose last items share a group with its first."""
        drawn = self._drawn(index)
        shared = index * self.number % self.size if self.size else 0
        if not shared:
            return drawn
        free = np.flatnonzero(~np.isin(drawn, before[-shared:]))
        first = free[: self.size - shared]
        return np.concatenate([drawn[first], np.delete(drawn, first)])

    def _drawn(self, index: int) -> Array:
        rng = np.random.default_rng((*self.seed, index))
        return rng.permutation(self.number)
