"""Hooks of a worker: from its first moment to the end of warm-up, and at shutdown.

No class is patched that vLLM's own code subclasses: the hook sits on
`WorkerWrapperBase.init_device`, which every executor calls once the platform's own worker
exists, and that one worker object gets the rest. So no worker module is imported here (importing
the CPU worker on a CUDA machine breaks Inductor), and fork and spawn are alike.
"""

from __future__ import annotations

import contextlib
import functools
import gc
from collections.abc import Callable, Iterator
from typing import Any

from repro.plugin import apply_policy, cpu_collectives, process_hooks
from repro.plugin.capture import wrap_capture
from repro.plugin.census import census, count_on_the_way, count_with_the_workers
from repro.plugin.fault_handling import stepping_aside
from repro.plugin.hook_points import global_rank, holder, replaced, require
from repro.plugin.recorder import Recorder, count_garbage
from repro.plugin.rpc import CENSUS_RPC, END_RPC, FLIP_RPC, SWITCH_RPC
from repro.plugin.step_hooks import act_after_launch, record_steps
from repro.policy import CapturePolicy, ServingPolicy


def apply(serving: ServingPolicy, capture: CapturePolicy, recorder: Recorder | None) -> None:
    """Hook worker start-up in this process and the processes it forks."""
    WorkerWrapperBase = holder("vllm.v1.worker.worker_base", "WorkerWrapperBase.init_device")
    original = WorkerWrapperBase.init_device

    @functools.wraps(original)
    def init_device(wrapper: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(wrapper, *args, **kwargs)
        with stepping_aside("hooking a worker"):
            hook_worker(wrapper.worker, serving, capture, recorder)
        return result

    WorkerWrapperBase.init_device = init_device
    if recorder is not None and recorder.role != "worker":
        count_with_the_workers(recorder)


def hook_worker(
    worker: Any, serving: ServingPolicy, capture: CapturePolicy, recorder: Recorder | None
) -> None:
    """Give one worker object its policies and its recorder."""
    require(worker, "compile_or_warm_up_model", "execute_model", "shutdown", "model_runner")
    holder("vllm.utils.gc_utils", "freeze_gc_heap", "maybe_attach_gc_debug_callback")
    if recorder is not None:
        with stepping_aside("noting the worker"):
            process_hooks.worker_begins(recorder, worker)
    worker.repro_evidence = cpu_collectives.supply(worker)
    wrap_capture(worker, capture, recorder)
    if recorder is not None:
        count_on_the_way(worker, recorder)
    wrap_warm_up(worker, serving, recorder)
    wrap_shutdown(worker, serving, recorder)
    if recorder is not None:
        setattr(worker, CENSUS_RPC, functools.partial(census, recorder, worker))
        setattr(worker, SWITCH_RPC, switch)
        setattr(worker, FLIP_RPC, flip)


def wrap_warm_up(worker: Any, serving: ServingPolicy, recorder: Recorder | None) -> None:
    """Make the policy the last thing in `compile_or_warm_up_model`, then start recording steps.

    Elastic expert parallelism warms a worker up again: then the policy is applied once more, and
    steps are wrapped already.
    """
    original = worker.compile_or_warm_up_model
    warm = False

    def compile_or_warm_up_model() -> Any:
        nonlocal warm
        before = gc.get_freeze_count()
        result = original() if serving.leaves_alone else warm_up_under(serving, worker, original)
        if not warm:
            warm = True
            begin_serving(worker, serving, recorder, before)
        return result

    worker.compile_or_warm_up_model = compile_or_warm_up_model


def begin_serving(
    worker: Any, serving: ServingPolicy, recorder: Recorder | None, freeze_count_before: int
) -> None:
    """Note the evidence of the policy, and wrap the steps from now on."""
    with stepping_aside("gathering evidence of the policy"):
        sizes = worker.vllm_config.compilation_config.cudagraph_capture_sizes
        worker.repro_evidence = getattr(worker, "repro_evidence", {}) | {
            "rank": global_rank(worker),
            "policy": serving.name,
            "worker_class": type(worker).__qualname__,
            "runner": type(worker.model_runner).__module__,
            "capture_sizes": len(sizes or ()),
            "freeze_count_before": freeze_count_before,
            "freeze_count": gc.get_freeze_count(),
        }
    if serving.chooses_moments:
        act_after_launch(worker, apply_policy.Moments(serving))
    if recorder is not None:
        with stepping_aside("recording steps"):
            if recorder.role != "engine":  # there vLLM's own freeze is still to come
                recorder.census("ready")
            record_steps(worker, recorder)
            process_hooks.say_if_not_in_force(recorder)


def warm_up_under(serving: ServingPolicy, worker: Any, original: Callable[[], Any]) -> Any:
    """Warm up with the policy in the place where the pull request put its freeze.

    vLLM from 0.23.0 calls `freeze_gc_heap` there by itself: that call becomes the policy.
    Where the worker's warm-up has no such call (0.22.1; the CPU worker), the policy and then the
    debug callback follow it, in the pull request's order.
    """
    gc_utils = holder("vllm.utils.gc_utils", "maybe_attach_gc_debug_callback")
    called = False

    def freeze_or_not() -> None:
        nonlocal called
        called = True
        with stepping_aside("applying the policy"):
            apply_policy.apply(serving)

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


def switch(freeze: bool) -> tuple[int, int]:
    """Freeze this worker's heap or leave it thawed; returns how many objects are frozen, and not.

    Either way a full collection of the whole heap comes first, so that the collector's counters
    start alike. On CPython 3.12 it sets a few hundred immortal objects aside among the frozen.
    """
    gc.unfreeze()
    if freeze:
        apply_policy.freeze_heap()
    else:
        gc.collect()
    return gc.get_freeze_count(), len(gc.get_objects())


def flip(freeze: bool) -> int:
    """Freeze this worker's heap or thaw it, without a collection; returns how many objects evade.

    Counting what was moved would take far longer than moving it, and cost each way differently.
    """
    if freeze:
        gc.freeze()
        return len(gc.get_objects())
    gc.unfreeze()
    return gc.get_freeze_count()


def wrap_shutdown(worker: Any, serving: ServingPolicy, recorder: Recorder | None) -> None:
    """Undo the policy first thing at shutdown, then count what came back.

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
                apply_policy.undo(serving)
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
    """Undo the policy; count what was left in cycles since the freeze, then what it had kept."""
    since_the_freeze = count_garbage()
    apply_policy.undo(serving)
    recorder.census("shutdown", **since_the_freeze)
    gc.unfreeze()  # what vLLM itself froze
    recorder.census("thawed", **count_garbage())
