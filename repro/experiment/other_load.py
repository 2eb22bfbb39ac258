"""Load of other programs on the machine, before a run and during its measured window."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable

import psutil

BEFORE_S = 0.5
"""Time for which the load before the run is watched."""

MEASURED = ("measure", "capture")
"""Phases of the child in which it measures."""

Report = Callable[[str, float], None]
"""Called about once a second with the phase a run is in and the seconds it has taken."""


def watching(report: Report, seen: dict[str, float]) -> Report:
    """The same report, and `seen` gets the shares of the cores that other programs keep busy.

    That is 0 on an idle machine and 1 on a full one: `before` in the half second from now, before
    the run's engine starts, and `during` its measured window.
    """
    start, measuring = cpu_seconds(), False
    time.sleep(BEFORE_S)
    seen["before"] = share(start, cpu_seconds())

    def report_and_look(phase: str, seconds: float) -> None:
        nonlocal start, measuring
        if (phase in MEASURED) != measuring:
            now, measuring = cpu_seconds(), not measuring
            if measuring:
                start = now
            else:
                seen["during"] = share(start, now)
        report(phase, seconds)

    return report_and_look


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
