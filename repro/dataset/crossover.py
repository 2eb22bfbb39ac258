"""A cross-over read as one run per period, each with the policy that held in it.

Periods of one engine share its heap and its compiled code: intervals over them speak for that
engine, not for engines at large. Memory that one period takes stays resident in the next, so the
ratio of two arms' resident memory shows about half of an effect.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from repro.policy import ALTERNATE

Document = dict[str, Any]
Tables = dict[str, pa.Table]

TIMED = {"pauses": "start_ns", "steps": "start_ns", "holds": "start_ns"}
TIMED |= {"itl": "t_ns", "requests": "t_ns"}
"""The tables whose rows belong to a period, and the column that says to which."""

NEVER = 2**63 - 1  # ns


def expanded(
    documents: Sequence[Document], tables: Sequence[Tables]
) -> tuple[list[Document], list[Tables]]:
    """Every cross-over replaced by its periods, every other run as it is.

    Parameters
    ----------
    documents : sequence of dict
        The content of each run's `run.json`.
    tables : sequence of dict of str to pyarrow.Table
        The tables of each.
    """
    pairs = [
        pair
        for document, of_run in zip(documents, tables, strict=True)
        for pair in (
            _periods(document, of_run)
            if document["experiment"]["policy"] == ALTERNATE
            else [(document, of_run)]
        )
    ]
    return [document for document, _ in pairs], [of_run for _, of_run in pairs]


def _periods(document: Document, tables: Tables) -> list[tuple[Document, Tables]]:
    periods = tables["periods"].to_pylist()
    if periods and (wall_s := document.get("wall_s")):  # each bears its part of the engine's time
        document = {**document, "wall_s": wall_s / len(periods)}
    rows = {name: table.slice(0, 0) for name, table in tables.items()}
    counted = _heaps(tables["census"], document["window"], periods)
    timed = {name: _within(tables[name], column, periods) for name, column in TIMED.items()}
    return [
        _period(
            document,
            rows | {name: parts[number] for name, parts in timed.items()} | {"census": census},
            number=number,
            **period,
        )
        for number, (period, census) in enumerate(zip(periods, counted, strict=True))
    ]


def _within(table: pa.Table, column: str, periods: list[Document]) -> list[pa.Table]:
    """The rows of each period; periods follow one another."""
    ordered = table.sort_by(column)
    time = ordered[column].to_numpy()
    first, end = (
        np.searchsorted(time, [period[side] for period in periods])
        for side in ("start_ns", "end_ns")
    )
    return [ordered.slice(a, b - a) for a, b in zip(first, end, strict=True)]


def _heaps(census: pa.Table, window: Document, periods: list[Document]) -> list[pa.Table]:
    """The counts of each period: at its start, at its end and, of the last one, at shutdown.

    Recordings of older versions have no count within the window: their periods get none. Of short
    periods the first has the count at its start, the last that at its end.
    """
    time, point = census["t_ns"].to_numpy(), np.array(census["point"].to_pylist())
    ends = [window["start_ns"], *(period["end_ns"] for period in periods)]
    starts = [*(period["start_ns"] for period in periods), NEVER]
    inside = (time >= window["start_ns"]) & (time < window["end_ns"])
    if not inside.any():
        return [census.slice(0, 0)] * len(periods)
    before = [(time >= end) & (time < start) for end, start in zip(ends, starts, strict=True)]
    return [
        census.filter(
            pa.array((earlier & (point != "window-end")) | (later & (point != "window-start")))
        )
        for earlier, later in pairwise(before)
    ]


def _period(
    document: Document, tables: Tables, *, number: int, policy: str, start_ns: int, end_ns: int
) -> tuple[Document, Tables]:
    tokens = pc.sum(tables["itl"]["count"]).as_py() or 0
    return {
        **document,
        "run_id": f"{document['run_id']}/{number}",
        "experiment": {**document["experiment"], "policy": policy},
        "policy": {**document["policy"], "requested": policy},
        "window": {**document["window"], "start_ns": start_ns, "end_ns": end_ns},
        "summary": {
            **document["summary"],
            "output_tokens": tokens,  # but each request's first
            "tokens_per_s": tokens / ((end_ns - start_ns) / 1e9),
        },
    }, tables
