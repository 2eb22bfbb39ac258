"""The child process that holds one vLLM engine and drives load through it.

Started by `repro.experiment.supervise`, which writes the experiment as one JSON line to this
process's standard input and keeps that pipe open: when it closes, for whatever reason, this
process ends its whole process group. Events go out as JSON lines on the original standard
output; everything vLLM prints goes to standard error, which is the run's log.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from repro import plugin
from repro.experiment import verify
from repro.experiment.collect import MEASURED, RAW, write_table
from repro.experiment.config import Experiment
from repro.experiment.load import Arrivals, ClosedLoop
from repro.plugin.patch import CENSUS_RPC


def main() -> None:
    """Run the experiment read from standard input; exit status 1 if it failed."""
    send = events_to(take_over_stdout())
    request = json.loads(sys.stdin.readline())
    threading.Thread(target=die_with_parent, daemon=True).start()
    try:
        measure(Experiment.from_dict(request["experiment"]), Path(request["folder"]), send)
    except Exception as error:
        import traceback

        traceback.print_exc()
        send(event="failed", reason=f"{type(error).__name__}: {error}")
        sys.exit(1)


def take_over_stdout() -> TextIO:
    """Keep standard output for events; what anything else prints goes to the log."""
    events = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    return events


def events_to(stream: TextIO) -> Callable[..., None]:
    """A function that writes its keyword arguments as one JSON line."""

    def send(**fields: Any) -> None:
        stream.write(json.dumps(fields) + "\n")

    return send


def die_with_parent() -> None:
    """Block until the parent's end of standard input closes, then end the process group."""
    while os.read(0, 4096):
        pass
    os.killpg(0, signal.SIGKILL)


def measure(experiment: Experiment, folder: Path, send: Callable[..., None]) -> None:
    """Start the engine, check the policy, drive the load, write what the client saw.

    Raises
    ------
    repro.experiment.verify.NotAsRequested
        If the policy did not take effect, or vLLM chose another executor.
    """
    send(event="phase", phase="start", seconds=0)
    engine = start_engine(experiment)
    send(event="phase", phase="ready", seconds=0)
    parallel = engine.vllm_config.parallel_config
    verify.executor_is(experiment.executor, parallel.distributed_executor_backend)
    from vllm.utils.gc_utils import freeze_gc_heap

    freeze_gc_heap()  # the front end's own full collections would swamp the worker's
    evidence = heap_census(engine, "window-start")
    verify.policy_took_effect(experiment, evidence)

    def report(phase: str, seconds: float) -> None:
        send(event="phase", phase=phase, seconds=seconds)

    vocabulary = engine.model_config.get_vocab_size()
    arrivals = ClosedLoop(engine, experiment, vocabulary, report).run()
    verify.policy_took_effect(experiment, heap_census(engine, "window-end"))
    send(event="phase", phase="stop", seconds=0)
    engine.engine_core.shutdown()
    write_measured(folder, experiment, arrivals, evidence)
    send(event="done")


def start_engine(experiment: Experiment) -> Any:
    """A real vLLM engine with its core, and for `mp` its worker, in processes of their own."""
    from vllm import EngineArgs, LLMEngine

    return LLMEngine.from_engine_args(EngineArgs(**engine_arguments(experiment)))


def engine_arguments(experiment: Experiment) -> dict[str, Any]:
    """vLLM's engine arguments for this experiment."""
    from vllm.platforms import current_platform

    arguments: dict[str, Any] = {
        "model": experiment.model_path,
        "max_model_len": experiment.max_model_len,
        "max_num_seqs": experiment.max_num_seqs,
        "distributed_executor_backend": experiment.executor,
        "enforce_eager": experiment.enforce_eager,
        "enable_prefix_caching": False,  # random prompts: nothing to find
        "skip_tokenizer_init": True,
        "seed": experiment.seed,
    }
    if experiment.dummy_weights:
        arguments["load_format"] = "dummy"
    if current_platform.is_cpu():
        # float32: oneDNN has no fast bfloat16 on CPUs without AMX, and a step of an idle heap
        # must not be long beside a collection.
        arguments |= {"dtype": "float32", "kv_cache_memory_bytes": 1 << 30}
    return arguments


def heap_census(engine: Any, point: str) -> list[dict[str, Any]]:
    """Count the heap of every process; returns what each worker says of itself."""
    if plugin.own_recorder is None:
        raise verify.NotAsRequested("vLLM did not load the plugin: pip install this package")
    plugin.own_recorder.census(point)
    workers: list[dict[str, Any]] = engine.collective_rpc(CENSUS_RPC, args=(point,))
    return workers


def write_measured(
    folder: Path, experiment: Experiment, arrivals: Arrivals, evidence: list[dict[str, Any]]
) -> None:
    """Write the client's tables and the window into the run's folder."""
    itl = {
        "t_ns": np.asarray(arrivals.itl_t),
        "itl_ns": np.asarray(arrivals.itl_gap),
        "count": np.asarray(arrivals.itl_count),
    }
    tokens = np.asarray(arrivals.request_tokens)
    decode = np.asarray(arrivals.request_decode)
    requests = {
        "t_ns": np.asarray(arrivals.request_t),
        "ttft_ns": np.asarray(arrivals.request_ttft),
        "tpot_ns": np.where(tokens > 1, decode / np.maximum(tokens - 1, 1), np.nan),
        "output_tokens": tokens,
    }
    write_table(folder, "itl", itl)
    write_table(folder, "requests", requests)
    start, end = arrivals.window_start, arrivals.window_end
    finished = int(np.count_nonzero((requests["t_ns"] >= start) & (requests["t_ns"] < end)))
    measured = {
        "window": {"start_ns": start, "end_ns": end, "ramp_s": arrivals.ramp_ns / 1e9},
        "summary": {
            "output_tokens": arrivals.tokens,
            "tokens_per_s": arrivals.tokens / ((end - start) / 1e9),
            "requests_finished": finished,
            "client_busy": arrivals.client_busy,
        },
        "policy": {"requested": experiment.policy, "verified": True, "evidence": evidence},
    }
    (folder / RAW / MEASURED).write_text(json.dumps(measured))


if __name__ == "__main__":
    main()
