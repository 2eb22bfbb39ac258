"""Read what the recorder wrote: one process's file of events, one folder's worth of tables."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
    """Read one `events-*.bin`.

    Raises
    ------
    RecordingError
        If it does not begin with a recorder's header.
    """
    content = path.read_bytes()
    process = process_of(content)
    if process is None:
        raise RecordingError(f"{path}: no recording of this package's version; delete the file")
    body = content[recorder.HEADER_BYTES :]
    events = np.frombuffer(body, EVENT, count=len(body) // EVENT.itemsize)
    return Recording(**vars(process), events=events[events["kind"] != 0])


def read_all(folder: Path) -> list[Recording]:
    """Every process recorded in a folder, by file name."""
    return [read(path) for path in recordings(folder)]


def tables(folder: Path, recorded: Sequence[Recording]) -> dict[str, Columns]:
    """The tables `pauses`, `steps`, `holds`, `captures` and `census` of a recorded folder.

    Helper processes, which no token waits for, are left out.

    Parameters
    ----------
    folder : Path
    recorded : sequence of Recording
        As `read_all` gives them for that folder.

    Returns
    -------
    dict
        Table name to columns, each of shape (n,), named and typed as in `schema.TABLES`.
    """
    chosen = [r for r in recorded if r.role in ROLES]
    return {
        "pauses": _pauses(chosen),
        "steps": _steps(chosen),
        "holds": _holds(chosen),
        "captures": _lines(folder, "captures", chosen),
        "census": _lines(folder, "census", chosen),
    }


def _pauses(recorded: list[Recording]) -> Columns:
    parts = [(r, r.of_kind(recorder.PAUSE)) for r in recorded]
    return _stack(
        {
            "role": np.full(len(events), r.role, dtype=object),
            "rank": np.full(len(events), r.rank),
            "pid": np.full(len(events), r.pid),
            "generation": events["b"] & 3,  # as `recorder.generation_of`
            "start_ns": events["start_ns"],
            "duration_ns": events["duration_ns"],
            "collected": events["a"],
            "allocations": events["b"] >> 2,
        }
        for r, events in parts
    )


def _steps(recorded: list[Recording]) -> Columns:
    parts = [(r, r.of_kind(recorder.STEP)) for r in recorded]
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


def _holds(recorded: list[Recording]) -> Columns:
    parts = [r.of_kind(recorder.HOLD) for r in recorded if r.role == "frontend"]
    return _stack(
        {
            "start_ns": events["start_ns"],
            "duration_ns": events["duration_ns"],
            "outputs": events["a"],
            "calls": events["b"],
        }
        for events in parts
    )


def _lines(folder: Path, table: str, recorded: list[Recording]) -> Columns:
    """The rows that every process appended to its file of this table."""
    paths = (folder / f"{table}-{r.pid}-{r.opened_ns}.jsonl" for r in recorded)
    rows = [
        json.loads(line)
        for path in paths
        if path.exists()
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
