"""Times of CUDA graph captures (on the CPU: compilations) and the collector's share of them."""

from __future__ import annotations

import numpy as np
import pandas as pd

from repro.dataset import Campaign
from repro.dataset.schema import NS_PER_S
from repro.stats.estimate import Estimate
from repro.stats.ratios import ratio_of_pairs, ratio_of_runs
from repro.theory.cpython_rule import FULL

BASELINE = "gc-on"
"""The capture policy that all others are compared with."""

CAPTURE_SETTING = ["comparable", "graphs", "model", "vllm", "runner"]
"""Columns that captures must share to be compared."""

NEEDS_BLOCKS = 3
"""With fewer, captures are compared without regard to blocks: Student's interval on the difference
of one pair and another would be three times as wide."""

_ABOUT = ["run", "arm", "policy", "model", "vllm", "runner", "machine", "comparable"]
_COUNTS = ["collections_0", "collections_1", "collections_2"]


def capture_times(campaign: Campaign) -> pd.DataFrame:
    """One row per capture of CUDA graphs or, on the CPU, per compilation.

    All ranks capture in parallel, so a capture's time is that of its slowest rank.

    Returns
    -------
    pandas.DataFrame
        `run`, `arm`, `policy`, `model`, `vllm`, `runner`, `machine`, `comparable`,
        `kind` ("capture" or "compile"), `capture_policy`, `number` (0 at start-up), `again`
        (whether its process had captured before), `block` (of repeated captures, one per policy;
        -1 at start-up), `capture_s`, `gc_s` (total of the capturing process's pauses that begin
        within the span), `besides_gc_s` (the rest), `full_s` (the longest of the pauses),
        `collections_0`, `collections_1`, `collections_2` (their number), `heap` (objects tracked
        before, NaN where not counted), `containers` (tracked allocations less deallocations
        during the capture, from the number of passes; NaN likewise), `graphs`, `memory_bytes`.
    """
    spans = campaign.captures.rename(columns={"rank": "capturing"})
    spans = spans.assign(end_ns=spans["start_ns"] + spans["duration_ns"])
    slowest = spans.sort_values("duration_ns").drop_duplicates(["run", "number"], keep="last")
    slowest = slowest.sort_values(["run", "number"]).astype({"run": str})
    times = campaign.runs.drop(columns="capture_policy").merge(slowest, on="run")
    # With `uni` the worker lives in the engine core.
    times["role"] = times["executor"].map({"uni": "engine"}).fillna("worker")
    times = times.merge(_collections(times, campaign.pauses), on=["run", "number"], how="left")
    times = times.merge(
        _heaps(campaign.census), on=["run", "role", "capturing", "number"], how="left"
    )
    times[_COUNTS] = times[_COUNTS].fillna(0).astype("int64")
    again = times["number"] > 0
    in_turn = times[again].groupby("run")["capture_policy"].nunique()
    turn = (times["number"] - 1) // times["run"].map(in_turn).astype("float64").fillna(1)
    made = times["collections_0"] + times["collections_1"]
    return times[[*_ABOUT, "kind", "capture_policy", "number"]].assign(
        again=again,
        block=turn.where(again, -1).astype("int64"),
        capture_s=times["duration_ns"] / NS_PER_S,
        gc_s=times["lost_ns"].fillna(0) / NS_PER_S,
        besides_gc_s=(times["duration_ns"] - times["lost_ns"].fillna(0)) / NS_PER_S,
        full_s=times["longest_ns"].fillna(0) / NS_PER_S,
        **{name: times[name] for name in _COUNTS},
        heap=times["heap"],
        containers=made * times["threshold_0"],
        graphs=times["graphs"],
        memory_bytes=times["memory_bytes"],
    )


def principal(times: pd.DataFrame) -> pd.DataFrame:
    """The repeated captures of each setting, or the start-up captures where none was repeated.

    A start-up capture includes work that a process does once, such as loading kernels.
    """
    kept = [
        group[group["again"]] if group["again"].any() else group
        for _, group in times.groupby([*CAPTURE_SETTING, "kind"])
    ]
    return pd.concat(kept) if kept else times


def policy_effects(times: pd.DataFrame) -> pd.DataFrame:
    """Each capture policy's time over that of `gc-on`, start-up and repeated captures apart.

    Parameters
    ----------
    times : pandas.DataFrame
        From `capture_times`; compilations are left out.

    Returns
    -------
    pandas.DataFrame
        One row per setting, `again` and policy: `CAPTURE_SETTING`, `again`, `capture_policy`,
        `ratio` and `besides_gc` (`Estimate`; the latter without the pauses), `runs` (tuple).
    """
    rows = []
    times = times[times["kind"] == "capture"]
    for setting, group in times.groupby([*CAPTURE_SETTING, "again"]):
        of_policy = dict(list(group.groupby("capture_policy")))
        before = of_policy.pop(BASELINE, None)
        if before is None:
            continue
        for name, after in of_policy.items():
            rows.append(
                dict(zip([*CAPTURE_SETTING, "again"], setting, strict=True))
                | {
                    "capture_policy": name,
                    "ratio": compared(before, after, "capture_s"),
                    "besides_gc": compared(before, after, "besides_gc_s"),
                    "runs": tuple(dict.fromkeys((*before["run"], *after["run"]))),
                }
            )
    columns = [*CAPTURE_SETTING, "again", "capture_policy", "ratio", "besides_gc", "runs"]
    return pd.DataFrame(rows, columns=columns)


