"""Quantiles of any number of values in bounded memory, with intervals from blocks of them."""

from __future__ import annotations

import numpy as np

from repro.stats.bootstrap import (
    BLOCK_STEPS,
    MIN_BLOCKS,
    RESAMPLES,
    Floats,
    Integers,
    interval,
    steps_needed,
)
from repro.stats.estimate import Estimate, supported, unsupported

FINE, COARSE = 12, 9
"""Bits of a value's mantissa that are told apart: to 0.02%, in a resample to 0.2%."""

_OCTAVES = 44  # from 1 ns to 4 hours
MOST_BLOCKS = 256


class Tail:
    """Counts of values in ns by size, all of them and block by block of consecutive ones."""

    def __init__(self) -> None:
        self.counts: Integers = np.zeros(_OCTAVES << FINE, dtype=np.int64)
        self.blocks: Integers = np.zeros((MOST_BLOCKS, _OCTAVES << COARSE), dtype=np.int64)
        self.block_steps = BLOCK_STEPS // 4
        self.number = 0

    def add(self, values: Integers) -> None:
        """Count values that follow those before."""
        if not len(values):
            return
        cell = _cells(values, FINE)
        self.counts += np.bincount(cell, minlength=len(self.counts))
        while (self.number + len(values) - 1) // self.block_steps >= MOST_BLOCKS:
            self._halve()
        block = (self.number + np.arange(len(values))) // self.block_steps
        first, width = block[0], self.blocks.shape[1]
        own = np.bincount((block - first) * width + (cell >> (FINE - COARSE)))
        rows = -(-len(own) // width)
        own = np.pad(own, (0, rows * width - len(own))).reshape(rows, width)
        self.blocks[first : first + rows] += own
        self.number += len(values)

    def _halve(self) -> None:
        """Join neighbouring blocks: half as many, twice as long."""
        joined = self.blocks[::2] + self.blocks[1::2]
        self.blocks[: len(joined)], self.blocks[len(joined) :] = joined, 0
        self.block_steps *= 2


def curve(counts: Integers) -> tuple[Floats, Floats]:
    """Each value counted, in ns, and the share of all that are larger or equal."""
    met = np.flatnonzero(counts)
    beyond = counts[met][::-1].cumsum()[::-1]
    return _value(met, FINE), beyond / max(int(counts.sum()), 1)


def quantiles(tail: Tail, asked: tuple[float, ...]) -> tuple[Estimate, ...]:
    """Quantiles of the values counted, with 95% intervals."""
    if tail.number == 0:
        return tuple(unsupported(needs=steps_needed(q), steps=0) for q in asked)
    values = _of_counts(tail.counts[None], asked, FINE)[0]
    low, high = interval(_resampled(tail, asked))
    # A resample rounds more coarsely than the value.
    bounds = zip(values, np.minimum(low, values), np.maximum(high, values), strict=True)
    return tuple(
        supported(*found, needs=steps_needed(q), steps=tail.number)
        for q, found in zip(asked, bounds, strict=True)
    )


def _resampled(tail: Tail, asked: tuple[float, ...]) -> Floats:
    rng = np.random.default_rng(0)
    met = np.flatnonzero(tail.blocks.sum(axis=0))
    blocks, size = tail.blocks[: -(-tail.number // tail.block_steps), met], tail.block_steps
    while size < BLOCK_STEPS and len(blocks) >= 2 * MIN_BLOCKS:
        blocks = np.pad(blocks, ((0, len(blocks) % 2), (0, 0)))
        blocks, size = blocks[::2] + blocks[1::2], 2 * size
    times = rng.multinomial(len(blocks), np.full(len(blocks), 1 / len(blocks)), RESAMPLES)
    return _of_counts(times.astype(float) @ blocks, asked, COARSE, met)


def _of_counts(
    counts: Floats | Integers, asked: tuple[float, ...], bits: int, cells: Integers | None = None
) -> Floats:
    """Quantiles of (samples, cells) counts: (samples, asked)."""
    below = counts.cumsum(axis=1)
    place = [(below < np.ceil(q * below[:, -1:])).sum(axis=1) for q in asked]
    found = np.stack(place, axis=1)
    return _value(found if cells is None else cells[np.minimum(found, len(cells) - 1)], bits)


def _cells(values: Integers, bits: int) -> Integers:
    # A float's bits, read as a whole number, ascend with it: exponent, then mantissa.
    raw = np.maximum(values, 1).astype(np.float64).view(np.int64) >> (52 - bits)
    return np.asarray(np.minimum(raw - (1023 << bits), (_OCTAVES << bits) - 1))


def _value(cells: Integers, bits: int) -> Floats:
    """The middle of each cell."""
    raw = ((np.asarray(cells, dtype=np.int64) + (1023 << bits)) << (52 - bits)) | 1 << (51 - bits)
    return raw.view(np.float64)
