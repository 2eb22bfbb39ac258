"""Record GC pauses and steps of one process into a memory-mapped file.

Every event is 32 bytes written straight into a shared mapping, so what was recorded survives
`kill -9` without a flush, and no Python object outlives the event that made it.
File: one header page, then segments of `SEGMENT_EVENTS` events, reserved on disk before they
are mapped (a full disk is an error here, not a SIGBUS there). The header page also has a JSON
object, `Recorder.about`, that readers may lack keys of. What is rare and never inside a timed
span, captures and heap counts, goes as JSON lines into files beside it.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import json
import mmap
import os
import struct
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from repro.plugin import process_facts
from repro.plugin.apply_policy import Moments
from repro.plugin.fault_handling import logger
from repro.plugin.process_facts import identity_from_name, process_name
from repro.policy import SERVING, ServingPolicy

MAGIC = b"GCREC\0\0\2"
HEADER = struct.Struct("<8s i i q i 16s q")
"""magic, pid, rank, opened_ns (monotonic), stopped, role, launch_ns (time of day)"""
HEADER_BYTES = mmap.ALLOCATIONGRANULARITY
ABOUT = slice(64, 4096)
"""Place of the JSON object in the header page, filled up with NUL."""
LONGEST = 80  # characters of a text there
EVENT = struct.Struct("<q q q i i")  # start_ns, duration_ns, a, b, kind; an empty slot is kind 0
SEGMENT_EVENTS = 1 << 15
SEGMENT_BYTES = SEGMENT_EVENTS * EVENT.size
pack_event = EVENT.pack_into

PAUSE = 1  # a = objects collected, b = generation + 4 * containers allocated before it
STEP = 2  # a = tokens scheduled, b = step
HOLD = 3  # a = outputs processed, b = calls that did so
SERVED = 4  # of a front end: a = outputs processed in so long

LAUNCH = "REPRO_LAUNCH_NS"
"""Set by the first process of a launch, inherited by those it starts."""


def launch_ns() -> int:
    """Start of this launch of vLLM, in ns since the epoch: what all its processes share.

    Neither a process's id nor the monotonic clock would do: both begin anew with a reboot.
    """
    text = os.environ.setdefault(LAUNCH, str(time.time_ns()))
    return int(text) if text.isdecimal() else 0


class Recorder:
    """Events of this process, in a file of its own; follows `os.fork` into a new file.

    The folder gets `events-<pid>-<opened_ns>.bin`, and `census-` and `captures-` of the same with
    `.jsonl`; OSError if it cannot be made. With `strict`, in an experiment, a recording that cannot
    go on raises; otherwise it is logged once and stops. `policies` and `asked` are by role: what is
    in force (a role that has none is left as the installed vLLM has it), and the name in the
    environment, mistyped or not.
    """

    def __init__(
        self,
        directory: Path,
        *,
        strict: bool = False,
        policies: Mapping[str, ServingPolicy] = MappingProxyType({}),
        asked: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.directory = directory
        self.strict = strict
        self.policies, self._asked = policies, asked
        self.launch_ns = launch_ns()
        self._file: int | None = None
        directory.mkdir(parents=True, exist_ok=True)
        self._begin()
        os.register_at_fork(after_in_child=self._begin)

    def _begin(self) -> None:
        """Start an empty recording under this process's own id."""
        if self._file is not None:
            os.close(self._file)  # the parent's file, inherited by fork
        self._file = None
        self._stopped = False
        self._slots, self._captures = itertools.count(), itertools.count()
        self._segments: dict[int, mmap.mmap] = {}
        self._header: mmap.mmap | None = None
        self._pid = os.getpid()
        self._opened_ns = time.monotonic_ns()
        self._declared: tuple[str, int] | None = None
        self.about: dict[str, Any] = {"monotonic_ns": self._opened_ns, "wall_ns": time.time_ns()}
        self.about |= {"host": process_facts.host()}

    @property
    def role(self) -> str:
        """Role of this process: `frontend`, `engine`, `worker`, `launcher` or `other`."""
        return self._identity()[0]

    @property
    def rank(self) -> int:
        """Data-parallel rank of an engine core, global rank of a worker, a front end's number."""
        return self._identity()[1]

    def declare(self, role: str, rank: int) -> None:
        """Say what this process is, where its name alone does not tell."""
        self._declared = (role, rank)
        self._write_header()

    @property
    def policy(self) -> ServingPolicy:
        """The serving policy of this process."""
        return self.policies.get(self.role, SERVING["stock"])

    def note(self, **facts: Any) -> None:
        """Add facts to the header: those that `repro.dataset.recording.ABOUT` lists."""
        self.about |= facts
        self._write_header()

    def note_heap(self, counts: dict[str, Any] | None = None) -> None:
        """Note the state of the heap, once this process is warm. Walks it, if not counted yet."""
        state = process_facts.heap_state(counts or count_heap())
        self.note(**state, not_in_force=process_facts.not_in_force(self.policy, state))

    def _identity(self) -> tuple[str, int]:
        return self._declared or identity_from_name(process_name())

    def write(self, kind: int, start_ns: int, duration_ns: int, a: int, b: int) -> None:
        """Record one event. Safe from any thread and from inside a collection.

        The slot number is drawn atomically, so a nested or concurrent event takes another slot.
        """
        slot = next(self._slots)
        try:
            segment = self._segments[slot >> 15]
        except KeyError:
            mapped = self._map_segment(slot >> 15)
            if mapped is None:
                return
            segment = mapped
        pack_event(segment, (slot & 0x7FFF) << 5, start_ns, duration_ns, a, b, kind)

    def _map_segment(self, number: int) -> mmap.mmap | None:
        if self._stopped:
            return None
        try:
            descriptor = self._open()
            offset = HEADER_BYTES + number * SEGMENT_BYTES
            os.posix_fallocate(descriptor, offset, SEGMENT_BYTES)
            mapped = mmap.mmap(descriptor, SEGMENT_BYTES, offset=offset)
            self._write_header()  # again: a forked process gets its name after its first event
        except OSError as error:
            self._stop(error)
            return None
        # Two threads may map the same segment: both mappings are the same pages.
        return self._segments.setdefault(number, mapped)

    def _open(self) -> int:
        if self._file is None:
            self._file = os.open(
                self.path_of("events-", ".bin"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644
            )
            os.posix_fallocate(self._file, 0, HEADER_BYTES)
            self._header = mmap.mmap(self._file, HEADER_BYTES)
            self._write_header()
            if self.role == "other":
                logger.info(
                    "repro: process %s is no front end, engine core or worker: recorded, but left "
                    "out of reports",
                    process_name(),
                )
        return self._file

    def _write_header(self) -> None:
        if self._header is not None:
            role, rank = self._identity()
            fields = (MAGIC, self._pid, rank, self._opened_ns, self._stopped, role.encode())
            HEADER.pack_into(self._header, 0, *fields, self.launch_ns)
            self._write_about(role)

    def _write_about(self, role: str) -> None:
        assert self._header is not None
        name = process_name()
        self.about |= process_facts.versions() | {
            "name": name[:LONGEST],
            "server": process_facts.api_server(name)[:LONGEST],
            "asked": self._asked.get(role, "stock")[:LONGEST],
            "policy": self.policy.name,
        }
        room = ABOUT.stop - ABOUT.start
        self._header[ABOUT] = json.dumps(self.about).encode()[:room].ljust(room, b"\0")

    def _stop(self, error: Exception) -> None:
        """Give up recording, once; what was recorded stays, marked incomplete."""
        if self._stopped:
            return
        self._stopped = True
        self._write_header()
        remedy = "; free space there and restart" if isinstance(error, OSError) else ""
        message = f"repro: recording into {self.directory} stopped: {error}{remedy}"
        if self.strict:
            raise OSError(message) from error
        logger.error(message)

    def watch_collector(self) -> None:
        """Record every collection of this process from now on, of every generation."""
        gc.callbacks.append(pause_callback(self.write, self._stop))

    def census(self, point: str, **more: int) -> dict[str, Any]:
        """Count the heap and append the counts, and `more`, to this process's census file.

        Walks every tracked object (tens of milliseconds at a million): never in a timed window.
        """
        self._write_header()
        counts = {"role": self.role, "rank": self.rank, "pid": os.getpid(), "point": point}
        counts |= {"t_ns": time.monotonic_ns(), **count_heap(), "acted": Moments.acted, **more}
        if point == "ready":
            self.note_heap(counts)
        self._append("census", counts)
        return counts

    def capture(self, **row: Any) -> None:
        """Append a finished capture or compilation: columns of `captures` but the first two."""
        self._append("captures", {"rank": self.rank, "number": next(self._captures), **row})

    def path_of(self, prefix: str, suffix: str) -> Path:
        """One of this process's files."""
        return self.directory / f"{prefix}{self._pid}-{self._opened_ns}{suffix}"

    def _append(self, table: str, row: dict[str, Any]) -> None:
        try:
            with self.path_of(f"{table}-", ".jsonl").open("a") as file:
                file.write(json.dumps(row) + "\n")
        except OSError as error:
            self._stop(error)


def pause_callback(
    write: Callable[[int, int, int, int, int], None], stop: Callable[[Exception], None]
) -> Callable[[str, dict[str, int]], None]:
    """A `gc.callbacks` entry that times each collection from its start to its stop.

    What it raises can reach nobody, CPython only prints it: `stop` marks the recording instead.
    """
    now, counts = time.monotonic_ns, gc.get_count
    began = allocated = 0

    def on_collection(phase: str, info: dict[str, int]) -> None:
        nonlocal began, allocated
        try:
            if phase == "start":
                allocated = counts()[0]
                began = now()
            elif began:  # else the recorder was installed inside this very collection
                elapsed = now() - began
                write(PAUSE, began, elapsed, info["collected"], allocated << 2 | info["generation"])
        except Exception as error:
            stop(error)

    return on_collection


def generation_of(b: Any) -> Any:
    """The generation out of a pause's `b`, or an array of these."""
    return b & 3


def count_heap() -> dict[str, Any]:
    """Tracked and frozen objects, the collector's state and resident memory, now."""
    stats = gc.get_stats()
    objects = [len(gc.get_objects(generation=g)) for g in range(3)]
    counts: dict[str, Any] = {"tracked": sum(objects), "frozen": gc.get_freeze_count()}
    counts |= {f"objects_{g}": number for g, number in enumerate(objects)}
    counts |= {f"collections_{g}": stats[g]["collections"] for g in range(3)}
    counts |= {f"threshold_{g}": limit for g, limit in enumerate(gc.get_threshold())}
    return counts | {"enabled": gc.isenabled(), "rss_bytes": resident_bytes()}


def count_garbage() -> dict[str, int]:
    """Collect everything; objects of abandoned cycles, and bytes. For the end of a process."""
    gc.set_debug(gc.DEBUG_SAVEALL)  # keep what is found in `gc.garbage`, to be looked at
    gc.collect()
    gc.set_debug(0)
    found = {"garbage": len(gc.garbage)}
    found["garbage_bytes"] = sum(sys.getsizeof(each, 0) for each in gc.garbage)
    gc.garbage.clear()
    gc.collect()
    return found


def resident_bytes() -> int:
    """Resident memory of this process, 0 where the system does not say."""
    with contextlib.suppress(OSError):
        return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE
    return 0
