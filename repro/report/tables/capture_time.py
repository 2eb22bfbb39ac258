"""Tables and sentences of the notebook `capture_time`."""

from __future__ import annotations

import numpy as np
import pandas as pd

from repro import fmt
from repro.analysis.captures import (
    BASELINE,
    CAPTURE_SETTING,
    again_over_first,
    capture_times,
    collector_share,
    policy_effects,
    principal,
)
from repro.claims.capture import SAME_MEMORY
from repro.claims.verdict import SAME
from repro.dataset import Campaign

GIB = 2**30
TOO_WIDE = 10.0
"""An interval whose bounds differ by more than this factor says nothing and is not shown."""


def captures(campaign: Campaign) -> pd.DataFrame:
    """Capture (CPU: compile) time by setting and policy, with its ratio to `gc-on`.

    Means are geometric, so that they divide to the ratio.
    """
    times = capture_times(campaign)
    effects = policy_effects(times).set_index([*CAPTURE_SETTING, "again", "capture_policy"])
    rows = []
    for key, group in times.groupby([*CAPTURE_SETTING, "again", "capture_policy"]):
        seconds = group["capture_s"]
        effect = effects.loc[key] if key in effects.index else None
        rows.append(
            _setting_cells(group)
            | {
                "capture policy": key[-1],
                "kind": f"{group['kind'].iloc[0]}{' again' if key[-2] else ''}",
                "mean (s)": fmt.figures(float(np.exp(np.log(seconds).mean()))),
                "range (s)": fmt.bounds(seconds.min(), seconds.max()),
                "over gc-on": _ratio_cell(effect, "ratio"),
                "the same without GC": _ratio_cell(effect, "besides_gc"),
                "GC share": _share_cell(group),
                "memory (GiB)": fmt.figures(group["memory_bytes"].median() / GIB),
                "captures": f"{len(group)}",
                "runs": f"{group['run'].nunique()}",
            }
        )
    return pd.DataFrame(rows)


def collections(campaign: Campaign) -> pd.DataFrame:
    """Collections in a capture by setting and policy: their number and the time of one."""
    rows = []
    found = principal(capture_times(campaign))
    for key, group in found.groupby([*CAPTURE_SETTING, "capture_policy"]):
        middle = group.median(numeric_only=True)
        full, heap = middle["full_s"], middle["heap"]
        rows.append(
            _setting_cells(group)
            | {
                "capture policy": key[-1],
                "graphs": fmt.amount(middle["graphs"]),
                "objects before": fmt.count(heap) if heap > 0 else "–",
                "full collections": fmt.amount(middle["collections_2"]),
                "the longest (s)": fmt.figures(full),
                "ns per object": fmt.figures(1e9 * full / heap) if heap > 0 else "–",
                "generation 0": fmt.amount(middle["collections_0"]),
                "GC total (s)": fmt.figures(middle["gc_s"]),
            }
        )
    return pd.DataFrame(rows)


def growth(campaign: Campaign) -> pd.DataFrame:
    """Graphs that an automatic full collection would take, by setting, with `gc-on`.

    An automatic full collection needs a quarter of the heap to be added first.
    """
    times = principal(capture_times(campaign))
    times = times[(times["kind"] == "capture") & (times["capture_policy"] == BASELINE)]
    rows = []
    for _, group in times.groupby(CAPTURE_SETTING):
        middle = group.median(numeric_only=True)
        each = middle["containers"] / middle["graphs"]
        if not (middle["heap"] > 0 and each > 0):
            continue
        rows.append(
            _setting_cells(group)
            | {
                "containers left per graph": fmt.figures(each),
                "graphs for a quarter of the heap": fmt.count(middle["heap"] / 4 / each),
                "graphs captured": fmt.amount(middle["graphs"]),
            }
        )
    return pd.DataFrame(rows)


def repetition(campaign: Campaign) -> str:
    """One line per setting: repeated captures compared with the first of their process."""
    said = []
    for row in again_over_first(capture_times(campaign)).itertuples():
        compared = [
            f"{'the same' if low <= ratio.low and ratio.high <= high else 'not shown the same'} in "
            f"{name} ({fmt.ratio(ratio)})"
            for name, ratio, (low, high) in (
                ("time", row.time, SAME),
                ("memory", row.memory, SAME_MEMORY),
            )
            if ratio.supported and ratio.high <= TOO_WIDE * ratio.low
        ]
        if compared:
            said.append(
                f"**{fmt.setting(row.model, row.vllm, row.runner)}**: a repeated capture over the "
                f"start-up capture of its process and policy is {fmt.listed(compared)}, "
                f"{fmt.plural(row.time.steps, 'run')}."
            )
    return "\n\n".join(said)


def _setting_cells(times: pd.DataFrame) -> dict[str, str]:
    first = times.iloc[0]
    runner = fmt.RUNNER.get(first["runner"], "–")
    return {"model": first["model"], "vLLM": first["vllm"], "runner": runner}


def _share_cell(times: pd.DataFrame) -> str:
    """The collector's share, with its interval where several captures give one."""
    share = collector_share(times)
    if share.supported and share.high <= TOO_WIDE * share.low:
        return fmt.share(share.value, share.low, share.high)
    return fmt.percent((times["gc_s"] / times["capture_s"]).median())


def _ratio_cell(effect: pd.Series | None, column: str) -> str:
    return fmt.ratio(effect[column]) if effect is not None and effect[column].supported else "–"
