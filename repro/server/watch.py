"""`repro watch`: the last ten minutes of a running vLLM in a terminal, as the page has them."""

from __future__ import annotations

import time
from pathlib import Path

import pandas as pd
from rich.box import SIMPLE
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table

from repro.server import launches, numbers, tables
from repro.server.remedies import advice, answer

RECENT_NS = 600_000_000_000

REST = 10
"""Looks take at most one part in so many of a processor's time: it is the server's."""


def view(folder: Path) -> Group:
    """The answer, a table of the processes and the advice."""
    found, warnings = launches.read(folder)
    newest = found[0]
    measured = numbers.measure(newest, newest.ended_ns - RECENT_NS)
    title = f"{folder}: vLLM of {newest.began:%Y-%m-%d %H:%M:%S} UTC, its last "
    title += f"{measured.seconds:,.0f} s of service"
    said = [title, *answer(newest, measured)]
    return Group(
        *said, table(tables.collections(newest, measured)), *advice(newest, measured), *warnings
    )


def table(content: pd.DataFrame) -> Table:
    """A data frame as a table of the terminal."""
    made = Table(box=SIMPLE, padding=(0, 1, 0, 0), pad_edge=False)
    for number, name in enumerate(content):
        made.add_column(str(name), justify="right" if number else "left", no_wrap=bool(number))
    for row in content.itertuples(index=False):
        made.add_row(*row)
    return made


def watch(folder: Path, *, every_s: float = 1.0, once: bool = False) -> None:
    """Show the newest launch in a folder, at most every `every_s` seconds, until Ctrl-C."""
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
