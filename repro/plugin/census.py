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
    """Count this process's heap too, once the workers have been asked for a census."""

    def count_beside(answers: Any) -> None:
        if answers[0]["pid"] != os.getpid():  # else a worker is this very process and has counted
            recorder.census(answers[0]["point"])

    after_the_workers(CENSUS_RPC, count_beside, role=recorder.role)


def after_the_workers(rpc: str, act: Callable[[Any], object], *, role: str) -> None:
    """Call `act` with the workers' answers each time this process has asked them for `rpc`.

    `LLMEngine` asks through the synchronous client, `AsyncLLM` and so the API server through the
    other, both through the engine core. Afterwards, since the engine goes on stepping while a front
    end counts: counted before, the workers would be asked when many requests have ended.
    """
    clients = "vllm.v1.engine.core_client"
    callers = [("vllm.v1.engine.core", "EngineCore.collective_rpc")]
    if role == "frontend":
        callers.append((clients, "SyncMPClient.collective_rpc"))
        callers.append((clients, "AsyncMPClient.collective_rpc_async"))
    for module, name in callers:
        owner, method = holder(module, name), name.partition(".")[2]
        setattr(owner, method, answered(getattr(owner, method), rpc, act))


def answered(original: Callable[..., Any], rpc: str, act: Callable[[Any], object]) -> Any:
    """A `collective_rpc`, and `act` with what the workers answer to this one method."""

    async def act_after(answers: Awaitable[Any]) -> Any:
        result = await answers
        act(result)
        return result

    @functools.wraps(original)
    def collective_rpc(owner: Any, method: Any, *args: Any, **kwargs: Any) -> Any:
        answers = original(owner, method, *args, **kwargs)
        if method != rpc:
            return answers
        if inspect.isawaitable(answers):
            return act_after(answers)
        act(answers)
        return answers

    return collective_rpc
