"""`python -m repro.dataset.pack CAMPAIGN... INTO` stores the runs of campaigns as one, packed.

Small files of a run cost a disk block each and a Parquet head; packed, `data/` takes what it holds.
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from repro.dataset import stored
from repro.dataset.run import DatasetError
from repro.dataset.schema import TABLES
from repro.dataset.tables import write_parquet


def pack(sources: Sequence[str | Path], into: str | Path) -> Path:
    """Store the runs of some campaigns as one; `into` may be one of them, and then grows.

    Returns
    -------
    Path
        `into`, with `stored.RUNS` and one file per table that has rows.

    Raises
    ------
    DatasetError
        If a source has no runs, if `into` has runs and is no source or has run directories, or if a
        run comes twice.
    """
    folder = Path(into)
    for source in map(Path, sources):
        if not stored.is_campaign(source):
            raise DatasetError(f"{source}: has no finished run; name a campaign, as runs/mine")
    if stored.is_campaign(folder) and folder.resolve() not in {Path(s).resolve() for s in sources}:
        raise DatasetError(f"{folder}: holds runs; name it among the campaigns to add to them")
    if stored.is_campaign(folder) and not stored.is_packed(folder):
        raise DatasetError(f"{folder}: holds run directories; pack them into another folder")
    found = [run for source in sources for run in stored.runs(Path(source))]
    stored.check_unique(folder, found)
    found.sort(key=lambda run: str(run.document["run_id"]))
    packed = {name: _joined(name, found) for name in TABLES}
    folder.mkdir(parents=True, exist_ok=True)
    for name, table in packed.items():
        if len(table):
            write_parquet(folder / f"{name}.parquet", table)
    lines = [json.dumps(r.document, ensure_ascii=False, separators=(",", ":")) for r in found]
    temporary = folder / f"{stored.RUNS}.partial"
    text = "".join(f"{line}\n" for line in lines)
    temporary.write_bytes(gzip.compress(text.encode(), mtime=0))  # the same bytes at any time
    return temporary.replace(folder / stored.RUNS).parent


def _joined(name: str, found: list[stored.Run]) -> pa.Table:
    """One table of all runs, whose they are in the first column."""
    ok = [run for run in found if run.document["status"] == "ok"]
    parts = {run.document["run_id"]: run.table(name) for run in ok}
    owner = [run_id for run_id, rows in parts.items() for _ in range(len(rows))]
    whole = pa.concat_tables([TABLES[name].empty_table(), *parts.values()])
    return whole.add_column(0, stored.RUN, pa.array(owner, pa.string()))


def main() -> None:
    """Pack the campaigns named on the command line."""
    parser = argparse.ArgumentParser(description="Store the runs of campaigns as one, packed.")
    parser.add_argument("campaigns", nargs="+", help="folders of run directories, or packed ones")
    parser.add_argument("into", help="packed folder; also among the campaigns, it grows")
    asked = parser.parse_args()
    try:
        print(pack(asked.campaigns, asked.into))
    except DatasetError as error:
        sys.exit(f"pack: {error}")


if __name__ == "__main__":
    main()
