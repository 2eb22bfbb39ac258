"""GC pauses of every process of a server, and their heaps, in the server's own `/metrics`.

The front end answers the scrape; what the other processes count it reads from their recordings,
so that no process does anything for it in between. `prometheus_client` comes with vLLM.
"""

from __future__ import annotations

import itertools
import os
import threading
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from repro.plugin.fault_handling import step_aside
from repro.plugin.live_reader import Launch, Process
from repro.plugin.process_facts import LAUNCHER, SERVER, api_server, process_name
from repro.plugin.recorder import PAUSE, generation_of

Labels = tuple[str, ...]

PROCESS = ("server", "process", "rank")
"""Of several API servers the one that a process belongs to, empty if they share it; role; rank."""

FACTS = (
    *("name", "host", "asked", "policy", "not_in_force", "worker_inside"),
    *("heap_frozen", "thresholds", "collector", "vllm", "python"),
)

BUCKETS_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
NS_PER_S = 1e9


def facts(process: Process) -> dict[str, str]:
    """Labels that say which process this is and how its heap is; empty where unknown."""
    known = {"server": process.about.get("server", ""), "process": process.role}
    known |= {"rank": process.rank} | {name: process.about.get(name, "") for name in FACTS}
    return {name: str(value) for name, value in known.items()}


def expose(folder: Path, launch_ns: int) -> None:
    """Have this process's `/metrics` count the pauses of one launch.

    A process that belongs to another API server is left to that one's `/metrics`, so that the sum
    over all addresses counts each pause once; and so is the launcher, which serves nobody.
    With several API servers on one address vLLM makes a registry for each scrape, which holds
    nothing but a `MultiProcessCollector`: there the counters are added to what that one collects.
    """
    import prometheus_client
    from prometheus_client import multiprocess

    counters = PauseCounters(folder, launch_ns)
    if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
        prometheus_client.REGISTRY.register(counters)
        return
    collector: Any = multiprocess.MultiProcessCollector
    collect = collector.collect

    def collect_with_pauses(self: Any) -> Iterable[Any]:
        return itertools.chain(collect(self), counters.collect())

    collector.collect = collect_with_pauses


class PauseCounters:
    """A collector of `prometheus_client`: brought up to date whenever it is scraped."""

    def __init__(self, folder: Path, launch_ns: int) -> None:
        self._launch = Launch(folder, launch_ns)
        api_server(process_name())
        self._own = os.environ.get(SERVER, "")
        self._lock = threading.Lock()  # scrapes come in threads
        self._total_ns: Counter[Labels] = Counter()
        self._buckets: dict[Labels, list[int]] = {}
        self._frozen: dict[Labels, float] = {}

    def describe(self) -> list[Any]:
        """The names, without a value."""
        return self._families()

    def collect(self) -> list[Any]:
        """Pauses by process, rank and generation; frozen objects by process."""
        try:
            with self._lock:
                self._count()
        except Exception as error:  # the scrape is the server's, and holds more than ours
            step_aside("counting pauses for /metrics", error)
        pauses, seconds, lengths, frozen = families = self._families()
        bounds = [*map(str, BUCKETS_S), "+Inf"]
        for labels, numbers in self._buckets.items():
            total_s = self._total_ns[labels] / NS_PER_S
            pauses.add_metric(labels, sum(numbers))
            seconds.add_metric(labels, total_s)
            up_to = itertools.accumulate(numbers)
            lengths.add_metric(labels, list(zip(bounds, up_to, strict=True)), total_s)
        for labels, number in self._frozen.items():
            frozen.add_metric(labels, number)
        return families

    def _count(self) -> None:
        self._frozen = {}
        for process, events in self._launch.new_events():
            server = process.about.get("server", "")
            if process.role == LAUNCHER or (self._own and server != self._own):
                continue
            if "frozen" in process.about:
                self._frozen[tuple(facts(process).values())] = process.about["frozen"]
            for _, duration_ns, _, b, kind in events:
                if kind == PAUSE:
                    labels = server, process.role, str(process.rank), str(generation_of(b))
                    numbers = self._buckets.setdefault(labels, [0] * (len(BUCKETS_S) + 1))
                    numbers[bisect_left(BUCKETS_S, duration_ns / NS_PER_S)] += 1
                    self._total_ns[labels] += duration_ns

    def _families(self) -> list[Any]:
        from prometheus_client import core

        labels = (*PROCESS, "generation")
        return [
            core.CounterMetricFamily(
                "repro_gc_pauses", "Collections by CPython's garbage collector.", labels=labels
            ),
            core.CounterMetricFamily(
                "repro_gc_pause_seconds", "Time those collections took.", labels=labels
            ),
            core.HistogramMetricFamily(
                "repro_gc_pause_duration_seconds", "Lengths of those collections.", labels=labels
            ),
            core.GaugeMetricFamily(
                "repro_gc_frozen_objects",
                "Objects that gc.freeze() held when the process was warm.",
                labels=(*PROCESS, *FACTS),
            ),
        ]
