"""Turn what a run left behind into its run directory: tables first, `run.json` last of all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from repro import recording
from repro.experiment import provenance, verify
from repro.experiment.config import Experiment
from repro.schema import SCHEMA_VERSION, TABLES

RAW = "raw"
LOG = "engine.log"
MEASURED = "measured.json"
LOG_TAIL_LINES = 30

EVENTS = ("pauses", "steps", "holds", "itl", "requests", "captures")
"""Tables whose times are stored to the tick: those with many rows, and what holds their events."""

TICK_NS = 1 << 10
"""To which the times of events are stored. A microsecond is a thousandth of the shortest gap, and
as a power of two it leaves whole bytes to be zero: half the size of the same times in full."""

DICTIONARY_SHARE = 0.25
"""Distinct values a row, below which a column is stored with a dictionary."""


def write_table(folder: Path, name: str, columns: Mapping[str, Any]) -> Path:
    """Write one table of a run directory.

    Parameters
    ----------
    folder : Path
        The run directory.
    name : str
        A key of `repro.schema.TABLES`.
    columns : mapping of str to array, each of shape (n,)
        Every column of the table; no columns at all is an empty table. Others are ignored.
    """
    schema = TABLES[name]
    arrays = {
        field.name: pa.array(columns[field.name] if columns else [], field.type, from_pandas=True)
        for field in schema
    }
    if name in EVENTS:
        points = [column for column in arrays if column in ("t_ns", "start_ns")]
        arrays |= {column: in_ticks(arrays[column]) for column in points}
    # What takes few values is smallest as numbers of a dictionary, times byte by byte, and what
    # else there is counts up: its differences are small.
    few = [column for column, array in arrays.items() if takes_few_values(array)]
    whole = [f.name for f in schema if f.type == pa.int64() and f.name not in few]
    times = [column for column in whole if name in EVENTS and column.endswith("_ns")]
    arrays |= {column: in_ticks(pc.add(arrays[column], TICK_NS // 2)) for column in times}
    path = folder / f"{name}.parquet"
    temporary = path.with_suffix(".partial")
    pq.write_table(
        pa.table(arrays, schema=schema),
        temporary,
        compression="zstd",
        compression_level=19,
        use_dictionary=few,
        column_encoding=dict.fromkeys(whole, "DELTA_BINARY_PACKED")
        | dict.fromkeys(times, "BYTE_STREAM_SPLIT"),
    )
    temporary.replace(path)
    return path


def in_ticks(times: pa.Array) -> pa.Array:
    """Each time as that of the tick it lies in; what is missing stays missing.

    So what began in a capture, however soon, still does. Lengths get half a tick before.
    """
    return pc.bit_wise_and(times, -TICK_NS)


def takes_few_values(column: pa.Array) -> bool:
    """Whether a dictionary of its values pays for a column."""
    return len(column.unique()) < DICTIONARY_SHARE * max(len(column), 1)


def finish(folder: Path, experiment: Experiment, started_at: datetime) -> None:
    """Make a measured run a run directory, `status: "ok"`.

    Raises
    ------
    repro.experiment.verify.NotAsRequested
        If the recording is incomplete, or shows a client that was the bottleneck or a policy
        that did not take effect, or captures that are not those asked for.
    """
    measured = json.loads((folder / RAW / MEASURED).read_text())
    recordings = recording.read_all(folder / RAW)
    verify.recording_is_whole(experiment, recordings)
    tables = recording.tables(folder / RAW, recordings)
    verify.processes_follow(experiment, tables["census"])
    evidence = measured["policy"]["evidence"]
    captures, pauses = tables["captures"], tables["pauses"]
    verify.captures_are_as_planned(experiment, captures)
    verify.capture_policies_took_effect(experiment, captures, pauses, evidence)
    if experiment.client in ("engine", "async_engine"):
        window = measured["window"]
        verify.engine_was_loaded(experiment, tables["steps"], window["start_ns"], window["end_ns"])
    for name, columns in tables.items():
        write_table(folder, name, in_order(columns))
    write_run(folder, describe(folder, experiment, started_at) | measured | {"status": "ok"})
    shutil.rmtree(folder / RAW)


def fail(folder: Path, experiment: Experiment, started_at: datetime, reason: str) -> None:
    """Mark the run failed, with its reason and the end of its log; what it recorded stays."""
    document = describe(folder, experiment, started_at)
    document |= {"status": "failed", "reason": reason, "log_tail": log_tail(folder)}
    write_run(folder, document)


def describe(folder: Path, experiment: Experiment, started_at: datetime) -> dict[str, Any]:
    """The part of `run.json` that every run has, failed ones too."""
    return {
        "schema_version": SCHEMA_VERSION,
        "run_id": folder.name,
        "started_at": started_at.astimezone(UTC).isoformat(timespec="seconds"),
        "wall_s": (datetime.now(UTC) - started_at).total_seconds(),
        "experiment": experiment.to_dict(),
        "machine": provenance.machine(),
        "versions": provenance.versions(),
        "policy": {"requested": experiment.policy, "verified": False, "evidence": []},
    }


def write_run(folder: Path, document: dict[str, Any]) -> None:
    """Write `run.json`, whole or not at all."""
    temporary = folder / "run.json.partial"
    with temporary.open("w") as file:
        json.dump(document, file, indent=1)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(folder / "run.json")


def log_tail(folder: Path, lines: int = LOG_TAIL_LINES) -> list[str]:
    """The last lines of the engine's log."""
    path = folder / LOG
    text = path.read_text(errors="replace") if path.exists() else ""
    return text.splitlines()[-lines:]


def in_order(columns: Mapping[str, Any]) -> dict[str, Any]:
    """Rows by process, then by time, so that equal values lie together."""
    keys = [columns[name] for name in ("t_ns", "start_ns", "pid", "rank") if name in columns]
    if not keys:
        return dict(columns)
    order = np.lexsort([np.asarray(key) for key in keys])
    return {name: np.asarray(column)[order] for name, column in columns.items()}
