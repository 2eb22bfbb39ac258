"""Who counts its heap, and when: a worker on its way up, and all processes when one is asked to."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Awaitable, Callable
from typing import Any

from repro.plugin.fault_handling import step_aside
from repro.plugin.hook_points import require, vllm_module
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


def count_engine_with_its_workers(recorder: Recorder) -> None:
    """When the workers are asked for a census, count the engine core's heap too."""
    EngineCore = vllm_module("vllm.v1.engine.core").EngineCore
    require(EngineCore, "collective_rpc")
    original = EngineCore.collective_rpc

    @functools.wraps(original)
    def collective_rpc(core: Any, method: Any, *args: Any, **kwargs: Any) -> Any:
        results = original(core, method, *args, **kwargs)
        if method == CENSUS_RPC and results[0]["role"] == "worker":  # else counted already
            recorder.census(results[0]["point"])
        return results

    EngineCore.collective_rpc = collective_rpc


def count_front_end_with_its_workers(recorder: Recorder) -> None:
    """When this front end has asked the workers for a census, count its own heap too.

    `LLMEngine` asks through one of these methods, `AsyncLLM` and so the API server through the
    other. Afterwards, since the engine goes on stepping while a front end counts: counted before,
    the workers would be asked when many requests have ended and none has followed.
    """
    clients = vllm_module("vllm.v1.engine.core_client")
    require(clients, "SyncMPClient", "AsyncMPClient")
    counting(recorder, clients.SyncMPClient, "collective_rpc")
    counting(recorder, clients.AsyncMPClient, "collective_rpc_async")


def counting(recorder: Recorder, owner: type, name: str) -> None:
    """Have a method of `owner` that passes calls on to the workers count this heap at a census."""
    require(owner, name)
    original = getattr(owner, name)

    @functools.wraps(original)
    def collective_rpc(
        client: Any, method: Any, timeout: Any = None, args: Any = (), *more: Any, **kwargs: Any
    ) -> Any:
        answers = original(client, method, timeout, args, *more, **kwargs)
        if method != CENSUS_RPC:
            return answers
        count = functools.partial(recorder.census, *args)
        if inspect.isawaitable(answers):
            return awaited_before(answers, count)
        count()
        return answers

    setattr(owner, name, collective_rpc)


async def awaited_before(answers: Awaitable[Any], count: Callable[[], object]) -> Any:
    """The answers, and `count` called once they are here."""
    result = await answers
    count()
    return result
