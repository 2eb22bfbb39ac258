"""Which arms of a campaign may be compared: the same in everything but the worker's freeze."""

from __future__ import annotations

import re
from dataclasses import dataclass

import pandas as pd

from repro import policy
from repro.dataset import Campaign
from repro.stats.ratios import NEEDS_RUNS

EXPLICIT = {name: each.freeze for name, each in policy.SERVING.items() if not each.leaves_alone}
"""Policies that say whether the worker freezes; `stock` leaves it to the installed vLLM."""

FREEZE_ALONE = [name for name, each in policy.SERVING.items() if each.only_freezes]
"""Policies that differ in the freeze and in nothing else."""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two arms that differ only in whether the worker's heap is frozen.

    Attributes
    ----------
    baseline, treated : str
        Arms whose workers are not frozen, and are.
    setting : str
        What both have in common and other pairs of the campaign have not; often empty.
    """

    baseline: str
    treated: str
    setting: str


def pairs(campaign: Campaign) -> list[Pair]:
    """Every pair of arms to compare; those with the policy set by name before those with `stock`.

    Returns
    -------
    list of Pair
        Empty where the campaign has no two such arms.
    """
    arms = campaign.runs.drop_duplicates("arm")[["arm", "policy"]].copy()
    arms = arms[arms["policy"].isin(FREEZE_ALONE)]
    arms["setting"] = [setting_of(row.arm, row.policy) for row in arms.itertuples()]
    arms["freezes"] = [freezes(campaign, arm) for arm in arms["arm"]]
    arms = arms.assign(stock=arms["policy"] == "stock").sort_values(["setting", "stock", "arm"])
    return [
        Pair(baseline=str(baseline), treated=str(treated), setting=str(setting))
        for setting, group in arms.groupby("setting", sort=False)
        for baseline in group.loc[group["freezes"] == "no", "arm"]
        for treated in group.loc[group["freezes"] == "yes", "arm"]
    ]


def repeated(campaign: Campaign, pair: Pair) -> bool:
    """Whether both arms have runs enough to tell a policy's effect from one engine's own."""
    runs = campaign.runs["arm"].value_counts()
    return bool(min(runs[pair.baseline], runs[pair.treated]) >= NEEDS_RUNS)


def ordered_arms(campaign: Campaign) -> list[str]:
    """The labels of all arms: by setting, and in each without the freeze before with it."""
    arms = campaign.runs.drop_duplicates("arm")
    order = ["no-freeze", *(name for name in policy.SERVING if name != "no-freeze")]
    place = arms["policy"].map({name: number for number, name in enumerate(order)})
    setting = [setting_of(row.arm, row.policy) for row in arms.itertuples()]
    places = dict(zip(arms["arm"], zip(map(natural, setting), place, strict=True), strict=True))
    return sorted(places, key=places.__getitem__)


def natural(text: str) -> list[tuple[float, str]]:
    """A key that sorts 512 before 1024."""
    parts = re.split(r"(\d+)", text)
    return [(float(part), "") if part.isdigit() else (-1.0, part) for part in parts]


def setting_of(arm: str, policy: str) -> str:
    """What sets an arm apart besides the policy: its label is that, then the policy."""
    return arm.removesuffix(policy).strip()


def freezes(campaign: Campaign, arm: str) -> str:
    """Whether the workers of an arm decode with a frozen heap: `yes`, `no` or `unknown`.

    By the policy where it says so, else by the census before load. `unknown` where the runs
    disagree or no worker was counted, as with `uni`: there the worker has no heap of its own.
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
    """Whether most of each counted heap is frozen.

    Not whether anything is: CPython 3.12 freezes a few hundred objects of its own at start.
    """
    frozen: pd.Series = census["frozen"] > census["tracked"]
    return frozen


def heaps(campaign: Campaign, role: str, point: str) -> pd.DataFrame:
    """Census rows of one role at one point, with the run's `arm` and `policy`.

    Returns
    -------
    pandas.DataFrame
        One row a process and run: the columns of `schema.TABLES["census"]`, `arm`, `policy`.
    """
    census = campaign.census
    rows = census[(census["role"] == role) & (census["point"] == point)]
    return rows.merge(campaign.runs[["run", "arm", "policy"]], on="run")
