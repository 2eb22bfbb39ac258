"""Turn what a run left behind into its run directory: tables first, `run.json` last of all."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shlex
import shutil
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from repro.dataset import recording
from repro.dataset.schema import SCHEMA_VERSION, TABLES
from repro.dataset.tables import write_parquet
from repro.experiment import provenance, verify
from repro.experiment.config import Experiment
from repro.experiment.grid import options

RAW = "raw"
LOG = "engine.log"
MEASURED = "measured.json"

LOG_LINES, LINES_AFTER_ERROR = 30, 5
"""Lines of the log that a failed run keeps, and how many of them follow the first error."""

LOG_PREFIX = re.compile(r"^(\([^)]*pid=\d+\) )?(ERROR \S+ \S+ \[[^]]*\] ?)?")
"""vLLM's mark of process, time and source line before each line that it logs."""

EXCEPTION = re.compile(r"[A-Za-z_][\w.]*(: |$)")
WORKER_DIED = re.compile(r"Worker proc \S+ died unexpectedly")
"""The engine core's log line for a killed worker, which leaves no traceback of its own."""

EVENTS = ("pauses", "steps", "holds", "itl", "requests", "captures")
"""Tables whose times are stored to the tick: those with many rows, and what holds their events."""

TICK_NS = 1 << 10
"""To which the lengths of events are stored. A microsecond is a thousandth of the shortest step,
and as a power of two it leaves whole bytes to be zero: half the size of the times in full."""

CLIENT_TICK_NS = {"itl": 1 << 14, "requests": 1 << 14}
"""The same for what a client saw: a gap is of milliseconds."""

POINT_TICKS = 4
"""Points in time are stored to so many ticks: they order events and lay one over another."""


def write_table(folder: Path, name: str, columns: Mapping[str, Any]) -> Path:
    """Write one of `repro.dataset.schema.TABLES` of a run directory.

    It takes every column of the table, of shape (n,), and ignores others; no columns at all is an
    empty table.
    """
    schema = TABLES[name]
    arrays = {
        field.name: pa.array(columns[field.name] if columns else [], field.type, from_pandas=True)
        for field in schema
    }
    if name in EVENTS:
        arrays = to_the_tick(arrays, CLIENT_TICK_NS.get(name, TICK_NS))
    return write_parquet(folder / f"{name}.parquet", pa.table(arrays, schema=schema))


def to_the_tick(arrays: Mapping[str, pa.Array], tick_ns: int) -> dict[str, pa.Array]:
    """A point in time becomes that of the tick it lies in, a length the nearest; again is as once.

    So what began in a capture, however soon, still does. What is missing stays missing.
    """
    made = dict(arrays)
    for column, array in arrays.items():
        if column.endswith("_ns") and array.type == pa.int64():
            point = column in ("t_ns", "start_ns")
            shift, unit = (0, POINT_TICKS * tick_ns) if point else (tick_ns // 2, tick_ns)
            made[column] = pc.bit_wise_and(pc.add(array, shift), -unit)
    return made


def finish(
    folder: Path, experiment: Experiment, started_at: datetime, others: Mapping[str, float]
) -> None:
    """Make a measured run a run directory, `status: "ok"`; `others` is the load of other programs.

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
    if handler := verify.output_handler_is(experiment, recordings):
        measured["policy"]["output_handler"] = handler
    captures, pauses = tables["captures"], tables["pauses"]
    verify.captures_are_as_planned(experiment, captures)
    verify.capture_policies_took_effect(experiment, captures, pauses, evidence)
    if experiment.client in ("engine", "async_engine"):
        window = measured["window"]
        verify.engine_was_loaded(experiment, tables["steps"], window["start_ns"], window["end_ns"])
    for name, columns in tables.items():
        write_table(folder, name, in_order(columns))
    write_run(
        folder, describe(folder, experiment, started_at, others) | measured | {"status": "ok"}
    )
    shutil.rmtree(folder / RAW)


def fail(
    folder: Path,
    experiment: Experiment,
    started_at: datetime,
    others: Mapping[str, float],
    reason: str,
) -> None:
    """Mark the run failed, with its reason and the end of its log; what it recorded stays."""
    document = describe(folder, experiment, started_at, others)
    document |= {"status": "failed", "reason": reason, "log_tail": log_excerpt(log_lines(folder))}
    write_run(folder, document)


def describe(
    folder: Path, experiment: Experiment, started_at: datetime, others: Mapping[str, float]
) -> dict[str, Any]:
    """The part of `run.json` that every run has, failed ones too."""
    return {
        "schema_version": SCHEMA_VERSION,
        "run_id": folder.name,
        "started_at": started_at.astimezone(UTC).isoformat(timespec="seconds"),
        "wall_s": (datetime.now(UTC) - started_at).total_seconds(),
        "command": shlex.join(["repro", "run", "DIR", *options(experiment)]),
        "experiment": dataclasses.asdict(experiment),
        "machine": provenance.machine(),
        "other_load": dict(others),
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


def log_excerpt(lines: list[str]) -> list[str]:
    """The lines around the first error of a log, or its last ones where it names none."""
    found = first_error(lines)
    end = found[0] + LINES_AFTER_ERROR if found else len(lines)
    return lines[:end][-LOG_LINES:]


def first_error(lines: list[str]) -> tuple[int, str] | None:
    """The line number and the text of a log's first error.

    That is the end of the first traceback, or a worker's death before it. vLLM logs an exception
    in the worker, then what it causes in the engine core and the front end.
    """
    inside = False
    for number, line in enumerate(lines):
        text = LOG_PREFIX.sub("", line)
        inside = inside or text.startswith("Traceback (most recent call last)")
        if WORKER_DIED.match(text) or (inside and EXCEPTION.match(text)):
            return number, text.strip()
    return None


def log_lines(folder: Path) -> list[str]:
    """The engine's log."""
    path = folder / LOG
    return path.read_text(errors="replace").splitlines() if path.exists() else []


def in_order(columns: Mapping[str, Any]) -> dict[str, Any]:
    """Rows by process, then by time, so that equal values lie together."""
    keys = [columns[name] for name in ("t_ns", "start_ns", "pid", "rank") if name in columns]
    if not keys:
        return dict(columns)
    order = np.lexsort([np.asarray(key) for key in keys])
    return {name: np.asarray(column)[order] for name, column in columns.items()}
