"""`python -m repro.dataset.datapackage` describes `data/` for programs, and sums up its files.

The description is a Frictionless data package (https://specs.frictionlessdata.io). Meanings and
units come from the dictionary for people, `data/README.md`, so that there is only one.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa

from repro.dataset import stored
from repro.dataset.run import NULLABLE, DatasetError
from repro.dataset.schema import SCHEMA_VERSION, TABLES

DICTIONARY = "README.md"
PACKAGE = "datapackage.json"
SUMS = "SHA256SUMS"

OWNER = {
    "name": stored.RUN,
    "type": "string",
    "description": f"`run_id` of the row's run, a line of {stored.RUNS}",
    "constraints": {"required": True},
}
"""The first column of every packed table."""

_SECTION = re.compile(r"^### `(\w+)\.parquet`\n\n(.+?)\n(.*?)(?=^#|\Z)", re.MULTILINE | re.DOTALL)
_ROW = re.compile(r"^\| `(\w+)` \| (.*?) ?\| (.+) \|$", re.MULTILINE)


def describe(data_root: str | Path) -> dict[str, Any]:
    """A description of all files under a data directory.

    Parameters
    ----------
    data_root : str or Path
        Holds `README.md` and the campaigns.

    Returns
    -------
    dict
        The content of `datapackage.json`: one resource a table, of all campaigns that have it, and
        one for the runs themselves. The same for the same files, on any machine.

    Raises
    ------
    DatasetError
        If the dictionary is missing, or lacks a table or a column.
    """
    root = Path(data_root)
    dictionary = _read_dictionary(root / DICTIONARY)
    tables = [_describe_table(root, name, *dictionary[name]) for name in TABLES]
    runs = {
        "name": "runs",
        "description": "Parameters, machine, versions and outcome of each run.",
        "path": _paths(root, stored.RUNS),
        "format": "jsonl",
        "compression": "gz",
        "mediatype": "application/jsonl",
    }
    return {
        "name": "vllm-gc-freeze",
        "title": "Garbage collection pauses and inter-token latency of vLLM workers",
        "description": f"See {DICTIONARY}. Layout of a run: schema version {SCHEMA_VERSION}.",
        "licenses": [{"name": "CC-BY-4.0", "path": "LICENSE"}],
        # A resource must have a file.
        "resources": [resource for resource in (runs, *tables) if resource["path"]],
    }


def write(data_root: str | Path) -> Path:
    """Write the description and the checksums; returns the path of the former."""
    path = Path(data_root) / PACKAGE
    text = json.dumps(describe(data_root), indent=1, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")
    path.with_name(SUMS).write_text(checksums(data_root), encoding="utf-8")
    return path


def checksums(data_root: str | Path) -> str:
    """The content of `SHA256SUMS`: a line per file, as `sha256sum` prints and checks them."""
    root = Path(data_root)
    files = {path.relative_to(root).as_posix(): path for path in root.rglob("*") if path.is_file()}
    return "".join(
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {name}\n"
        for name, path in sorted(files.items())
        if name != SUMS and not path.name.startswith(".")
    )


def _describe_table(
    root: Path, name: str, about: str, columns: dict[str, dict[str, str]]
) -> dict[str, Any]:
    fields = [
        {
            "name": field.name,
            "type": _frictionless_type(field.type),
            **columns[field.name],
            "constraints": {"required": field.name not in NULLABLE},
        }
        for field in TABLES[name]
    ]
    return {
        "name": name,
        "description": about,
        "path": _paths(root, f"{name}.parquet"),
        "format": "parquet",
        "mediatype": "application/vnd.apache.parquet",
        "schema": {"fields": [OWNER, *fields]},
    }


def _paths(root: Path, name: str) -> list[str]:
    return sorted(path.relative_to(root).as_posix() for path in root.glob(f"*/{name}"))


def _frictionless_type(kind: pa.DataType) -> str:
    if pa.types.is_integer(kind):
        return "integer"
    if pa.types.is_floating(kind):
        return "number"
    return "boolean" if pa.types.is_boolean(kind) else "string"


def _read_dictionary(path: Path) -> dict[str, tuple[str, dict[str, dict[str, str]]]]:
    """The dictionary's entry for each table and each column: description and unit."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    found = {}
    for name, about, rest in _SECTION.findall(text):
        columns = {}
        for column, unit, meaning in _ROW.findall(rest):
            columns[column] = {"description": meaning} | ({"unit": unit} if unit else {})
        found[name] = (about, columns)
    for name, schema in TABLES.items():
        described = list(found[name][1]) if name in found else []
        if described != schema.names:
            wanted = ", ".join(schema.names)
            raise DatasetError(f"{path}: must describe {name}.parquet with the columns {wanted}")
    return found


if __name__ == "__main__":
    print(write(sys.argv[1] if len(sys.argv) > 1 else "data"))
