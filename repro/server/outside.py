"""Sources without this package's recorder: vLLM's own log, and its benchmark's result."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from repro import fmt
from repro.dataset.schema import NS_PER_MS
from repro.server.numbers import QUANTILES, Long
from repro.server.tail import Tail, quantiles

_PAUSE = re.compile(
    r"(?:\((?P<name>\w+) pid=(?P<pid>\d+)\))?.*GC took (?P<ms>[\d.]+)ms to complete\. "
    r"Collected (?P<found>\S+) objects \(out of (?P<objects>\d+)\) in GC generation (?P<gen>\d)"
)
"""`GCDebugger.handle` of vLLM's `utils/gc_utils.py`, behind the log's prefix."""

LOG_LIMITS = (
    "A log with VLLM_GC_DEBUG has engine cores and GPU workers only, no API server, and no "
    "steps: which steps these pauses made longer it cannot say. Each pause includes the time that "
    "the debugger itself took to list the objects, so it is overstated."
)
BENCH_LIMITS = (
    "vllm bench serve sees tokens arrive, not their cause; tokens that reach it in one chunk count "
    "as one gap."
)


def gc_log(path: Path) -> pd.DataFrame:
    """Collections that a vLLM with `VLLM_GC_DEBUG=1` logged, by process and generation.

    Raises
    ------
    ValueError
        If the file has no such line.
    """
    found: dict[tuple[str, int], list[tuple[float, int]]] = defaultdict(list)
    with path.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if match := _PAUSE.search(line):
                who = f"{match['name']} (pid {match['pid']})" if match["name"] else "not named"
                key = who, int(match["gen"])
                found[key].append((float(match["ms"]), int(match["objects"])))
    if not found:
        raise ValueError(
            f"{path}: holds no line 'GC took …ms to complete'; start vLLM with VLLM_GC_DEBUG=1"
        )
    return pd.DataFrame(
        {
            "process": who,
            "generation": generation,
            "collections": f"{len(rows):,}",
            "seconds": fmt.figures(sum(ms for ms, _ in rows) / 1e3),
            "longest (ms)": fmt.figures(max(ms for ms, _ in rows)),
            "objects, most": f"{max(objects for _, objects in rows):,}",
        }
        for (who, generation), rows in sorted(found.items())
    )


def bench(path: Path) -> tuple[list[str], list[Long]]:
    """ITL of a client, and its longest silences, from `vllm bench serve --save-detailed`.

    Returns
    -------
    (list of str, list of Long)
        Sentences; times in which no request got a token, on the clock of the client's host.

    Raises
    ------
    ValueError
        If the file is no detailed result.
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
        for q, found in zip(QUANTILES, quantiles([tail], QUANTILES), strict=True)
    ]
    times = [start + np.append(0, np.cumsum(gap)) for start, gap in zip(first, gaps, strict=True)]
    arrivals = np.unique((np.concatenate([*times, np.zeros(0)]) * 1e9).astype(np.int64))
    quiet = np.diff(arrivals)
    longest = np.argsort(-quiet)[:10]
    silences = [Long(int(quiet[i]), int(arrivals[i]), "client", "") for i in longest]
    return [f"ITL of {tail.number:,} gaps at the client: {fmt.listed(said)}."], silences
