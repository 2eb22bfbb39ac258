"""Read what the recorder wrote: one process's file of events, one folder's worth of tables.

A recording may hold a day of steps. `read` takes one process's events at once, for the runs of an
experiment; `Source` reads a file of any length piece by piece.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from repro.dataset.schema import ROLES, TABLES
from repro.plugin import recorder
from repro.plugin.live_reader import Process, process_of, recordings

EVENT = np.dtype(
    [("start_ns", "<i8"), ("duration_ns", "<i8"), ("a", "<i8"), ("b", "<i4"), ("kind", "<i4")]
)
assert EVENT.itemsize == recorder.EVENT.size

Columns = dict[str, npt.NDArray[Any]]

ABOUT = recorder.ABOUT
"""Place of a JSON object in a recording's first page, filled up with NUL. Every key may be missing:

    host, monotonic_ns, wall_ns    hash of the host; one moment on both of its clocks
    name, server                   vLLM's name of the process; the API server it belongs to
    python, vllm                   versions
    asked, policy, not_in_force    the serving policy asked for, in force, and how it is not
    dp_rank, dp_size, world_size   place among the ranks; workers per engine core
    moe, worker_inside, device     whether ranks wait for each other; executor `uni`; cuda or cpu
    objects, frozen, heap_frozen   objects once warm, frozen ones, whether these are most of them
    thresholds, collector          `gc.get_threshold()`, `gc.isenabled()`
"""

CHUNK_EVENTS = 1 << 14
"""Events read at a time: 512 KiB."""


class RecordingError(ValueError):
    """A file the recorder did not write; the message names it."""


@dataclass(frozen=True, kw_only=True)
class Recording(Process):
    """Events of one process.

    Attributes
    ----------
    events : ndarray of EVENT, shape (n_events,)
        In the order in which their slots were drawn; an event that a kill cut short is left out.
    """

    events: npt.NDArray[Any]

    def of_kind(self, kind: int) -> npt.NDArray[Any]:
        """Events of one kind, shape (n,)."""
        chosen: npt.NDArray[Any] = self.events[self.events["kind"] == kind]
        return chosen


def read(path: Path) -> Recording:
    """Read one `events-*.bin`, as `source` finds it."""
    found = source(path)
    events = np.concatenate([np.empty(0, EVENT), *found.chunks()])
    return Recording(**vars(found.process), events=events)


@dataclass(frozen=True, kw_only=True)
class Source:
    """One process's recording, to be read piece by piece; `about` is as `ABOUT` lists it."""

    path: Path
    process: Process
    about: Mapping[str, Any]

    def chunks(self, since_ns: int = 0) -> Iterator[npt.NDArray[Any]]:
        """Its events, `CHUNK_EVENTS` or fewer at a time, in the order of their slots.

        Starts with the chunk in which the events from `since_ns` on begin.
        """
        with self.path.open("rb") as file:
            first = self._last_chunk_before(file, since_ns) if since_ns else 0
            file.seek(recorder.HEADER_BYTES + first * CHUNK_EVENTS * EVENT.itemsize)
            while len(events := np.fromfile(file, EVENT, CHUNK_EVENTS)):
                yield events[events["kind"] != 0]

    def _last_chunk_before(self, file: BinaryIO, time_ns: int) -> int:
        slots = (self.path.stat().st_size - recorder.HEADER_BYTES) // EVENT.itemsize
        low, high = 0, slots // CHUNK_EVENTS
        while low < high:
            middle = (low + high + 1) // 2
            file.seek(recorder.HEADER_BYTES + middle * CHUNK_EVENTS * EVENT.itemsize)
            event = np.fromfile(file, EVENT, 1)
            early = len(event) and event["kind"][0] and event["start_ns"][0] < time_ns
            low, high = (middle, high) if early else (low, middle - 1)
        return low

    def ended_ns(self) -> int:
        """End of its newest event, or its first moment if it has none."""
        size = self.path.stat().st_size - recorder.HEADER_BYTES
        last = max(size // EVENT.itemsize - 2 * recorder.SEGMENT_EVENTS, 0)
        with self.path.open("rb") as file:
            file.seek(recorder.HEADER_BYTES + last * EVENT.itemsize)
            events = np.fromfile(file, EVENT)
        ends = (events["start_ns"] + events["duration_ns"])[events["kind"] != 0]
        return int(ends.max(initial=self.process.opened_ns))


def source(path: Path) -> Source:
    """One `events-*.bin`.

    Raises
    ------
    RecordingError
        If it does not begin with a recorder's header.
    OSError
        If it cannot be read.
    """
    with path.open("rb") as file:
        header = file.read(ABOUT.stop)
    process = process_of(header)
    if process is None:
        raise RecordingError(f"{path}: no recording of this package's version; delete the file")
    return Source(path=path, process=process, about=process.about)


def read_all(folder: Path) -> list[Recording]:
    """Every process recorded in a folder, by file name."""
    return [read(path) for path in recordings(folder)]


def tables(folder: Path, recorded: Sequence[Recording]) -> dict[str, Columns]:
    """The tables `pauses`, `steps`, `holds`, `captures` and `census` of a recorded folder.

    Helper processes, which no token waits for, are left out. Columns, each of shape (n,), are
    named as in `schema.TABLES`; some are there that a table lacks.
    """
    chosen = [r for r in recorded if r.role in ROLES]
    frontends = [r for r in chosen if r.role == "frontend"]
    pauses = _events(chosen, recorder.PAUSE, a="collected", b="b")
    if pauses:
        pauses["generation"] = recorder.generation_of(pauses["b"])
        pauses["allocations"] = pauses["b"] >> 2
    return {
        "pauses": pauses,
        "steps": _events(chosen, recorder.STEP, a="tokens", b="step"),
        "holds": _events(frontends, recorder.HOLD, a="outputs", b="calls"),
        "captures": _lines(folder, "captures", chosen),
        "census": _lines(folder, "census", chosen),
    }


def _events(recorded: list[Recording], kind: int, *, a: str, b: str) -> Columns:
    """Events of one kind, whose they are, and the names of what they hold in `a` and `b`."""
    parts = [
        {
            "role": np.full(len(events), r.role, dtype=object),
            "rank": np.full(len(events), r.rank),
            "pid": np.full(len(events), r.pid),
            "start_ns": events["start_ns"],
            "duration_ns": events["duration_ns"],
            a: events["a"],
            b: events["b"],
        }
        for r in recorded
        for events in [r.of_kind(kind)]
    ]
    names = parts[0] if parts else {}
    return {name: np.concatenate([part[name] for part in parts]) for name in names}


def _lines(folder: Path, table: str, recorded: list[Recording]) -> Columns:
    """The rows that every process appended to its file of this table."""
    rows = [row for r in recorded for row in _lines_of(folder, table, r)]
    names = {*TABLES[table].names}.union(*rows) if rows else set()
    return {name: np.array([row.get(name) for row in rows]) for name in names}


def _lines_of(folder: Path, table: str, process: Process) -> list[dict[str, Any]]:
    path = folder / f"{table}-{process.pid}-{process.opened_ns}.jsonl"
    if not path.exists():
        return []
    # A line that a kill cut short is left out.
    return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
