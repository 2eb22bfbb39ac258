"""Wraps each step of a worker: records it, and lets a policy act after it."""

from __future__ import annotations

import itertools
import time
from typing import Any

from repro.plugin.apply_policy import Moments
from repro.plugin.fault_handling import step_aside
from repro.plugin.recorder import STEP, Recorder


def record_steps(worker: Any, recorder: Recorder) -> None:
    """Record each `execute_model` call from now on."""
    original, write, now = worker.execute_model, recorder.write, time.monotonic_ns
    steps = itertools.count()

    def execute_model(scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        began = now()
        try:
            return original(scheduler_output, *args, **kwargs)
        finally:
            try:
                tokens = scheduler_output.total_num_scheduled_tokens
                write(STEP, began, now() - began, tokens, next(steps))
            except Exception as error:
                worker.execute_model = original
                step_aside("recording steps", error)

    worker.execute_model = execute_model


def act_after_launch(worker: Any, moments: Moments) -> None:
    """Act once a step's kernels are launched: a GPU computes meanwhile.

    A step without tokens only takes finished requests away: nobody waits for anything then.
    """
    original = worker.execute_model

    def execute_model(scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        output = original(scheduler_output, *args, **kwargs)
        try:
            if scheduler_output.total_num_scheduled_tokens:
                moments.step()
            else:
                moments.idle()
        except Exception as error:
            step_aside("collecting between steps", error)
        return output

    worker.execute_model = execute_model
