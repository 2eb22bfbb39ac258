"""Summarises a campaign's verdicts for the terminal: the last lines of `make reproduce`."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from repro import fmt
from repro.analysis.gc_cost import full_collections
from repro.claims.comparison import measured
from repro.dataset import Campaign


def closing_lines(campaign: Campaign, verdicts: pd.DataFrame, page: Path) -> list[str]:
    """One line per claim that the campaign measures, between the machine and the files.

    Parameters
    ----------
    campaign : Campaign
    verdicts : pandas.DataFrame
        Its claims, as `claims.evaluate` returns them.
    page : Path
        The page made of the campaign.
    """
    first = campaign.runs.iloc[0]
    machine = f"{first['machine']}, vLLM {first['vllm']}, Python {first['python']}"
    lines = [f"Measured: {_arms(campaign)}; {machine}", *too_short(campaign)]
    told = measured(verdicts)
    for row in told.to_dict("records"):
        detail = f" ({row['detail']})" if row["detail"] else ""
        lines.append(f"  {row['verdict']}{detail}: {row['claim']} {row['number']}")
    others = fmt.plural(len(verdicts) - len(told), "claim")
    lines.append(f"Not measured by these runs: {others}; `repro claims {campaign.path}` says why")
    lines.append(f"Page: {page}; data: {campaign.path}")
    return lines


def too_short(campaign: Campaign) -> list[str]:
    """A line if a period without the freeze is too short to hold a full collection."""
    runs = campaign.runs
    unfrozen = runs.loc[(runs["switch_s"] > 0) & (runs["policy"] == "no-freeze"), "run"]
    full = full_collections(campaign)
    without = set(unfrozen) - set(full.loc[full["role"] == "worker", "run"])
    if not without:
        return []
    return [
        f"Too short: {len(without)} of {len(unfrozen)} periods without the freeze had no full "
        "collection; measure again with a longer --switch-s"
    ]


def _arms(campaign: Campaign) -> str:
    """Runs per policy, then the periods of engines that switch."""
    runs = campaign.runs
    said = []
    for unit, own in (("run", runs[runs["switch_s"] == 0]), ("period", runs[runs["switch_s"] > 0])):
        counts = own["policy"].value_counts().sort_index()
        said += [f"{fmt.plural(number, unit)} with {name}" for name, number in counts.items()]
    return fmt.listed(said) + (", in turn in one engine" if runs["switch_s"].all() else "")
