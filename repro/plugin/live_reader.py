"""Follow recordings while they grow: each event once, in small reads. Standard library only."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from repro.plugin.process_facts import SERVING_ROLES
from repro.plugin.recorder import ABOUT, EVENT, HEADER, HEADER_BYTES, MAGIC

Event = tuple[int, int, int, int, int]
"""start_ns, duration_ns, a, b, kind: see `repro.plugin.recorder`."""

CHUNK_BYTES = 2048 * EVENT.size
"""Small, since most reads find little that is new and a front end pays for them."""

_KIND = 4


@dataclass(frozen=True, kw_only=True)
class Process:
    """One recorded process, as its file's header has it."""

    role: str
    rank: int
    pid: int
    opened_ns: int  # monotonic clock, when its recording began
    launch_ns: int  # time of day, when its launch did
    complete: bool  # False once the recorder had to stop
    # Facts as `repro.dataset.recording.ABOUT` lists them, each of which may be missing.
    about: Mapping[str, Any] = field(default_factory=dict, hash=False)


def process_of(header: bytes) -> Process | None:
    """Facts in a recording's first bytes; None if no recorder of this version wrote them."""
    if len(header) < HEADER.size or not header.startswith(MAGIC):
        return None
    _, pid, rank, opened_ns, stopped, role, launch_ns = HEADER.unpack_from(header)
    return Process(
        role=role.rstrip(b"\0").decode(),
        rank=rank,
        pid=pid,
        opened_ns=opened_ns,
        launch_ns=launch_ns,
        complete=not stopped,
        about=_about(header[ABOUT]),
    )


def _about(text: bytes) -> dict[str, Any]:
    """The header's JSON object; empty if an older recorder wrote none, or one is being written."""
    try:
        found = json.loads(text.rstrip(b"\0"))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


class Follower:
    """One recording, read from where the last call ended; removed, it is read to its end."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._slot = 0
        self._hole: int | None = None

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            os.close(self._file)

    def process(self) -> Process | None:
        """Whose recording this is, as of now."""
        return process_of(os.pread(self._file, ABOUT.stop, 0))

    def new_events(self) -> list[Event]:
        """Events written since the last call."""
        events: list[Event] = []
        while True:
            offset = HEADER_BYTES + self._slot * EVENT.size
            chunk = os.pread(self._file, CHUNK_BYTES, offset)
            slots = list(EVENT.iter_unpack(chunk[: len(chunk) // EVENT.size * EVENT.size]))
            filled = [number for number, slot in enumerate(slots) if slot[_KIND]]
            taken = self._settled(slots, filled[-1] + 1 if filled else 0)
            events += [slot for slot in slots[:taken] if slot[_KIND]]
            self._slot += taken
            if not taken or taken < len(slots):
                return events

    def _settled(self, slots: list[Event], end: int) -> int:
        """Number of slots, up to the last filled one, that can be read for good.

        A writer draws its slot before it fills it, so one with filled slots behind it may be about
        to be filled: it is waited for once, then passed over (its writer was interrupted).
        """
        for number in range(end):
            if not slots[number][_KIND] and self._slot + number != self._hole:
                self._hole = self._slot + number
                return number
        return end


class Launch:
    """Every process of one launch of vLLM in a folder, found as it appears."""

    def __init__(self, folder: Path, launch_ns: int) -> None:
        self.folder = folder
        self.launch_ns = launch_ns
        self._seen: set[str] = set()
        self._followed: list[Follower] = []

    def new_events(self) -> Iterator[tuple[Process, list[Event]]]:
        """Each process with what it recorded since the last call; none of it, at times."""
        for path in recordings(self.folder):
            if path.name not in self._seen:
                self._look_at(path)
        for follower in self._followed:
            process = follower.process()
            if process is not None:
                yield process, follower.new_events()

    def _look_at(self, path: Path) -> None:
        try:
            follower = Follower(path)
        except OSError:
            return  # removed meanwhile
        process = follower.process()
        if process is None:
            return  # its header is about to be written
        self._seen.add(path.name)
        if process.launch_ns == self.launch_ns:
            self._followed.append(follower)


def recordings(folder: Path) -> list[Path]:
    """The events files of a folder, by name; none if the folder is gone."""
    try:
        names = os.listdir(folder)
    except OSError:
        return []
    return [folder / n for n in sorted(names) if n.startswith("events-") and n.endswith(".bin")]


def processes(folder: Path) -> list[Process]:
    """The front ends, engine cores and workers recorded in a folder, by file name."""
    found = []
    for path in recordings(folder):
        try:
            process = Follower(path).process()
        except OSError:
            continue
        if process is not None and process.role in SERVING_ROLES:
            found.append(process)
    return found
