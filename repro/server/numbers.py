"""Numbers of one launch: time collecting, steps that pauses lengthen, the tail with and without.

A pause may lengthen a step by no more than it overlaps it, and by no more than the step is longer
than a typical one (the median of some minutes around). Long steps overlap more pauses, whatever
made them long: so the same pauses are also moved to random times, and a cause (kind of process and
generation) is booked only where it shows more than that.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from repro.dataset.recording import EVENT
from repro.dataset.schema import ROLES
from repro.plugin.recorder import HOLD, STEP
from repro.server.launches import Launch, Member, engines
from repro.server.slabs import Events, Spans, overlap, pauses, slabs, union
from repro.server.tail import Tail
from repro.stats.bootstrap import EXPECTED_BEYOND, Integers
from repro.theory.lockstep import Steps, predict

QUANTILES = (0.5, 0.99, 0.999)
RANKS = (1, 2, 4, 8, 16, 32, 64, 128)
STALLING = ("worker", "engine")
"""Roles that a step waits for. A front end stops tokens, not steps."""

SURE = 3.0
"""Standard errors above chance from which a cause is booked."""

LONG = 2
"""A pause of so many typical steps is looked for in other engines' steps."""

WAITED = 0.5
"""Share of a pause by which another engine's step must be longer to have waited for it."""

SLICES = 600
"""Of a launch's time, in the figure of its pauses."""

SHOWN = 10
SHIFTS = 20
MOST_STEPS = 200_000
"""The newest steps of an engine, from which more ranks are predicted."""

Cause = tuple[str, int]


@dataclass
class Taken:
    """Collections of one process and generation, while it served."""

    number: int = 0
    total_ns: int = 0
    longest_ns: int = 0
    longest_at_ns: int = 0


@dataclass
class Own:
    """Counts of one process's recording."""

    taken: dict[int, Taken] = field(default_factory=lambda: {g: Taken() for g in range(3)})
    events: int = 0
    collections: int = 0
    steps: int = 0
    tokens: int = 0
    held_ns: int = 0
    first_ns: int = 1 << 62
    last_ns: int = 0
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
class Effect:
    """Overlap of a cause's pauses with the steps.

    Attributes
    ----------
    hit, chance_hit : int, float
        Steps that they overlap, and that they would at random times.
    overlap_ns, squared : float
        Time of the overlap; sum of its squares.
    longer_ns, chance_ns, chance_overlap_ns : float
        What of it the steps are longer than typical; the same at random times.
    """

    hit: int = 0
    chance_hit: float = 0.0
    overlap_ns: float = 0.0
    squared: float = 0.0
    longer_ns: float = 0.0
    chance_ns: float = 0.0
    chance_overlap_ns: float = 0.0

    @property
    def shown(self) -> float:
        """Share of the overlap by which steps are longer."""
        return self.longer_ns / self.overlap_ns if self.overlap_ns else 0.0

    @property
    def chance(self) -> float:
        """The same at random times."""
        return self.chance_ns / self.chance_overlap_ns if self.chance_overlap_ns else 0.0

    @property
    def shows(self) -> bool:
        """Whether steps are longer by more of it than chance explains."""
        if not self.overlap_ns:
            return False
        number = self.overlap_ns**2 / self.squared
        error = math.sqrt(max(self.chance * (1 - self.chance), 0.01) / number)
        return self.shown - self.chance >= SURE * error


@dataclass(frozen=True)
class Long:
    """A long step, stop or pause, what there is to say of it, and whether other engines waited."""

    length_ns: int
    start_ns: int
    whose: str
    what: str
    others: bool = False


@dataclass
class Numbers:
    """All that one pass over a launch finds.

    Attributes
    ----------
    window : (int, int)
        From the first step with tokens to the last step, on the launch's clock; (0, 0) without.
    span : (int, int)
        From the first event of a process to the last step or event known.
    own : dict
        By the place of the member in the launch.
    groups : list of tuple of int
        Engines whose steps wait for one another.
    effects : dict
        By cause.
    steps, tokens : int
        Of one engine of each group.
    tails : dict of str to list of Tail
        `all`, `without` (what pauses added) and `least` (all they overlap), one a group.
    booked_ns : int
        What pauses added to the steps.
    steps_longest, stops, stalls : list of Long
        The longest steps; stops of front ends; pauses and the engines that waited for them.
    """

    window: tuple[int, int]
    span: tuple[int, int]
    own: dict[int, Own]
    groups: list[tuple[int, ...]]
    effects: dict[Cause, Effect] = field(default_factory=lambda: defaultdict(Effect))
    steps: int = 0
    tokens: int = 0
    tails: dict[str, list[Tail]] = field(default_factory=lambda: defaultdict(list))
    booked_ns: int = 0
    steps_longest: list[Long] = field(default_factory=list)
    stops: list[Long] = field(default_factory=list)
    stalls: list[Long] = field(default_factory=list)
    recent: dict[int, list[tuple[Integers, Integers]]] = field(
        default_factory=lambda: defaultdict(list)
    )
    waited: dict[tuple[int, int], list[float]] = field(default_factory=dict)

    @property
    def served(self) -> bool:
        """Whether there was any step."""
        return self.steps > 0

    @property
    def seconds(self) -> float:
        """Time it served."""
        return (self.window[1] - self.window[0]) / 1e9


