"""A campaign beside the recorded one most like it, claim by claim."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from repro import dataset
from repro.claims.verdict import Verdict
from repro.dataset import Campaign
from repro.dataset.campaign import COMPARABLE, LOAD
from repro.dataset.run import pick
from repro.dataset.stored import documents

ALIKE = (
    *("experiment.client", "experiment.executor", "experiment.model", "experiment.policy"),
    *("experiment.engine_policy", "experiment.frontend_policy", "experiment.capture_policy"),
    *("experiment.data_parallel_size", "experiment.tensor_parallel_size", *LOAD, *COMPARABLE),
)
"""Keys of `run.json` by which two runs are more or less alike."""

OVERLAP, SAME = "95% intervals overlap", "same verdict"
"""The tolerance of a ratio with an interval, and of everything else."""


def most_alike(campaign: Campaign, recorded: Sequence[Path]) -> Campaign | None:
    """The recorded campaign with the runs most like these, of the same vLLM where it has some.

    The campaign's own folder, and those of the other kind of device (GPU or CPU), do not count;
    None if no folder is left.
    """
    own = documents(campaign.path)
    best, chosen = -1.0, None
    for folder in recorded:
        others = documents(folder)
        if folder.resolve() == campaign.path.resolve() or not others:
            continue
        if (own[0]["machine"]["gpu_name"] is None) != (others[0]["machine"]["gpu_name"] is None):
            continue
        score = _likeness(own, others) + _likeness(others, own)
        if score > best:
            best, chosen = score, folder
    if chosen is None:
        return None
    found, version = dataset.load(chosen), campaign.runs["vllm"].iloc[0]
    return dataset.subset(found, vllm=version) if version in set(found.runs["vllm"]) else found


def measured(verdicts: pd.DataFrame) -> pd.DataFrame:
    """The claims that data speak to; a prediction is no measurement."""
    return verdicts[~verdicts["verdict"].isin([Verdict.NOT_MEASURED, Verdict.PREDICTED])]


def compare(own: pd.DataFrame, recorded: pd.DataFrame) -> pd.DataFrame:
    """The same claims by one's own and by the recorded data, as `claims.evaluate` returns them.

    Returns
    -------
    pandas.DataFrame
        `claim`, `recorded`, `yours` (verdict and number), `tolerance` and `outcome`: "agrees",
        "differs", "undecided" (by your data) or "not recorded".
    """
    rows = []
    for mine, theirs in zip(own.to_dict("records"), recorded.to_dict("records"), strict=True):
        tolerance, outcome = _judge(mine, theirs)
        row = {"claim": mine["claim"], "recorded": _said(theirs), "yours": _said(mine)}
        rows.append(row | {"tolerance": tolerance, "outcome": outcome})
    return pd.DataFrame(rows)


def _judge(mine: dict[str, Any], theirs: dict[str, Any]) -> tuple[str, str]:
    if theirs["verdict"] in (Verdict.NOT_MEASURED, Verdict.PREDICTED):
        return "–", "not recorded"
    a, b = mine["ratio"], theirs["ratio"]
    if a is not None and b is not None:
        return OVERLAP, "agrees" if a.low <= b.high and b.low <= a.high else "differs"
    if mine["verdict"] == Verdict.UNDECIDED:
        return SAME, "undecided"
    return SAME, "agrees" if mine["verdict"] == theirs["verdict"] else "differs"


def _said(row: dict[str, Any]) -> str:
    return f"{row['verdict']}: {row['number']}" if row["number"] != "–" else str(row["verdict"])


def _likeness(runs: list[dict[str, Any]], others: list[dict[str, Any]]) -> float:
    """The mean over runs of the equal values in the most similar other run."""
    return sum(max(_alike(run, other) for other in others) for run in runs) / len(runs)


def _alike(mine: dict[str, Any], other: dict[str, Any]) -> int:
    keys = [key for name in ALIKE for key in name.split(", ")]
    return sum(pick(mine, key) == pick(other, key) for key in keys)
