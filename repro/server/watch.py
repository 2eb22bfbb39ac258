"""`repro watch`: the last ten minutes of a running vLLM in a terminal, as the page has them."""

from __future__ import annotations

import time
from pathlib import Path

from rich.box import SIMPLE
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table

from repro import fmt
from repro.dataset.schema import NS_PER_MS
from repro.server import launches, numbers
from repro.server.launches import Launch
from repro.server.numbers import Numbers
from repro.server.remedies import advice, answer

RECENT_NS = 600_000_000_000

REST = 10
"""Looks take at most one part in so many of a processor's time: it is the server's."""

COLUMNS = ("gen 0", "gen 1", "full", "in GC", "longest", "steps/s", "tokens/s")


def view(folder: Path) -> Group:
    """The answer, a table of the processes and the advice.

    Raises
    ------
    repro.server.launches.NothingRecorded
        If the folder holds no recording.
    """
    found, warnings = launches.read(folder)
    newest = found[0]
    measured = numbers.measure(newest, newest.ended_ns - RECENT_NS)
    title = f"{folder}: vLLM of {newest.began:%Y-%m-%d %H:%M:%S} UTC, its last "
    title += f"{measured.seconds:,.0f} s of service"
    said = [title, *answer(newest, measured)]
    return Group(*said, table(newest, measured), *advice(newest, measured), *warnings)


def table(launch: Launch, found: Numbers) -> Table:
    """One row per process, of the time that was measured."""
    made = Table(box=SIMPLE, padding=(0, 1, 0, 0), pad_edge=False)
    made.add_column("process")
    for name in COLUMNS:
        made.add_column(name, justify="right", no_wrap=True)
    for place, member in enumerate(launch.members):
        if member.role in fmt.PROCESS and found.served:
            own = found.own[place]
            steps, tokens = own.steps / found.seconds, own.served / found.seconds
            made.add_row(
                member.label,
                *(f"{taken.number:,}" for taken in own.taken.values()),
                fmt.percent(own.total_ns / 1e9 / found.seconds),
                fmt.ms(own.longest[0] / NS_PER_MS),
                fmt.figures(steps) if steps else "",
                fmt.count(tokens) if tokens else "",
            )
    return made


def watch(folder: Path, *, every_s: float = 1.0, once: bool = False) -> None:
    """Show the newest launch in a folder until Ctrl-C.

    Parameters
    ----------
    folder : Path
        What `REPRO_RECORD_DIR` named.
    every_s : float
        Seconds between two looks, at least.
    once : bool
        Show it once and return.

    Raises
    ------
    repro.server.launches.NothingRecorded
        If the folder holds no recording.
    ValueError
        If `every_s` is not above 0.
    """
    if not every_s > 0:
        raise ValueError(f"every_s {every_s}: give seconds above 0, like 1")
    if once:
        Console().print(view(folder))
        return
    with Live(view(folder), auto_refresh=False) as live:
        try:
            while True:
                began = time.monotonic()
                live.update(view(folder), refresh=True)
                time.sleep(max(every_s, REST * (time.monotonic() - began)))
        except KeyboardInterrupt:
            return
