"""Collections that lengthen steps: their overlap, beside that of random times.

Long steps overlap more collections, whatever made them long. So the same collections are also
moved to random times, and a cause is booked only where it shows clearly more than that.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass

import numpy as np

from repro.server.timeline import STALLING, Cause, Timeline
from repro.stats.bootstrap import Integers
from repro.stats.spans import Spans, overlap, union

SURE = 3.0
"""Standard errors above chance from which a cause is booked."""

SHIFTS = 20
SHIFTED = 50_000
"""Steps of a slab that collections are moved over at random times; the rest of it is left out."""


@dataclass
class Effect:
    """Overlap of a cause's collections with the steps."""

    hit: int = 0  # steps that they overlap
    chance_hit: float = 0.0  # and that they would at random times
    overlap_ns: float = 0.0
    squared: float = 0.0  # sum of the overlaps' squares
    longer_ns: float = 0.0  # what of the overlap the steps are longer than typical
    chance_ns: float = 0.0  # the same at random times
    chance_overlap_ns: float = 0.0

    @property
    def shown(self) -> float:
        """Share of the overlap by which steps are longer."""
        return self.longer_ns / self.overlap_ns if self.overlap_ns else 0.0

    @property
    def chance(self) -> float:
        """The same at random times."""
        return self.chance_ns / self.chance_overlap_ns if self.chance_overlap_ns else 0.0

    @property
    def shows(self) -> bool:
        """Whether steps are longer by more of it than chance explains."""
        if not self.overlap_ns:
            return False
        number = self.overlap_ns**2 / self.squared
        error = math.sqrt(max(self.chance * (1 - self.chance), 0.01) / number)
        return self.shown - self.chance >= SURE * error


def effects(timeline: Timeline) -> dict[Cause, Effect]:
    """The effect of each cause on all steps of a launch."""
    found: dict[Cause, Effect] = defaultdict(Effect)
    rng = np.random.default_rng(0)
    for slab in timeline.slabs(*STALLING):
        for group in timeline.groups:
            start, end = slab.steps[group[0]]
            if not len(start):
                continue
            longer = longer_than_typical(end - start)
            for cause, spans in timeline.spans(slab, group).items():
                _add(found[cause], spans, start, end, longer)
                _add_chance(found[cause], spans, start, end, longer, rng)
    return found


def longer_than_typical(gap: Integers) -> Integers:
    """By how much each step is longer than the median of the steps around it."""
    return np.maximum(gap - int(np.median(gap)), 0)


def _add(effect: Effect, spans: Spans, start: Integers, end: Integers, longer: Integers) -> None:
    shared = overlap(spans, start, end)
    effect.hit += int((shared > 0).sum())
    effect.overlap_ns += float(shared.sum())
    effect.squared += float((shared.astype(np.float64) ** 2).sum())
    effect.longer_ns += float(np.minimum(longer, shared).sum())


def _add_chance(
    effect: Effect,
    spans: Spans,
    start: Integers,
    end: Integers,
    longer: Integers,
    rng: np.random.Generator,
) -> None:
    """Move the collections within the busy time of the slab's first steps, idle times left out."""
    thinned = len(start) / min(len(start), SHIFTED)
    start, end, longer = start[:SHIFTED], end[:SHIFTED], longer[:SHIFTED]
    over = np.cumsum(end - start)  # of busy time, at the end of each step
    begun, length = spans[0], spans[1] - spans[0]
    place = np.searchsorted(start, begun, side="right") - 1
    inside = (place >= 0) & (begun < end[place])
    busy = (over[place] - end[place] + begun)[inside]
    shifts = int(np.clip(4 * SHIFTED // (len(start) + len(busy)), 1, SHIFTS))
    for _ in range(shifts):
        moved = (busy + rng.integers(over[-1])) % over[-1]
        shared = overlap(union(moved, moved + length[inside]), over - (end - start), over)
        effect.chance_hit += thinned * float((shared > 0).sum()) / shifts
        effect.chance_ns += thinned * float(np.minimum(longer, shared).sum()) / shifts
        effect.chance_overlap_ns += thinned * float(shared.sum()) / shifts