def measure(launch: Launch) -> Numbers:
    """Everything the page shows of one launch, in passes over its recordings.

    The first finds which engines wait for one another and which causes show; the last books.
    """
    window, span = _window(launch)
    by_engine = engines(launch)
    alone: list[tuple[int, ...]] = [(number,) for number in by_engine]
    found = _Pass(launch, window, span, told_groups(by_engine) or alone, None).run()
    groups = told_groups(by_engine) or _groups(list(by_engine), found.waited)
    if groups != found.groups:
        found = _Pass(launch, window, span, groups, None).run()
    shows = {cause for cause, effect in found.effects.items() if effect.shows}
    return _Pass(launch, window, span, groups, shows).run()


def stepping(members: list[Member]) -> Member | None:
    """The process whose steps stand for an engine's: its first worker, or the core around it."""
    workers = [m for m in members if m.role == "worker"]
    return next(iter(workers or members), None)


def _window(launch: Launch) -> tuple[tuple[int, int], tuple[int, int]]:
    first, last, end = 1 << 62, 0, 0
    for members in engines(launch).values():
        one = stepping(members)
        for chunk in one.source.chunks() if one else ():
            own = chunk[chunk["kind"] == STEP]["start_ns"] + (one.shift_ns if one else 0)
            busy = own[chunk[chunk["kind"] == STEP]["a"] > 0]
            if len(busy):
                first, last = min(first, int(busy[0])), max(last, int(own[-1]))
            if len(chunk):
                end = max(end, int(chunk[-1]["start_ns"]) + (one.shift_ns if one else 0))
    window = (first, last) if last > first else (0, 0)
    return window, (launch.origin_ns, max(end, last, launch.origin_ns + 1))


def told_groups(by_engine: dict[int, list[Member]]) -> list[tuple[int, ...]] | None:
    """Engines that wait for one another as their headers say; None if they do not say."""
    about = [m.about for members in by_engine.values() for m in members if "moe" in m.about]
    if not about or any(facts["moe"] is None for facts in about):
        return None
    if about[0]["moe"] and int(about[0].get("dp_size", 1)) > 1:
        return [tuple(by_engine)]
    return [(number,) for number in by_engine]


def _groups(
    numbers: list[int], waited: dict[tuple[int, int], list[float]]
) -> list[tuple[int, ...]]:
    group = {number: number for number in numbers}
    for (paused, other), shares in sorted(waited.items()):
        if np.mean(shares) >= WAITED:
            joined, gone = sorted((group[paused], group[other]))
            group = {n: joined if g == gone else g for n, g in group.items()}
    return [tuple(n for n in numbers if group[n] == first) for first in sorted(set(group.values()))]


class _Engine:
    """The steps of one engine between two slabs of time."""

    def __init__(self, number: int, place: int) -> None:
        self.number, self.place = number, place
        self.last: Events | None = None

    def intervals(self, events: Events) -> tuple[Integers, Integers, Integers]:
        """Start, end and tokens of each interval from a step with tokens to the next."""
        steps = events[events["kind"] == STEP]
        if self.last is not None:
            steps = np.concatenate([self.last, steps])
        if len(steps):
            self.last = steps[-1:]
        busy = steps["a"][:-1] > 0
        start, end = steps["start_ns"][:-1][busy], steps["start_ns"][1:][busy]
        return start, end, steps["a"][:-1][busy]


