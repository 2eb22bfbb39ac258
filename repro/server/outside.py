"""Sources without this package's recorder: a server's own log, and a benchmark's result."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from repro import fmt
from repro.dataset.schema import NS_PER_MS
from repro.server.longest import Long
from repro.server.numbers import QUANTILES
from repro.server.tail import Tail, quantiles


@dataclass(frozen=True)
class Source:
    """One form of line with a collection: its groups are `gen`, `ms` or `s`, and `who` if known."""

    setting: str
    line: re.Pattern[str]
    limits: str


SOURCES = (
    Source(
        "vLLM's VLLM_GC_DEBUG=1",
        re.compile(
            r"(?:\((?P<who>\w+ pid=\d+)\))?.*GC took (?P<ms>[\d.]+)ms to complete\. "
            r"Collected \S+ objects \(out of \d+\) in GC generation (?P<gen>\d)"
        ),
        "It has engine cores and GPU workers only, no API server. Each pause includes the time "
        "that the debugger took to list the objects, so it is overstated.",
    ),
    Source(
        "SGLang's GC logger",
        re.compile(
            r"(?:\[[^]]*? (?P<who>(?:[DTP]P\d+ ?)+)\])?.*GC end: .*\| Generation (?P<gen>\d) \| "
            r"Duration: (?P<s>[\d.]+)s"
        ),
        "A pause below 0.05 ms shows as 0.",
    ),
    Source(
        "SGLang's --gc-warning-threshold-secs",
        re.compile(
            r"(?:\[[^]]*? (?P<who>(?:[DTP]P\d+ ?)+)\])?.*LONG GARBAGE COLLECTION DETECTED "
            r"\| Generation (?P<gen>\d) \| Duration: (?P<s>[\d.]+)s"
        ),
        "It has only collections above the threshold: counts and seconds are lower bounds.",
    ),
    Source(
        "LMCache's GC monitor",
        re.compile(r"GC gen(?P<gen>\d) (?P<ms>[\d.]+)ms collected=\d+"),
        "It has only collections of the cache server above its threshold, none of the engine.",
    ),
)
"""As documented by `GCDebugger` of vLLM's `utils/gc_utils.py`, `configure_gc_logger` and
`configure_gc_warning` of SGLang's `utils`, and LMCache #4245."""

LOG_LIMITS = "A log has no steps: which of them these pauses made longer it cannot say."
BENCH_LIMITS = (
    "vllm bench serve sees tokens arrive, not their cause; tokens that reach it in one chunk count "
    "as one gap."
)


def gc_log(path: Path) -> tuple[pd.DataFrame, list[str]]:
    """Collections that a server logged by process and generation, and what such logs cannot say."""
    found: dict[Source, dict[tuple[str, str], list[float]]] = {}
    with path.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            for source in SOURCES:
                if match := source.line.search(line):
                    of = found.setdefault(source, defaultdict(list))
                    length = match.groupdict()
                    ms = float(length.get("ms") or 1e3 * float(length.get("s") or 0))
                    of[length.get("who") or "not named", match["gen"]].append(ms)
                    break
    if not found:
        known = fmt.listed(source.setting for source in SOURCES)
        raise ValueError(f"{path}: holds no line with a collection; known are those of {known}")
    rows = pd.DataFrame(
        {
            "source": source.setting,
            "process": who,
            "generation": generation,
            "collections": f"{len(lengths):,}",
            "seconds": fmt.figures(sum(lengths) / 1e3),
            "longest (ms)": fmt.figures(max(lengths)),
        }
        for source, of in found.items()
        for (who, generation), lengths in sorted(of.items())
    )
    return rows, [*(f"{s.setting}: {s.limits}" for s in found), LOG_LIMITS]


def bench(path: Path) -> tuple[list[str], list[Long]]:
    """ITL of a client in words, and its longest silences, from `vllm bench serve --save-detailed`.

    In a silence no request got a token; its times are those of the client's host.
    """
    try:
        result: dict[str, Any] = json.loads(path.read_text())
        gaps = [np.asarray(each, dtype=float) for each in result["itls"]]
        first = np.asarray(result["start_times"]) + np.asarray(result["ttfts"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path}: no detailed result of vllm bench serve ({error}); add --save-result "
            "--save-detailed"
        ) from error
    tail = Tail()
    tail.add((np.concatenate([*gaps, np.zeros(0)]) * 1e9).astype(np.int64))
    said = [
        f"{fmt.quantile(q)} {fmt.ms(found.value / NS_PER_MS)}"
        if found.supported
        else f"{fmt.quantile(q)} needs {found.needs:,} gaps"
        for q, found in zip(QUANTILES, quantiles(tail, QUANTILES), strict=True)
    ]
    times = [start + np.append(0, np.cumsum(gap)) for start, gap in zip(first, gaps, strict=True)]
    arrivals = np.unique((np.concatenate([*times, np.zeros(0)]) * 1e9).astype(np.int64))
    quiet = np.diff(arrivals)
    longest = np.argsort(-quiet)[:10]
    silences = [Long(int(quiet[i]), int(arrivals[i]), "client", "") for i in longest]
    return [f"ITL of {tail.number:,} gaps at the client: {fmt.listed(said)}."], silences
