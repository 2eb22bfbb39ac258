"""Numbers of one launch: time collecting, steps that collections lengthen, the tail without them.

A collection may lengthen a step by no more than it overlaps it, and by no more than the step is
longer than a typical one (the median of some minutes around).
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from repro.dataset.schema import ROLES
from repro.plugin.recorder import HOLD, SERVED, STEP
from repro.server import longest
from repro.server.effects import Effect, effects, longer_than_typical
from repro.server.launches import Events, Launch
from repro.server.longest import Long
from repro.server.tail import Tail
from repro.server.timeline import Cause, Slab, Timeline
from repro.stats.bootstrap import EXPECTED_BEYOND, Integers
from repro.stats.spans import joined, overlap
from repro.theory.lockstep import RANKS, Steps, predict

QUANTILES = (0.5, 0.99, 0.999)
GENERATIONS = range(3)

SLICES = 600
"""Of a launch's time, in the figure of its pauses."""

MOST_STEPS = 200_000
"""The newest steps of an engine, from which more ranks are predicted."""


@dataclass
class Taken:
    """Collections of one process and generation, while it served."""

    number: int = 0
    total_ns: int = 0
    longest_ns: int = 0


@dataclass
class Own:
    """Counts of one process's recording; `taken` and `served` while the launch served."""

    taken: dict[int, Taken] = field(default_factory=lambda: {g: Taken() for g in GENERATIONS})
    collections: int = 0
    steps: int = 0
    served: int = 0  # outputs that a front end handed out
    held_ns: int = 0
    first_ns: int = 1 << 62
    last_ns: int = 0
    # The longest collection by generation and time, in ns: (3, SLICES).
    slices: Integers = field(default_factory=lambda: np.zeros((3, SLICES), dtype=np.int64))

    @property
    def total_ns(self) -> int:
        """Time in collections while it served."""
        return sum(each.total_ns for each in self.taken.values())

    @property
    def longest(self) -> tuple[int, int]:
        """Length and generation of its longest collection while it served."""
        return max((each.longest_ns, generation) for generation, each in self.taken.items())


@dataclass
class Numbers:
    """All that is read off a launch; `window` and `span` as in `Timeline`."""

    window: tuple[int, int]
    span: tuple[int, int]
    own: dict[int, Own]  # by the place of the member in the launch
    groups: list[tuple[int, ...]]  # engines whose steps wait for one another
    effects: dict[Cause, Effect]
    steps: int = 0  # of one engine of each group
    # `all` steps, and the same `without` what collections added.
    tails: dict[str, Tail] = field(default_factory=lambda: defaultdict(Tail))
    booked_ns: int = 0  # what collections added to the steps
    steps_longest: list[Long] = field(default_factory=list)
    stops: list[Long] = field(default_factory=list)  # of front ends
    stalls: list[Long] = field(default_factory=list)  # collections, and the engines that waited
    recent: dict[int, list[tuple[Integers, Integers]]] = field(
        default_factory=lambda: defaultdict(list)
    )

    @property
    def served(self) -> bool:
        """Whether there was any step."""
        return self.steps > 0

    @property
    def seconds(self) -> float:
        """Time it served."""
        return (self.window[1] - self.window[0]) / 1e9


def measure(launch: Launch, since_ns: int = 0) -> Numbers:
    """Everything there is to say of one launch, or of its time from `since_ns` on.

    Two passes over its recordings: the first finds which causes show, the second books them.
    """
    timeline = Timeline(launch, since_ns)
    found = Numbers(
        window=timeline.window,
        span=timeline.span,
        own={n: Own() for n in range(len(launch.members))},
        groups=timeline.groups,
        effects=effects(timeline),
    )
    for slab in timeline.slabs():
        for place, events in slab.events.items():
            if len(events):
                _count(found.own[place], events, slab.pauses[place], found)
                if launch.members[place].role == "frontend":
                    _count_front_end(found, launch, place, events, slab.pauses[place])
        for group in timeline.groups:
            if len(slab.steps[group[0]][0]):
                _book(found, timeline, slab, group)
    return found


