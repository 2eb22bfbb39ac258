"""Campaigns that tell a story, of invented numbers: what figures, claims and notebooks run on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from builders import MS, SECOND, START, run

FULL_MS = {"no-freeze": 400.0, "freeze": 2.0, "stock": 400.0}
"""A worker's full collection, by policy."""

ROLES = ("frontend", "engine", "worker")


def story(
    root: Path,
    *,
    policies: tuple[str, ...] = ("no-freeze", "freeze"),
    replicates: int = 2,
    full_ms: dict[str, float] | None = None,
    every: int = 60,
    length_s: int = 60,
    **changes: Any,
) -> Path:
    """A campaign of steps of 20 ms with a full collection of the worker every `every` steps.

    Parameters
    ----------
    root : Path
        The campaign's folder.
    full_ms : dict of str to float, optional
        Length of the worker's full collections by policy.
    length_s : int
        Length of each measured window.
    **changes
        Of `run.json`, as `builders.document` takes them.
    """
    lengths = FULL_MS | (full_ms or {})
    for replicate in range(replicates):
        for policy in policies:
            tables = decode(lengths[policy], every, length_s, seed=replicate)
            tables["census"] = census(policy, changes.get("experiment__executor", "mp"))
            tables["captures"] = compile_span(30 + replicate)
            if changes.get("experiment__executor") == "uni":
                tables["pauses"]["role"] = [
                    "engine" if role == "worker" else role for role in tables["pauses"]["role"]
                ]
            run(
                root,
                f"{policy}-{changes.get('experiment__executor', 'mp')}-{replicate}",
                tables,
                window__end_ns=START + length_s * SECOND,
                experiment__policy=policy,
                experiment__replicate=replicate,
                policy__requested=policy,
                **changes,
            )
    return root


def decode(full_ms: float, every: int, length_s: int, seed: int) -> dict[str, dict[str, Any]]:
    """Steps, gaps and pauses of one run."""
    rng = np.random.default_rng(seed)
    number = length_s * 50
    gap = (20 * MS * rng.lognormal(0, 0.08, number)).astype(np.int64)
    full = np.arange(every // 2, number, every)
    took = (full_ms * MS * rng.lognormal(0, 0.03, len(full))).astype(np.int64)
    gap[full] += took
    time = START + np.cumsum(gap)
    entry = time - gap
    young = np.arange(3, number, 7)
    pauses = [(role, 0, entry[young] + 2 * MS, np.full(len(young), MS // 10)) for role in ROLES]
    older = entry[young[::9]] + 4 * MS
    pauses += [(role, 1, older, np.full(len(older), MS)) for role in ROLES]
    pauses.append(("worker", 2, entry[full] + 5 * MS, took))
    pauses.append(("frontend", 2, entry[full + 7] + 5 * MS, np.full(len(full), 5 * MS)))
    role, generation, start, length = zip(*pauses, strict=True)
    sizes = [len(part) for part in start]
    return {
        "steps": {"step": np.arange(number), "start_ns": entry, "duration_ns": gap // 2},
        "itl": {"t_ns": time, "itl_ns": gap, "count": np.full(number, 256)},
        "requests": {"t_ns": time[::4], "ttft_ns": gap[::4] * 2, "tpot_ns": gap[::4].astype(float)},
        "pauses": {
            "role": list(np.repeat(role, sizes)),
            "generation": np.repeat(generation, sizes),
            "start_ns": np.concatenate(start),
            "duration_ns": np.concatenate(length),
        },
    }


def census(policy: str, executor: str = "mp") -> dict[str, Any]:
    """Heaps of every process at every point; the worker's frozen as the policy says."""
    rows = [(role, point) for role in ROLES for point in ("ready", "window-start", "window-end")]
    rows += [("worker", "shutdown")]
    if executor == "uni":
        rows = [row for row in rows if row[0] != "worker"]
    frozen = [
        800_000
        if role == "engine" or (role == "worker" and policy == "freeze" and point != "shutdown")
        else 375 * (point != "shutdown")  # as CPython 3.12 starts; a thaw takes these along
        for role, point in rows
    ]
    tracked = [20_000 if count == 800_000 else 820_000 for count in frozen]
    return {
        "role": [role for role, _ in rows],
        "point": [point for _, point in rows],
        "t_ns": np.arange(len(rows)),
        "frozen": frozen,
        "tracked": tracked,
        "enabled": [True] * len(rows),
        "rss_bytes": 2_000_000_000 + np.arange(len(rows)),
    }


def compile_span(seconds: float) -> dict[str, Any]:
    """One compile of the CPU backend, before the window."""
    return {"kind": ["compile"], "start_ns": [SECOND], "duration_ns": [int(seconds * SECOND) // 10]}


def captures(
    root: Path, seconds: dict[str, float], *, replicates: int = 3, gc_share: float = 0.1
) -> Path:
    """A campaign of CUDA graph captures, one arm a capture policy."""
    for replicate in range(replicates):
        for name, length in seconds.items():
            length_ns = int(length * SECOND * (1 + 0.002 * replicate))
            tables = {
                "captures": {
                    "kind": ["capture"],
                    "start_ns": [SECOND],
                    "duration_ns": [length_ns],
                    "graphs": [51],
                    "memory_bytes": [6_710_886_400],
                },
                "pauses": {
                    "generation": [2],
                    "start_ns": [2 * SECOND],
                    "duration_ns": [int(gc_share * length_ns)],
                },
            }
            run(
                root,
                f"{name}-{replicate}",
                tables,
                experiment__capture_policy=name,
                experiment__replicate=replicate,
                experiment__policy="stock",
                machine__gpu_name="H100",
            )
    return root
