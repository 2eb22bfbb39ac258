"""The arms of a campaign, and the pairs that differ only in the worker's freeze."""

from __future__ import annotations

import re
from dataclasses import dataclass

import pandas as pd

from repro import policy
from repro.dataset import Campaign
from repro.stats.ratios import NEEDS_RUNS

EXPLICIT = {name: each.freeze for name, each in policy.SERVING.items() if not each.leaves_alone}
"""Policies that state whether the worker freezes; `stock` leaves it to the installed vLLM."""

FREEZE_ALONE = [name for name, each in policy.SERVING.items() if each.only_freezes]
"""Policies that differ only in the freeze."""

VLLM_HANDLER = "vLLM's handler"

ABOUT = ["arm", "policy", "setting"]
POLICY_ORDER = ["no-freeze", *(name for name in policy.SERVING if name != "no-freeze")]


@dataclass(frozen=True, kw_only=True)
class Arm:
    """Runs of one policy under one setting."""

    label: str  # for display and as a key; none but `arms` looks into it
    policy: str  # of the worker
    setting: str  # what else differs within the campaign; often empty
    runs: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two arms to compare, such as two that differ only in whether the worker's heap is frozen."""

    baseline: str  # labels of the arms: of `pairs`, whose workers are not frozen, and are
    treated: str
    setting: str = ""  # common to both arms; often empty


def arms(campaign: Campaign) -> list[Arm]:
    """All arms in the one order of tables and figures: by label without policy, then by policy."""
    found = [
        Arm(label=str(label), policy=name, setting=setting, runs=tuple(runs))
        for (label, name, setting), runs in campaign.runs.groupby(ABOUT)["run"]
    ]
    return sorted(
        found,
        key=lambda arm: (
            natural(arm.label.removesuffix(arm.policy)),
            POLICY_ORDER.index(arm.policy),
        ),
    )


def labels(campaign: Campaign) -> list[str]:
    """The labels of all arms, in order."""
    return [arm.label for arm in arms(campaign)]


def in_order(table: pd.DataFrame, campaign: Campaign) -> pd.DataFrame:
    """A table with a column `arm`, its rows in the order of the arms."""
    return table.sort_values("arm", key=lambda arm: arm.map(labels(campaign).index), kind="stable")


def pairs(campaign: Campaign) -> list[Pair]:
    """All pairs of arms to compare, those with a policy set by name before those with `stock`.

    Returns
    -------
    list of Pair
        Empty where the campaign has no two such arms.
    """
    found = [
        (before, after)
        for before in arms(campaign)
        for after in arms(campaign)
        if before.setting == after.setting
        and {before.policy, after.policy} <= set(FREEZE_ALONE)
        and (freezes(campaign, before.label), freezes(campaign, after.label)) == ("no", "yes")
    ]
    found.sort(key=lambda both: [(arm.setting, arm.policy == "stock", arm.label) for arm in both])
    return [
        Pair(baseline=before.label, treated=after.label, setting=before.setting)
        for before, after in found
    ]


def output_handler(runs: pd.DataFrame) -> pd.Series:
    """The API server's output handler of each run, in words: when it yields, what it takes."""
    asked = zip(runs["output_chunk"], runs["output_handler"], runs["output_yield_ms"], strict=True)
    return pd.Series([_in_words(*each) for each in asked], runs.index, dtype=str)


def _in_words(chunk: int, handler: str, yield_ms: float) -> str:
    said = ["whole steps"] if chunk else []
    if handler == "fair":
        said.append("every message")
    elif yield_ms:
        said.append(f"{yield_ms:g} ms")
    return ", ".join(said) or VLLM_HANDLER


def repeated(campaign: Campaign, pair: Pair) -> bool:
    """Whether both arms have enough runs to tell the policy's effect from one engine's own."""
    runs = campaign.runs["arm"].value_counts()
    return bool(min(runs[pair.baseline], runs[pair.treated]) >= NEEDS_RUNS)


def natural(text: str) -> list[tuple[float, str]]:
    """A key that sorts 512 before 1024."""
    parts = re.split(r"(\d+)", text)
    return [(float(part), "") if part.isdigit() else (-1.0, part) for part in parts]


def freezes(campaign: Campaign, arm: str) -> str:
    """Whether the workers of an arm decode with a frozen heap: `yes`, `no` or `unknown`.

    The policy decides, or else the census before load. `unknown` where the runs disagree or no
    worker was counted, as with `uni`, where the worker has no heap of its own.
    """
    runs = campaign.runs.loc[campaign.runs["arm"] == arm]
    name = runs["policy"].iloc[0]
    if name in EXPLICIT:
        return "yes" if EXPLICIT[name] else "no"
    counted = heaps(campaign, "worker", "window-start")
    frozen = is_frozen(counted[counted["run"].isin(runs["run"])])
    if frozen.empty or frozen.nunique() > 1:
        return "unknown"
    return "yes" if frozen.iloc[0] else "no"


def is_frozen(census: pd.DataFrame) -> pd.Series:
    """Whether most of each heap is frozen: CPython 3.12 itself freezes a few hundred objects."""
    frozen: pd.Series = census["frozen"] > census["tracked"]
    return frozen


def heaps(campaign: Campaign, role: str, point: str) -> pd.DataFrame:
    """Census rows of one role at one point, with the run's `arm` and `policy`.

    Returns
    -------
    pandas.DataFrame
        One row per process and run: the columns of `schema.TABLES["census"]`, `arm`, `policy`.
    """
    census = campaign.census
    rows = census[(census["role"] == role) & (census["point"] == point)]
    return rows.merge(campaign.runs[["run", "arm", "policy"]], on="run")
