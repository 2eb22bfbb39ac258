"""Client `capture`: no load; the worker discards its CUDA graphs and captures them again."""

from __future__ import annotations

import random
import time
from pathlib import Path

from repro.experiment import verify
from repro.experiment.clients import Report
from repro.experiment.clients.engine import heap_census, start_engine
from repro.experiment.config import Experiment
from repro.experiment.measured import Measured
from repro.plugin.rpc import RECAPTURE_RPC

MEMORY_SHARE = 0.6
"""Share of the GPU's memory for weights and KV cache. vLLM's default leaves some 6 GiB of an H100
to the graphs, which its estimate of memory leaves out; a large model's take as much."""


def measure(experiment: Experiment, folder: Path, report: Report) -> Measured:
    """See `repro.experiment.clients.measure`; `folder` is not used.

    The window is the time from start-up to the last capture, in which no token is asked for.
    """
    engine = start_engine(experiment, gpu_memory_utilization=MEMORY_SHARE)
    report("ready", 0)
    evidence = heap_census(engine, experiment, "window-start")
    began = time.monotonic_ns()
    captures = []
    for name in order(experiment):
        captures += engine.collective_rpc(RECAPTURE_RPC, args=(name,))
        report("capture", (time.monotonic_ns() - began) / 1e9)
    verify.heap_is_thawed(evidence, captures)
    heap_census(engine, experiment, "window-end")
    ended = time.monotonic_ns()
    report("stop", 0)
    engine.engine_core.shutdown()
    return Measured(
        itl={},
        requests={},
        start_ns=began,
        end_ns=ended,
        ramp_ns=0,
        output_tokens=0,
        client_busy=0.0,
        evidence=evidence + captures,
    )


def order(experiment: Experiment) -> list[str]:
    """Block by block, each policy once a block in random order, seeded: drift hits all alike."""
    shuffled = random.Random(f"{experiment.seed}/{experiment.replicate}")
    policies = experiment.recapture_policies
    return [
        name
        for _ in range(experiment.recaptures)
        for name in shuffled.sample(policies, len(policies))
    ]
