"""Records holds: an API server's output handler keeps all else of its event loop waiting.

vLLM's asynchronous front end takes the engine's outputs off a queue, and lets other tasks run only
where it has to wait: for an empty queue, or between two chunks of one large step. While it is
behind, it does neither, and no token leaves the server, no request is let in.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Callable
from typing import Any

from repro.plugin.fault_handling import step_aside
from repro.plugin.hook_points import holder
from repro.plugin.recorder import HOLD, SERVED, Recorder

WHAT = "recording holds of the event loop"

LEAST_NS = 20_000_000
"""Holds from this length on are recorded: a shorter one is lost in a step."""

COUNTED_NS = 1_000_000_000


def record_holds(recorder: Recorder) -> None:
    """Record every long hold of this process's event loop, and its outputs, from now on."""
    OutputProcessor = holder("vllm.v1.engine.output_processor", "OutputProcessor.process_outputs")
    original, now, hold = OutputProcessor.process_outputs, time.monotonic_ns, Hold(recorder.write)

    @functools.wraps(original)
    def process_outputs(processor: Any, outputs: Any, *args: Any, **kwargs: Any) -> Any:
        began = now()
        result = original(processor, outputs, *args, **kwargs)
        try:
            hold.extend(began, now(), len(outputs))
        except Exception as error:
            OutputProcessor.process_outputs = original
            step_aside(WHAT, error)
        return result

    OutputProcessor.process_outputs = process_outputs


class Hold:
    """The calls that one turn of the event loop is made of; it ends when the loop goes on."""

    def __init__(self, write: Callable[[int, int, int, int, int], None]) -> None:
        self.write = write
        self.open = False
        self.start_ns = self.end_ns = self.outputs = self.calls = 0
        self.served = self.counted_ns = 0

    def extend(self, began_ns: int, ended_ns: int, outputs: int) -> None:
        """Count one call in. Without an event loop, as in `LLMEngine.step`, nobody is kept."""
        self._serve(began_ns, ended_ns, outputs)
        if not self.open:
            try:
                asyncio.get_running_loop().call_soon(self.close)
            except RuntimeError:
                return
            self.open, self.start_ns, self.outputs, self.calls = True, began_ns, 0, 0
        self.end_ns = ended_ns
        self.outputs += outputs
        self.calls += 1

    def _serve(self, began_ns: int, ended_ns: int, outputs: int) -> None:
        """Record how many outputs this front end hands out, once per second."""
        self.counted_ns = self.counted_ns or began_ns
        self.served += outputs
        if ended_ns - self.counted_ns >= COUNTED_NS:
            self.write(SERVED, self.counted_ns, ended_ns - self.counted_ns, self.served, 0)
            self.served, self.counted_ns = 0, ended_ns

    def close(self) -> None:
        """The loop goes on: record the hold if it was a long one."""
        self.open = False
        length_ns = self.end_ns - self.start_ns
        try:
            if length_ns >= LEAST_NS:
                self.write(HOLD, self.start_ns, length_ns, self.outputs, self.calls)
        except Exception as error:
            step_aside(WHAT, error)
