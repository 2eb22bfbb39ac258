"""A serving policy in force in this process: the collector's settings and its chosen moments.

Knows nothing of vLLM: `patch` says when a process is warm, has handed a step on, or is idle.
"""

from __future__ import annotations

import gc

from repro.policy import ServingPolicy

FULL = 2


def put_in_force(serving: ServingPolicy) -> None:
    """Set this process's collector as the policy wants it; a second time does no harm."""
    if serving.thresholds is not None:
        gc.set_threshold(*serving.thresholds)
    if not serving.automatic:
        gc.disable()
    if serving.freeze:
        freeze_heap()
    if serving.freeze_again and freeze_survivors not in gc.callbacks:
        gc.callbacks.append(freeze_survivors)


def freeze_heap() -> None:
    """Collect 0, 1, 2, then freeze: `vllm.utils.gc_utils.freeze_gc_heap` as of #44363."""
    for generation in range(3):
        gc.collect(generation)
    gc.freeze()


def freeze_survivors(phase: str, info: dict[str, int]) -> None:
    """A `gc.callbacks` entry: freeze what a full collection has just found alive."""
    if phase == "stop" and info["generation"] == FULL:
        gc.freeze()


def collect_due() -> None:
    """The young collection that Python would have made by itself by now, if there is one."""
    counts, thresholds = gc.get_count(), gc.get_threshold()
    for generation in (1, 0):
        if counts[generation] > thresholds[generation]:
            gc.collect(generation)
            return


def collect_all() -> None:
    """A full collection, if anything grew old since the last one. For when nobody waits."""
    if gc.get_count()[FULL]:
        gc.collect()


def lift(serving: ServingPolicy) -> None:
    """First thing at shutdown: thaw what the policy froze, and freeze no more."""
    if serving.freeze_again and freeze_survivors in gc.callbacks:
        gc.callbacks.remove(freeze_survivors)
    if serving.freeze:
        gc.unfreeze()
