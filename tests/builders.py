"""Write valid campaigns for tests, of invented numbers: `run` makes one run, to be then spoilt."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from repro.dataset.schema import SCHEMA_VERSION, TABLES

SECOND = 1_000_000_000
MS = 1_000_000
START, END = 10 * SECOND, 20 * SECOND
"""The measured window of every run made here."""


def document(run_id: str, **changes: object) -> dict[str, Any]:
    """A valid `run.json` of a run that is ok, with dotted keys changed.

    `changes` uses `__` for the dot: `document("a", experiment__policy="freeze")`.
    """
    made: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "status": "ok",
        "run_id": run_id,
        "started_at": "2026-06-04T23:39:00+00:00",
        "experiment": {
            "policy": "freeze",
            "capture_policy": "stock",
            "client": "engine",
            "executor": "mp",
            "concurrency": 256,
            "tensor_parallel_size": 1,
            "data_parallel_size": 1,
            "model": "tiny",
            "max_num_seqs": 1024,
            "enforce_eager": False,
            "prompt_tokens": 16,
            "output_tokens": [64, 192],
            "duration_s": 10.0,
            "seed": 0,
            "replicate": 0,
        },
        "machine": {
            "gpu_name": None,
            "gpu_count": 0,
            "gpu_driver": None,
            "cpu_model": "Abacus 2",
            "cpu_count": 2,
            "memory_bytes": 16 << 30,
            "kernel": "6.1",
        },
        "versions": {"python": "3.12.3", "vllm": "0.32.0", "torch": "2.13.0", "repro": "0.1.0"},
        "policy": {"requested": "freeze", "verified": True, "evidence": []},
        "window": {"start_ns": START, "end_ns": END, "ramp_s": 2.0},
        "summary": {
            "output_tokens": 1000,
            "tokens_per_s": 100.0,
            "requests_finished": 10,
            "client_busy": 0.5,
        },
    }
    for key, value in changes.items():
        *parents, leaf = key.split("__")
        holder = made
        for parent in parents:
            holder = holder[parent]
        holder[leaf] = value
    return made


def run(
    campaign: Path,
    run_id: str = "a",
    tables: Mapping[str, Mapping[str, object]] | None = None,
    **changes: object,
) -> Path:
    """Write one run directory and return it.

    `tables` maps a table's name to its columns: sequences, or one value for every row.
    Columns not given are 0, a role is `worker`. `run.json` is written as `document` makes it.
    """
    directory = campaign / run_id
    directory.mkdir(parents=True)
    for name, columns in (tables or {}).items():
        pq.write_table(table(name, columns), directory / f"{name}.parquet")
    (directory / "run.json").write_text(json.dumps(document(run_id, **changes)))
    return directory


def table(name: str, columns: Mapping[str, object]) -> pa.Table:
    """A table of the schema, its missing columns filled in."""
    schema = TABLES[name]
    rows = max(
        len(column)
        for column in columns.values()
        if isinstance(column, Sequence | np.ndarray) and not isinstance(column, str)
    )
    filled = {field.name: columns.get(field.name, _blank(field)) for field in schema}
    arrays = [
        pa.array(
            value
            if isinstance(value, Sequence | np.ndarray) and not isinstance(value, str)
            else [value] * rows,
            type=schema.field(column).type,
        )
        for column, value in filled.items()
    ]
    return pa.Table.from_arrays(arrays, schema=schema)


def steady(gap_ns: int = 10 * MS, tokens: int = 4) -> dict[str, dict[str, object]]:
    """Steps and gaps of a server in which nothing ever happens, over the window and its ramp."""
    entry = np.arange(START - SECOND, END, gap_ns, dtype=np.int64)
    return {
        "steps": {"step": np.arange(len(entry)), "start_ns": entry, "duration_ns": gap_ns // 2},
        "itl": {"t_ns": entry, "itl_ns": np.full(len(entry), gap_ns), "count": tokens},
    }


def stalled(stalls: Sequence[int], stall_ns: int, gap_ns: int = 10 * MS) -> np.ndarray:
    """When tokens arrive, if every one comes `gap_ns` after the last, but later for each stall.

    A stall that begins at `s` holds back the first token due after `s`, and all that follow it.
    """
    due = np.arange(START - SECOND, END, gap_ns, dtype=np.int64)
    begun = np.searchsorted(np.sort(np.asarray(stalls)), due)
    return due + begun * stall_ns


def gaps_between(t_ns: np.ndarray, tokens: int = 4) -> dict[str, object]:
    """The `itl` table of tokens that arrive at these times."""
    return {"t_ns": t_ns[1:], "itl_ns": np.diff(t_ns), "count": tokens}


def _blank(field: pa.Field) -> object:
    if pa.types.is_string(field.type):
        return {"capture_policy": "stock"}.get(field.name, "worker")
    return False if pa.types.is_boolean(field.type) else 0
