"""Scripted allocation patterns, and a real heap to run them on; standard library only.

`test_collector` runs each pattern on the model. As a script this module runs it on the interpreter
that reads it, in a process with nothing else going on, and prints what that interpreter did.
"""

from __future__ import annotations

import functools
import gc
import itertools
import json
import sys

OLD = 200_000  # containers the heap holds before a pattern begins: the quarter rule has to wait
KEPT = {}  # what a pattern keeps beyond its step; made beforehand, so as not to count as allocated


class Node:
    """One container: counted when allocated and when freed, and never kept in a free list."""

    __slots__ = ("next",)


def balanced(heap):
    """More in a step than any generation-0 threshold, all freed at its end."""
    for _ in range(700):
        heap.release(heap.allocate(2500))
        yield


def below_threshold(heap):
    """A step that holds fewer containers than the threshold and frees them: nothing happens."""
    for _ in range(1000):
        heap.release(heap.allocate(600))
        yield


def growing(heap):
    """Most of a step is freed, a little stays for ever."""
    for step in range(1500):
        batch = heap.allocate(1500)
        KEPT[step] = heap.allocate(150)
        heap.release(batch)
        yield


def burst(heap):
    """A quiet load with a burst of long-lived containers now and then, each by one C call."""
    for step in range(1500):
        if step % 150 == 50:
            KEPT[step] = heap.allocate(8000, in_one_call=True)
        heap.release(heap.allocate(2500, in_one_call=True))
        yield


def churn(heap):
    """Requests come and go: what a step keeps dies twenty steps later."""
    for step in range(1500):
        batch = heap.allocate(2200)
        if step >= 20:
            heap.release(KEPT.pop(step - 20))
        KEPT[step] = heap.allocate(300)
        heap.release(batch)
        yield


def after_freeze(heap):
    """The pull request's order; then the first full pass still waits for the whole quarter."""
    for generation in (0, 1, 2):
        heap.collect(generation)
    heap.freeze()
    yield from balanced(heap)


def after_unfreeze(heap):
    """Thawing leaves `long_lived_total` small: the next full pass comes when counts allow."""
    heap.freeze()
    yield from balanced(heap)
    heap.unfreeze()
    yield from balanced(heap)


def frozen_in_a_step(heap):
    """Freezing with allocations outstanding: the counts begin again at 0."""
    for step in range(300):
        first = heap.allocate(400)
        if step % 2:
            heap.freeze()
        heap.release(heap.allocate(1900))
        heap.release(first)
        yield


def collected_by_hand(heap):
    """Explicit passes move the counts too, so that at the next automatic one all three are due."""
    for step in range(300):
        if step in (30, 130):
            heap.collect(2)
            KEPT[step] = heap.allocate(85_000)
            for generation in [1] * 12 + [0] * 12:
                heap.collect(generation)
        heap.release(heap.allocate(2500))
        yield


def unfrozen_and_collected(heap):
    """A full collection after thawing brings `long_lived_total` back to the whole heap."""
    heap.freeze()
    yield from balanced(heap)
    heap.unfreeze()
    heap.collect(2)
    yield from balanced(heap)


PATTERNS = {
    pattern.__name__: pattern
    for pattern in (
        balanced,
        below_threshold,
        growing,
        burst,
        churn,
        after_freeze,
        after_unfreeze,
        frozen_in_a_step,
        collected_by_hand,
        unfrozen_and_collected,
    )
}


class RealHeap:
    """The heap of this interpreter, with the methods of `simulated_collector.Collector`."""

    freeze = staticmethod(gc.freeze)
    unfreeze = staticmethod(gc.unfreeze)
    collect = staticmethod(gc.collect)

    @staticmethod
    def allocate(number, *, in_one_call=False):
        if in_one_call:  # each `repeat` holds the one before it
            return [functools.reduce(itertools.repeat, range(number - 1), None)]
        head = None
        for _ in range(number):
            node = Node()
            node.next = head
            head = node
        return head

    @staticmethod
    def release(batch):
        if isinstance(batch, list):
            batch.clear()
        while batch:
            batch.next, batch = None, batch.next


def observe(pattern):
    """Run a pattern here; return where the collector began, and what it then did when."""
    heap = RealHeap()
    steps = pattern(heap)
    passes, full_steps, step = [0, 0, 0], [], 0

    def watch(phase, info):
        if phase == "start":
            passes[info["generation"]] += 1
            if info["generation"] == 2:
                full_steps.append(step)

    gc.disable()
    old = heap.allocate(OLD)
    gc.callbacks.append(watch)
    gc.collect()
    tracked, counts = len(gc.get_objects(generation=2)), gc.get_count()
    passes[:] = [0, 0, 0]
    full_steps.clear()
    gc.enable()
    for _ in steps:
        step += 1
    gc.callbacks.clear()
    assert old is not None
    return {"tracked": tracked, "counts": counts, "passes": passes, "full_steps": full_steps}


if __name__ == "__main__":
    print(json.dumps(observe(PATTERNS[sys.argv[1]])))
