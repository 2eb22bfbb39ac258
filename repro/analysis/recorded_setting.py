"""The setting of a recorded run, as input of `repro.theory.advice`."""

from __future__ import annotations

from repro import policy
from repro.analysis.arms import labels
from repro.analysis.ranks import policy_of
from repro.analysis.tails import step_intervals
from repro.analysis.trigger import kept_a_request
from repro.dataset import Campaign, in_window, subset
from repro.theory.advice import Setting


def settings(campaign: Campaign) -> dict[str, Setting]:
    """The setting of the first run of each arm that has one, by the arm's label."""
    found = {}
    for arm in labels(campaign):
        run = campaign.runs.loc[campaign.runs["arm"] == arm, "run"].iloc[0]
        try:
            found[arm] = setting_of(campaign, str(run))
        except ValueError:  # without load, a cross-over, or a Python without a rule
            continue
    return found


def setting_of(campaign: Campaign, run: str) -> Setting:
    """The setting of a recorded run, with what it measured of its worker.

    Raises
    ------
    repro.dataset.DatasetError, repro.theory.cpython_rule.UnknownCollector
        If there is no such run, or its Python has no rule.
    ValueError
        If the run drove no load, was a period of a cross-over, has no steps, or none of its
        workers was counted, as with executor `uni`.
    """
    one = subset(campaign, run=run)
    (row,) = one.runs.to_dict("records")
    if not row["output_tokens"]:
        raise ValueError(f"run {run}: drove no load; take a run with a client that does")
    if row["switch_s"]:
        raise ValueError(f"run {run}: a cross-over's heap has two policies; take a run of one")
    census = one.census[(one.census["role"] == "worker") & (one.census["point"] == "window-start")]
    if census.empty:
        raise ValueError(f"run {run}: no worker's heap was counted; take a run with executor 'mp'")
    if one.steps.empty:
        raise ValueError(f"run {run}: has no table of steps; take a run with one")
    heap = census[["tracked", "frozen"]].sum(axis=1).max()
    window = in_window(one, one.steps)
    steps = step_intervals(window)
    return Setting(
        # An API server that has more than it can do keeps requests back from the engine.
        concurrency=max(1, min(row["concurrency"], round(window["tokens"].median()))),
        ranks=row["tensor_parallel_size"] * row["data_parallel_size"],
        heap_objects=int(heap),
        python=row["python"],
        vllm=row["vllm"],
        device="cpu" if row["gpu_name"] is None else "cuda",
        policy=row["policy"] if row["policy"] != "stock" else policy_of(one, row["arm"]),
        output_tokens=row["answer_tokens"],  # no answer ends before its length asked for
        kept=kept_a_request(one),
        step_ms=float(steps["interval_ns"].median()) / 1e6,
        others_set=not any(
            policy.serving(row[f"{process}_policy"]).only_freezes
            for process in ("engine", "frontend")
        ),
    )
