"""Where a policy meets a Worker: capture, end of warm-up, shutdown.

Nothing is patched on a class that vLLM's own code subclasses: the hook sits on
`WorkerWrapperBase.init_device`, which every executor calls once the platform's own worker
exists, and from there on that one worker object is fitted out. So no worker module is imported
here (importing the CPU worker on a CUDA machine breaks Inductor), and fork and spawn are alike.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import inspect
import itertools
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

from repro import policy
from repro.plugin import graphs
from repro.plugin.collector import collect_all, collect_due, freeze_heap, lift, put_in_force
from repro.plugin.faults import step_aside, stepping_aside
from repro.plugin.layout import UnknownLayout, require, vllm_module
from repro.plugin.observers import OBSERVE_RPC, observe
from repro.plugin.recorder import STEP, Recorder, count_garbage
from repro.policy import CapturePolicy, ServingPolicy

CENSUS_RPC = "repro_census"
SWITCH_RPC = "repro_switch"
RECAPTURE_RPC = "repro_recapture"
END_RPC = "repro_end"


def apply(serving: ServingPolicy, capture: CapturePolicy, recorder: Recorder | None) -> None:
    """Hook worker start-up in this process and the processes it forks.

    Raises
    ------
    UnknownLayout
        If the installed vLLM has no such hook.
    """
    WorkerWrapperBase = vllm_module("vllm.v1.worker.worker_base").WorkerWrapperBase
    require(WorkerWrapperBase, "init_device")
    init_device = WorkerWrapperBase.init_device

    @functools.wraps(init_device)
    def init_device_then_fit_out(wrapper: Any, *args: Any, **kwargs: Any) -> Any:
        result = init_device(wrapper, *args, **kwargs)
        with stepping_aside("fitting out a worker"):
            fit_out(wrapper.worker, serving, capture, recorder)
        return result

    WorkerWrapperBase.init_device = init_device_then_fit_out
    if recorder is not None and recorder.role != "worker":
        count_engine_with_its_workers(recorder)
    if recorder is not None and recorder.role == "frontend":
        count_front_end_with_its_workers(recorder)


def fit_out(
    worker: Any, serving: ServingPolicy, capture: CapturePolicy, recorder: Recorder | None
) -> None:
    """Give one worker object its policies and its recorder.

    Raises
    ------
    UnknownLayout
        If the worker or vLLM's `gc_utils` lacks what the policy needs.
    """
    gc_utils = vllm_module("vllm.utils.gc_utils")
    require(worker, "compile_or_warm_up_model", "execute_model", "shutdown", "model_runner")
    require(gc_utils, "freeze_gc_heap", "maybe_attach_gc_debug_callback")
    if recorder is not None and recorder.role != "engine":  # there the worker is a guest
        recorder.declare("worker", global_rank(worker))
    hold_capture(worker, capture, recorder)
    if recorder is not None:
        count_on_the_way(worker, recorder)
    hold_warm_up(worker, serving, recorder)
    hold_shutdown(worker, serving, recorder)
    if recorder is not None:
        setattr(worker, CENSUS_RPC, functools.partial(census, recorder, worker))
        setattr(worker, SWITCH_RPC, switch)


def global_rank(worker: Any) -> int:
    """Rank over all data-parallel engines: each engine counts its own workers from 0."""
    parallel = worker.vllm_config.parallel_config
    # The index: vLLM resets the rank of a dense model's engines, which know nothing of each other.
    return int(parallel.data_parallel_index) * int(parallel.world_size) + int(worker.rank)


# --- end of warm-up -----------------------------------------------------------------------


def hold_warm_up(worker: Any, serving: ServingPolicy, recorder: Recorder | None) -> None:
    """Make the policy the last thing in `compile_or_warm_up_model`, then start recording steps."""
    original = worker.compile_or_warm_up_model

    def compile_or_warm_up_model() -> Any:
        before = gc.get_freeze_count()
        result = original() if serving.leaves_alone else warm_up_under(serving, worker, original)
        with stepping_aside("gathering evidence of the policy"):
            worker.repro_evidence = {
                "rank": global_rank(worker),
                "policy": serving.name,
                "worker_class": type(worker).__qualname__,
                "runner": type(worker.model_runner).__module__,
                "capture_sizes": capture_sizes(worker),
                "freeze_count_before": before,
                "freeze_count": gc.get_freeze_count(),
            }
        if serving.between_steps:
            collect_after_launch(worker)
        if recorder is not None:
            with stepping_aside("recording steps"):
                recorder.census("ready")
                bare = worker.execute_model
                record_steps(worker, recorder)
                watched = functools.partial(observe, recorder, worker, bare, worker.execute_model)
                setattr(worker, OBSERVE_RPC, watched)
        return result

    worker.compile_or_warm_up_model = compile_or_warm_up_model


def warm_up_under(serving: ServingPolicy, worker: Any, original: Callable[[], Any]) -> Any:
    """Warm up with the policy in the place where the pull request put its freeze.

    vLLM from 0.23.0 calls `freeze_gc_heap` there by itself: that call becomes the policy.
    Where the worker's warm-up has no such call (0.22.1; the CPU worker), the policy and then the
    debug callback follow it, in the pull request's order.
    """
    gc_utils = vllm_module("vllm.utils.gc_utils")
    called = False

    def freeze_or_not() -> None:
        nonlocal called
        called = True
        with stepping_aside("putting the policy in force"):
            put_in_force(serving)

    with upstream_freeze_replaced(type(worker), freeze_or_not):
        result = original()
    if not called:
        freeze_or_not()
        gc_utils.maybe_attach_gc_debug_callback()
    return result


@contextlib.contextmanager
def upstream_freeze_replaced(worker_class: type, replacement: Callable[[], None]) -> Iterator[None]:
    """Replace `freeze_gc_heap` in each module that defines a warm-up of this worker class."""
    modules = [
        vars(owner)["compile_or_warm_up_model"].__globals__
        for owner in worker_class.__mro__
        if "compile_or_warm_up_model" in vars(owner)
    ]
    with contextlib.ExitStack() as stack:
        for names in modules:
            if "freeze_gc_heap" in names:
                stack.enter_context(replaced(names, "freeze_gc_heap", replacement))
        yield


def collect_after_launch(worker: Any) -> None:
    """Collect what is due once a step's kernels are launched: a GPU computes meanwhile.

    A step without tokens only takes finished requests away: nobody waits for anything then.
    """
    original = worker.execute_model

    def execute_model(scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        output = original(scheduler_output, *args, **kwargs)
        try:
            if scheduler_output.total_num_scheduled_tokens:
                collect_due()
            else:
                collect_all()
        except Exception as error:
            step_aside("collecting between steps", error)
        return output

    worker.execute_model = execute_model


# --- capture ------------------------------------------------------------------------------


def hold_capture(worker: Any, capture: CapturePolicy, recorder: Recorder | None) -> None:
    """Apply the capture policy to the model runner's capture, and record its span.

    A worker that never captures (the CPU backend) has the span of its compile recorded instead.
    """
    runner = worker.model_runner
    if not hasattr(worker, "device") or worker.device.type == "cpu":
        if not capture.leave:
            raise UnknownLayout(
                f"capture policy {capture.name!r} needs CUDA graphs, and this worker is on the "
                "CPU: use capture policy 'stock'"
            )
        if recorder is not None and hasattr(runner, "warming_up_model"):
            runner.warming_up_model = span(
                recorder, "compile", capture.name, runner.warming_up_model
            )
        return
    require(runner, "capture_model")
    original = runner.capture_model
    runner.capture_model = capturing(capture, runner, original, recorder)
    if recorder is not None:
        setattr(worker, RECAPTURE_RPC, functools.partial(recapture, recorder, worker, original))


def capturing(
    capture: CapturePolicy, runner: Any, original: Callable[..., Any], recorder: Recorder | None
) -> Callable[..., Any]:
    """The runner's capture under a policy, and recorded."""
    captured = original if capture.leave else capture_under(capture, runner, original)
    return captured if recorder is None else span(recorder, "capture", capture.name, captured)


