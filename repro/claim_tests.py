"""What decides each claim: one test a claim, from a campaign to its findings.

A test says what one campaign measured, or nothing where the campaign cannot tell. Every test is
one that data could fail: where an interval leaves both answers open the verdict is
`not reproduced`, never `reproduced`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

import numpy as np
import pandas as pd

from repro import words
from repro.analysis.arms import Pair, freezes, heaps, is_frozen, pairs
from repro.analysis.gc_cost import FULL, full_collections
from repro.analysis.one_rank import bases
from repro.analysis.ranks import against_prediction
from repro.analysis.ratios import ratio_of_runs
from repro.analysis.release import FIRST_FROZEN, likeness, release, twins
from repro.analysis.tails import Estimate, Metric, effect
from repro.dataset import Campaign, in_window
from repro.prediction import sentence

SAME = (0.95, 1.05)
"""A ratio whose whole interval lies in here is called no difference."""

SAME_TAIL = (0.9, 1.1)
"""Wider for the tail: P99 of two equal arms varies more than a capture's time does."""

DRASTIC = 0.8
"""At least a fifth lower; the one public number for such a change (LightLLM #1382) is 0.82."""

SHORTER = 1 / 20
"""How much shorter a full collection must be for its objects not to have been scanned."""

HARDLY_ANY = 0.1
"""Share of a frozen worker's objects that may be left for the collector to see."""

RESTORED = 0.9
"""Share of the objects before shutdown that must be tracked again after `gc.unfreeze()`."""

AS_LONG = (0.5, 2.0)
"""Collections whose ratio lies in here are as long as each other: the freeze changes them by more
than twenty times."""


