"""Campaigns of several ranks, of invented numbers: in lock-step or not, pausing together or not."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from builders import MS, SECOND, START, run

STEP = 20 * MS


def several(
    root: Path,
    *,
    pauses_at: Sequence[Sequence[int]],
    name: str = "a",
    steps: int = 3_000,
    pause_ms: float = 400.0,
    waits: bool = True,
    **changes: Any,
) -> Path:
    """One run of as many ranks as `pauses_at` has lists of steps with a full collection.

    Parameters
    ----------
    waits : bool
        Whether a rank's step lasts as long as the longest among the ranks.
    """
    rng = np.random.default_rng(len(pauses_at))
    alone = len(pauses_at) if not waits else 1  # in lock-step, ordinary steps are common to all
    own = np.rint(STEP * rng.lognormal(0, 0.02, (alone, steps))).astype(np.int64)
    own = np.broadcast_to(own, (len(pauses_at), steps)).copy()
    lengths = [
        np.rint(pause_ms * MS * rng.lognormal(0, 0.1, len(at))).astype(np.int64) for at in pauses_at
    ]
    for rank, at in enumerate(pauses_at):
        own[rank, list(at)] += lengths[rank]
    if waits:
        own[:] = own.max(axis=0)
    entries = START + np.cumsum(own, axis=1) - own
    entries += MS * np.arange(len(pauses_at))[:, None]  # no two ranks enter at the same time
    begun = [entries[rank, list(at)] + 5 * MS for rank, at in enumerate(pauses_at)]
    ranks = np.arange(len(pauses_at))
    tables = {
        "steps": {
            "rank": np.repeat(ranks, steps),
            "step": np.tile(np.arange(steps), len(ranks)) + 7 * np.repeat(ranks, steps),
            "start_ns": entries.ravel(),
            "duration_ns": MS,
        },
        "pauses": {
            "rank": np.repeat(ranks, [len(at) for at in pauses_at]),
            "generation": 2,
            "start_ns": np.concatenate(begun),
            "duration_ns": np.concatenate(lengths),
        },
    }
    settings = {
        "experiment__data_parallel_size": len(pauses_at),
        "experiment__client": "async_engine" if len(pauses_at) > 1 else "engine",
        "experiment__enable_expert_parallel": len(pauses_at) > 1,
        "experiment__policy": "no-freeze",
        "window__end_ns": START + 1000 * SECOND,
    }
    run(root, name, tables, **{**settings, **changes})
    return root


def every(period: int, first: int = 10, steps: int = 3_000) -> list[int]:
    """Steps at regular distances."""
    return list(range(first, steps, period))
