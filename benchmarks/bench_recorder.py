"""What the recorder adds to a collection and to a step. Target: under 2 µs each.

The cost of a collection is that of the two `gc.callbacks` calls: the collection of an empty
generation with the recorder's callback, less the same with one that does nothing. CPython's own
price for calling any callback stands beside it. Of many rounds the fastest counts: other programs
can only slow a round down.
"""

from __future__ import annotations

import gc
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from repro.plugin.recorder import Recorder
from repro.plugin.step_hooks import record_steps

CALLS, ROUNDS = 100, 2_000
TARGET_US = 2.0


def per_call_us(call: Callable[[], object]) -> float:
    """Shortest of the rounds' mean times of one call, in µs."""
    times = []
    for _ in range(ROUNDS):
        began = time.perf_counter_ns()
        for _ in range(CALLS):
            call()
        times.append((time.perf_counter_ns() - began) / CALLS / 1e3)
    return min(times)


def report(what: str, us: float, beside: str = "") -> bool:
    """Print what recording it costs, against the target; returns whether it is within."""
    within = us < TARGET_US
    verdict = "within" if within else "OVER"
    print(f"recording {what}: {us:.2f} µs, {verdict} the target of {TARGET_US:g} µs{beside}")
    return within


def collection_us() -> float:
    """One collection of an empty generation."""
    return per_call_us(lambda: gc.collect(0))


def main() -> int:
    """Print the cost of recording one collection and one step; 1 if one is over the target."""
    with tempfile.TemporaryDirectory() as folder:
        recorder = Recorder(Path(folder))
        gc.collect()
        gc.freeze()
        gc.disable()
        bare = collection_us()
        gc.callbacks.append(lambda phase, info: None)
        empty = collection_us()
        gc.callbacks.pop()
        recorder.watch_collector()
        beside = f", beside {empty - bare:.2f} µs for calling an empty callback"
        collection = report("a collection", collection_us() - empty, beside)
        gc.callbacks.pop()
        worker: Any = SimpleNamespace(execute_model=lambda scheduler_output: None)
        step = SimpleNamespace(total_num_scheduled_tokens=1024)
        bare = per_call_us(lambda: worker.execute_model(step))
        record_steps(worker, recorder)
        a_step = report("a step", per_call_us(lambda: worker.execute_model(step)) - bare)
        gc.enable()
        gc.unfreeze()
    return int(not (collection and a_step))


if __name__ == "__main__":
    sys.exit(main())
