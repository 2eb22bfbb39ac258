"""Campaigns that tell a story, of invented numbers: what figures, claims and notebooks run on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from builders import MS, SECOND, START, run

from repro.claims import CLAIMS, decide
from repro.dataset import Campaign

FULL_MS = {"no-freeze": 400.0, "freeze": 2.0, "stock": 400.0}
"""A worker's full collection, by policy."""

ROLES = ("frontend", "engine", "worker")


def decided(claim: str, *campaigns: Campaign) -> dict[str, str]:
    """The row of one claim in the table of claims; testing all of them takes seconds."""
    (one,) = [each for each in CLAIMS if each.id == claim]
    return decide(one, campaigns)


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
        else 375 * (point != "shutdown")  # as CPython 3.12 starts
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
    root: Path,
    seconds: dict[str, float],
    *,
    replicates: int = 3,
    gc_share: float = 0.1,
    full: dict[str, int] | None = None,
    **changes: Any,
) -> Path:
    """A campaign of CUDA graph captures in fresh processes, one arm a capture policy.

    `full` is how many full collections a policy makes, each as long as all of them (1).
    """
    for replicate in range(replicates):
        for name, length in seconds.items():
            length_ns = int(length * SECOND * (1 + 0.002 * replicate))
            one = {"policy": name, "length_ns": length_ns, "gc_share": gc_share}
            run(
                root,
                f"{''.join(changes.values())}{name}-{replicate}",
                capture_tables([one], full or {}),
                experiment__capture_policy=name,
                experiment__replicate=replicate,
                experiment__policy="stock",
                machine__gpu_name="H100",
                summary__output_tokens=0,
                **changes,
            )
    return root


def recaptures(
    root: Path,
    seconds: dict[str, float],
    *,
    first: float = 1.0,
    times: int = 3,
    replicates: int = 2,
    full: dict[str, int] | None = None,
    memory: float = 1.0,
    **changes: Any,
) -> Path:
    """A campaign of processes that captured under every policy, `times` each; can be added to.

    `first` is how much longer the start-up capture takes, `memory` what a repeated one says it
    needs of that one's.
    """
    names = list(seconds)
    setting = "".join(changes.values())
    for replicate in range(replicates):
        start_up = names[replicate % len(names)]
        plan = [(start_up, first, 1.0)]
        plan += [(name, 1 + 0.002 * n, memory) for n in range(times) for name in names]
        made = [
            {
                "policy": name,
                "length_ns": int(seconds[name] * SECOND * factor),
                "gc_share": 0.1,
                "memory_bytes": int(6_710_886_400 * share),
            }
            for name, factor, share in plan
        ]
        run(
            root,
            f"{setting}again-{replicate}",
            capture_tables(made, full or {}),
            experiment__client="capture",
            experiment__policy="no-freeze",
            experiment__capture_policy=start_up,
            experiment__replicate=replicate,
            machine__gpu_name="H100",
            summary__output_tokens=0,
            **changes,
        )
    return root


def capture_tables(made: list[dict[str, Any]], full: dict[str, int]) -> dict[str, Any]:
    """Captures one after another, each with its heap counted and its full collections."""
    starts = SECOND + np.cumsum([0] + [one["length_ns"] + SECOND for one in made])[:-1]
    pauses: list[tuple[int, int]] = []
    for start, one in zip(starts, made, strict=True):
        number = full.get(one["policy"], 1)
        length = int(one["gc_share"] * one["length_ns"] / max(number, 1))
        pauses += [(int(start) + n * length, length) for n in range(number)]
    return {
        "captures": {
            "kind": ["capture"] * len(made),
            "capture_policy": [one["policy"] for one in made],
            "number": list(range(len(made))),
            "start_ns": starts,
            "duration_ns": [one["length_ns"] for one in made],
            "graphs": 51,
            "memory_bytes": [one.get("memory_bytes", 6_710_886_400) for one in made],
        },
        "pauses": {
            "generation": 2,
            "start_ns": [start for start, _ in pauses],
            "duration_ns": [length for _, length in pauses],
        },
        "census": {
            "point": ["capture"] * len(made),
            "t_ns": starts - 1,
            "tracked": 1_000_000 + np.arange(len(made)),
            "threshold_0": 700,
        },
    }