def compared(before: pd.DataFrame, after: pd.DataFrame, column: str) -> Estimate:
    """Captures of one policy over those of another, block by block where they took turns.

    Captures of a block share their process and the minute, which differ more than policies do.

    Parameters
    ----------
    before, after : pandas.DataFrame
        Rows of `capture_times`, of one setting and one policy each.
    column : str
        What is compared.
    """
    blocks = [part.set_index(["run", "block"])[column] for part in (before, after)]
    both = pd.concat(blocks, axis=1, join="inner", keys=["before", "after"])
    if before["again"].all() and len(both) >= NEEDS_BLOCKS:
        return ratio_of_pairs(both["before"], both["after"])
    return ratio_of_runs(before[column], after[column])


def collector_share(times: pd.DataFrame) -> Estimate:
    """The collector's share of captures, an upper bound on what any policy can save.

    It varies far less than the captures' time, so it bounds an effect that the ratio of two
    policies' times leaves open.

    Parameters
    ----------
    times : pandas.DataFrame
        Rows of `capture_times`, of one setting and policy.

    Returns
    -------
    Estimate
        With Student's interval over captures; not supported below two, or if one had no pause.
    """
    met = times[times["gc_s"] > 0] if (times["gc_s"] > 0).all() else times[:0]
    return ratio_of_pairs(met["capture_s"], met["gc_s"])


def again_over_first(times: pd.DataFrame) -> pd.DataFrame:
    """Repeated captures over the start-up capture of the same run and policy.

    Returns
    -------
    pandas.DataFrame
        One row per setting: `CAPTURE_SETTING`, `time` and `memory` (`Estimate`, over runs), `runs`
        (tuple).
    """
    rows = []
    times = times[times["kind"] == "capture"]
    for setting, group in times.groupby(CAPTURE_SETTING):
        pairs = [pair for _, run in group.groupby("run") if (pair := _first_and_again(run))]
        if not pairs:
            continue
        first, again = (pd.DataFrame(part) for part in zip(*pairs, strict=True))
        rows.append(
            dict(zip(CAPTURE_SETTING, setting, strict=True))
            | {
                "time": ratio_of_pairs(first["capture_s"], again["capture_s"]),
                "memory": ratio_of_pairs(first["memory_bytes"], again["memory_bytes"]),
                "runs": tuple(first["run"]),
            }
        )
    return pd.DataFrame(rows, columns=[*CAPTURE_SETTING, "time", "memory", "runs"])


def same_memory_again(times: pd.DataFrame, within: tuple[float, float]) -> pd.DataFrame:
    """The captures whose memory counts: start-up captures, and repeated ones that took as much.

    A driver may keep the memory of a discarded graph, and the next capture then seems to need
    less. A run's repeated captures therefore count only where those under the policy of its
    start-up capture took as much memory as that one.

    Parameters
    ----------
    times : pandas.DataFrame
        From `capture_times`.
    within : tuple of float
        Lowest and highest ratio that counts as the same.
    """
    low, high = within
    alike = []
    for name, run in times.groupby("run"):
        pair = _first_and_again(run)
        if pair and low <= pair[1]["memory_bytes"] / max(pair[0]["memory_bytes"], 1) <= high:
            alike.append(name)
    return times[~times["again"] | times["run"].isin(alike)]


def _first_and_again(run: pd.DataFrame) -> tuple[pd.Series, pd.Series] | None:
    """A run's start-up capture, and the geometric mean of later ones under the same policy."""
    first = run[~run["again"]].iloc[0]
    again = run[run["again"] & (run["capture_policy"] == first["capture_policy"])]
    if again.empty or (again["memory_bytes"] <= 0).any() or first["memory_bytes"] <= 0:
        return None
    return first, np.exp(np.log(again[["capture_s", "memory_bytes"]]).mean())


def _collections(times: pd.DataFrame, pauses: pd.DataFrame) -> pd.DataFrame:
    """The pauses of the capturing process that begin within each capture's span."""
    key = ["run", "number"]
    span = times[[*key, "role", "capturing", "start_ns", "end_ns"]].rename(
        columns={"start_ns": "span_start_ns", "end_ns": "span_end_ns", "capturing": "rank"}
    )
    # As text: the pauses' categories may name runs that captured nothing.
    pauses = pauses.assign(run=pauses["run"].astype(str))
    rows = pauses.merge(span, on=["run", "role", "rank"])
    rows = rows[rows["start_ns"].between(rows["span_start_ns"], rows["span_end_ns"])]
    counts = pd.crosstab([rows["run"], rows["number"]], rows["generation"])
    counts = counts.reindex(columns=range(FULL + 1), fill_value=0)
    counts.columns = pd.Index(_COUNTS)
    lost = rows.groupby(key)["duration_ns"].agg(lost_ns="sum", longest_ns="max")
    return lost.join(counts).reset_index()


def _heaps(census: pd.DataFrame) -> pd.DataFrame:
    """The heap before each capture, from the census taken just before it."""
    before = census[census["point"] == "capture"].sort_values("t_ns")
    before = before.assign(run=before["run"].astype(str)).rename(
        columns={"rank": "capturing", "tracked": "heap"}
    )
    before["number"] = before.groupby(["run", "role", "capturing"]).cumcount()
    return before[["run", "role", "capturing", "number", "heap", "threshold_0"]]
