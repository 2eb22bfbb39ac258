"""Applies a serving policy to this process's collector, at once and at chosen moments.

`freeze_heap` is the freeze of the pull request. Knows nothing of vLLM: `worker_hooks` and
`engine_frontend_hooks` call it when a process is warm, has passed a step on, or is idle.
"""

from __future__ import annotations

import gc
import time

from repro.policy import ALTERNATE, ServingPolicy

FULL = 2


def apply(serving: ServingPolicy) -> None:
    """Set this process's collector as the policy says; a second time does no harm."""
    gc.set_threshold(*serving.thresholds_over(gc.get_threshold()))
    if not serving.automatic:
        gc.disable()
    if serving.freeze:
        freeze_heap()
    if serving.freeze_again and freeze_survivors not in gc.callbacks:
        gc.callbacks.append(freeze_survivors)


def undo(serving: ServingPolicy) -> None:
    """First thing at shutdown: thaw what the policy froze, and freeze no more."""
    if serving.freeze_again and freeze_survivors in gc.callbacks:
        gc.callbacks.remove(freeze_survivors)
    if serving.freeze or serving.name == ALTERNATE:  # its last period is frozen
        gc.unfreeze()


def freeze_heap() -> None:
    """Collect 0, 1, 2, then freeze: `vllm.utils.gc_utils.freeze_gc_heap` as of #44363."""
    for generation in range(3):
        gc.collect(generation)
    gc.freeze()


def freeze_survivors(phase: str, info: dict[str, int]) -> None:
    """A `gc.callbacks` entry: freeze what a full collection has just found alive."""
    if phase == "stop" and info["generation"] == FULL:
        gc.freeze()


class Moments:
    """Actions of a policy at moments when nobody waits for this process.

    A period begins with the first such moment: then the process is warm.
    """

    acted = 0  # periods of this process that ended with the freeze or the collection of its policy

    def __init__(self, serving: ServingPolicy) -> None:
        self.between_steps = serving.between_steps
        self.freezes = bool(serving.freeze_every_s)
        self.period_ns = int(1e9 * (serving.freeze_every_s or serving.collect_every_s))
        self.due_ns = 0

    def step(self) -> None:
        """Others have the step, and this process waits for them."""
        if self.between_steps:
            collect_due()
        self._periodic()

    def idle(self) -> None:
        """No request is left."""
        if self.between_steps:
            collect_all()
        self._periodic()

    def _periodic(self) -> None:
        if not self.period_ns or (now := time.monotonic_ns()) < self.due_ns:
            return
        if self.due_ns:
            gc.freeze() if self.freezes else gc.collect()
            Moments.acted += 1
        self.due_ns = now + self.period_ns


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
