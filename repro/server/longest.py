"""The longest steps, stops of front ends and stalls, with what happened meanwhile."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from repro.plugin.recorder import HOLD
from repro.server.launches import Events, Member
from repro.server.timeline import Slab, Timeline
from repro.stats.bootstrap import Integers
from repro.stats.spans import overlap, union

SHOWN = 10

LONG = 2
"""A collection of so many typical steps is looked for in the steps of other engines."""

WAITED = 0.5
"""Share of a collection by which another engine's step must be longer to have waited for it."""


@dataclass(frozen=True)
class Long:
    """A long step, stop or collection, and what there is to say of it."""

    length_ns: int
    start_ns: int
    whose: str
    what: str

    @property
    def end_ns(self) -> int:
        """Its end."""
        return self.start_ns + self.length_ns


def top(rows: list[Long]) -> list[Long]:
    """The `SHOWN` longest."""
    return sorted(rows, key=lambda each: -each.length_ns)[:SHOWN]


def stops(member: Member, events: Events, pauses: Events) -> list[Long]:
    """The longest times for which a front end let no token out: long holds, collections."""
    held = events[events["kind"] == HOLD]
    collecting = union(pauses["start_ns"], _ends(pauses))
    inside = overlap(collecting, held["start_ns"], _ends(held))
    apart = overlap(union(held["start_ns"], _ends(held)), pauses["start_ns"], _ends(pauses)) == 0
    found = []
    for row, shared in zip(held, inside, strict=True):
        what = f"output handler, {row['a']:,} outputs"
        what += f"; {shared / 1e6:,.0f} ms of it collecting" if shared else ""
        found.append(_long(row, member, what))
    for row in _longest(pauses[apart], SHOWN):
        found.append(_long(row, member, f"collection of generation {row['b'] & 3}"))
    return top(found)


def steps(timeline: Timeline, slab: Slab, group: tuple[int, ...]) -> list[Long]:
    """The longest steps of a group."""
    start, end = slab.steps[group[0]]
    whose = f"engine core {group[0]}" if len(group) == 1 else f"ranks {listed(group)}"
    found = []
    for row in np.argsort(start - end, kind="stable")[:SHOWN]:
        begun, over = int(start[row]), int(end[row])
        found.append(
            Long(over - begun, begun, whose, _meanwhile(timeline, slab, group, begun, over))
        )
    return found


def _meanwhile(timeline: Timeline, slab: Slab, group: tuple[int, ...], start: int, end: int) -> str:
    """Collections that share at least a twentieth of a time."""
    said = []
    for place in timeline.of_group(group):
        own = slab.stalling[place]
        shared = np.minimum(_ends(own), end) - np.maximum(own["start_ns"], start)
        label = timeline.launch.members[place].label
        for row in np.flatnonzero(shared * 20 >= end - start):
            said.append(f"{label}: generation {own['b'][row] & 3}, {shared[row] / 1e6:,.1f} ms")
    return "; ".join(said) or "no pause, no hold"


def stalls(timeline: Timeline, slab: Slab, group: tuple[int, ...]) -> list[Long]:
    """Long collections in a group of several engines, and the ranks whose steps waited for them."""
    found = []
    for number in group if len(group) > 1 else ():
        start, end = slab.steps[number]
        if not len(start):
            continue
        least = LONG * int(np.median(end - start))
        for place in timeline.places[number]:
            own = slab.stalling[place]
            for row in _longest(own[own["duration_ns"] >= least], SHOWN):
                if ranks := [n for n in group if _waited(row, *slab.steps[n])]:
                    what = f"generation {row['b'] & 3} stalled ranks {listed(ranks)}"
                    found.append(_long(row, timeline.launch.members[place], what))
    return found


def _waited(row: Events, start: Integers, end: Integers) -> bool:
    """Whether the step in the middle of a collection is longer by most of it."""
    length = int(row["duration_ns"])
    middle = int(row["start_ns"]) + length // 2
    at = int(np.searchsorted(start, middle, side="right")) - 1
    if at < 0 or middle >= end[at]:
        return False
    return bool(end[at] - start[at] - np.median(end - start) >= WAITED * length)


def meanwhile(silence: Long, known: list[Long]) -> str:
    """The long stops and steps that overlap a client's silence."""
    said = [
        f"{each.whose}: {each.what}"
        for each in known
        if each.start_ns < silence.end_ns and each.end_ns > silence.start_ns
    ]
    return "; ".join(said) or "none of the longest pauses, holds or steps"


def listed(numbers: tuple[int, ...] | list[int]) -> str:
    """`0 to 7`, or `0, 3, 5`."""
    if len(numbers) > 2 and list(numbers) == list(range(numbers[0], numbers[-1] + 1)):
        return f"{numbers[0]} to {numbers[-1]}"
    return ", ".join(map(str, numbers))


def _long(row: Events, member: Member, what: str) -> Long:
    return Long(int(row["duration_ns"]), int(row["start_ns"]), member.label, what)


def _longest(rows: Events, number: int) -> Events:
    chosen: Events = rows[np.argsort(-rows["duration_ns"], kind="stable")[:number]]
    return chosen


def _ends(events: Events) -> Integers:
    ends: Integers = events["start_ns"] + events["duration_ns"]
    return ends