def recapture(
    recorder: Recorder, worker: Any, original: Callable[..., Any], name: str
) -> dict[str, Any]:
    """Discard the graphs and capture them again under a policy; called by `collective_rpc`.

    Parameters
    ----------
    name : str
        Of the capture policy.

    Returns
    -------
    dict
        What the capture found: `rank`, `capture_policy`, `freeze_count`, `free_bytes` of the GPU.

    Raises
    ------
    repro.policy.UnknownPolicy, UnknownLayout
    """
    import torch

    again = capturing(policy.capture(name), worker.model_runner, original, recorder)
    graphs.discard(worker)
    found = {
        "rank": global_rank(worker),
        "capture_policy": name,
        "freeze_count": gc.get_freeze_count(),
        "free_bytes": torch.cuda.mem_get_info()[0],
    }
    again()
    return found


def capture_sizes(worker: Any) -> int:
    """How many batch sizes vLLM captures graphs for."""
    return len(worker.vllm_config.compilation_config.cudagraph_capture_sizes or ())


def span(
    recorder: Recorder, kind: str, policy_name: str, original: Callable[..., Any]
) -> Callable[..., Any]:
    """Record one call with the graphs it captured and the bytes it says it took.

    Parameters
    ----------
    kind : str
        `capture`, or `compile` for a worker that compiles but captures nothing.
    """
    compilation_counter = vllm_module("vllm.compilation.counter").compilation_counter
    require(compilation_counter, "num_cudagraph_captured")

    def timed(**how: Any) -> Any:
        if how.get("profile_only"):  # later vLLM first captures a few graphs to see their memory
            return original(**how)
        with stepping_aside("recording the capture"):
            recorder.census("capture")
        before, began = compilation_counter.num_cudagraph_captured, time.monotonic_ns()
        taken = original(**how)
        elapsed = time.monotonic_ns() - began
        with stepping_aside("recording the capture"):
            recorder.capture(
                kind=kind,
                capture_policy=policy_name,
                start_ns=began,
                duration_ns=elapsed,
                graphs=compilation_counter.num_cudagraph_captured - before,
                memory_bytes=int(taken or 0),
            )
        return taken

    return timed


