"""`repro watch`: the pauses of a running vLLM, live in a terminal."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from rich.box import SIMPLE
from rich.console import Console
from rich.live import Live
from rich.table import Table

from repro import fmt
from repro.dataset.schema import ROLES
from repro.plugin.live_reader import Event, Launch, Process, newest_launch
from repro.plugin.recorder import PAUSE, STEP, generation_of
from repro.server.environment import nothing_recorded
from repro.server.launches import HELPERS, NothingRecorded

RECENT_NS = 10_000_000_000
"""Rates are of the last ten seconds."""

COLUMNS = ("gen 0", "gen 1", "full", "GC/s", "in GC", "max ms", "steps/s", "scheduled/s")
"""The last: tokens that steps processed, those of prompts included."""

NS_PER_S = 1e9
NS_PER_MS = 1e6


@dataclass
class Tally:
    """The recording of one process so far.

    Attributes
    ----------
    collections : list of int
        By generation, since the first step: start-up is no service.
    gc_ns, worst_ns : int
        Time in collections, and the longest of them.
    pauses, steps : deque of (start_ns, int)
        The recent ones: with their length in ns, with their tokens.
    """

    collections: list[int] = field(default_factory=lambda: [0, 0, 0])
    gc_ns: int = 0
    worst_ns: int = 0
    pauses: deque[tuple[int, int]] = field(default_factory=deque)
    steps: deque[tuple[int, int]] = field(default_factory=deque)

    def add(self, event: Event) -> None:
        """Count one event."""
        start, duration, a, b, kind = event
        if kind == PAUSE:
            self.collections[generation_of(b)] += 1
            self.gc_ns += duration
            self.worst_ns = max(self.worst_ns, duration)
            self.pauses.append((start, duration))
        elif kind == STEP and a:
            self.steps.append((start, a))

    def begin(self) -> None:
        """Forget the collections of the start-up: the server steps from now on."""
        self.collections = [0, 0, 0]
        self.gc_ns = self.worst_ns = 0
        self.pauses.clear()

    def forget_before(self, time_ns: int) -> None:
        """Drop what is no longer recent."""
        for recent in (self.pauses, self.steps):
            while recent and recent[0][0] < time_ns:
                recent.popleft()


class Watch:
    """The newest launch recorded in a folder, counted as it goes on.

    Raises
    ------
    NothingRecorded
        If the folder holds no recording.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._turn_to(newest_launch(folder))

    def _turn_to(self, launch_ns: int | None) -> None:
        if launch_ns is None:
            raise NothingRecorded(nothing_recorded(self.folder))
        self.launch = Launch(self.folder, launch_ns)
        self.processes: dict[int, tuple[Process, Tally]] = {}
        self.first_step_ns = self.last_step_ns = 0

    def look(self) -> None:
        """Count what is new; turn to a newer launch if there is one."""
        newest = newest_launch(self.folder)
        if newest is not None and newest != self.launch.launch_ns:
            self._turn_to(newest)
        found: list[tuple[Tally, list[Event]]] = []
        for process, events in self.launch.new_events():
            _, tally = self.processes.get(process.opened_ns, (process, Tally()))
            self.processes[process.opened_ns] = process, tally
            found.append((tally, events))
        self._serve([e[0] for _, events in found for e in events if e[4] == STEP and e[2]])
        for tally, events in found:
            for event in events:
                if not self.first_step_ns or event[0] >= self.first_step_ns:
                    tally.add(event)

    def _serve(self, steps: list[int]) -> None:
        """Take note of steps with tokens; with the first of them service begins."""
        if steps and not self.first_step_ns:
            self.first_step_ns = min(steps)
            for _, tally in self.processes.values():
                tally.begin()
        self.last_step_ns = max(steps, default=self.last_step_ns)

    def table(self, now_ns: int) -> Table:
        """The view to show, with rates of the `RECENT_NS` before `now_ns`."""
        began = datetime.fromtimestamp(self.launch.launch_ns / NS_PER_S, UTC)
        title = f"{self.folder}: vLLM of {began:%Y-%m-%d %H:%M:%S} UTC"
        made = Table(
            title=title, title_justify="left", box=SIMPLE, padding=(0, 1, 0, 0), pad_edge=False
        )
        made.add_column("process", no_wrap=True)
        for name in COLUMNS:
            made.add_column(name, justify="right", no_wrap=True)
        known = [(p, t) for p, t in self.processes.values() if p.role in ROLES]
        for process, tally in sorted(known, key=lambda k: (ROLES.index(k[0].role), k[0].rank)):
            tally.forget_before(now_ns - RECENT_NS)
            made.add_row(*cells(process, tally))
        made.caption, made.caption_justify = self.answer(), "left"
        return made

    def answer(self) -> str:
        """The time that each kind of process spent collecting since the first step, in a line."""
        served = self.last_step_ns - self.first_step_ns
        if not self.first_step_ns or not served:
            return "no step yet: the counts are of the start-up"
        said = []
        for role, name in fmt.PROCESS.items():
            of = [tally for process, tally in self.processes.values() if process.role == role]
            if of:
                share = sum(tally.gc_ns for tally in of) / len(of) / served
                worst = max(tally.worst_ns for tally in of) / NS_PER_MS
                said.append(f"{name} {fmt.percent(share)}, worst {fmt.ms(worst)}")
        strange = [p for p, _ in self.processes.values() if p.role not in (*ROLES, *HELPERS)]
        unknown = (
            f"; unknown processes: {', '.join(str(p.pid) for p in strange)}" if strange else ""
        )
        return f"collecting since the first step: {'; '.join(said)}{unknown}; see repro report"


def cells(process: Process, tally: Tally) -> list[str]:
    """One row of the table."""
    seconds = RECENT_NS / NS_PER_S
    name = fmt.PROCESS[process.role] + ("" if process.role == "frontend" else f" {process.rank}")
    recent = sum(length for _, length in tally.pauses)
    steps, tokens = len(tally.steps), sum(tokens for _, tokens in tally.steps)
    return [
        name if process.complete else f"{name} (stopped)",
        *(f"{number:,}" for number in tally.collections),
        fmt.figures(len(tally.pauses) / seconds),
        fmt.percent(recent / RECENT_NS),
        fmt.figures(tally.worst_ns / NS_PER_MS),
        fmt.figures(steps / seconds) if steps else "",
        fmt.count(tokens / seconds) if steps else "",
    ]


def watch(folder: Path, *, every_s: float = 1.0, once: bool = False) -> None:
    """Show the newest launch in a folder until Ctrl-C.

    Parameters
    ----------
    folder : Path
        What `REPRO_RECORD_DIR` named.
    every_s : float
        Seconds between two looks.
    once : bool
        Show it once and return, with the rates there were before the last step.

    Raises
    ------
    NothingRecorded
        If the folder holds no recording.
    ValueError
        If `every_s` is not above 0.
    """
    if not every_s > 0:
        raise ValueError(f"every_s {every_s}: give seconds above 0, like 1")
    shown = Watch(folder)
    shown.look()
    if once:
        Console().print(shown.table(shown.last_step_ns))
        return
    with Live(shown.table(time.monotonic_ns()), auto_refresh=False) as live:
        try:
            while True:
                time.sleep(every_s)
                shown.look()
                live.update(shown.table(time.monotonic_ns()), refresh=True)
        except KeyboardInterrupt:
            return