class Verdict(StrEnum):
    """What the data say of a claim."""

    REPRODUCED = "reproduced"
    NOT_REPRODUCED = "not reproduced"
    CONTRADICTED = "contradicted"
    PREDICTED = "predicted"
    NOT_MEASURED = "not measured here"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What one campaign says of a claim.

    Attributes
    ----------
    verdict : Verdict
    number : str
        The measured number the verdict rests on, with its interval where it has one.
    reason : str
        Why this number gives this verdict.
    runs : tuple of str
        The runs used.
    """

    verdict: Verdict
    number: str
    reason: str
    runs: tuple[str, ...]


# --- the tail -----------------------------------------------------------------------------


def p99_falls(campaign: Campaign) -> list[Finding]:
    """P99 ITL with over without the freeze, where the worker is a process of its own."""
    return [
        _tail_falls(campaign, pair)
        for pair in pairs(campaign)
        if _setting(campaign, pair, "executor") != "uni"
        and _setting(campaign, pair, "data_parallel_size") == 1
    ]


def p99_falls_wide_ep(campaign: Campaign) -> list[Finding]:
    """The same with several data-parallel ranks that share their experts, as WideEP has them."""
    return [
        _tail_falls(campaign, pair)
        for pair in pairs(campaign)
        if _setting(campaign, pair, "data_parallel_size") > 1
        and _setting(campaign, pair, "enable_expert_parallel")
    ]


def p99_rises_with_width(campaign: Campaign) -> list[Finding]:
    """The width at which one rank's pauses become the group's P99: a prediction until measured."""
    basis = next(iter(bases(campaign)), None)
    if basis is None:
        return []
    held = against_prediction(campaign)
    held = held[(held["quantile"] == 0.99) & (held["kind"] == "DP")]
    if held.empty:
        verdict, reason = Verdict.PREDICTED, "from one rank; no wider group was measured"
    elif held["inside"].all():
        verdict, reason = Verdict.REPRODUCED, "every group measured lies within the prediction"
    else:
        outside = held.loc[~held["inside"]].iloc[0]
        off = f"{outside['ranks']} ranks measure ×{words.figures(outside['off'])} of it"
        verdict, reason = Verdict.CONTRADICTED, f"outside the prediction: {off}"
    runs = (*basis.runs, *campaign.runs.loc[campaign.runs["arm"].isin(held["arm"]), "run"])
    return [Finding(verdict=verdict, number=sentence(basis), reason=reason, runs=runs)]


def nothing_changes_with_uni(campaign: Campaign) -> list[Finding]:
    """P99 ITL with over without the freeze, where the worker lives in the engine core."""
    findings = []
    for pair in pairs(campaign):
        if _setting(campaign, pair, "executor") != "uni":
            continue
        ratio, name = _tail_ratio(campaign, pair)
        runs = _runs(campaign, pair)
        workers = campaign.pauses[campaign.pauses["run"].isin(runs)]["role"].eq("worker").any()
        if workers:
            findings.append(
                Finding(
                    verdict=Verdict.CONTRADICTED,
                    number="a worker process",
                    reason="with `uni` the worker was a process of its own",
                    runs=runs,
                )
            )
        elif not ratio.supported:
            findings.append(unsupported(ratio, name, runs))
        else:
            findings.append(same(ratio, SAME_TAIL, name, runs))
    return findings


def _tail_falls(campaign: Campaign, pair: Pair) -> Finding:
    ratio, name = _tail_ratio(campaign, pair)
    runs = _runs(campaign, pair)
    if not ratio.supported:
        return unsupported(ratio, name, runs)
    if ratio.high < DRASTIC:
        verdict, reason = Verdict.REPRODUCED, f"{name} falls by more than a fifth"
    elif ratio.low > 1:
        verdict, reason = Verdict.CONTRADICTED, f"{name} rises"
    elif ratio.high < 1:
        verdict, reason = Verdict.NOT_REPRODUCED, f"{name} falls, but not surely by a fifth"
    else:
        verdict, reason = Verdict.NOT_REPRODUCED, f"the interval of {name} includes no change"
    number = f"{name} {words.ratio(ratio)}"
    return Finding(
        verdict=verdict, number=number, reason=reason + _further(campaign, pair), runs=runs
    )


def _tail_ratio(campaign: Campaign, pair: Pair, quantile: float = 0.99) -> tuple[Estimate, str]:
    """The effect on ITL; on the step interval, where the client recorded no single tokens."""
    seen = campaign.itl["run"].isin(_runs(campaign, pair)).any()
    metric: Metric = "itl" if seen else "step_interval"
    ratio = effect(campaign, pair.baseline, pair.treated, quantile, metric)
    name = {"itl": "ITL", "step_interval": "step interval"}[metric]
    return ratio, f"{words.quantile(quantile)} {name}"


def _further(campaign: Campaign, pair: Pair) -> str:
    """The tail beyond P99, for a claim that may be right further out."""
    beyond = [_tail_ratio(campaign, pair, quantile) for quantile in (0.999, 1.0)]
    said = [f"{name} {words.ratio(ratio)}" for ratio, name in beyond if ratio.supported]
    where = f"; {pair.setting}" if pair.setting else ""
    return (f"; {', '.join(said)}" if said else "") + where


def patch_is_the_release(campaign: Campaign) -> list[Finding]:
    """Worker's full collections after over before the pull request, where the policy evens it."""
    findings = []
    for pair in twins(campaign):
        ratios = likeness(campaign, pair)
        chosen = campaign.runs["arm"].isin([pair.before, pair.after])
        runs = tuple(campaign.runs.loc[chosen, "run"])
        ratio = ratios.pop("full collection")
        if not ratio.supported:
            what = "the length of full collections"
            findings.append(unsupported(ratio, what, runs, "runs an arm with a full collection"))
            continue
        name = f"full collection, {pair.after} over {pair.before}"
        found = same(ratio, AS_LONG, name, runs)
        rest = ", ".join(f"{k} {words.ratio(r)}" for k, r in ratios.items() if r.supported)
        findings.append(replace(found, reason=f"{found.reason}; {rest}"))
    return findings


# --- the heap -----------------------------------------------------------------------------


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
    # The CPU worker is without the freeze in every release.
    without = runs["gpu_name"].isna() | (runs["vllm"].map(release) < FIRST_FROZEN)
    upstream = runs[without & runs["policy"].isin(["stock", "no-freeze"])]
    rows = heaps(campaign, "worker", "window-start")
    rows = rows[rows["run"].isin(upstream["run"])]
    if rows.empty:
        return []
    return _of_heaps(rows, not is_frozen(rows).any(), "no worker was frozen", "a worker was frozen")


