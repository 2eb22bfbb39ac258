"""All recordings of a launch side by side in time, a bounded number of events at once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from repro.dataset.recording import EVENT
from repro.plugin.recorder import PAUSE, STEP
from repro.server.launches import Events, Launch, Member, engines
from repro.stats.bootstrap import Integers
from repro.stats.spans import Spans, union

MOST_EVENTS = 1 << 20
"""Events of all processes together that are held at once."""

STALLING = ("worker", "engine")
"""Roles that a step waits for. A front end stops tokens, not steps."""

Cause = tuple[str, int]
"""Role and generation."""

NONE: Events = np.zeros(0, dtype=EVENT)


@dataclass(frozen=True)
class Slab:
    """The events of a launch between two moments; members are known by their place in it."""

    events: dict[int, Events]  # by member: all that began in the slab
    pauses: dict[int, Events]  # of these the collections
    # By engine: each interval from a step with tokens to the next step.
    steps: dict[int, tuple[Integers, Integers]]
    stalling: dict[int, Events]  # of engine cores and workers: what these intervals may overlap


class Timeline:
    """The processes of a launch, which of them wait for one another, and their events by slabs."""

    def __init__(self, launch: Launch, since_ns: int = 0) -> None:
        self.launch = launch
        by_engine = engines(launch)
        place = {id(m): number for number, m in enumerate(launch.members)}
        # By engine number: the members that its steps wait for.
        self.places = {n: [place[id(m)] for m in members] for n, members in by_engine.items()}
        self.groups = groups_of(by_engine)  # engines whose steps wait for one another
        self._stepping = {
            n: next((p for p in places if launch.members[p].role == "worker"), places[0])
            for n, places in self.places.items()
        }
        begun = max(launch.origin_ns, since_ns)
        # from the launch, or `since_ns`, to the last event
        self.span = begun, max(launch.ended_ns, begun + 1)
        self.window = self._window(begun)  # first step with tokens to last step; (0, 0) without

    def _window(self, begun: int) -> tuple[int, int]:
        first, last = self.span[1], 0
        for place in self._stepping.values():
            member = self.launch.members[place]
            busy = _first_busy_step(member, begun)
            if busy is None:
                continue
            newest = [e[e["kind"] == STEP] for e in member.chunks(member.ended_ns - 1)]
            ends = [int(steps["start_ns"].max()) for steps in newest if len(steps)]
            first, last = min(first, busy), max([last, *(ends or [member.ended_ns])])
        return (first, last) if last > first else (0, 0)

    def slabs(self, *roles: str) -> Iterator[Slab]:
        """Events of the members of these roles, slab after slab of time."""
        members = self.launch.members
        chosen = [n for n, member in enumerate(members) if not roles or member.role in roles]
        streams = {n: _Stream(members[n], self.span[0], len(chosen)) for n in chosen}
        last: dict[int, Events] = {}
        kept = {place: NONE for places in self.places.values() for place in places}
        for events in _side_by_side(streams):
            pauses = {n: own[own["kind"] == PAUSE] for n, own in events.items()}
            kept = {place: np.concatenate([old, pauses[place]]) for place, old in kept.items()}
            steps = {n: _intervals(n, events[p], last) for n, p in self._stepping.items()}
            yield Slab(events, pauses, steps, kept)
            self._forget(kept, last)

    def _forget(self, kept: dict[int, Events], last: dict[int, Events]) -> None:
        """Keep the collections that a later interval may overlap."""
        for group in self.groups:
            since = min((int(last[n]["start_ns"][0]) for n in group if n in last), default=0)
            for place in self.of_group(group):
                ends = kept[place]["start_ns"] + kept[place]["duration_ns"]
                kept[place] = kept[place][ends > since]

    def of_group(self, group: tuple[int, ...]) -> list[int]:
        """The members that a group's steps wait for."""
        return [place for number in group for place in self.places[number]]

    def spans(self, slab: Slab, group: tuple[int, ...]) -> dict[Cause, Spans]:
        """The collections that a group's steps wait for, by cause."""
        parts: dict[Cause, list[Events]] = defaultdict(list)
        for place in self.of_group(group):
            own = slab.stalling[place]
            for generation in np.unique(own["b"] & 3):
                cause = self.launch.members[place].role, int(generation)
                parts[cause].append(own[own["b"] & 3 == generation])
        return {
            cause: union(rows["start_ns"], rows["start_ns"] + rows["duration_ns"])
            for cause, rows in ((c, np.concatenate(each)) for c, each in sorted(parts.items()))
        }


def groups_of(by_engine: dict[int, list[Member]]) -> list[tuple[int, ...]]:
    """Engines that wait for one another: the data-parallel ranks of a mixture of experts."""
    about = [m.about for members in by_engine.values() for m in members if m.about.get("moe")]
    if about and int(about[0].get("dp_size", 1)) > 1:
        return [tuple(by_engine)]
    return [(number,) for number in by_engine]


def _first_busy_step(member: Member, since_ns: int) -> int | None:
    for events in member.chunks(since_ns):
        busy = (events["kind"] == STEP) & (events["a"] > 0) & (events["start_ns"] >= since_ns)
        if busy.any():
            return int(events["start_ns"][busy][0])
    return None


def _intervals(number: int, events: Events, last: dict[int, Events]) -> tuple[Integers, Integers]:
    """Start and end of each interval from a step with tokens to the next step."""
    steps = events[events["kind"] == STEP]
    if number in last:
        steps = np.concatenate([last[number], steps])
    if len(steps):
        last[number] = steps[-1:]
    busy = steps["a"][:-1] > 0
    return steps["start_ns"][:-1][busy], steps["start_ns"][1:][busy]


class _Stream:
    """One process's events, on the clock of the launch."""

    def __init__(self, member: Member, since_ns: int, streams: int) -> None:
        self.chunks, self.since_ns = member.chunks(since_ns), since_ns
        self.most = MOST_EVENTS // streams
        self.held: list[Events] = []
        self.done = False

    def fill(self) -> None:
        while not self.done and sum(map(len, self.held)) < self.most:
            chunk = next(self.chunks, None)
            self.done = chunk is None
            if chunk is not None and len(chunk):
                self.held.append(chunk)

    @property
    def safe_ns(self) -> int:
        """No collection that began before this moment is still to come.

        An event is written when it ends, and while a process collects it writes nothing.
        """
        last = self.held[-1][-1]
        return int(last["start_ns"] + last["duration_ns"]) + 1

    def take(self, until_ns: int) -> Events:
        """Events that began before a moment, in the order of their beginning."""
        whole = np.concatenate(self.held) if self.held else NONE
        start = whole["start_ns"]
        early = start < until_ns
        self.held = [] if early.all() else [whole[~early]]
        chosen = np.flatnonzero(early & (start >= self.since_ns))
        return whole[chosen[np.argsort(start[chosen], kind="stable")]]


def _side_by_side(streams: dict[int, _Stream]) -> Iterator[dict[int, Events]]:
    while True:
        for stream in streams.values():
            stream.fill()
        open_ = [s.safe_ns for s in streams.values() if not s.done and s.held]
        edge = min(open_, default=np.iinfo(np.int64).max)
        taken = {number: stream.take(edge) for number, stream in streams.items()}
        if not any(map(len, taken.values())) and all(s.done for s in streams.values()):
            return
        yield taken
