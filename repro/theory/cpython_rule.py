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

from repro.releases import has_incremental_collector

FULL = 2

FREE_LISTS = 80
"""Freed lists that CPython keeps for reuse (`PyList_MAXFREELIST`, 3.11 to 3.14). A reused list is
young and gets promoted, but adds nothing to the count of generation 0. Freed tuples of up to 20
items are kept likewise, 2,000 per length: few tuples are ever counted."""


class UnknownCollector(ValueError):
    """A Python whose collector the model does not describe; the message says which it does."""


@dataclass(frozen=True, kw_only=True)
class Rule:
    """Differences between the collectors of two Python versions."""

    thresholds: tuple[int, int, int]  # as `gc.get_threshold()`; a first of 0: no automatic passes
    # A pass runs inside the allocation that makes it due; else at the next bytecode boundary.
    inside_allocation: bool


_RULES = {
    (3, 11): Rule(thresholds=(700, 10, 10), inside_allocation=True),
    (3, 12): Rule(thresholds=(700, 10, 10), inside_allocation=False),
    (3, 13): Rule(thresholds=(2000, 10, 10), inside_allocation=False),
    (3, 14): Rule(thresholds=(2000, 10, 10), inside_allocation=False),  # 3.13's, ported forward
}


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
    if match[3] and has_incremental_collector(version):
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


def period_of_full_collections(
    allocations: int,
    *,
    survivors: int,
    lifetime_steps: float,
    long_lived_total: int,
    rule: Rule,
    thresholds: tuple[int, int, int],
) -> float:
    """Steps from one full collection to the next, if all steps allocate alike.

    A generation-1 pass comes every `thresholds[1] + 2` passes and promotes the survivors of the
    steps since the one before, and with them what the step it interrupts holds at that moment. A
    full pass follows the generation-1 pass that brings the promoted to a quarter of
    `long_lived_total`, and at the earliest the (`thresholds[2]` + 1)th.

    Parameters
    ----------
    allocations : int
        Containers a step allocates by one C call, such as unpickling, and holds together.
    survivors : int
        Those of them that outlive the step.
    lifetime_steps : float
        Steps a survivor lives, so that as many die as are born.
    long_lived_total : int
        Objects the last full collection left alive. `gc.freeze()` does not change it.
    rule : Rule
        See `rule_for`.
    thresholds : tuple of int
        As `gc.get_threshold()` gives them.

    Returns
    -------
    float
        `math.inf` if no full pass ever comes. If steps make several passes, whether the
        generation-1 passes meet a step early or late, holding little or much, changes from one
        full pass to the next, and single periods lie as far apart; this is their mean.
    """
    first, second, _ = thresholds
    if not 0 < first < allocations:
        return math.inf
    due = range(first + 1, allocations + 1, first + 1) if rule.inside_allocation else [allocations]
    held = [max(0, number - survivors) for number in due]
    cadence = second + 2  # passes from one generation-1 pass to the next
    kept = survivors * min(cadence / len(held), lifetime_steps)
    # Every `cadence`-th pass meets one of these classes only; a full pass takes the place of one
    # pass more, which moves on to the next class.
    classes = math.gcd(cadence, len(held))
    return mean(
        passes_between_full(
            kept + mean(held[start::classes]),
            long_lived_total=long_lived_total,
            thresholds=thresholds,
        )
        / len(held)
        for start in range(classes)
    )


def passes_between_full(
    promoted: float, *, long_lived_total: float, thresholds: tuple[int, int, int]
) -> float:
    """Passes of all generations from one full collection to the next.

    A generation-1 pass moves so many objects into generation 2. `math.inf` if it promotes nothing,
    so that the quarter is never reached.
    """
    needed = math.ceil(long_lived_total // 4 / promoted) if promoted else math.inf
    return max(thresholds[FULL] + 1, needed) * (thresholds[1] + 2) + 1
