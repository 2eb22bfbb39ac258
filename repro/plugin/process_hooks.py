"""Hooks that tell each process its role, and that its heap is warm.

vLLM's names tell some processes apart; under Ray, or with one API server, a process is known only
by what it builds: a front end builds an engine's client, an engine core an executor, a worker a
device. Each hook notes the process's place in the recording, and says in the log that it records.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

from repro.plugin.census import followed_by
from repro.plugin.fault_handling import logger, stepping_aside
from repro.plugin.hook_points import global_rank, holder
from repro.plugin.process_facts import LAUNCHER, not_in_force, parallel, process_name
from repro.plugin.recorder import Recorder


def apply(recorder: Recorder) -> None:
    """Hook this process and those it forks. After the policies' hooks: it notes what they did."""
    role = recorder.role
    if process_name() == "MainProcess":
        recorder.declare(LAUNCHER, 0)
    if role in ("frontend", "engine"):
        with stepping_aside("noting the front end"):
            hook_front_end(recorder)
        with stepping_aside("noting the engine core"):
            hook_engine_core(recorder)


def hook_front_end(recorder: Recorder) -> None:
    """Declare a front end as it builds its engine's client; note its heap once it serves."""
    for module, name in (("async_llm", "AsyncLLM"), ("llm_engine", "LLMEngine")):
        owner = holder(f"vllm.v1.engine.{module}", f"{name}.__init__")
        built = followed_by(owner.__init__, functools.partial(front_end_is_warm, recorder))
        owner.__init__ = preceded_by(built, functools.partial(front_end_begins, recorder))


def front_end_begins(recorder: Recorder, vllm_config: Any) -> None:
    """A main process that builds a client is a front end: of its data-parallel rank, if it has one.

    So are the ranks of a pod per rank told apart, whose front ends all are main processes.
    """
    first = int(vllm_config.parallel_config.data_parallel_rank)
    if recorder.role == LAUNCHER:
        recorder.declare("frontend", first)
    recorder.note(**parallel(vllm_config))
    say_what_is_recorded(recorder)


def front_end_is_warm(recorder: Recorder) -> None:
    """Note the heap now, and after the freeze with which an API server starts to serve."""
    note_heap(recorder)
    for name, module in list(sys.modules.items()):
        if name.startswith("vllm.entrypoints.") and name.endswith(".server_utils"):
            names = vars(module)
            if "freeze_gc_heap" in names:
                noted = functools.partial(note_heap, recorder)
                names["freeze_gc_heap"] = followed_by(names["freeze_gc_heap"], noted)


def hook_engine_core(recorder: Recorder) -> None:
    """Declare an engine core as it builds its executor; note its heap after vLLM's own freeze."""
    core = holder("vllm.v1.engine.core", "freeze_gc_heap")
    Executor = holder("vllm.v1.executor.abstract", "Executor.__init__")
    begins = functools.partial(engine_core_begins, recorder)
    Executor.__init__ = preceded_by(Executor.__init__, begins)
    warm = functools.partial(engine_core_is_warm, recorder)
    core.freeze_gc_heap = followed_by(core.freeze_gc_heap, warm)


def engine_core_begins(recorder: Recorder, vllm_config: Any) -> None:
    """Under Ray an engine core is a main process. One that only holds workers has none."""
    facts = parallel(vllm_config)
    if getattr(vllm_config.parallel_config, "node_rank_within_dp", 0) > 0:
        return
    if recorder.role == LAUNCHER:
        recorder.declare("engine", facts["dp_rank"])
    if recorder.role == "engine":
        recorder.note(**facts)
        say_what_is_recorded(recorder)


def engine_core_is_warm(recorder: Recorder) -> None:
    """Note the heap; with the worker inside, this is where its policy either acts or cannot."""
    if recorder.role != "engine":
        return
    if not recorder.about.get("worker_inside"):
        note_heap(recorder)
        return
    recorder.census("ready")
    worker = recorder.policies["worker"]
    if found := not_in_force(worker, recorder.about):
        logger.warning(
            "repro: REPRO_POLICY=%s cannot act: the worker lives inside the engine core, and %s "
            "after vLLM's own freeze there; set REPRO_ENGINE_POLICY=%s",
            *(worker.name, found, worker.name),
        )


def worker_begins(recorder: Recorder, worker: Any) -> None:
    """Note a worker's own process; or the engine core's, in which it is a guest."""
    if recorder.role == "engine":
        recorder.note(worker_inside=True)
    else:
        recorder.declare("worker", global_rank(worker))
        say_what_is_recorded(recorder)
    device = getattr(getattr(worker, "device", None), "type", "")
    recorder.note(**parallel(worker.vllm_config), device=device)


def note_heap(recorder: Recorder) -> None:
    """Note the heap's state in the recording's header."""
    recorder.note_heap()
    say_if_not_in_force(recorder)


def say_what_is_recorded(recorder: Recorder) -> None:
    """One line per process: success is worth a line, too."""
    who, policy = f"{recorder.role} {recorder.rank}", recorder.policy.name
    logger.info("repro: %s: recording into %s, policy %s", who, recorder.directory, policy)


def say_if_not_in_force(recorder: Recorder) -> None:
    """One line if the heap is not as this process's policy asks."""
    if found := recorder.about.get("not_in_force"):
        who, policy = f"{recorder.role} {recorder.rank}", recorder.policy.name
        logger.warning("repro: %s: policy %s is not in force: %s", who, policy, found)


def preceded_by(original: Callable[..., Any], before: Callable[[Any], object]) -> Any:
    """An `__init__(self, vllm_config, ...)`, and something of ours before it."""

    @functools.wraps(original)
    def both(self: Any, *args: Any, **kwargs: Any) -> Any:
        with stepping_aside(f"what precedes {type(self).__name__}"):
            before(kwargs["vllm_config"] if "vllm_config" in kwargs else args[0])
        return original(self, *args, **kwargs)

    return both
