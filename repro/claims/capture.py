"""What decides the claims about the capture."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd

from repro import fmt
from repro.analysis.captures import (
    BASELINE,
    SETTING,
    capture_times,
    collector_share,
    principal,
    same_memory_again,
)
from repro.claims.verdict import SAME, Finding, Verdict, same, unsupported
from repro.dataset import Campaign
from repro.stats.ratios import ratio_of_runs

SAME_MEMORY = (0.99, 1.01)
"""Closer than for times: memory hardly varies."""


def capture_takes_as_long(campaign: Campaign) -> list[Finding]:
    """Capture time with the heap frozen over that with the collector on, and the collector's part.

    The longest captures come first: they are the nearest to the report's.
    """
    alike = _on_and_frozen(capture_times(campaign))
    alike.sort(key=lambda case: -case[1]["capture_s"].median())
    return [
        _bounded(_frozen_over_on(on, frozen, "capture_s", SAME, f"capture {where}"), on)
        for where, on, frozen in alike
    ]


def capture_takes_as_much_memory(campaign: Campaign) -> list[Finding]:
    """GPU memory that the capture takes, likewise, where a repeated one takes it all again."""
    times = capture_times(campaign)
    counted = same_memory_again(times, SAME_MEMORY)
    left_out = times[~times.index.isin(counted.index)]
    findings = [
        _frozen_over_on(on, frozen, "memory_bytes", SAME_MEMORY, f"memory {where}")
        for where, on, frozen in _on_and_frozen(counted[counted["memory_bytes"] > 0])
    ]
    return findings if findings or left_out.empty else [_memory_kept(left_out)]


def no_collection_per_graph(campaign: Campaign) -> list[Finding]:
    """Full collections of a capture with PyTorch as it is, against those with one asked for.

    Not against the graphs: vLLM keeps PyTorch from collecting for all but the first piece of a
    batch size, so even the collection before each graph is not one for each.
    """
    times = capture_times(campaign)
    times = times[times["kind"] == "capture"]
    findings = []
    for _, alike in times.groupby(SETTING):
        default = alike[alike["capture_policy"].isin(["gc-on", "stock"])]
        asked = alike[alike["capture_policy"] == "collect-per-graph"]
        if default.empty or asked.empty:
            continue
        most, fewest = default["collections_2"].max(), asked["collections_2"].min()
        each = most >= fewest / 2
        longer = ratio_of_runs(
            *(principal(part)["capture_s"].tolist() for part in (default, asked))
        )
        findings.append(
            Finding(
                verdict=Verdict.CONTRADICTED if each else Verdict.REPRODUCED,
                number=f"{most} full collections, {fewest} where PyTorch is told to collect",
                reason=("about as many as" if each else "far fewer than")
                + " when told to"
                + (f", which takes {fmt.ratio(longer)}" if longer.supported else ""),
                runs=_used(default, asked),
            )
        )
    return findings


def _on_and_frozen(times: pd.DataFrame) -> list[tuple[str, pd.DataFrame, pd.DataFrame]]:
    """Captures with the collector on and with the heap frozen that may be compared, and which.

    Start-up captures and repeated ones apart.
    """
    found = []
    times = times[times["kind"] == "capture"]
    for (_, _, *setting, again), alike in times.groupby([*SETTING, "again"]):
        on, frozen = (alike[alike["capture_policy"] == name] for name in (BASELINE, "frozen"))
        where = f"{'again, ' if again else 'at start-up, '}{fmt.setting(*setting)}"
        if len(on) and len(frozen):
            found.append((where, on, frozen))
    return found


def _frozen_over_on(
    on: pd.DataFrame, frozen: pd.DataFrame, column: str, within: tuple[float, float], what: str
) -> Finding:
    ratio = ratio_of_runs(on[column].tolist(), frozen[column].tolist())
    name, runs = f"{what}: frozen over {BASELINE}", _used(on, frozen)
    if not ratio.supported:
        return unsupported(ratio, name, runs, "captures an arm")
    return same(ratio, within, name, runs)


def _bounded(found: Finding, on: pd.DataFrame) -> Finding:
    """The finding with the most that a policy could save of these captures with the collector."""
    share = collector_share(on)
    if not share.supported:
        return found
    part = fmt.share(share.value, share.low, share.high)
    took = f"the collector takes {part} of it with {BASELINE}"
    return replace(found, reason=f"{found.reason}; {took}: no policy can save more")


def _memory_kept(again: pd.DataFrame) -> Finding:
    return Finding(
        verdict=Verdict.NOT_MEASURED,
        number="–",
        reason="a capture made again took less than the first of its process, for the driver keeps "
        "what a discarded graph held: only first captures count, two of each policy",
        runs=_used(again),
    )


def _used(*captures: pd.DataFrame) -> tuple[str, ...]:
    """The runs of these captures, each once."""
    return tuple(dict.fromkeys(run for part in captures for run in part["run"]))
