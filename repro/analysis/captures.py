"""How long capturing CUDA graphs (on the CPU: compiling) took, and the collector's part in it."""

from __future__ import annotations

import pandas as pd

from repro.dataset import Campaign

NS_PER_S = 1e9

_ABOUT = ["run", "arm", "policy", "capture_policy", "model", "vllm", "machine", "comparable"]
_COUNTS = ["collections_0", "collections_1", "collections_2"]


def capture_times(campaign: Campaign) -> pd.DataFrame:
    """One row a run that captured CUDA graphs or, on the CPU, compiled.

    All workers capture side by side, so the run's time is that of its slowest rank.

    Parameters
    ----------
    campaign : Campaign

    Returns
    -------
    pandas.DataFrame
        `run`, `arm`, `policy`, `capture_policy`, `model`, `vllm`, `machine`, `comparable`,
        `kind` ("capture" or "compile"), `capture_s`, `gc_s` (the pauses of the capturing process
        that begin within the span, added up), `collections_0`, `collections_1`, `collections_2`
        (how many there were), `graphs`, `memory_bytes`.
    """
    spans = campaign.captures.assign(end_ns=lambda span: span["start_ns"] + span["duration_ns"])
    slowest = spans.sort_values("duration_ns").drop_duplicates("run", keep="last")
    runs = campaign.runs.merge(slowest, on="run").rename(columns={"rank": "capturing"})
    inside = _pauses_inside(runs, campaign.pauses)
    counts = pd.crosstab(inside["run"], inside["generation"]).reindex(
        index=runs["run"], columns=range(3), fill_value=0
    )
    lost = inside.groupby("run")["duration_ns"].sum().reindex(runs["run"], fill_value=0)
    return runs[[*_ABOUT, "kind"]].assign(
        capture_s=runs["duration_ns"] / NS_PER_S,
        gc_s=lost.to_numpy() / NS_PER_S,
        **dict(zip(_COUNTS, counts.to_numpy().T, strict=True)),
        graphs=runs["graphs"],
        memory_bytes=runs["memory_bytes"],
    )


def _pauses_inside(runs: pd.DataFrame, pauses: pd.DataFrame) -> pd.DataFrame:
    """The pauses of each run's capturing process that begin within its span."""
    span = runs[["run", "capturing", "start_ns", "end_ns"]].rename(
        columns={"start_ns": "span_start_ns", "end_ns": "span_end_ns"}
    )
    # With `uni` the worker lives in the engine core.
    span = span.assign(role=runs["executor"].map({"uni": "engine"}).fillna("worker"))
    # Plain text: the pauses' categories may name runs that captured nothing.
    rows = pauses.assign(run=pauses["run"].astype(str)).merge(
        span.assign(run=span["run"].astype(str)), on=["run", "role"]
    )
    within = rows["start_ns"].between(rows["span_start_ns"], rows["span_end_ns"])
    return rows[within & (rows["rank"] == rows["capturing"])]
