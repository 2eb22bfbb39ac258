"""Load of other programs on the machine, before a run and during its measured window."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import psutil

FILE = "other_load.json"
BEFORE_S = 0.5
"""Time for which the load before the run is watched."""

MEASURED = ("measure", "capture")
"""Phases of the child in which it measures."""

Report = Callable[[str, float], None]
"""Called about once a second with the phase a run is in and the seconds it has taken."""


class OtherLoad:
    """Shares of the cores that other programs keep busy: 0 is an idle machine, 1 a full one.

    Attributes
    ----------
    before, during : float or None
        In the half second before the run's engine starts, and in its measured window.
    """

    def __init__(self) -> None:
        self.before: float | None = None
        self.during: float | None = None
        self.start = cpu_seconds()
        time.sleep(BEFORE_S)
        self.before = share(self.start, cpu_seconds())
        self.measuring = False

    def watching(self, report: Report) -> Report:
        """The same report, and a look at the processors where the window begins and ends."""

        def report_and_look(phase: str, seconds: float) -> None:
            if (phase in MEASURED) != self.measuring:
                now, self.measuring = cpu_seconds(), not self.measuring
                if self.measuring:
                    self.start = now
                else:
                    self.during = share(self.start, now)
            report(phase, seconds)

        return report_and_look

    def write(self, folder: Path) -> None:
        """Leave what was seen for `run.json`."""
        (folder / FILE).write_text(json.dumps({"before": self.before, "during": self.during}))


def cpu_seconds() -> tuple[float, float]:
    """Time, and CPU seconds of others so far on the cores that this process may use."""
    cores = psutil.cpu_times(percpu=True)
    usable = [cores[core] for core in os.sched_getaffinity(0) if core < len(cores)]
    busy = sum(core.user + core.nice + core.system + core.irq + core.softirq for core in usable)
    own = 0.0
    this = psutil.Process()
    for process in (this, *this.children(recursive=True)):
        with contextlib.suppress(psutil.Error):
            used = process.cpu_times()
            own += used.user + used.system
    return time.monotonic(), busy - own


def share(start: tuple[float, float], end: tuple[float, float]) -> float:
    """Share of the cores that others kept busy between two looks."""
    available = (end[0] - start[0]) * len(os.sched_getaffinity(0))
    return round(min(1.0, max(0.0, (end[1] - start[1]) / available)), 3)


def read(folder: Path) -> dict[str, float | None]:
    """The loads that `write` left; empty if it left none."""
    with contextlib.suppress(OSError):
        found: dict[str, float | None] = json.loads((folder / FILE).read_text())
        return found
    return {}
