"""A recorded folder as launches of vLLM: which processes belong together, and how."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy.typing as npt

from repro.dataset import recording
from repro.dataset.recording import RecordingError, Source
from repro.dataset.schema import ROLES
from repro.plugin.live_reader import recordings
from repro.plugin.process_facts import LAUNCHER
from repro.server.environment import nothing_recorded

Events = npt.NDArray[Any]
"""Rows of `repro.dataset.recording.EVENT`."""


class NothingRecorded(ValueError):
    """A folder without a recording; the message names it and the remedy."""


@dataclass(frozen=True)
class Member:
    """One process of a launch."""

    source: Source
    shift_ns: int = 0  # what turns its monotonic clock into that of the launch's first host

    @property
    def role(self) -> str:
        """`frontend`, `engine`, `worker`, or what else the header has."""
        return self.source.process.role

    @property
    def rank(self) -> int:
        """Data-parallel rank of an engine core, global rank of a worker."""
        return self.source.process.rank

    @property
    def about(self) -> Any:
        """The facts in its header."""
        return self.source.about

    @property
    def inside(self) -> bool:
        """Whether the worker lives in this engine core (executor `uni`)."""
        return self.role == "engine" and bool(self.about.get("worker_inside"))

    @property
    def opened_ns(self) -> int:
        """Time of the first record, on the clock of the launch."""
        return self.source.process.opened_ns + self.shift_ns

    @cached_property
    def ended_ns(self) -> int:
        """End of the newest event, on the clock of the launch."""
        return self.source.ended_ns() + self.shift_ns

    def chunks(self, since_ns: int = 0) -> Iterator[Events]:
        """Its events on the clock of the launch, as `repro.dataset.recording.Source.chunks`."""
        for events in self.source.chunks(since_ns - self.shift_ns):
            events["start_ns"] += self.shift_ns
            yield events

    @property
    def stacks(self) -> Path:
        """Files with the Python stacks of long steps, if a variable asked for them."""
        process = self.source.process
        return self.source.path.with_name(f"stacks-{process.pid}-{process.opened_ns}.txt")

    @property
    def frozen(self) -> bool | None:
        """Whether most of its heap is frozen; None if nobody counted."""
        value = self.about.get("heap_frozen")
        return None if value is None else bool(value)

    @property
    def label(self) -> str:
        """`worker 3`, `engine core 0 (worker inside)`, `front end ApiServer_1`, for people."""
        match self.role:
            case "worker":
                return f"worker {self.rank}"
            case "engine":
                inside = " with the worker inside" if self.inside else ""
                return f"engine core {self.rank}{inside}"
            case "frontend":
                return " ".join(filter(None, ("front end", self.about.get("server", ""))))
            case "launcher":
                return "launcher"
        return f"unknown process {self.about.get('name', '')} (pid {self.source.process.pid})"


@dataclass(frozen=True, kw_only=True)
class Launch:
    """One start of vLLM and what its processes recorded."""

    began: datetime  # in UTC
    # front ends, engine cores, workers by rank; last what is none of these
    members: tuple[Member, ...]
    hosts: int = 1  # that recorded into it
    clock_ns: int = 0  # by which their clocks are apart at most, as far as the headers show it

    def of(self, role: str) -> list[Member]:
        """The members of one role."""
        return [m for m in self.members if m.role == role]

    @property
    def unknown(self) -> list[Member]:
        """Processes with a role that this package does not know."""
        return [m for m in self.members if m.role not in (*ROLES, LAUNCHER)]

    @property
    def origin_ns(self) -> int:
        """Time at which its first process began to record."""
        return min(m.opened_ns for m in self.members)

    @property
    def ended_ns(self) -> int:
        """End of the newest event of any process."""
        return max(m.ended_ns for m in self.members)


def read(folder: Path) -> tuple[list[Launch], list[str]]:
    """Every launch of an engine recorded in a folder, the newest first, and what was left out."""
    sources, warnings = [], []
    for path in recordings(folder):
        try:
            sources.append(recording.source(path))
        except (RecordingError, OSError) as error:
            warnings.append(f"left out: {error}")
    by_launch: dict[int, list[Source]] = defaultdict(list)
    for one in sources:
        by_launch[one.process.launch_ns].append(one)
    served = {
        began: group
        for began, group in by_launch.items()
        if any(s.process.role in ("engine", "worker") for s in group)
    }
    if not served:
        raise NothingRecorded(nothing_recorded(folder, warnings))
    found = [launch(group) for group in merged([served[began] for began in sorted(served)])]
    return sorted(found, key=lambda one: one.began, reverse=True), warnings


def merged(groups: list[list[Source]]) -> list[list[Source]]:
    """Launches of several hosts that are parts of one: other hosts, other ranks, at one time."""
    whole: list[list[Source]] = []
    for group in groups:
        for other in whole:
            if _one_deployment(other, group):
                other += group
                break
        else:
            whole.append(list(group))
    return whole


TOGETHER_NS = 600_000_000_000
"""Parts of one deployment start within so long of one another."""


def _one_deployment(first: list[Source], second: list[Source]) -> bool:
    hosts = [{s.about.get("host") for s in group} for group in (first, second)]
    ranks = [
        {(s.process.role, s.process.rank) for s in group if s.process.role in ("engine", "worker")}
        for group in (first, second)
    ]
    began = [min(s.process.launch_ns for s in group) for group in (first, second)]
    known = None not in hosts[0] | hosts[1]
    near = abs(began[0] - began[1]) < TOGETHER_NS
    return known and near and not hosts[0] & hosts[1] and not ranks[0] & ranks[1]


def launch(group: list[Source]) -> Launch:
    """The recordings of one deployment, at least one, put together on one clock."""
    ahead: dict[Any, list[int]] = defaultdict(list)
    for one in group:
        if "wall_ns" in one.about:
            ahead[one.about.get("host")].append(
                int(one.about["wall_ns"]) - int(one.about["monotonic_ns"])
            )
    # The median: a wall clock may be set while the processes start.
    offsets = {host: sorted(each)[len(each) // 2] for host, each in ahead.items()}
    first = next(iter(offsets.values()), 0)
    # A recording that does not say its host is taken to be of the first one's.
    members = [Member(s, offsets.get(s.about.get("host"), first) - first) for s in group]
    order = {role: place for place, role in enumerate(ROLES)}
    members.sort(key=lambda m: (order.get(m.role, len(ROLES)), m.rank, m.opened_ns))
    hosts = len({s.about.get("host") for s in group})
    apart = [max(each) - min(each) for each in ahead.values() if hosts > 1]
    return Launch(
        began=datetime.fromtimestamp(min(s.process.launch_ns for s in group) / 1e9, UTC),
        members=tuple(members),
        hosts=hosts,
        clock_ns=max(apart, default=0),
    )


def engines(launch: Launch) -> dict[int, list[Member]]:
    """The processes that an engine's step waits for, by the engine's number.

    By the ranks that are present, wherever they start. A worker whose header does not say its
    engine belongs to the only one, or to that of its own rank.
    """
    cores = launch.of("engine")
    found: dict[int, list[Member]] = defaultdict(list)
    for core in cores:
        found[core.rank].append(core)
    for worker in launch.of("worker"):
        known = cores[0].rank if len(cores) == 1 else worker.rank
        found[int(worker.about.get("dp_rank", known))].append(worker)
    return dict(sorted(found.items()))
