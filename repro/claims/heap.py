"""What decides the claims about heaps: who was frozen, what is scanned, what it costs."""

from __future__ import annotations

import numpy as np
import pandas as pd

from repro import fmt
from repro.analysis.arms import FREEZE_ALONE, freezes, heaps, is_frozen, pairs
from repro.analysis.gc_cost import FULL, full_collections
from repro.analysis.release_comparison import freezes_itself
from repro.claims.verdict import SAME, Finding, Verdict, unsupported
from repro.dataset import Campaign, in_window
from repro.stats.ratios import ratio_of_runs

SHORTER = 1 / 20
"""How much shorter a full collection must be for its objects not to have been scanned."""

HARDLY_ANY = 0.1
"""Share of a frozen worker's objects that may be left for the collector to see."""

RESTORED = 0.9
"""Share of the objects before shutdown that must be tracked again after `gc.unfreeze()`."""


def engine_already_frozen(campaign: Campaign) -> list[Finding]:
    """Frozen objects of the engine core where no worker was frozen."""
    return _process_frozen(campaign, "engine", clients=("engine", "serve"))


def frontend_already_frozen(campaign: Campaign) -> list[Finding]:
    """Frozen objects of the API server; the `engine` client's front end is frozen by us."""
    return _process_frozen(campaign, "frontend", clients=("serve",))


def worker_not_frozen(campaign: Campaign) -> list[Finding]:
    """Frozen objects of workers whose vLLM is without the freeze and untouched.

    `no-freeze` would not do where vLLM freezes by itself: there the policy makes it true.
    """
    runs = campaign.runs
    upstream = runs[~freezes_itself(runs) & runs["policy"].isin(["stock", "no-freeze"])]
    rows = heaps(campaign, "worker", "window-start")
    rows = rows[rows["run"].isin(upstream["run"])]
    if rows.empty:
        return []
    return _of_heaps(rows, not is_frozen(rows).any(), "no worker was frozen", "a worker was frozen")


def no_configuration_needed(campaign: Campaign) -> list[Finding]:
    """Frozen objects of GPU workers of an untouched vLLM that has the pull request."""
    runs = campaign.runs
    rows = heaps(campaign, "worker", "window-start")
    untouched = runs[freezes_itself(runs) & (runs["policy"] == "stock")]
    rows = rows[rows["run"].isin(untouched["run"])]
    if rows.empty:
        return []
    every = "every stock worker was frozen"
    return _of_heaps(rows, is_frozen(rows).all(), every, "a stock worker was not frozen")


def frozen_objects_not_scanned(campaign: Campaign) -> list[Finding]:
    """Full collections of the worker with over without the freeze, and what they still see."""
    full = full_collections(campaign)
    medians = (
        full[full["role"] == "worker"]
        .groupby(["arm", "run"], observed=True)["duration_ns"]
        .median()
    )
    heap = heaps(campaign, "worker", "window-start")
    heap = heap.assign(seen=heap["tracked"] / (heap["tracked"] + heap["frozen"]))
    findings = []
    for pair in pairs(campaign):
        if not {pair.baseline, pair.treated} <= set(medians.index.get_level_values("arm")):
            continue
        seen = heap.loc[heap["arm"] == pair.treated, "seen"].max()
        ratio = ratio_of_runs(medians[pair.baseline].tolist(), medians[pair.treated].tolist())
        runs = (*medians[pair.baseline].index, *medians[pair.treated].index)
        if not ratio.supported or np.isnan(seen):
            what = "the length of full collections"
            findings.append(unsupported(ratio, what, runs, "runs an arm with a full collection"))
            continue
        if ratio.high < SHORTER and seen <= HARDLY_ANY:
            verdict, reason = Verdict.REPRODUCED, "a full collection is over 20 times shorter"
        elif ratio.high >= 1 or seen > 0.5:
            verdict, reason = Verdict.CONTRADICTED, "a full collection still sees what was frozen"
        else:
            verdict, reason = Verdict.NOT_REPRODUCED, "shorter, but not surely 20 times"
        number = f"full collection {fmt.ratio(ratio)}, {fmt.percent(seen)} of the heap in sight"
        findings.append(Finding(verdict=verdict, number=number, reason=reason, runs=runs))
    return findings