def capture_under(
    capture: CapturePolicy, runner: Any, original: Callable[..., Any]
) -> Callable[..., Any]:
    """The runner's capture with the policy in the place of vLLM's own handling of the collector.

    The V1 runner freezes through `self._freeze_gc()`, later runners through the module's
    `freeze_gc_for_cudagraph_capture`; the V2 runner of 0.22 and 0.23 does nothing, so there the
    policy goes around the call. Which of them is told by what is there, not by the code of
    `capture_model`: that is behind decorators.
    """
    module = vars(sys.modules[type(runner).__module__])

    def collector() -> contextlib.AbstractContextManager[None]:
        return collector_for(capture)

    def captured(**how: Any) -> Any:
        if hasattr(type(runner), "_freeze_gc"):
            place: dict[str, Any] = vars(runner)
            name = "_freeze_gc"
        elif "freeze_gc_for_cudagraph_capture" in module:
            place, name = module, "freeze_gc_for_cudagraph_capture"
        else:
            with collector():
                return original(**how)
        with replaced(place, name, collector):
            return original(**how)

    return captured


@contextlib.contextmanager
def replaced(place: dict[str, Any], name: str, replacement: Any) -> Iterator[None]:
    """Set a name in a module's or an object's dictionary, and put back what was there."""
    there, upstream = name in place, place.get(name)
    place[name] = replacement
    try:
        yield
    finally:
        if there:
            place[name] = upstream
        else:
            del place[name]


@contextlib.contextmanager
def collector_for(capture: CapturePolicy) -> Iterator[None]:
    """The collector as the capture policy wants it; every policy starts from a full collection.

    PyTorch's own collection before each graph is left at its default but where the policy asks
    for it, so that a capture with the collector on shows what that default is. The order of the
    calls is that of vLLM's own `freeze_gc_for_cudagraph_capture`: switched on before it was
    collected, the collector would first start by itself.
    """
    import torch

    options = torch.compiler.config
    per_graph = options.force_cudagraph_gc
    if capture.collect_per_graph:
        options.force_cudagraph_gc = True
    gc.collect()
    if capture.freeze:
        gc.freeze()
    if capture.disable:
        gc.disable()
    try:
        yield
    finally:
        options.force_cudagraph_gc = per_graph
        if capture.freeze:
            gc.unfreeze()
            gc.collect()
        if capture.disable:
            gc.enable()


# --- steps, heap counts, shutdown ---------------------------------------------------------


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
            step_aside(f"what follows {original.__name__}", error)
        return result

    return both


def census(recorder: Recorder, worker: Any, point: str) -> dict[str, Any]:
    """Count this worker's heap; what the engine's `collective_rpc` calls by name."""
    return {**recorder.census(point), **worker.repro_evidence}


def switch(freeze: bool) -> int:
    """Freeze this worker's heap or leave it thawed; returns how many objects are then frozen.

    Either way a full collection of the whole heap comes first, so that the collector's counters
    start alike.
    """
    gc.unfreeze()
    if freeze:
        freeze_heap()
    else:
        gc.collect()
    return gc.get_freeze_count()


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


def hold_shutdown(worker: Any, serving: ServingPolicy, recorder: Recorder | None) -> None:
    """Lift the policy first thing at shutdown, then count what came back.

    Both can be asked for before, by `END_RPC`: vLLM's server kills its workers.
    """
    original = worker.shutdown
    ended = False

    def end() -> None:
        nonlocal ended
        if ended:
            return
        ended = True
        with stepping_aside("counting the heap at shutdown"):
            if recorder is not None and recorder.strict:  # an experiment: nobody waits for this
                count_garbage_of(serving, recorder)
            else:
                lift(serving)
                if recorder is not None:
                    recorder.census("shutdown")

    def shutdown() -> None:
        try:
            end()
        finally:
            original()

    worker.shutdown = shutdown
    if recorder is not None:
        setattr(worker, END_RPC, end)


def count_garbage_of(serving: ServingPolicy, recorder: Recorder) -> None:
    """Lift the policy; count what was left in cycles since the freeze, then what it had kept."""
    since_the_freeze = count_garbage()
    lift(serving)
    recorder.census("shutdown", **since_the_freeze)
    gc.unfreeze()  # what vLLM itself froze
    recorder.census("thawed", **count_garbage())
