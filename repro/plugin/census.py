"""Heap census: during worker start-up, and in all processes when one is asked for."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Awaitable, Callable
from typing import Any

from repro.plugin.fault_handling import step_aside
from repro.plugin.hook_points import holder
from repro.plugin.recorder import Recorder
from repro.plugin.rpc import CENSUS_RPC


def count_on_the_way(worker: Any, recorder: Recorder) -> None:
    """Count the heap as the worker comes into being, to see where its objects come from."""
    recorder.census("imported")
    for owner, method, point in (
        (worker, "load_model", "loaded"),
        (worker, "determine_available_memory", "profiled"),
        (worker.model_runner, "capture_model", "captured"),
    ):
        if original := getattr(owner, method, None):
            setattr(owner, method, followed_by(original, functools.partial(recorder.census, point)))


def followed_by(original: Callable[..., Any], afterwards: Callable[[], object]) -> Any:
    """The function, and something of ours after each call of it."""

    @functools.wraps(original)
    def both(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        try:
            afterwards()
        except Exception as error:
            name = getattr(original, "__name__", "a call")  # a `functools.partial` has none
            step_aside(f"what follows {name}", error)
        return result

    return both


def census(recorder: Recorder, worker: Any, point: str) -> dict[str, Any]:
    """Count this worker's heap; what the engine's `collective_rpc` calls by name."""
    return {**recorder.census(point), **worker.repro_evidence}


def count_with_the_workers(recorder: Recorder) -> None:
    """When the workers have been asked for a census, count this process's heap too.

    `LLMEngine` asks through the synchronous client, `AsyncLLM` and so the API server through the
    other, both through the engine core. Afterwards, since the engine goes on stepping while a front
    end counts: counted before, the workers would be asked when many requests have ended.
    """
    clients = "vllm.v1.engine.core_client"
    callers = [("vllm.v1.engine.core", "EngineCore.collective_rpc")]
    if recorder.role == "frontend":
        callers.append((clients, "SyncMPClient.collective_rpc"))
        callers.append((clients, "AsyncMPClient.collective_rpc_async"))
    for module, name in callers:
        owner, method = holder(module, name), name.partition(".")[2]
        setattr(owner, method, _counting(recorder, getattr(owner, method)))


def _counting(recorder: Recorder, original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def collective_rpc(owner: Any, method: Any, *args: Any, **kwargs: Any) -> Any:
        answers = original(owner, method, *args, **kwargs)
        if method != CENSUS_RPC:
            return answers
        if inspect.isawaitable(answers):
            return _counted_after(answers, recorder)
        _count_beside(answers, recorder)
        return answers

    return collective_rpc


async def _counted_after(answers: Awaitable[Any], recorder: Recorder) -> Any:
    result = await answers
    _count_beside(result, recorder)
    return result


def _count_beside(answers: Any, recorder: Recorder) -> None:
    """Count at the workers' point, unless a worker is this very process and has done so."""
    if answers[0]["pid"] != os.getpid():
        recorder.census(answers[0]["point"])
