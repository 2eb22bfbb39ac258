"""What the owner of a server might do about its collector, by a few plain rules."""

from __future__ import annotations

import pandas as pd

from repro import fmt
from repro.server.launches import Launch
from repro.server.numbers import worker_full

P99 = 0.01
"""A share of the steps from which P99 moves."""

LONG_HOLD_NS = 1_000_000_000
"""From this length on a client takes a hold of the event loop for a server that has hung."""


def advice(launch: Launch, shares: pd.DataFrame) -> list[str]:
    """Sentences, the most important first.

    Parameters
    ----------
    launch : Launch
        One that `served`.
    shares : pandas.DataFrame
        As `repro.server.numbers.hit_shares` returns.
    """
    full = worker_full(shares)
    said = [_about_workers(launch.worker_frozen, full)]
    others = shares[shares["role"] != "worker"].groupby("role")["step_share"].max()
    for role, share in others[others > max(full, P99)].items():
        said.append(
            f"Pauses of the {fmt.PROCESS[str(role)]} fall into {fmt.percent(share)} of the "
            "steps, more than those of the worker: no freeze of the worker changes that."
        )
    if launch.longest_hold_ns >= LONG_HOLD_NS:
        said.append(
            f"For up to {fmt.figures(launch.longest_hold_ns / 1e9)} s the API server's output "
            "handler worked off its backlog without letting a token out, which is no collection. "
            "It is the bottleneck: set VLLM_V1_OUTPUT_PROC_CHUNK_SIZE to max_num_seqs or more "
            "and REPRO_FRONTEND_POLICY=freeze-thresholds, or start more API servers; then record "
            "again."
        )
    if not launch.processes["complete"].all():
        said.append("The recording stopped early: free disk space and record again.")
    return said


def _about_workers(frozen: bool | None, full: float) -> str:
    hit = f"full collections of the worker hit {fmt.percent(full)} of the steps"
    if frozen:
        return f"The worker's heap is frozen, and {hit}: there is nothing left to freeze."
    if full == 0:
        return (
            f"Leave the worker as it is: {hit} of this recording. Record under your own peak load "
            "before you rely on that; few requests in flight cause few full collections."
        )
    moves = "P99" if full >= P99 else "P99.9 and the maximum" if full >= P99 / 10 else "the maximum"
    return (
        f"Freeze the worker: {hit}, which moves {moves}. Set REPRO_POLICY=freeze, or run vLLM "
        "0.23.0 or later on a GPU, where the worker freezes by itself; then record again."
    )
