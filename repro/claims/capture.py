"""Claims about the CUDA graph capture."""

from __future__ import annotations

import pandas as pd

from repro import fmt
from repro.analysis.captures import (
    BASELINE,
    CAPTURE_SETTING,
    capture_times,
    collector_share,
    compared,
    principal,
    same_memory_again,
)
from repro.claims.registry import claim
from repro.claims.verdict import (
    SAME,
    Outcome,
    Sample,
    Verdict,
    decided,
    not_measured,
    same,
    sameness,
    too_few,
)
from repro.dataset import Campaign
from repro.stats.ratios import ratio_of_runs

SAME_MEMORY = (0.99, 1.01)
"""A smaller margin than for times, since memory hardly varies."""


@claim(
    "capture-time",
    "Freezing during the CUDA graph capture changes nothing: 56 s against 57 s.",
    criterion=f"reproduced: the ratio lies within {fmt.bounds(*SAME)}; contradicted: outside",
    needs="captures on a GPU with capture policies `gc-on` and `frozen`, two of each",
    over_all=same(SAME),
)
def capture_takes_as_long(campaign: Campaign) -> list[Outcome]:
    """The ratio of capture times, frozen heap over collector on, with the collector's share.

    The longest captures come first: they are closest to the report's.
    """
    alike = _on_and_frozen(capture_times(campaign))
    alike.sort(key=lambda case: -case[1]["capture_s"].median())
    return [
        _frozen_over_on(on, frozen, "capture_s", SAME, f"capture {where}", _upper_bound(on))
        for where, on, frozen in alike
    ]


@claim(
    "capture-memory",
    "The capture takes the same memory either way: 6.25 GiB.",
    criterion="reproduced: the ratio lies within "
    f"{SAME_MEMORY[0]} to {SAME_MEMORY[1]}, or that of each capture to each of the other policy "
    "does; contradicted: outside",
    needs="first captures of GPU workers with `gc-on` and with `frozen`, two processes of each",
)
def capture_takes_as_much_memory(campaign: Campaign) -> list[Outcome]:
    """The same ratio of the GPU memory that captures take."""
    times = capture_times(campaign)
    counted = same_memory_again(times, SAME_MEMORY)
    left_out = times[~times.index.isin(counted.index)]
    found = [
        _as_much(on, frozen, f"memory {where}")
        for where, on, frozen in _on_and_frozen(counted[counted["memory_bytes"] > 0])
    ]
    if found or left_out.empty:
        return found
    reason = (
        "a repeated capture took less than the first of its process, because the driver keeps the "
        "memory of discarded graphs: only first captures count, two of each policy"
    )
    return [not_measured(reason, _used(left_out))]


@claim(
    "no-collection-per-graph",
    "PyTorch no longer collects before each CUDA graph.",
    criterion="contradicted: at least half as many full collections in a capture with PyTorch's "
    "default as where it is told to collect before each graph",
    needs="captures on a GPU with capture policies `gc-on` and `collect-per-graph`",
)
def no_collection_per_graph(campaign: Campaign) -> list[Outcome]:
    """Full collections of a capture with PyTorch's default and with a collection requested.

    The number of graphs is no reference: vLLM lets PyTorch collect only for the first piece of a
    batch size, so a requested collection before each graph does not mean one per graph.
    """
    times = capture_times(campaign)
    times = times[times["kind"] == "capture"]
    found = []
    for _, alike in times.groupby(CAPTURE_SETTING):
        default = alike[alike["capture_policy"].isin(["gc-on", "stock"])]
        asked = alike[alike["capture_policy"] == "collect-per-graph"]
        if default.empty or asked.empty:
            continue
        most, fewest = default["collections_2"].max(), asked["collections_2"].min()
        each = most >= fewest / 2
        longer = ratio_of_runs(
            *(principal(part)["capture_s"].tolist() for part in (default, asked))
        )
        found.append(
            decided(
                not each,
                number=f"{most} full collections, {fewest} where PyTorch is told to collect",
                reason=("about as many as" if each else "far fewer than")
                + " when told to"
                + (f", which takes {fmt.ratio(longer)}" if longer.supported else ""),
                runs=_used(default, asked),
            )
        )
    return found


def _on_and_frozen(times: pd.DataFrame) -> list[tuple[str, pd.DataFrame, pd.DataFrame]]:
    """Comparable captures with the collector on and with the heap frozen, and their setting."""
    found = []
    times = times[times["kind"] == "capture"]
    for (_, _, *setting, again), alike in times.groupby([*CAPTURE_SETTING, "again"]):
        on, frozen = (alike[alike["capture_policy"] == name] for name in (BASELINE, "frozen"))
        where = f"{'again, ' if again else 'at start-up, '}{fmt.setting(*setting)}"
        if len(on) and len(frozen):
            found.append((where, on, frozen))
    return found


def _frozen_over_on(
    on: pd.DataFrame,
    frozen: pd.DataFrame,
    column: str,
    within: tuple[float, float],
    what: str,
    further: str = "",
) -> Outcome:
    ratio = compared(on, frozen, column)
    name, runs = f"{what}: frozen over {BASELINE}", _used(on, frozen)
    if not ratio.supported:
        return too_few(ratio, name, runs, "captures per policy")
    minutes = float(pd.concat([on, frozen])["capture_s"].median()) / 60
    sample = Sample(size=min(len(on), len(frozen)), minutes=minutes, unit="capture", group="policy")
    return sameness(ratio, within, sample, name=name, runs=runs, further=further)


def _as_much(on: pd.DataFrame, frozen: pd.DataFrame, what: str) -> Outcome:
    """Judged by every single capture where the interval is too wide to say.

    A driver hands out memory in units of 2 MiB. A difference of one unit between two captures of
    each policy would make Student's interval wider than any two captures are apart.
    """
    found = _frozen_over_on(on, frozen, "memory_bytes", SAME_MEMORY, what)
    before, after = on["memory_bytes"], frozen["memory_bytes"]
    low, high = after.min() / before.max(), after.max() / before.min()
    if found.verdict != Verdict.UNDECIDED or low < SAME_MEMORY[0] or high > SAME_MEMORY[1]:
        return found
    return decided(
        True,
        number=f"{what}: frozen over {BASELINE} ×{fmt.figures(low)} to ×{fmt.figures(high)}",
        reason=f"of each capture to each of the other policy, {len(on)} and {len(frozen)}",
        runs=_used(on, frozen),
    )


def _upper_bound(on: pd.DataFrame) -> str:
    """The collector's share of these captures: the most that a policy can save."""
    share = collector_share(on)
    if not share.supported:
        return ""
    shown = fmt.share(share.value, share.low, share.high)
    return f"; the collector takes {shown} of it with {BASELINE}: no policy can save more"


def _used(*captures: pd.DataFrame) -> tuple[str, ...]:
    """The runs of these captures, each once."""
    return tuple(dict.fromkeys(run for part in captures for run in part["run"]))
