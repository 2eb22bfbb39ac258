"""Times that pauses and holds cover: unions of them, and what they share with other times."""

from __future__ import annotations

import numpy as np
import pandas as pd

from repro.stats.bootstrap import Integers

Spans = tuple[Integers, Integers]
"""Beginnings and ends, ascending; no span overlaps another."""


def of_rows(table: pd.DataFrame) -> Spans:
    """The spans of `start_ns` and `duration_ns` in time order; none overlaps another."""
    table = table.sort_values("start_ns")
    start = table["start_ns"].to_numpy("int64")
    return start, start + table["duration_ns"].to_numpy("int64")


def union(begun: Integers, over: Integers) -> Spans:
    """Spans that may overlap, as spans that do not."""
    if not len(begun):
        return begun.astype(np.int64), over.astype(np.int64)
    order = np.argsort(begun, kind="stable")
    begun, over = begun[order], np.maximum.accumulate(over[order])
    first = np.concatenate([[True], begun[1:] > over[:-1]])
    return begun[first], over[np.append(first[1:], True)]


def joined(spans: list[Spans]) -> Spans:
    """The union of several unions."""
    none = np.zeros(0, dtype=np.int64)
    return union(
        np.concatenate([none, *(begun for begun, _ in spans)]),
        np.concatenate([none, *(over for _, over in spans)]),
    )


def overlap(spans: Spans, start: Integers, end: Integers) -> Integers:
    """Time that the spans cover of each time from `start` to `end`, in ns."""
    return _until(spans, end) - _until(spans, start)


def _until(spans: Spans, time: Integers) -> Integers:
    begun, over = spans
    if not len(begun):
        return np.zeros(len(time), dtype=np.int64)
    before = np.concatenate([[0], np.cumsum(over - begun)])
    number = np.searchsorted(begun, time, side="right")
    still = np.where(number > 0, over[number - 1] - time, 0)
    return np.asarray(before[number] - np.maximum(still, 0))
