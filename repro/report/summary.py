"""The head of the page: question, answer, facts, your run beside ours, and the claims."""

from __future__ import annotations

import os
import re
import subprocess
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd

from repro import __version__, dataset, fmt
from repro.analysis.arms import Pair, pairs
from repro.analysis.gc_cost import gc_time
from repro.analysis.tails import TAIL_QUANTILES, effect
from repro.claims import Verdict, evaluate
from repro.claims.comparison import compare, measured, most_alike
from repro.claims.registry import REPORT
from repro.dataset import Campaign
from repro.dataset.stored import documents
from repro.report.notebook import project
from repro.report.tables.itl_tails import clearest_first
from repro.theory.cpython_rule import FULL

PULL_REQUEST = "https://github.com/vllm-project/vllm/pull/44363"
HEAD_CONTENTS = [
    f'<li class="l1"><a href="#{key}">{text}</a></li>'
    for key, text in (
        ("beside", "Your run beside ours"),
        ("claims-report", "Claims of the pull request"),
        ("claims-own", "Claims of this package"),
    )
]
"""The first lines of the table of contents."""

ONE_ENGINE = "One engine switched between the two: the intervals hold for it, not for every engine."

LONGEST_LIST = 4  # runs named by a link each; more are folded

QUESTION = (
    "Does Python's garbage collector stall a vLLM worker, and does freezing the worker's heap "
    f'after warm-up, as <a href="{PULL_REQUEST}">vLLM #44363</a> does, shorten the tail of the '
    "inter-token latency (ITL)?"
)


def head(campaign: Campaign, verdicts: pd.DataFrame, out: Path) -> tuple[str, str]:
    """The head of the page as HTML: what its first screen shows, and the tables of claims.

    Parameters
    ----------
    campaign : Campaign
    verdicts : pandas.DataFrame
        Its claims, as `claims.evaluate` returns them.
    out : Path
        The page, from which links to runs start.
    """
    recorded = [path for path in (project() / "data").glob("*") if dataset.is_campaign(path)]
    twin = most_alike(campaign, sorted(recorded))
    first = (
        f"<p>{QUESTION}</p>",
        f'<p class="answer">{escape(answer(campaign))}</p>',
        f'<p class="facts">{escape(facts(campaign))}</p>',
        '<h2 id="beside">Your run beside ours</h2>',
        beside(verdicts, twin, out) if twin else "<p>Nothing comparable is recorded.</p>",
    )
    return "\n".join(first), claims_tables(verdicts, campaign.path, out)


def answer(campaign: Campaign) -> str:
    """Cost of full collections, effect of the freeze, and scope of the intervals."""
    compared = pairs(campaign)
    if not compared:
        return "These data have no two arms that differ in the freeze alone, so they give no ratio."
    pair = compared[0]
    ratios = {q: effect(campaign, pair.baseline, pair.treated, q) for q in TAIL_QUANTILES}
    where = f" ({pair.setting})" if pair.setting else ""
    said = f"{_stops(campaign, pair)}. ITL, frozen over not{where}: {clearest_first(ratios)}."
    own = campaign.runs[campaign.runs["arm"].isin([pair.baseline, pair.treated])]
    return f"{said} {ONE_ENGINE}" if own["switch_s"].all() else said


def _stops(campaign: Campaign, pair: Pair) -> str:
    lost = gc_time(campaign)
    lost = lost[(lost["role"] == "worker") & (lost["generation"] == FULL)].set_index("arm")
    if not {pair.baseline, pair.treated} <= set(lost.index):
        return "No worker process was recorded"
    before, after = lost.loc[pair.baseline], lost.loc[pair.treated]
    if not before["pauses"]:
        return "Without the freeze no worker made a full collection"
    stops = (
        f"Without the freeze a full collection stopped a worker for {fmt.ms(before['median_ms'])} "
        f"(median), {fmt.figures(before['per_1000_steps'])} times per 1,000 steps"
    )
    after_ms = f"; frozen, for {fmt.ms(after['median_ms'])}" if after["pauses"] else ""
    return stops + (after_ms or "; frozen, none came")


