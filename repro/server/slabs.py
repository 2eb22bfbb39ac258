"""All recordings of a launch side by side in time, a bounded number of events at once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from repro.dataset.recording import EVENT
from repro.plugin.recorder import PAUSE
from repro.server.launches import Member
from repro.stats.bootstrap import Integers

MOST_EVENTS = 1 << 20
"""Events of all processes together that are held at once."""

Events = npt.NDArray[Any]


class _Stream:
    """One process's events, on the clock of the launch."""

    def __init__(self, member: Member, most: int) -> None:
        self.chunks, self.shift, self.most = member.source.chunks(), member.shift_ns, most
        self.held: list[Events] = []
        self.done = False

    def fill(self) -> None:
        while not self.done and sum(map(len, self.held)) < self.most:
            chunk = next(self.chunks, None)
            self.done = chunk is None
            if chunk is not None and len(chunk):
                chunk["start_ns"] += self.shift
                self.held.append(chunk)

    @property
    def safe_ns(self) -> int:
        """No pause that began before this moment is still to come.

        An event is written when it ends, and while a process collects it writes nothing.
        """
        last = self.held[-1][-1]
        return int(last["start_ns"] + last["duration_ns"]) + 1

    def take(self, until_ns: int) -> Events:
        """Events that began before a moment, in the order of their beginning."""
        whole = np.concatenate(self.held) if self.held else np.zeros(0, dtype=EVENT)
        early = whole["start_ns"] < until_ns
        self.held = [whole[~early]] if not early.all() else []
        taken = whole[early]
        ordered: Events = taken[np.argsort(taken["start_ns"], kind="stable")]
        return ordered


def slabs(members: tuple[Member, ...]) -> Iterator[list[Events]]:
    """Events of each member, from the beginning to the end, slab after slab of time."""
    streams = [_Stream(m, MOST_EVENTS // max(len(members), 1)) for m in members]
    while True:
        for stream in streams:
            stream.fill()
        open_ = [s.safe_ns for s in streams if not s.done and s.held]
        edge = min(open_, default=np.iinfo(np.int64).max)
        taken = [stream.take(edge) for stream in streams]
        if not any(map(len, taken)) and all(s.done for s in streams):
            return
        yield taken


Spans = tuple[Integers, Integers]
"""Beginnings and ends, ascending; no span overlaps another."""

NO_SPANS: Spans = (np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64))


def pauses(events: Events) -> Events:
    """The pauses among the events."""
    chosen: Events = events[events["kind"] == PAUSE]
    return chosen


def union(begun: Integers, over: Integers) -> Spans:
    """Spans that may overlap, as spans that do not."""
    if not len(begun):
        return NO_SPANS
    order = np.argsort(begun, kind="stable")
    begun, over = begun[order], np.maximum.accumulate(over[order])
    first = np.concatenate([[True], begun[1:] > over[:-1]])
    return begun[first], over[np.append(first[1:], True)]


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