def _count(own: Own, events: Events, pauses: Events, found: Numbers) -> None:
    own.first_ns = min(own.first_ns, int(events["start_ns"][0]))
    own.last_ns = max(own.last_ns, int((events["start_ns"] + events["duration_ns"]).max()))
    own.steps += int((events["kind"] == STEP).sum())
    own.collections += len(pauses)
    begun, end = found.span
    at = np.clip((pauses["start_ns"] - begun) * SLICES // (end - begun), 0, SLICES - 1)
    generation = pauses["b"] & 3
    np.maximum.at(own.slices, (generation, at), pauses["duration_ns"])
    serving = _inside(pauses, found.window)
    for each in GENERATIONS:
        length = pauses["duration_ns"][serving & (generation == each)]
        taken = own.taken[each]
        taken.number += len(length)
        taken.total_ns += int(length.sum())
        taken.longest_ns = max(taken.longest_ns, int(length.max(initial=0)))


def _count_front_end(
    found: Numbers, launch: Launch, place: int, events: Events, pauses: Events
) -> None:
    own, serving = found.own[place], _inside(events, found.window)
    own.served += int(events["a"][serving & (events["kind"] == SERVED)].sum())
    held = events["duration_ns"][events["kind"] == HOLD]
    own.held_ns = max(own.held_ns, int(held.max(initial=0)))
    while_serving = pauses[_inside(pauses, found.window)]
    stopped = longest.stops(launch.members[place], events[serving], while_serving)
    found.stops = longest.top(found.stops + stopped)


def _book(found: Numbers, timeline: Timeline, slab: Slab, group: tuple[int, ...]) -> None:
    """Lay a group's collections over the steps of its first engine."""
    start, end = slab.steps[group[0]]
    gap = end - start
    spans = timeline.spans(slab, group)
    booked = [each for cause, each in spans.items() if found.effects[cause].shows]
    added = np.minimum(longer_than_typical(gap), overlap(joined(booked), start, end))
    found.steps += len(gap)
    found.booked_ns += int(added.sum())
    found.tails["all"].add(gap)
    found.tails["without"].add(gap - added)
    if len(group) == 1:
        kept = found.recent[group[0]]
        kept.append((gap - added, added))
        while sum(len(part) for part, _ in kept[1:]) >= MOST_STEPS:
            kept.pop(0)
    found.steps_longest = longest.top(found.steps_longest + longest.steps(timeline, slab, group))
    found.stalls = longest.top(found.stalls + longest.stalls(timeline, slab, group))


def _inside(events: Events, window: tuple[int, int]) -> Events:
    inside: Events = (events["start_ns"] >= window[0]) & (events["start_ns"] < window[1])
    return inside


def more_ranks(found: Numbers) -> tuple[dict[str, pd.DataFrame], bool]:
    """Quantiles of the step of `RANKS` that wait for one another, with collections and without.

    Returns
    -------
    (dict of str to pandas.DataFrame, bool)
        As `repro.theory.lockstep.predict` returns; whether older steps were left out. With
        fewer than `EXPECTED_BEYOND` steps that collections lengthened, no value with them is firm.
    """
    parts = [
        [np.concatenate(side) for side in zip(*kept, strict=True)] for kept in found.recent.values()
    ]
    if not parts:
        return {}, False
    common, paused = (tuple(part[side] for part in parts) for side in (0, 1))
    steps = Steps(common=common, paused=paused)
    spared = Steps(common=common, paused=tuple(np.zeros_like(p) for p in paused))
    tables = {
        name: predict(each, ranks=RANKS, quantiles=QUANTILES)
        for name, each in {"all steps": steps, "without the collector": spared}.items()
    }
    few = sum(int((p > 0).sum()) for p in paused) < EXPECTED_BEYOND
    tables["all steps"]["supported"] &= not few or (tables["all steps"]["ranks"] == 1)
    return tables, sum(map(len, common)) < found.steps


def front_end_shares(launch: Launch, found: Numbers) -> dict[int, float]:
    """Share of the outputs that each front end handed out; equal shares where none were counted."""
    outputs = {n: found.own[n].served for n, m in enumerate(launch.members) if m.role == "frontend"}
    total = sum(outputs.values())
    return {n: own / total if total else 1 / len(outputs) for n, own in outputs.items()}


def time_collecting(launch: Launch, found: Numbers) -> dict[str, float]:
    """Share of the time while it served that each kind of process spent collecting.

    The mean over engine cores and over workers; front ends are weighed by what they handed out.
    """
    weight = front_end_shares(launch, found)
    shares: dict[str, float] = {}
    for role in ROLES:
        places = [n for n, member in enumerate(launch.members) if member.role == role]
        for n in places if found.seconds else ():
            share = found.own[n].total_ns / 1e9 / found.seconds
            shares[role] = shares.get(role, 0.0) + share * weight.get(n, 1 / len(places))
    return shares