def no_collection_after_freeze(campaign: Campaign) -> list[Finding]:
    """Collections of decoding workers whose heap is frozen, and nothing else is done to it."""
    runs = campaign.runs[campaign.runs["policy"].isin(FREEZE_ALONE)]
    frozen = [arm for arm in runs["arm"].unique() if freezes(campaign, arm) == "yes"]
    runs = runs[runs["arm"].isin(frozen) & (runs["executor"] != "uni")]
    if runs.empty:
        return []
    pauses = in_window(campaign, campaign.pauses)
    pauses = pauses[pauses["run"].isin(runs["run"]) & (pauses["role"] == "worker")]
    full = int((pauses["generation"] == FULL).sum())
    none = pauses.empty
    return [
        Finding(
            verdict=Verdict.REPRODUCED if none else Verdict.CONTRADICTED,
            number=f"{fmt.plural(len(pauses), 'collection')} of workers, {full:,} of them full",
            reason="none was seen" if none else "collections go on; the freeze makes them cheap",
            runs=tuple(runs["run"]),
        )
    ]


def unfreeze_restores(campaign: Campaign) -> list[Finding]:
    """What the collector sees after `gc.unfreeze()` over what the worker held before.

    Of policy `freeze` alone: its census in shutdown is taken after the thaw. Untouched workers
    of later vLLM thaw in their own shutdown, after that census.
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
    if left > 0 or not both["enabled_after"].all():
        verdict, reason = Verdict.CONTRADICTED, "objects stay frozen or the collector stays off"
    elif back >= RESTORED:
        verdict, reason = Verdict.REPRODUCED, "nothing is left frozen and the objects are back"
    else:
        verdict, reason = Verdict.NOT_REPRODUCED, "nothing is left frozen, but objects are missing"
    number = f"{fmt.count(left)} frozen, {fmt.percent(back)} of the objects tracked again"
    runs = tuple(both.index.get_level_values("run").unique())
    return [Finding(verdict=verdict, number=number, reason=reason, runs=runs)]


def memory_impact_minimal(campaign: Campaign) -> list[Finding]:
    """Resident memory of the worker at the end of the window, with over without the freeze."""
    heap = heaps(campaign, "worker", "window-end")
    resident = heap[heap["rss_bytes"] > 0].groupby(["arm", "run"], observed=True)["rss_bytes"].sum()
    findings = []
    for pair in pairs(campaign):
        if not {pair.baseline, pair.treated} <= set(resident.index.get_level_values("arm")):
            continue
        before, after = resident[pair.baseline], resident[pair.treated]
        ratio = ratio_of_runs(before.tolist(), after.tolist())
        runs = (*before.index, *after.index)
        name = "resident memory of the worker"
        if not ratio.supported:
            findings.append(unsupported(ratio, name, runs, "runs an arm"))
            continue
        if ratio.high < SAME[1]:
            verdict, reason = Verdict.REPRODUCED, "it grows by less than 5%, if at all"
        elif ratio.low > SAME[1]:
            verdict, reason = Verdict.CONTRADICTED, "it grows by more than 5%"
        else:
            verdict, reason = Verdict.NOT_REPRODUCED, "the interval leaves growth by 5% open"
        number = f"{name} {fmt.ratio(ratio)}"
        findings.append(Finding(verdict=verdict, number=number, reason=reason, runs=runs))
    return findings


def _process_frozen(campaign: Campaign, role: str, clients: tuple[str, ...]) -> list[Finding]:
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


def _of_heaps(census: pd.DataFrame, holds: bool, because: str, else_because: str) -> list[Finding]:
    """What the counted heaps say, with their mean counts."""
    mean = census[["frozen", "tracked"]].mean()
    return [
        Finding(
            verdict=Verdict.REPRODUCED if holds else Verdict.CONTRADICTED,
            number=f"{fmt.count(mean['frozen'])} frozen, {fmt.count(mean['tracked'])} tracked",
            reason=because if holds else else_because,
            runs=tuple(census["run"].unique()),
        )
    ]
