"""Client `engine`: `LLMEngine.step` called in a loop by the front end itself, no network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from repro import plugin, policy
from repro.experiment import verify
from repro.experiment.clients import Report
from repro.experiment.clients.closed_loop import ClosedLoop
from repro.experiment.clients.prompts import tokenizer_for
from repro.experiment.collect import RAW
from repro.experiment.config import Experiment
from repro.experiment.measured import Measured
from repro.plugin.rpc import CENSUS_RPC, END_RPC

ABORT = ("pause_scheduler", "abort", False)
"""Call of vLLM's engine core that returns once no request is in flight: what the heap holds at
shutdown is then not theirs. The last word leaves its caches alone."""


def measure(experiment: Experiment, folder: Path, report: Report) -> Measured:
    """See `repro.experiment.clients.measure`."""
    more: dict[str, Any] = {}
    if experiment.structured_output:  # a grammar is over text, token ids alone do not do
        tokenizer = tokenizer_for(experiment, folder / RAW)
        more = {"skip_tokenizer_init": False, "tokenizer": tokenizer}
    engine = start_engine(experiment, **more)
    report("ready", 0)
    evidence = heap_census(engine, experiment, "window-start")
    ledger = ClosedLoop(engine, experiment, report).run()
    if experiment.policy != policy.ALTERNATE:  # whose every period was counted and checked
        heap_census(engine, experiment, "window-end")
    report("stop", 0)
    engine.engine_core.call_utility(*ABORT)
    engine.collective_rpc(END_RPC)
    engine.engine_core.shutdown()
    return ledger.measured(evidence)


def start_engine(experiment: Experiment, **more: Any) -> Any:
    """A real vLLM engine with its core, and for `mp` its worker, in processes of their own.

    It gets `more` engine arguments besides, or in place of, those of the experiment. Raises
    `NotAsRequested` if vLLM took another executor.
    """
    from vllm import EngineArgs, LLMEngine

    engine = LLMEngine.from_engine_args(EngineArgs(**engine_arguments(experiment) | more))
    parallel = engine.vllm_config.parallel_config
    verify.executor_is(experiment.executor, parallel.distributed_executor_backend)
    return engine


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
    if experiment.max_cudagraph_capture_size is not None:
        arguments["max_cudagraph_capture_size"] = experiment.max_cudagraph_capture_size
    if experiment.speculative == "ngram":
        arguments["speculative_config"] = {
            "method": "ngram",
            "num_speculative_tokens": 4,
            "prompt_lookup_max": 4,
        }
    if experiment.dummy_weights:
        arguments["load_format"] = "dummy"
    if current_platform.is_cpu():
        # float32: oneDNN has no fast bfloat16 on CPUs without AMX, and a step of an idle heap
        # must not be long beside a collection.
        arguments |= {"dtype": "float32", "kv_cache_memory_bytes": 1 << 30}
    further: dict[str, Any] = json.loads(experiment.vllm_args)
    return arguments | further


def heap_census(engine: Any, experiment: Experiment, point: str) -> list[dict[str, Any]]:
    """Count the heap of every process, check the policy; returns what each worker says of itself.

    Raises `NotAsRequested` if there is no plugin, or the policy did not take effect.
    """
    if plugin.own_recorder is None:
        raise verify.NotAsRequested("vLLM did not load the plugin: pip install this package")
    workers: list[dict[str, Any]] = engine.collective_rpc(CENSUS_RPC, args=(point,))
    verify.policy_took_effect(experiment, workers)
    return workers
