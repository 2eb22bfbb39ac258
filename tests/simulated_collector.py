"""CPython's collector simulated: the check of `repro.theory.cpython_rule`'s closed form.

`test_collector` compares it with the running interpreter, pass by pass.
"""

from __future__ import annotations

import platform
import sysconfig
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from repro.theory.cpython_rule import FULL, Rule, UnknownCollector, rule_for

_PERMANENT = 3


def running_rule() -> Rule:
    """The rule of the interpreter that runs this, with its default thresholds.

    Raises
    ------
    UnknownCollector
        As `rule_for`, and for a free-threaded build.
    """
    if sysconfig.get_config_var("Py_GIL_DISABLED"):
        raise UnknownCollector(
            "a free-threaded Python has a collector without generations, which has no model "
            "here; use an ordinary build"
        )
    return rule_for(platform.python_version())


@dataclass(eq=False)
class Batch:
    """Containers allocated together: how many of them live in each generation, frozen ones last."""

    alive: list[int] = field(default_factory=lambda: [0, 0, 0, 0])


class Collector:
    """The collector's counters, and the heap as they see it.

    Parameters
    ----------
    rule : Rule
    old : int
        Objects that a full collection has just left alive. They are the batch `heap`.
    thresholds : tuple of int, optional
        In place of the rule's own, as by `gc.set_threshold()`.

    Attributes
    ----------
    counts : list of int
        As `gc.get_count()`.
    passes : list of int
        Collections of each generation so far, automatic and explicit.
    long_lived_total, long_lived_pending : int
        The two sides of the quarter rule.
    enabled : bool
        As `gc.isenabled()`.
    """

    def __init__(
        self, rule: Rule, *, old: int = 0, thresholds: tuple[int, int, int] | None = None
    ) -> None:
        self.rule = rule
        self.thresholds = rule.thresholds if thresholds is None else thresholds
        self.counts = [0, 0, 0]
        self.passes = [0, 0, 0]
        self.long_lived_total = old
        self.long_lived_pending = 0
        self.enabled = True
        self.heap = Batch([0, 0, old, 0])
        self._batches = {self.heap}
        self._young: set[Batch] = set()

    def allocate(self, number: int, *, in_one_call: bool = False) -> Batch:
        """Allocate containers, running the passes that become due.

        Parameters
        ----------
        number : int
        in_one_call : bool
            By one C call, with no bytecode boundary before its end.
        """
        batch = Batch()
        self._batches.add(batch)
        at_once = not self._automatic or (in_one_call and not self.rule.inside_allocation)
        while number > 0:
            until_due = max(1, self.thresholds[0] + 1 - self.counts[0])
            linked = number if at_once else min(number, until_due)
            batch.alive[0] += linked
            self._young.add(batch)
            self.counts[0] += linked
            self._collect_if_due()
            number -= linked
        return batch

    def release(self, batch: Batch, number: int | None = None) -> None:
        """Free the newest `number` objects of a batch (default: all), by reference count."""
        left = sum(batch.alive) if number is None else number
        self.counts[0] = max(0, self.counts[0] - left)
        for generation, alive in enumerate(batch.alive):
            freed = min(alive, left)
            batch.alive[generation] -= freed
            left -= freed
        if not any(batch.alive):
            self._batches.remove(batch)
            self._young.discard(batch)

    def collect(self, generation: int = FULL) -> None:
        """Collect a generation and all younger ones, as `gc.collect(generation)`."""
        self.passes[generation] += 1
        if generation < FULL:
            self.counts[generation + 1] += 1
        self.counts[: generation + 1] = [0] * (generation + 1)
        promoted = self._promote(generation)
        if generation == 1:
            self.long_lived_pending += promoted
        elif generation == FULL:
            self.long_lived_pending = 0
            self.long_lived_total = self.tracked(FULL)

    def freeze(self) -> None:
        """Hide every object from the collector, as `gc.freeze()`; total and pending stay."""
        for batch in self._batches:
            batch.alive[:] = [0, 0, 0, sum(batch.alive)]
        self._young.clear()
        self.counts = [0, 0, 0]

    def unfreeze(self) -> None:
        """Put the frozen objects into generation 2, as `gc.unfreeze()`; total and pending stay."""
        for batch in self._batches:
            batch.alive[FULL] += batch.alive[_PERMANENT]
            batch.alive[_PERMANENT] = 0

    def tracked(self, generation: int) -> int:
        """Objects in one generation, as `len(gc.get_objects(generation))`."""
        return sum(batch.alive[generation] for batch in self._batches)

    def frozen(self) -> int:
        """Objects hidden from the collector, as `gc.get_freeze_count()`."""
        return self.tracked(_PERMANENT)

    @property
    def _automatic(self) -> bool:
        return self.enabled and self.thresholds[0] > 0

    def _collect_if_due(self) -> None:
        if not self._automatic or self.counts[0] <= self.thresholds[0]:
            return
        for generation in (FULL, 1, 0):
            if self.counts[generation] > self.thresholds[generation] and not (
                generation == FULL and self.long_lived_pending < self.long_lived_total // 4
            ):
                self.collect(generation)
                return

    def _promote(self, generation: int) -> int:
        """Move what lives in the collected generations to the next older one; return how many."""
        older = min(generation + 1, FULL)
        promoted = 0
        for batch in self._young:
            moved = sum(batch.alive[:older])
            batch.alive[:older] = [0] * older
            batch.alive[older] += moved
            promoted += moved
        self._young = {batch for batch in self._young if batch.alive[0] or batch.alive[1]}
        return promoted


@dataclass(frozen=True, kw_only=True)
class StepLoad:
    """The containers that one engine step allocates, the same in each step.

    Attributes
    ----------
    allocations : int
        Containers a step allocates and holds together, survivors included.
    survivors : int
        Those of them that outlive the step. They are allocated first.
    lifetime_steps : int or None
        Steps a survivor lives, so that as many die as are born; None: for ever, the heap grows.
    in_one_call : bool
        The step allocates by one C call, such as unpickling the scheduler's output.
    """

    allocations: int
    survivors: int = 0
    lifetime_steps: int | None = None
    in_one_call: bool = False


def full_collection_steps(collector: Collector, load: StepLoad, steps: int) -> Iterator[int]:
    """Run steps on a collector; yield the number of each step with a full collection, from 0."""
    living: deque[Batch] = deque()
    for step in range(steps):
        before = collector.passes[FULL]
        batch = collector.allocate(load.allocations, in_one_call=load.in_one_call)
        collector.release(batch, load.allocations - load.survivors)
        if load.survivors:
            living.append(batch)
        if load.lifetime_steps is not None and len(living) > load.lifetime_steps:
            collector.release(living.popleft())
        if collector.passes[FULL] > before:
            yield step