class _Pass:
    """One pass over a launch; `shows` are the causes to book, None to find them."""

    def __init__(
        self,
        launch: Launch,
        window: tuple[int, int],
        span: tuple[int, int],
        groups: list[tuple[int, ...]],
        shows: set[Cause] | None,
    ) -> None:
        self.launch, self.shows = launch, shows
        self.members = launch.members
        place = {id(m): number for number, m in enumerate(self.members)}
        self.by_engine = engines(launch)
        self.places = {
            number: [place[id(m)] for m in members] for number, members in self.by_engine.items()
        }
        first = {number: stepping(members) for number, members in self.by_engine.items()}
        self.engines = {n: _Engine(n, place[id(m)]) for n, m in first.items() if m is not None}
        self.found = Numbers(
            window=window,
            span=span,
            own={n: Own() for n in range(len(self.members))},
            groups=groups,
        )
        self.kept: list[Events] = [pauses(np.zeros(0, dtype=EVENT)) for _ in self.members]
        self.rng = np.random.default_rng(0)
        for name in ("all", "without", "least"):
            self.found.tails[name] = [Tail() for _ in groups]

    def run(self) -> Numbers:
        for events in slabs(self.members):
            for place, own in enumerate(events):
                self._count(place, own)
                if self.members[place].role in STALLING:
                    self.kept[place] = np.concatenate([self.kept[place], pauses(own)])
            rows = {n: e.intervals(events[e.place]) for n, e in self.engines.items()}
            for which, group in enumerate(self.found.groups):
                self._lay(which, group, rows)
            self._wait(rows)
            self._forget()
        return self.found

    def _count(self, place: int, events: Events) -> None:
        own, member = self.found.own[place], self.members[place]
        if not len(events):
            return
        start, length = events["start_ns"], events["duration_ns"]
        own.events += len(events)
        own.first_ns = min(own.first_ns, int(start[0]))
        own.last_ns = max(own.last_ns, int((start + length).max()))
        steps = events[events["kind"] == STEP]
        own.steps, own.tokens = own.steps + len(steps), own.tokens + int(steps["a"].sum())
        first, last = self.found.window
        for generation in range(3):
            of = pauses(events)
            of = of[of["b"] & 3 == generation]
            own.collections += len(of)
            begun, end = self.found.span
            at = (of["start_ns"] - begun) * SLICES // (end - begun)
            at = np.clip(at, 0, SLICES - 1)
            np.maximum.at(own.slices[generation], at, of["duration_ns"])
            of = of[(of["start_ns"] >= first) & (of["start_ns"] < last)]
            _add(own.taken[generation], of)
        if member.role == "frontend":
            self._stops(member, events)
            holds = events[events["kind"] == HOLD]
            own.held_ns = max(own.held_ns, int(holds["duration_ns"].max(initial=0)))

    def _stops(self, member: Member, events: Events) -> None:
        """The longest times for which a front end let no token out."""
        first, last = self.found.window
        held = events[(events["kind"] == HOLD) & (events["start_ns"] >= first)]
        every = pauses(events)
        every = every[(every["start_ns"] >= first) & (every["start_ns"] < last)]
        spans = union(every["start_ns"], every["start_ns"] + every["duration_ns"])
        inside = overlap(spans, held["start_ns"], held["start_ns"] + held["duration_ns"])
        within = union(held["start_ns"], held["start_ns"] + held["duration_ns"])
        apart = overlap(within, every["start_ns"], every["start_ns"] + every["duration_ns"]) == 0
        for row, collecting in zip(held, inside, strict=True):
            what = f"output handler, {row['a']:,} outputs"
            what += f"; {collecting / 1e6:,.0f} ms of it collecting" if collecting else ""
            self.found.stops.append(
                Long(int(row["duration_ns"]), int(row["start_ns"]), member.label, what)
            )
        for row in _longest(every[apart], SHOWN):
            what = f"collection of generation {row['b'] & 3}"
            self.found.stops.append(
                Long(int(row["duration_ns"]), int(row["start_ns"]), member.label, what)
            )
        self.found.stops = _top(self.found.stops)

    def _lay(
        self,
        which: int,
        group: tuple[int, ...],
        rows: dict[int, tuple[Integers, Integers, Integers]],
    ) -> None:
        """Lay the pauses of a group over the steps of its first engine."""
        start, end, tokens = rows[group[0]]
        if not len(start):
            return
        gap = end - start
        longer = np.maximum(gap - int(np.median(gap)), 0)
        spans = self._spans(group)
        self.found.steps += len(gap)
        self.found.tokens += int(tokens.sum())
        for cause, each in spans.items():
            self._effect(cause, each, start, gap, longer)
        if self.shows is None:
            return
        covered = overlap(_joined(list(spans.values())), start, end)
        booked = [each for cause, each in spans.items() if cause in self.shows]
        added = np.minimum(longer, overlap(_joined(booked), start, end))
        self.found.booked_ns += int(added.sum())
        for name, values in {"all": gap, "without": gap - added, "least": gap - covered}.items():
            self.found.tails[name][which].add(values)
        if len(group) == 1:
            self._remember(group[0], gap, added)
        self._longest_steps(group, start, end)

    def _effect(
        self,
        cause: Cause,
        spans: Spans,
        start: Integers,
        gap: Integers,
        longer: Integers,
    ) -> None:
        effect = self.found.effects[cause]
        shared = overlap(spans, start, start + gap)
        effect.hit += int((shared > 0).sum())
        effect.overlap_ns += float(shared.sum())
        effect.squared += float((shared.astype(np.float64) ** 2).sum())
        effect.longer_ns += float(np.minimum(longer, shared).sum())
        # In busy time, without the idle times between: each step from `over - gap` to `over`.
        over = np.cumsum(gap)
        place = np.searchsorted(start, spans[0], side="right") - 1
        inside = (place >= 0) & (spans[0] - start[place] < gap[place])
        begun = over[place[inside]] - gap[place[inside]] + spans[0][inside] - start[place[inside]]
        length = (spans[1] - spans[0])[inside]
        shifts = int(np.clip(MOST_STEPS // (len(gap) + len(begun)), 1, SHIFTS))
        for _ in range(shifts):
            moved = (begun + self.rng.integers(over[-1])) % over[-1]
            shared = overlap(union(moved, moved + length), over - gap, over)
            effect.chance_hit += float((shared > 0).sum()) / shifts
            effect.chance_ns += float(np.minimum(longer, shared).sum()) / shifts
            effect.chance_overlap_ns += float(shared.sum()) / shifts

    def _spans(self, group: tuple[int, ...]) -> dict[Cause, Spans]:
        """The pauses that a group's steps wait for, by cause."""
        parts: dict[Cause, list[Events]] = defaultdict(list)
        for place in (place for number in group for place in self.places[number]):
            kept = self.kept[place]
            for generation in np.unique(kept["b"] & 3):
                cause = self.members[place].role, int(generation)
                parts[cause].append(kept[kept["b"] & 3 == generation])
        return {
            cause: union(rows["start_ns"], rows["start_ns"] + rows["duration_ns"])
            for cause, rows in ((c, np.concatenate(each)) for c, each in sorted(parts.items()))
        }

    def _remember(self, number: int, gap: Integers, added: Integers) -> None:
        kept = self.found.recent[number]
        kept.append((gap - added, added))
        while sum(len(part) for part, _ in kept[1:]) >= MOST_STEPS:
            kept.pop(0)

    def _longest_steps(self, group: tuple[int, ...], start: Integers, end: Integers) -> None:
        least = min((each.length_ns for each in self.found.steps_longest), default=0)
        full = len(self.found.steps_longest) == SHOWN
        rows = np.argsort(start - end, kind="stable")[:SHOWN]
        for row in rows:
            length = int(end[row] - start[row])
            if full and length <= least:
                break
            what = self._meanwhile(group, int(start[row]), int(end[row]))
            whose = f"engine core {group[0]}" if len(group) == 1 else f"ranks {listed(group)}"
            self.found.steps_longest.append(Long(length, int(start[row]), whose, what))
        self.found.steps_longest = _top(self.found.steps_longest)

    def _meanwhile(self, group: tuple[int, ...], start: int, end: int) -> str:
        """Overlaps of a time: pauses from a twentieth of it on."""
        said = []
        places = [place for number in group for place in self.places[number]]
        for place in places:
            kept = self.kept[place]
            over = np.minimum(kept["start_ns"] + kept["duration_ns"], end)
            shared = over - np.maximum(kept["start_ns"], start)
            for row in np.flatnonzero(shared * 20 >= end - start):
                generation = kept["b"][row] & 3
                label = self.members[place].label
                said.append(f"{label}: generation {generation}, {shared[row] / 1e6:,.1f} ms")
        return "; ".join(said) or "no pause, no hold"

    def _wait(self, rows: dict[int, tuple[Integers, Integers, Integers]]) -> None:
        """Engines whose steps are longer while another engine pauses."""
        for paused, members in self.places.items():
            start, end, _ = rows[paused]
            if not len(start):
                continue
            usual = int(np.median(end - start))
            for place in members:
                kept = self.kept[place]
                for row in _longest(kept[kept["duration_ns"] >= LONG * usual], 200):
                    self._who_waits(paused, place, row, rows)

    def _who_waits(
        self,
        paused: int,
        place: int,
        row: Events,
        rows: dict[int, tuple[Integers, Integers, Integers]],
    ) -> None:
        length = int(row["duration_ns"])
        middle = int(row["start_ns"]) + length // 2
        waiting = []
        for other, (start, end, _) in rows.items():
            at = int(np.searchsorted(start, middle, side="right")) - 1
            if at < 0 or middle >= end[at]:
                continue
            excess = int(end[at] - start[at]) - int(np.median(end - start))
            share = min(max(excess / length, 0.0), 1.0)
            if other != paused:
                self.found.waited.setdefault((paused, other), []).append(share)
            if share >= WAITED:
                waiting.append(other)
        if waiting:
            self.found.stalls.append(
                Long(
                    length,
                    int(row["start_ns"]),
                    self.members[place].label,
                    f"generation {row['b'] & 3} stalled ranks {listed(waiting)}",
                    waiting != [paused],
                )
            )
            self.found.stalls = _top(self.found.stalls)

    def _forget(self) -> None:
        """Keep the pauses that a later step may overlap."""
        for group in self.found.groups:
            last = [e.last for e in (self.engines[n] for n in group) if e.last is not None]
            since = min((int(each["start_ns"][0]) for each in last), default=0)
            for place in (place for number in group for place in self.places[number]):
                kept = self.kept[place]
                self.kept[place] = kept[kept["start_ns"] + kept["duration_ns"] > since]


def listed(numbers: tuple[int, ...] | list[int]) -> str:
    """`0 to 7`, or `0, 3, 5`."""
    if len(numbers) > 2 and list(numbers) == list(range(numbers[0], numbers[-1] + 1)):
        return f"{numbers[0]} to {numbers[-1]}"
    return ", ".join(map(str, numbers))


def stopped_by(found: Numbers, silence: Long) -> str:
    """The longest stops and steps that overlap a client's silence."""
    end = silence.start_ns + silence.length_ns
    said = [
        f"{each.whose}: {each.what}"
        for each in (*found.stops, *found.steps_longest)
        if each.start_ns < end and each.start_ns + each.length_ns > silence.start_ns
    ]
    return "; ".join(said) or "none of the longest pauses, holds or steps"


def _add(taken: Taken, rows: Events) -> None:
    if not len(rows):
        return
    most = int(rows["duration_ns"].argmax())
    taken.number += len(rows)
    taken.total_ns += int(rows["duration_ns"].sum())
    if rows["duration_ns"][most] > taken.longest_ns:
        taken.longest_ns = int(rows["duration_ns"][most])
        taken.longest_at_ns = int(rows["start_ns"][most])


def _joined(spans: list[Spans]) -> Spans:
    if not spans:
        return union(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64))
    return union(np.concatenate([s[0] for s in spans]), np.concatenate([s[1] for s in spans]))


def _longest(rows: Events, number: int) -> Events:
    chosen: Events = rows[np.argsort(-rows["duration_ns"], kind="stable")[:number]]
    return chosen


def _top(rows: list[Long]) -> list[Long]:
    return sorted(rows, key=lambda each: -each.length_ns)[:SHOWN]


def more_ranks(found: Numbers, *, seed: int = 0) -> tuple[dict[str, pd.DataFrame], bool]:
    """Quantiles of the step of `RANKS` that wait for one another, with pauses and without.

    Returns
    -------
    (dict of str to pandas.DataFrame, bool)
        As `repro.theory.lockstep.predict` returns; whether older steps were left out. With
        fewer than `EXPECTED_BEYOND` steps that pauses lengthened, no value with pauses is firm.
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
        name: predict(each, ranks=RANKS, quantiles=QUANTILES, seed=seed)
        for name, each in {"all steps": steps, "without the collector": spared}.items()
    }
    few = sum(int((p > 0).sum()) for p in paused) < EXPECTED_BEYOND
    tables["all steps"]["supported"] &= not few or (tables["all steps"]["ranks"] == 1)
    return tables, sum(map(len, common)) < found.steps


def time_collecting(launch: Launch, found: Numbers) -> dict[str, float]:
    """Share of the time while it served that each kind of process spent collecting, on average."""
    shares: dict[str, list[float]] = defaultdict(list)
    for place, member in enumerate(launch.members):
        if member.role in ROLES and found.seconds:
            shares[member.role].append(found.own[place].total_ns / 1e9 / found.seconds)
    return {role: float(np.mean(shares[role])) for role in ROLES if role in shares}
