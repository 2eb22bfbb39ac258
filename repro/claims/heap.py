"""Claims about heaps: which are frozen, what is scanned, and the cost in memory."""

from __future__ import annotations

import math

import pandas as pd

from repro import fmt
from repro.analysis.arms import FREEZE_ALONE, freezes, heaps, is_frozen, pairs
from repro.analysis.gc_cost import full_collections
from repro.analysis.release_comparison import freezes_itself
from repro.claims.registry import claim
from repro.claims.verdict import SAME, Outcome, Verdict, decided, outcome, sample_of, too_few
from repro.dataset import Campaign, in_window
from repro.stats.ratios import NEEDS_RUNS, ratio_of_runs
from repro.theory.cpython_rule import FULL

HARDLY_ANY = 0.1
"""Largest share of a frozen worker's objects that may still be tracked."""

RESTORED = 0.9
"""Share of the objects before shutdown that must be tracked again after `gc.unfreeze()`."""

MEMORY_GROWS = {
    Verdict.REPRODUCED: [(0.0, SAME[1])],
    Verdict.CONTRADICTED: [(SAME[1], math.inf)],
}


@claim(
    "engine-frozen",
    "The engine core's heap was frozen already.",
    criterion="contradicted: an engine core mostly unfrozen beside an unfrozen worker",
    needs="a census of the engine core in runs without the freeze",
)
def engine_already_frozen(campaign: Campaign) -> list[Outcome]:
    """Frozen objects of the engine core in runs without the freeze."""
    return _process_frozen(campaign, "engine", clients=("engine", "serve"))


@claim(
    "frontend-frozen",
    "The front end's heap was frozen already.",
    criterion="contradicted: an API server mostly unfrozen beside an unfrozen worker",
    needs="client `serve`: with client `engine` the load driver freezes the front end itself",
)
def frontend_already_frozen(campaign: Campaign) -> list[Outcome]:
    """Frozen objects of the API server; this package freezes the `engine` client's front end."""
    return _process_frozen(campaign, "frontend", clients=("serve",))


@claim(
    "worker-not-frozen",
    "The worker's heap was not frozen.",
    criterion="contradicted: a worker mostly frozen in a vLLM without the pull request",
    needs="a census of workers of vLLM before 0.23, or of its CPU backend",
)
def worker_not_frozen(campaign: Campaign) -> list[Outcome]:
    """Frozen objects of workers whose vLLM does not freeze by itself.

    Where it does, `no-freeze` would make the claim true by itself, so such runs are left out.
    """
    runs = campaign.runs
    upstream = runs[~freezes_itself(runs) & runs["policy"].isin(["stock", "no-freeze"])]
    rows = heaps(campaign, "worker", "window-start")
    rows = rows[rows["run"].isin(upstream["run"])]
    if rows.empty:
        return []
    return _of_heaps(rows, not is_frozen(rows).any(), "no worker was frozen", "a worker was frozen")


@claim(
    "not-scanned",
    "Frozen objects are not scanned.",
    criterion=f"reproduced: at most {HARDLY_ANY:.0%} of a frozen worker's objects are in sight of "
    "the collector; contradicted: more. The time of full collections is given beside it",
    needs="a census of frozen workers, and runs without the freeze beside them",
)
def frozen_objects_not_scanned(campaign: Campaign) -> list[Outcome]:
    """The share of a frozen worker's objects that a full collection still visits."""
    full = full_collections(campaign)
    full = full[full["role"] == "worker"]
    medians = full.groupby(["arm", "run"], observed=True)["duration_ns"].median()
    heap = heaps(campaign, "worker", "window-start")
    heap = heap.assign(seen=heap["tracked"] / (heap["tracked"] + heap["frozen"]))
    found = []
    for pair in pairs(campaign):
        counted = heap[heap["arm"] == pair.treated]
        if counted.empty:
            continue
        seen = float(counted["seen"].max())
        times = [
            medians[medians.index.get_level_values("arm") == arm]
            for arm in (pair.baseline, pair.treated)
        ]
        reason = "no full collections to time"
        if min(map(len, times)) >= NEEDS_RUNS:
            reason = f"full collections ×{fmt.ratio(ratio_of_runs(*map(list, times)))[1:]} as long"
        runs = dict.fromkeys(
            (*times[0].index.get_level_values("run"), *counted["run"].astype(object))
        )
        found.append(
            decided(
                seen <= HARDLY_ANY,
                number=f"{fmt.percent(seen)} of the heap in sight",
                reason=reason,
                runs=tuple(runs),
            )
        )
    return found


@claim(
    "no-collection",
    "After the freeze, inference triggers no collection any more.",
    criterion="contradicted: a collection of a frozen worker in the measured window",
    needs="runs with the freeze, the worker in a process of its own (`mp`)",
)
def no_collection_after_freeze(campaign: Campaign) -> list[Outcome]:
    """Collections of decoding workers under policies that only freeze."""
    runs = campaign.runs[campaign.runs["policy"].isin(FREEZE_ALONE)]
    frozen = [arm for arm in runs["arm"].unique() if freezes(campaign, arm) == "yes"]
    runs = runs[runs["arm"].isin(frozen) & (runs["executor"] != "uni")]
    if runs.empty:
        return []
    pauses = in_window(campaign, campaign.pauses)
    pauses = pauses[pauses["run"].isin(runs["run"]) & (pauses["role"] == "worker")]
    full = int((pauses["generation"] == FULL).sum())
    return [
        decided(
            pauses.empty,
            number=f"{fmt.plural(len(pauses), 'collection')} of workers, {full:,} of them full",
            reason="none was seen",
            otherwise="collections go on; the freeze makes them cheap",
            runs=tuple(runs["run"]),
        )
    ]


