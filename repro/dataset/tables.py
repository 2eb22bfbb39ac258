"""One table of `schema.TABLES` as a Parquet file: written small, checked as it is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from repro.dataset.run import NULLABLE, REMEDY, DatasetError, first_line
from repro.dataset.schema import LATER, TABLES

WRITING: dict[str, Any] = {"compression": "brotli", "compression_level": 11}
# Of a small table most would be what Arrow and Parquet write about it.
WRITING |= {"store_schema": False, "write_statistics": False}


def write_parquet(path: Path, table: pa.Table) -> Path:
    """Write a table, whole or not at all."""
    temporary = path.with_suffix(".partial")
    # Numbers byte by byte, since most differ in their lowest bytes alone; names by their number.
    split = [field.name for field in table.schema if field.type == pa.int64()]
    encodings = dict.fromkeys(split, "BYTE_STREAM_SPLIT")
    names = [name for name in table.column_names if name not in encodings]
    pq.write_table(table, temporary, use_dictionary=names, column_encoding=encodings, **WRITING)
    temporary.replace(path)
    return path


def read_parquet(path: Path) -> pa.Table:
    """A Parquet file as it is.

    Raises
    ------
    DatasetError
        If it is none, or cut short.
    """
    try:
        return pq.ParquetFile(path).read()
    except (OSError, pa.ArrowException) as error:
        what = f"{path}: is no whole parquet file ({first_line(error)})"
        raise DatasetError(f"{what}; {REMEDY}") from error


def read_table(run: Path, name: str) -> pa.Table:
    """One of `schema.TABLES` of a run directory; a file that is not there is an empty table.

    Raises
    ------
    DatasetError
        If the file is no whole parquet file, or its columns are not those of `schema.TABLES`.
    """
    path = run / f"{name}.parquet"
    return checked(path, name, read_parquet(path)) if path.exists() else TABLES[name].empty_table()


def checked(path: Path, name: str, table: pa.Table) -> pa.Table:
    """A table read from a file, with exactly the columns of `schema.TABLES`.

    Raises
    ------
    DatasetError
        If it has others, or an empty cell where none may be.
    """
    expected = TABLES[name]
    for field in expected:  # as many as older runs lack
        if field.name in LATER.get(name, ()) and field.name not in table.column_names:
            table = table.append_column(field, pa.nulls(len(table), field.type))
    if set(table.column_names) == set(expected.names):
        table = table.select(expected.names)
    if not table.schema.equals(expected):
        found, wanted = _columns(table.schema), _columns(expected)
        raise DatasetError(f"{path}: has columns {found}, must have {wanted}; {REMEDY}")
    for column in table.column_names:
        if table[column].null_count and column not in NULLABLE:
            raise DatasetError(f"{path}: column {column!r} has empty cells; {REMEDY}")
    return table


def _columns(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name} {field.type}" for field in schema)
