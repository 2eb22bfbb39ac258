"""Exchanges what watches the collector of a running worker, to measure what watching costs.

For `bench_observers`: nothing, this package's recorder, or what vLLM attaches with
`VLLM_GC_DEBUG=1`, in one and the same process.
"""

from __future__ import annotations

import functools
import gc
import time
from collections.abc import Callable
from typing import Any

from repro import plugin
from repro.plugin.fault_handling import step_aside
from repro.plugin.recorder import Recorder, pause_callback

OBSERVERS = ("nothing", "recorder", "VLLM_GC_DEBUG")

Step = Callable[[Any], Any]


class Observed:
    """A vLLM worker extension: the worker's collector is watched as `bench_observers` asks."""

    def exchange_observer(self: Any, what: str, collections: int) -> list[int]:
        """`observe` this worker."""
        if not hasattr(self, "recorded_step"):
            self.recorded_step = self.execute_model
        bare = functools.partial(type(self).execute_model, self)
        recorder = plugin.own_recorder
        assert recorder is not None, "benchmarks record"
        return observe(recorder, self, bare, self.recorded_step, what, collections)


def observe(
    recorder: Recorder, worker: Any, bare: Step, recorded: Step, what: str, collections: int
) -> list[int]:
    """Have this worker watched by one of `OBSERVERS` from now on, and time full collections.

    Parameters
    ----------
    recorder : Recorder
    worker : vllm Worker
    bare, recorded : callable
        Its `execute_model` without and with the recorder around it.
    what : str
    collections : int
        How many to make and time.

    Returns
    -------
    list of int
        ns of each, from outside of what watches.
    """
    gc.callbacks.clear()
    worker.execute_model = recorded if what == "recorder" else bare
    if what == "recorder":
        stop = functools.partial(step_aside, "recording pauses")
        gc.callbacks.append(pause_callback(recorder.write, stop))
    elif what == "VLLM_GC_DEBUG":
        from vllm.utils.gc_utils import GCDebugConfig, GCDebugger

        gc.callbacks.append(GCDebugger(GCDebugConfig("1")).handle)
    return [timed_collection() for _ in range(collections)]


def timed_collection() -> int:
    """One full collection, in ns."""
    began = time.monotonic_ns()
    gc.collect()
    return time.monotonic_ns() - began