@claim(
    "unfreeze-restores",
    "`gc.unfreeze()` at shutdown restores normal collection.",
    criterion="reproduced: no object stays frozen, at least 90% are tracked again and the "
    "collector is on; contradicted: otherwise",
    needs="a census of frozen workers before and in shutdown",
)
def unfreeze_restores(campaign: Campaign) -> list[Outcome]:
    """The share of the worker's objects that are tracked after `gc.unfreeze()`.

    Only policy `freeze`: its census in shutdown follows the thaw. Untouched workers of later vLLM
    thaw in their own shutdown, after that census.
    """
    key = ["run", "rank", "pid"]
    before = heaps(campaign, "worker", "window-end").set_index(key)
    after = heaps(campaign, "worker", "shutdown").set_index(key)
    both = before.join(after.add_suffix("_after"), how="inner")
    both = both[both["policy"] == "freeze"]
    if both.empty:
        return []
    back = (both["tracked_after"] / (both["tracked"] + both["frozen"])).min()
    left = both["frozen_after"].max()
    return [
        decided(
            left == 0 and back >= RESTORED and bool(both["enabled_after"].all()),
            number=f"{fmt.count(left)} frozen, {fmt.percent(back)} of the objects tracked again",
            reason="nothing is left frozen and the objects are back",
            otherwise="objects stay frozen or are missing, or the collector stays off",
            runs=tuple(both.index.get_level_values("run").unique()),
        )
    ]


@claim(
    "memory-minimal",
    "The impact on memory is minimal.",
    criterion="reproduced: the worker's resident memory grows under 5%; contradicted: more",
    needs="a census at the window's end in runs with and without the freeze, two each",
    over_all=MEMORY_GROWS,
)
def memory_impact_minimal(campaign: Campaign) -> list[Outcome]:
    """The ratio of the worker's resident memory, with and without the freeze."""
    heap = heaps(campaign, "worker", "window-end")
    resident = heap[heap["rss_bytes"] > 0].groupby(["arm", "run"], observed=True)["rss_bytes"].sum()
    found = []
    for pair in pairs(campaign):
        if not {pair.baseline, pair.treated} <= set(resident.index.get_level_values("arm")):
            continue
        before, after = resident[pair.baseline], resident[pair.treated]
        ratio = ratio_of_runs(before.tolist(), after.tolist())
        runs = (*before.index, *after.index)
        name = "resident memory of the worker"
        if not ratio.supported:
            found.append(too_few(ratio, name, runs, "runs per arm"))
            continue
        reasons = {
            Verdict.REPRODUCED: "it grows by less than 5%, if at all",
            Verdict.CONTRADICTED: "it grows by more than 5%",
            Verdict.UNDECIDED: "the interval leaves growth by 5% open",
        }
        sample = sample_of(campaign, runs)
        found.append(outcome(ratio, MEMORY_GROWS, sample, name=name, runs=runs, reasons=reasons))
    return found


@claim(
    "no-configuration",
    "Nobody need configure anything: the worker freezes by itself.",
    criterion="contradicted: an unfrozen worker of vLLM 0.23 or later with policy `stock`",
    needs="runs with policy `stock` on a GPU and vLLM 0.23 or later",
)
def no_configuration_needed(campaign: Campaign) -> list[Outcome]:
    """Frozen objects of GPU workers of an untouched vLLM with the pull request."""
    runs = campaign.runs
    rows = heaps(campaign, "worker", "window-start")
    untouched = runs[freezes_itself(runs) & (runs["policy"] == "stock")]
    rows = rows[rows["run"].isin(untouched["run"])]
    if rows.empty:
        return []
    every = "every stock worker was frozen"
    return _of_heaps(rows, is_frozen(rows).all(), every, "a stock worker was not frozen")


def _process_frozen(campaign: Campaign, role: str, clients: tuple[str, ...]) -> list[Outcome]:
    runs = campaign.runs[campaign.runs["client"].isin(clients)]
    runs = runs[runs[f"{role}_policy"] == "stock"]
    arms = [arm for arm in runs["arm"].unique() if freezes(campaign, arm) == "no"]
    runs = runs[runs["arm"].isin(arms)]
    rows = heaps(campaign, role, "window-start")
    rows = rows[rows["run"].isin(runs["run"])]
    if rows.empty:
        return []
    name = fmt.PROCESS[role]
    every = f"in every run without the freeze the {name} was frozen"
    return _of_heaps(rows, is_frozen(rows).all(), every, f"a {name} was not frozen")


def _of_heaps(census: pd.DataFrame, holds: bool, because: str, else_because: str) -> list[Outcome]:
    """The outcome of counted heaps, with their mean counts."""
    mean = census[["frozen", "tracked"]].mean()
    return [
        decided(
            holds,
            number=f"{fmt.count(mean['frozen'])} frozen, {fmt.count(mean['tracked'])} tracked",
            reason=because,
            otherwise=else_because,
            runs=tuple(census["run"].unique()),
        )
    ]