def no_configuration_needed(campaign: Campaign) -> list[Finding]:
    """Frozen objects of GPU workers of an untouched vLLM that has the pull request."""
    runs = campaign.runs
    has_it = runs["gpu_name"].notna() & (runs["vllm"].map(release) >= FIRST_FROZEN)
    rows = heaps(campaign, "worker", "window-start")
    rows = rows[rows["run"].isin(runs.loc[has_it & (runs["policy"] == "stock"), "run"])]
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
        number = f"full collection {words.ratio(ratio)}, {words.percent(seen)} of the heap in sight"
        findings.append(Finding(verdict=verdict, number=number, reason=reason, runs=runs))
    return findings


def no_collection_after_freeze(campaign: Campaign) -> list[Finding]:
    """Collections of frozen workers while they decode."""
    frozen = [arm for arm in campaign.runs["arm"].unique() if freezes(campaign, arm) == "yes"]
    runs = campaign.runs[campaign.runs["arm"].isin(frozen) & (campaign.runs["executor"] != "uni")]
    if runs.empty:
        return []
    pauses = in_window(campaign, campaign.pauses)
    pauses = pauses[pauses["run"].isin(runs["run"]) & (pauses["role"] == "worker")]
    full = int((pauses["generation"] == FULL).sum())
    none = pauses.empty
    return [
        Finding(
            verdict=Verdict.REPRODUCED if none else Verdict.CONTRADICTED,
            number=f"{words.plural(len(pauses), 'collection')} of workers, {full:,} of them full",
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
    number = f"{words.count(left)} frozen, {words.percent(back)} of the objects tracked again"
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
        number = f"{name} {words.ratio(ratio)}"
        findings.append(Finding(verdict=verdict, number=number, reason=reason, runs=runs))
    return findings


def _process_frozen(campaign: Campaign, role: str, clients: tuple[str, ...]) -> list[Finding]:
    arms = [arm for arm in campaign.runs["arm"].unique() if freezes(campaign, arm) == "no"]
    runs = campaign.runs[campaign.runs["arm"].isin(arms) & campaign.runs["client"].isin(clients)]
    rows = heaps(campaign, role, "window-start")
    rows = rows[rows["run"].isin(runs["run"])]
    if rows.empty:
        return []
    name = words.PROCESS[role]
    every = f"in every run without the freeze the {name} was frozen"
    return _of_heaps(rows, is_frozen(rows).all(), every, f"a {name} was not frozen")


def _of_heaps(census: pd.DataFrame, holds: bool, because: str, else_because: str) -> list[Finding]:
    """What the counted heaps say, with their mean counts."""
    mean = census[["frozen", "tracked"]].mean()
    return [
        Finding(
            verdict=Verdict.REPRODUCED if holds else Verdict.CONTRADICTED,
            number=f"{words.count(mean['frozen'])} frozen, {words.count(mean['tracked'])} tracked",
            reason=because if holds else else_because,
            runs=tuple(census["run"].unique()),
        )
    ]


# --- shared -------------------------------------------------------------------------------


def same(ratio: Estimate, within: tuple[float, float], name: str, runs: tuple[str, ...]) -> Finding:
    """No difference, if the interval lies within the margin; a difference, if it lies outside."""
    low, high = within
    margin = words.bounds(low, high)
    if low <= ratio.low and ratio.high <= high:
        verdict, reason = Verdict.REPRODUCED, f"the interval lies within {margin}"
    elif ratio.high < low or ratio.low > high:
        verdict, reason = Verdict.CONTRADICTED, f"the interval lies outside {margin}"
    else:
        verdict, reason = Verdict.NOT_REPRODUCED, f"the interval is not within {margin}: undecided"
    return Finding(verdict=verdict, number=f"{name} {words.ratio(ratio)}", reason=reason, runs=runs)


def unsupported(
    ratio: Estimate, name: str, runs: tuple[str, ...], unit: str = "steps an arm"
) -> Finding:
    """Nothing can be said: fewer of `unit` than the ratio needs."""
    return Finding(
        verdict=Verdict.NOT_MEASURED,
        number="–",
        reason=f"{name} needs {ratio.needs:,} {unit}, there are {ratio.steps:,}",
        runs=runs,
    )


def _setting(campaign: Campaign, pair: Pair, column: str) -> Any:
    """A parameter that both arms of a pair share."""
    return campaign.runs.loc[campaign.runs["arm"] == pair.treated, column].iloc[0]


def _runs(campaign: Campaign, pair: Pair) -> tuple[str, ...]:
    runs = campaign.runs
    return tuple(runs.loc[runs["arm"].isin([pair.baseline, pair.treated]), "run"])
