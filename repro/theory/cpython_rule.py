"""CPython's rule for when its cyclic collector runs, as a model small enough to check by hand.

The rule of CPython 3.11 to 3.13, and again of 3.14 from 3.14.5 on (`gc_collect_generations` and
`gc_collect_main` in Modules/gcmodule.c up to 3.12; `gc_select_generation` and `gc_collect_main` in
Python/gc.c from 3.13):

- Allocating a container adds 1 to the count of generation 0, freeing one takes 1 off (never below
  0), whichever generation it is in. A pass becomes due when the count exceeds its threshold.
- The pass collects the oldest generation whose count exceeds its threshold. Generations 1 and 2
  count the passes of the generation below since their own last pass.
- **The quarter rule**: generation 2 is passed over while `long_lived_pending` is below a quarter of
  `long_lived_total`. Survivors of a generation-1 pass add to pending and are not taken off when
  they die (python/cpython#122569). A full pass sets pending to 0 and total to what it left alive.
- `gc.freeze()` empties the three generations and zeroes their counts; `gc.unfreeze()` puts the
  frozen objects into generation 2. Neither touches pending or total.
- Up to 3.11 a pass runs inside the allocation that makes it due. From 3.12 on it waits for the next
  bytecode boundary, so one C call (unpickling, say) that allocates thousands gets one pass, not
  several.

CPython 3.14.0 to 3.14.4 had another collector: two generations and no full passes by themselves.
Each pass took the young objects and an increment of the old ones, sized by the work left to do,
so its pauses depend on the object graph. No counting model can give them, and it was withdrawn
(python/cpython#148726): these versions are refused. A free-threaded build, whose collector has no
generations, is not described either.

What the model leaves out: containers from CPython's free lists, which are reused uncounted (see
`FREE_LISTS`); tuples and dicts that a pass stops tracking; garbage in cycles, which a pass frees.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from statistics import mean

FULL = 2

FREE_LISTS = 80
"""Freed lists that CPython keeps for reuse (`PyList_MAXFREELIST`, 3.11 to 3.14). A reused list is
young and gets promoted, but adds nothing to the count of generation 0. Freed tuples of up to 20
items are kept likewise, 2,000 per length: few tuples are ever counted."""


class UnknownCollector(ValueError):
    """A Python whose collector the model does not describe; the message says which it does."""


@dataclass(frozen=True, kw_only=True)
class Rule:
    """What differs between the collectors of two Python versions.

    Attributes
    ----------
    thresholds : tuple of int
        As `gc.get_threshold()` gives them. A first threshold of 0 means no automatic passes.
    inside_allocation : bool
        True: a pass runs inside the allocation that makes it due. False: at the next bytecode
        boundary.
    """

    thresholds: tuple[int, int, int]
    inside_allocation: bool


_RULES = {
    (3, 11): Rule(thresholds=(700, 10, 10), inside_allocation=True),
    (3, 12): Rule(thresholds=(700, 10, 10), inside_allocation=False),
    (3, 13): Rule(thresholds=(2000, 10, 10), inside_allocation=False),
    (3, 14): Rule(thresholds=(2000, 10, 10), inside_allocation=False),  # 3.13's, ported forward
}
_INCREMENTAL = range(5)  # micro versions of 3.14


def rule_for(version: str) -> Rule:
    """The rule of one Python version, with its default thresholds.

    Parameters
    ----------
    version : str
        As `platform.python_version()` gives it, e.g. "3.12.3"; "3.13" is its newest release.

    Raises
    ------
    UnknownCollector
        The version has an incremental collector, or is none that the model was written for.
    """
    match = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?", version)
    if match is None:
        raise UnknownCollector(f"Python version {version!r} is not of the form 3.12.3 or 3.12")
    major, minor = int(match[1]), int(match[2])
    if (major, minor) == (3, 14) and match[3] and int(match[3]) in _INCREMENTAL:
        raise UnknownCollector(
            f"Python {version} has the incremental collector of 3.14.0 to 3.14.4, which makes no "
            "full collections of its own and has no model here; use 3.11 to 3.13, or 3.14.5 and up"
        )
    if (major, minor) not in _RULES:
        raise UnknownCollector(
            f"no model of the collector of Python {version}; there is one for 3.11, 3.12, 3.13 "
            "and 3.14 from 3.14.5 on"
        )
    return _RULES[major, minor]


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

    def __post_init__(self) -> None:
        if not 0 <= self.survivors <= self.allocations:
            raise ValueError(
                f"survivors={self.survivors} must lie between 0 and "
                f"allocations={self.allocations}: the containers of a step that outlive it are "
                "counted among all it allocates"
            )
        if self.lifetime_steps is not None and self.lifetime_steps < 1:
            raise ValueError(
                f"lifetime_steps={self.lifetime_steps} must be at least 1; None means for ever"
            )


def period_of_full_collections(
    load: StepLoad,
    *,
    long_lived_total: int,
    rule: Rule,
    thresholds: tuple[int, int, int] | None = None,
) -> float:
    """Steps from one full collection to the next, in closed form.

    A generation-1 pass comes every `thresholds[1] + 2` passes and promotes the survivors of the
    steps since the one before, and with them what the step it interrupts holds at that moment. A
    full pass follows the generation-1 pass that brings the promoted to a quarter of
    `long_lived_total`, and at the earliest the (`thresholds[2]` + 1)th.

    Parameters
    ----------
    load : StepLoad
    long_lived_total : int
        Objects the last full collection left alive. `gc.freeze()` does not change it.
    rule : Rule
        See `rule_for`.
    thresholds : tuple of int, optional
        In place of the rule's own.

    Returns
    -------
    float
        `math.inf` if no full pass ever comes. If steps make several passes, whether the
        generation-1 passes meet a step early or late, holding little or much, changes from one
        full pass to the next, and single periods lie as far apart; this is their mean.
    """
    first, second, third = rule.thresholds if thresholds is None else thresholds
    at_once = load.in_one_call and not rule.inside_allocation
    passes_per_step, held = _passes(load, first, at_once=at_once)
    if not held:
        return math.inf
    cadence = second + 2  # passes from one generation-1 pass to the next
    lifetime = math.inf if load.lifetime_steps is None else load.lifetime_steps
    survivors = load.survivors * min(cadence / passes_per_step, lifetime)
    # Every `cadence`-th pass of the repeating sequence meets one of these classes only; a full
    # pass takes the place of one pass more, which moves on to the next class.
    classes = math.gcd(cadence, len(held))
    periods = []
    for start in range(classes):
        promoted = survivors + mean(held[start::classes])
        passes = passes_between_full(
            promoted, long_lived_total=long_lived_total, thresholds=(first, second, third)
        )
        periods.append(passes / passes_per_step)
    return mean(periods)


def passes_between_full(
    promoted: float, *, long_lived_total: float, thresholds: tuple[int, int, int]
) -> float:
    """Passes of all generations from one full collection to the next.

    Parameters
    ----------
    promoted : float
        Objects that a generation-1 pass moves into generation 2.
    long_lived_total : float
        Objects the last full collection left alive.
    thresholds : tuple of int

    Returns
    -------
    float
        `math.inf` if nothing is promoted, so that the quarter is never reached.
    """
    needed = math.ceil(long_lived_total // 4 / promoted) if promoted else math.inf
    return max(thresholds[FULL] + 1, needed) * (thresholds[1] + 2) + 1


def _passes(load: StepLoad, threshold: int, *, at_once: bool) -> tuple[float, list[int]]:
    """Passes a step, and the step's own transient containers alive at each pass of a cycle.

    The count with which a step begins decides the count with which it ends, so the sequence of
    counts runs into a cycle of at most `threshold` + 1 steps, which is walked once.
    """
    if threshold == 0:
        return 0.0, []
    freed = load.allocations - (load.survivors if load.lifetime_steps is None else 0)
    count, history, first_seen = 0, list[list[int]](), dict[int, int]()
    while count not in first_seen:
        first_seen[count] = len(history)
        if at_once:
            due = [load.allocations] if count + load.allocations > threshold else []
        else:
            due = list(range(threshold + 1 - count, load.allocations + 1, threshold + 1))
        history.append([max(0, held - load.survivors) for held in due])
        count = load.allocations - due[-1] if due else count + load.allocations
        count = max(0, count - freed)
    cycle = history[first_seen[count] :]
    held = [held for step in cycle for held in step]
    return len(held) / len(cycle), held
