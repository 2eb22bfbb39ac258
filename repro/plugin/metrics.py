"""GC pauses of every process of a server, as counters in the server's own `/metrics`.

The front end answers the scrape; what the other processes count it reads from their recordings,
so that no process does anything for it in between. `prometheus_client` comes with vLLM.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from repro.plugin.fault_handling import step_aside
from repro.plugin.live_reader import Launch
from repro.plugin.recorder import PAUSE, generation_of

LABELS = ("process", "rank", "generation")
NS_PER_S = 1e9


def expose(folder: Path, launch_ns: int) -> None:
    """Have this process's `/metrics` count the pauses of one launch.

    With several API servers vLLM makes a registry for each scrape, which holds nothing but a
    `MultiProcessCollector`: there the counters are added to what that one collects.

    Parameters
    ----------
    folder : Path
        Where the processes of the launch record.
    launch_ns : int
        Which launch, as `repro.plugin.recorder.launch_ns`.
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
        self._lock = threading.Lock()  # scrapes come in threads
        self._pauses: Counter[tuple[str, str, str]] = Counter()
        self._total_ns: Counter[tuple[str, str, str]] = Counter()

    def describe(self) -> list[Any]:
        """The counters' names, without a value."""
        return self._families()

    def collect(self) -> list[Any]:
        """Both counters, by process, rank and generation."""
        try:
            with self._lock:
                self._count()
        except Exception as error:  # the scrape is the server's, and holds more than ours
            step_aside("counting pauses for /metrics", error)
        pauses, seconds = families = self._families()
        for labels, number in self._pauses.items():
            pauses.add_metric(labels, number)
            seconds.add_metric(labels, self._total_ns[labels] / NS_PER_S)
        return families

    def _count(self) -> None:
        for process, events in self._launch.new_events():
            for _, duration_ns, _, b, kind in events:
                if kind == PAUSE:
                    labels = process.role, str(process.rank), str(generation_of(b))
                    self._pauses[labels] += 1
                    self._total_ns[labels] += duration_ns

    def _families(self) -> list[Any]:
        from prometheus_client.core import CounterMetricFamily

        return [
            CounterMetricFamily(
                "repro_gc_pauses", "Collections by CPython's garbage collector.", labels=LABELS
            ),
            CounterMetricFamily(
                "repro_gc_pause_seconds", "Time those collections took.", labels=LABELS
            ),
        ]
