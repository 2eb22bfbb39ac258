"""A campaign's runs, as they were measured, in a folder each, or packed, as in `data/`.

Packed, `RUNS`, a gzip file, has a line per run, with what its `run.json` held, and every table is
one file of all runs, whose first column, `run`, says whose row it is. `python -m
repro.dataset.pack` packs.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from repro.dataset.run import REMEDY, DatasetError, checked_document, first_line, read_document
from repro.dataset.schema import TABLES
from repro.dataset.tables import checked, read_parquet, read_table

RUNS = "runs.jsonl.gz"
RUN = "run"
"""The column of a packed table that holds its rows' `run_id`."""


@dataclass(frozen=True)
class Run:
    """The checked content of a run's `run.json`, and its tables by their name."""

    document: dict[str, Any]
    table: Callable[[str], pa.Table]


def is_campaign(path: str | Path) -> bool:
    """Whether a directory holds at least one finished run, ok or failed."""
    return is_packed(path) or any(_finished(Path(path)))


def is_packed(path: str | Path) -> bool:
    """Whether a directory holds packed runs."""
    return (Path(path) / RUNS).is_file()


def runs(campaign: Path) -> list[Run]:
    """Every finished run of a campaign, ok or failed; tables are read as they are asked for.

    Raises
    ------
    DatasetError
        If a run's document is not what `read_document` takes, or two runs have the same `run_id`;
        by `Run.table`, as `tables.read_table` does.
    """
    found = _packed(campaign) if is_packed(campaign) else _in_folders(campaign)
    check_unique(campaign, found)
    return found


def documents(campaign: Path) -> list[dict[str, Any]]:
    """The checked `run.json` of every run of a campaign that is ok."""
    return [run.document for run in runs(campaign) if run.document["status"] == "ok"]


def check_unique(where: Path, found: list[Run]) -> None:
    """Refuse two runs of one `run_id`."""
    ids = [run.document["run_id"] for run in found]
    if twice := sorted({run_id for run_id in ids if ids.count(run_id) > 1}):
        what = f"run_id {twice[0]!r} occurs in more than one run"
        raise DatasetError(f"{where}: {what}; delete the copy")


def _finished(campaign: Path) -> list[Path]:
    """Its run directories that have a `run.json`, by name."""
    return sorted(path.parent for path in campaign.glob("*/run.json"))


def _in_folders(campaign: Path) -> list[Run]:
    return [Run(read_document(run), partial(read_table, run)) for run in _finished(campaign)]


def _packed(campaign: Path) -> list[Run]:
    path = campaign / RUNS
    lines = enumerate(_lines(path), 1)
    found = [checked_document(f"{path}, line {n}", line) for n, line in lines]
    ids = {document["run_id"] for document in found}

    @cache
    def by_run(name: str) -> dict[str, pa.Table]:
        return _by_run(campaign / f"{name}.parquet", name, ids)

    def table_of(run_id: str, name: str) -> pa.Table:
        return by_run(name).get(run_id, TABLES[name].empty_table())

    return [Run(document, partial(table_of, document["run_id"])) for document in found]


def _lines(path: Path) -> list[str]:
    try:
        return gzip.decompress(path.read_bytes()).decode().removesuffix("\n").split("\n")
    except (OSError, EOFError, ValueError, zlib.error) as error:
        what = f"{path}: is no whole gzip file of text ({first_line(error)})"
        raise DatasetError(f"{what}; {REMEDY}") from error


def _by_run(path: Path, name: str, ids: set[str]) -> dict[str, pa.Table]:
    """A packed table's rows by run."""
    if not path.exists():
        return {}
    packed = read_parquet(path)
    if RUN not in packed.column_names:
        raise DatasetError(f"{path}: has no column {RUN!r}; {REMEDY}")
    owner, rows = packed[RUN], checked(path, name, packed.drop_columns(RUN))
    owners = pc.unique(owner).to_pylist()
    if strange := sorted(set(owners) - ids):
        raise DatasetError(f"{path}: has rows of {strange[0]!r}, which {RUNS} lacks; {REMEDY}")
    return {run_id: rows.filter(pc.equal(owner, run_id)) for run_id in owners}
