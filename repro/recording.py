"""Read what the recorder wrote: one process's file of events, one folder's worth of tables."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from repro.plugin import recorder
from repro.schema import ROLES, TABLES

EVENT = np.dtype(
    [("start_ns", "<i8"), ("duration_ns", "<i8"), ("a", "<i8"), ("b", "<i4"), ("kind", "<i4")]
)
assert EVENT.itemsize == recorder.EVENT.size

Columns = dict[str, npt.NDArray[Any]]


class RecordingError(ValueError):
    """A file the recorder did not write; the message names it."""


@dataclass(frozen=True, kw_only=True)
class Recording:
    """Events of one process.

    Attributes
    ----------
    role, rank, pid
        Which process.
    complete : bool
        False if the recorder had to stop, for want of disk space say.
    events : ndarray of EVENT, shape (n_events,)
        In the order in which their slots were drawn; an event that a kill cut short is left out.
    """

    role: str
    rank: int
    pid: int
    complete: bool
    events: npt.NDArray[Any]

    def of_kind(self, kind: int) -> npt.NDArray[Any]:
        """Events of one kind, shape (n,)."""
        chosen: npt.NDArray[Any] = self.events[self.events["kind"] == kind]
        return chosen


def read(path: Path) -> Recording:
    """Read one `events-*.bin`.

    Raises
    ------
    RecordingError
        If it does not begin with a recorder's header.
    """
    content = path.read_bytes()
    if len(content) < recorder.HEADER.size or not content.startswith(recorder.MAGIC):
        raise RecordingError(f"{path}: no recording of this package's version; delete the file")
    fields = recorder.HEADER.unpack_from(content)
    _, pid, rank, _, stopped, role = fields
    body = content[recorder.HEADER_BYTES :]
    events = np.frombuffer(body, EVENT, count=len(body) // EVENT.itemsize)
    return Recording(
        role=role.rstrip(b"\0").decode(),
        rank=rank,
        pid=pid,
        complete=not stopped,
        events=events[events["kind"] != 0],
    )


def read_all(folder: Path) -> list[Recording]:
    """Every process recorded in a folder, by file name."""
    return [read(path) for path in sorted(folder.glob("events-*.bin"))]


def tables(folder: Path, recordings: Sequence[Recording]) -> dict[str, Columns]:
    """The tables `pauses`, `steps`, `captures` and `census` of a recorded folder.

    Helper processes, which no token waits for, are left out.

    Parameters
    ----------
    folder : Path
    recordings : sequence of Recording
        As `read_all` gives them for that folder.

    Returns
    -------
    dict
        Table name to columns, each of shape (n,), named and typed as in `repro.schema.TABLES`.
    """
    recordings = [r for r in recordings if r.role in ROLES]
    return {
        "pauses": _pauses(recordings),
        "steps": _steps(recordings),
        "captures": _lines(folder, "captures"),
        "census": _lines(folder, "census"),
    }


def _pauses(recordings: list[Recording]) -> Columns:
    parts = [(r, r.of_kind(recorder.PAUSE)) for r in recordings]
    return _stack(
        {
            "role": np.full(len(events), r.role, dtype=object),
            "rank": np.full(len(events), r.rank),
            "pid": np.full(len(events), r.pid),
            "generation": events["b"] & 3,
            "start_ns": events["start_ns"],
            "duration_ns": events["duration_ns"],
            "collected": events["a"],
            "allocations": events["b"] >> 2,
        }
        for r, events in parts
    )


def _steps(recordings: list[Recording]) -> Columns:
    parts = [(r, r.of_kind(recorder.STEP)) for r in recordings]
    return _stack(
        {
            "rank": np.full(len(events), r.rank),
            "step": events["b"],
            "start_ns": events["start_ns"],
            "duration_ns": events["duration_ns"],
            "tokens": events["a"],
        }
        for r, events in parts
    )


def _lines(folder: Path, table: str) -> Columns:
    """The rows that every process appended to its file of this table."""
    rows = [
        json.loads(line)
        for path in sorted(folder.glob(f"{table}-*.jsonl"))
        for line in path.read_text().splitlines()
        if line.endswith("}")  # a line that a kill cut short is left out
    ]
    names = TABLES[table].names if rows else []
    return {name: np.array([row.get(name) for row in rows]) for name in names}


def _stack(parts: Iterator[Columns]) -> Columns:
    """The parts below one another."""
    found = list(parts)
    names = found[0] if found else {}
    return {name: np.concatenate([part[name] for part in found]) for name in names}
