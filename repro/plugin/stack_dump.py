"""Python stacks of a worker, written while one of its steps takes longer than a bound.

A pause in the recording says that the collector stopped a step; these stacks say what else did: a
kernel compiled on first use, a lock. The watchdog is `faulthandler`'s: it needs no GIL, so it also
sees a step that is held inside C code. It costs a thread per step: for a search, not for good.
"""

from __future__ import annotations

import faulthandler
import functools
import time
from typing import Any

from repro.plugin.fault_handling import step_aside
from repro.plugin.hook_points import holder
from repro.plugin.recorder import Recorder

MOST_STACKS = 100
"""Per process; then steps are watched no more, and the file grows no more."""


def bound_s(text: str) -> float:
    """Seconds out of milliseconds as the environment has them; 0 is off."""
    try:
        bound = float(text) / 1e3
    except ValueError:
        bound = -1.0
    if not 0 <= bound < 3600:
        raise ValueError(f"{text!r}: give milliseconds from 0 (off) to an hour, like 500")
    return bound


def apply(recorder: Recorder, bound: float) -> None:
    """Watch every step of the workers of this process and those it forks."""
    step = "WorkerWrapperBase.execute_model"
    WorkerWrapperBase = holder("vllm.v1.worker.worker_base", step)
    original, stacks = WorkerWrapperBase.execute_model, Stacks(recorder, bound)

    @functools.wraps(original)
    def execute_model(wrapper: Any, *args: Any, **kwargs: Any) -> Any:
        stacks.watch()
        try:
            return original(wrapper, *args, **kwargs)
        finally:
            stacks.end()

    WorkerWrapperBase.execute_model = execute_model


class Stacks:
    """The file `stacks-<pid>-<opened_ns>.txt`: each stack, then the step it was taken in."""

    def __init__(self, recorder: Recorder, bound: float) -> None:
        self.recorder, self.bound = recorder, bound
        self.file: Any = None
        self.written = self.began_ns = 0

    def watch(self) -> None:
        """A step begins."""
        if self.written >= MOST_STACKS:
            return
        try:
            if self.file is None:  # only now: this process may be a fork
                path = self.recorder.path_of("stacks-", ".txt")
                self.file = path.open("ab", buffering=0)
            self.began_ns = time.monotonic_ns()
            faulthandler.dump_traceback_later(self.bound, file=self.file)
        except (OSError, RuntimeError) as error:
            self._give_up(error)

    def end(self) -> None:
        """The step is over; if it was a long one, say which and how long."""
        if self.written >= MOST_STACKS:
            return
        faulthandler.cancel_dump_traceback_later()
        took_ns = time.monotonic_ns() - self.began_ns
        if took_ns < self.bound * 1e9:
            return
        self.written += 1
        line = f"in the step from {self.began_ns} ns (monotonic) on, {took_ns / 1e6:.0f} ms long"
        try:
            self.file.write(f"{line}\n\n".encode())
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        self.written = MOST_STACKS
        step_aside("writing stacks of long steps", error)
