"""A run's `run.json`, read and checked key by key."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from types import NoneType
from typing import Any

from repro.dataset.schema import LATER, REQUIRED, SCHEMA_VERSION
from repro.experiment.config import Experiment
from repro.experiment.fields import parameters

REMEDY = "restore the file, or delete the run's directory, if it has one, and measure it again"
NULLABLE = {"tpot_ns", *(name for names in LATER.values() for name in names)}
"""A request of one token has no time per output token; what older runs lack is empty there.
Every other cell holds a value."""

Types = tuple[type, ...]

OK_KEYS: dict[str, Types] = {
    "experiment.policy": (str,),
    "experiment.capture_policy": (str,),
    "experiment.client": (str,),
    "experiment.executor": (str,),
    "experiment.concurrency": (int,),
    "experiment.tensor_parallel_size": (int,),
    "experiment.data_parallel_size": (int,),
    "experiment.output_tokens": (list,),
    "experiment.model": (str,),
    "experiment.seed": (int,),
    "experiment.replicate": (int,),
    "machine.gpu_name": (str, NoneType),
    "machine.gpu_count": (int,),
    "machine.gpu_driver": (str, NoneType),
    "machine.cpu_model": (str,),
    "machine.cpu_count": (int,),
    "versions.python": (str,),
    "versions.vllm": (str,),
    "versions.torch": (str,),
    "policy.requested": (str,),
    "policy.verified": (bool,),
    "window.start_ns": (int,),
    "window.end_ns": (int,),
    "window.ramp_s": (int, float),
    "summary.output_tokens": (int,),
    "summary.tokens_per_s": (int, float),
}
"""Keys that the analysis reads of a run that is ok, besides `schema.REQUIRED`."""

ADDED = {
    name: field.default
    for name, field in parameters(Experiment).items()
    if f"experiment.{name}" not in OK_KEYS
}
"""Parameters that older runs lack, and what they ran with: one added later changes no run."""

FAILED_KEYS: dict[str, Types] = {"reason": (str,), "log_tail": (list,)}


class DatasetError(ValueError):
    """Data that is not what it should be; the message names the file, the fault, the remedy."""


def pick(document: dict[str, Any], key: str) -> Any:
    """The value under a dotted key, None where any part of the way is missing."""
    value: Any = document
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def read_document(run: Path) -> dict[str, Any]:
    """The checked content of a run directory's `run.json`.

    Raises
    ------
    DatasetError
        If the file is no JSON, of a newer schema, or a key is missing or of the wrong type;
        if the run is marked ok but its policy was not seen to take effect.
    """
    path = run / "run.json"
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error
    return checked_document(path, text)


def checked_document(path: object, text: str) -> dict[str, Any]:
    """The checked content of the text of a `run.json`; `path` says in messages where it is from.

    Raises
    ------
    DatasetError
        As `read_document` does.
    """
    try:
        document = json.loads(text)
    except ValueError as error:
        raise _unreadable(path, error) from error
    if not isinstance(document, dict):
        raise DatasetError(f"{path}: must hold one JSON object; {REMEDY}")
    _check_version(path, document)
    _check_keys(path, document, {key: (kind,) for key, kind in REQUIRED.items()})
    _check_start(path, document["started_at"])
    document["experiment"] = {**ADDED, **document["experiment"]}
    match document["status"]:
        case "ok":
            _check_keys(path, document, OK_KEYS)
            _check_measured(path, document)
        case "failed":
            _check_keys(path, document, FAILED_KEYS)
        case other:
            raise DatasetError(f"{path}: status is {other!r}, must be 'ok' or 'failed'; {REMEDY}")
    return document


def first_line(text: object) -> str:
    """At most one line of a message that others wrote."""
    return (str(text).splitlines() or [""])[0][:200]


def _unreadable(path: object, error: Exception) -> DatasetError:
    return DatasetError(f"{path}: cannot be read ({first_line(error)}); {REMEDY}")


def _check_version(path: object, document: dict[str, Any]) -> None:
    version = document.get("schema_version")
    if type(version) is not int or version < 1:
        allowed = f"must be the integer {SCHEMA_VERSION}"
        raise DatasetError(f"{path}: schema_version is {version!r}, {allowed}; {REMEDY}")
    if version != SCHEMA_VERSION:
        reads = f"this package reads {SCHEMA_VERSION}"
        remedy = "update the package" if version > SCHEMA_VERSION else "measure the run again"
        raise DatasetError(f"{path}: has schema_version {version}, {reads}; {remedy}")


def _check_keys(path: object, document: dict[str, Any], keys: dict[str, Types]) -> None:
    for key, kinds in keys.items():
        parent, _, leaf = key.rpartition(".")
        holder = pick(document, parent) if parent else document
        wanted = " or ".join("null" if kind is NoneType else kind.__name__ for kind in kinds)
        if not isinstance(holder, dict) or leaf not in holder:
            raise DatasetError(f"{path}: key {key!r} is missing, must be {wanted}; {REMEDY}")
        if type(holder[leaf]) not in kinds:  # not isinstance: true is no integer
            found = first_line(repr(holder[leaf]))
            raise DatasetError(f"{path}: key {key!r} is {found}, must be {wanted}; {REMEDY}")


def _check_start(path: object, started_at: str) -> None:
    try:
        zoned = datetime.fromisoformat(started_at).tzinfo is not None
    except ValueError:
        zoned = False
    if not zoned:
        allowed = "must be an ISO 8601 time with its zone, as 2026-06-04T23:39:00+00:00"
        raise DatasetError(f"{path}: started_at is {first_line(started_at)!r}, {allowed}; {REMEDY}")


def _check_measured(path: object, document: dict[str, Any]) -> None:
    start, end = document["window"]["start_ns"], document["window"]["end_ns"]
    if not 0 <= start < end < 2**63:
        raise DatasetError(
            f"{path}: window is {start} to {end}, must be 0 <= start_ns < end_ns < 2**63; {REMEDY}"
        )
    if not document["policy"]["verified"]:
        raise DatasetError(f"{path}: status is 'ok' but the policy was not verified; {REMEDY}")
