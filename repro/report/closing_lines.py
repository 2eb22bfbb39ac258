"""Summarises a campaign's verdicts for the terminal: the last lines of `make reproduce`."""

from __future__ import annotations

from pathlib import Path

from repro import fmt
from repro.claims import Verdict, evaluate
from repro.dataset import Campaign

OPEN = (Verdict.NOT_MEASURED, Verdict.PREDICTED)


def closing_lines(campaign: Campaign, page: Path) -> list[str]:
    """One line per claim that the campaign measures, between the machine and the files.

    Parameters
    ----------
    campaign : Campaign
    page : Path
        The page made of the campaign.
    """
    verdicts = evaluate([campaign])
    is_open = verdicts["verdict"].isin([str(verdict) for verdict in OPEN])
    runs = campaign.runs
    first = runs.iloc[0]
    counts = runs["policy"].value_counts().sort_index()
    arms = fmt.listed(f"{fmt.plural(number, 'run')} with {name}" for name, number in counts.items())
    machine = f"{first['machine']}, vLLM {first['vllm']}, Python {first['python']}"
    lines = [f"Measured: {arms}; {machine}"]
    for row in verdicts[~is_open].to_dict("records"):
        detail = f" ({row['detail']})" if row["detail"] else ""
        lines.append(f"  {row['verdict']}{detail}: {row['claim']} {row['number']}")
    others = fmt.plural(int(is_open.sum()), "claim")
    lines.append(f"Not measured by these runs: {others}; `repro claims {campaign.path}` says why")
    lines.append(f"Page: {page}; data: {campaign.path}")
    return lines
