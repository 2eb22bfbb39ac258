"""Write recordings of a vLLM that never ran, of invented numbers, with the real recorder."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from repro.dataset.recording import ABOUT
from repro.plugin.recorder import HOLD, LAUNCH, PAUSE, STEP, Recorder
from repro.server import launches, numbers
from repro.server.launches import Launch
from repro.server.numbers import Numbers

MS = 1_000_000
STEP_MS, STALL_MS = 20, 400


def recorder(folder: Path, role: str, rank: int = 0) -> Recorder:
    """A recorder as the process of this role would have it."""
    made = Recorder(folder)
    made.declare(role, rank)
    return made


def serving(
    folder: Path,
    *,
    launch: int = 1_780_000_000_000_000_000,
    steps: int = 2000,
    stalls: Sequence[int] = (),
    idle_after: Sequence[int] = (),
    tokens: int = 8,
    ranks: int = 1,
    hold_ms: int = 30,
) -> Path:
    """One launch of steps of `STEP_MS` on every rank of one engine.

    Parameters
    ----------
    stalls : sequence of int
        Steps in which the worker of rank 0 makes a full collection of `STALL_MS`.
    idle_after : sequence of int
        Steps after which nobody asks for a minute.
    hold_ms : int
        For how long the front end's output handler holds the event loop, once.
    """
    os.environ[LAUNCH] = str(launch)
    frontend, engine = recorder(folder, "frontend"), recorder(folder, "engine")
    workers = [recorder(folder, "worker", rank) for rank in range(ranks)]
    now = frontend._opened_ns + 10_000 * MS
    for made in (frontend, engine, *workers):
        made.write(PAUSE, now, 300 * MS, 0, 2)  # while starting
    frontend.write(HOLD, now, hold_ms * MS, 4000, 90)
    now += 5000 * MS
    for number in range(steps):
        stall = STALL_MS if number in stalls else 0
        if stall:
            workers[0].write(PAUSE, now + MS, stall * MS, 0, 2)
        frontend.write(PAUSE, now + 2 * MS, MS // 10, 0, 0)
        for worker in workers:
            worker.write(STEP, now, (STEP_MS + stall) * MS, tokens, number)
        now += (STEP_MS + stall + number % 7) * MS
        if number in idle_after:
            for worker in workers:
                worker.write(STEP, now, MS, 0, number)
            now += 60_000 * MS
    for worker in workers:
        worker.note(heap_frozen=False, frozen=10, objects=10_000)
    del os.environ[LAUNCH]
    return folder


def with_facts(path: Path, **facts: object) -> None:
    """Write a header's facts as a process would."""
    content = bytearray(path.read_bytes())
    text = json.dumps(facts).encode()
    content[ABOUT] = text.ljust(ABOUT.stop - ABOUT.start, b"\0")
    path.write_bytes(content)


def measured(folder: Path) -> Numbers:
    """The numbers of the one launch in a folder."""
    return numbers.measure(only_launch(folder))


def only_launch(folder: Path) -> Launch:
    """The newest launch in a folder."""
    return launches.read(folder)[0][0]