def facts(campaign: Campaign) -> str:
    """Machine, versions, dates, size and commit in one line."""
    found = documents(campaign.path)
    days = sorted({document["started_at"][:10] for document in found})
    each = {
        "machine": fmt.listed(dict.fromkeys(_hardware(document["machine"]) for document in found)),
        "vLLM": fmt.listed(sorted({document["versions"]["vllm"] for document in found})),
        "measured": " to ".join(dict.fromkeys((days[0], days[-1]))),
        "runs": f"{len(found)} in {campaign.path.name}",
        "page": f"repro {__version__}, commit {commit()}",
    }
    return " · ".join(f"{name}: {value}" for name, value in each.items())


def _hardware(machine: dict[str, Any]) -> str:
    if machine["gpu_name"]:
        return f"{machine['gpu_count']} × {machine['gpu_name']}"
    return f"{machine['cpu_model']}, {fmt.plural(machine['cpu_count'], 'core')}, no GPU"


def commit() -> str:
    """The commit of the project's folder; "unknown" outside a Git checkout."""
    command = ["git", "-C", str(project()), "rev-parse", "--short=10", "HEAD"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return said.stdout.strip() or "unknown"


def beside(verdicts: pd.DataFrame, twin: Campaign, out: Path) -> str:
    """Your run beside the recorded one."""
    own = measured(verdicts)
    if own.empty:
        return "<p>Your runs decide no claim.</p>"
    rows = compare(own, evaluate([twin], list(own["id"])))
    agree = (rows["outcome"] == "agrees").sum()
    undecided = (own["verdict"] == Verdict.UNDECIDED).sum()
    link = _link(twin.path.name, twin.path, out)
    table = rows.map(_text)
    table["outcome"] = [f'<b class="verdict {o.split()[0]}">{o}</b>' for o in rows["outcome"]]
    first = ["outcome", "claim", "yours", "recorded", "tolerance"]
    return (
        f"<p>Recorded: {link}, the campaign most like yours. Your runs speak to "
        f"{fmt.plural(len(rows), 'claim')}: {agree} agree with the record, and {undecided} are "
        f"undecided by your runs alone.</p>{_html(table[first])}"
    )


def claims_tables(verdicts: pd.DataFrame, source: Path, out: Path) -> str:
    """The claims in two tables: those of the pull request, and those of this package."""
    shown = pd.DataFrame(
        {
            "verdict": verdicts.apply(_verdict, axis=1),
            **{
                name: verdicts[name].map(_text)
                for name in ("claim", "number", "reason", "criterion")
            },
            "runs": [_runs(runs, source, out) for runs in verdicts["runs"]],
        }
    )
    decided_first = (verdicts["verdict"] == Verdict.NOT_MEASURED).sort_values(kind="stable").index
    theirs = verdicts["source"][decided_first] == REPORT
    shown = shown.loc[decided_first]
    return (
        '<h2 id="claims-report">Claims of the pull request and its thread</h2>'
        f'<p>Made in <a href="{PULL_REQUEST}">vLLM #44363</a>; each has a test that data can fail.'
        f"</p>{_html(shown[theirs])}"
        '<h2 id="claims-own">Claims of this package</h2>'
        f"<p>What explains the above, and what goes beyond it.</p>{_html(shown[~theirs])}"
    )


def _verdict(row: pd.Series) -> str:
    detail = f" ({escape(row['detail'])})" if row["detail"] else ""
    return f'<b class="verdict">{escape(row["verdict"])}</b>{detail}'


def _text(text: str) -> str:
    """HTML of a sentence with code in backticks."""
    return re.sub(r"`(.+?)`", r"<code>\1</code>", escape(text))


def _runs(runs: str, source: Path, out: Path) -> str:
    """Links to the folders of runs, or to that in which they are packed; a long list is folded."""
    names = [run.partition("/")[2].partition("/")[0] for run in runs.split(", ") if run]
    own = {name: source / name for name in names}
    links = "<br>".join(
        _link(name, folder if folder.is_dir() else source, out) for name, folder in own.items()
    )
    if len(names) <= LONGEST_LIST:
        return links
    return f"<details><summary>{len(names)} runs</summary>{links}</details>"


def _link(name: str, folder: Path, out: Path) -> str:
    target = quote(os.path.relpath(folder.resolve(), out.resolve().parent))
    return f'<a href="{target}">{escape(name)}</a>'


def _html(table: pd.DataFrame) -> str:
    """A table whose cells are HTML."""
    return str(table.to_html(index=False, escape=False, border=0))
