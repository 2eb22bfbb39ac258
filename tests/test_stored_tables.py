"""How tables are stored: times to the tick, whatever is written again unchanged, and small."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from builders import MS

from repro.dataset.schema import TABLES
from repro.dataset.tables import WRITING, read_table
from repro.experiment import collect

ROWS = 3000


def steps() -> dict[str, np.ndarray]:
    """Steps at odd times, of odd lengths."""
    rng = np.random.default_rng(0)
    start = 10**12 + np.cumsum(rng.integers(MS, 30 * MS, ROWS))
    return {
        "rank": np.zeros(ROWS, dtype=np.int64),
        "step": np.arange(ROWS),
        "start_ns": start,
        "duration_ns": rng.integers(MS, 30 * MS, ROWS),
        "tokens": rng.integers(1000, 1024, ROWS),
    }


def stored(folder: Path, columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    collect.write_table(folder, "steps", columns)
    table = read_table(folder, "steps")
    assert table.schema.equals(TABLES["steps"])
    return {name: table[name].to_numpy() for name in table.column_names}


def test_times_are_those_of_their_tick_and_all_else_is_as_it_was(tmp_path: Path) -> None:
    before = steps()
    after = stored(tmp_path, before)
    early = before["start_ns"] - after["start_ns"]
    assert early.min() >= 0, "never later: what began in a capture still does"
    assert early.max() < collect.POINT_TICKS * collect.TICK_NS
    off = np.abs(before["duration_ns"] - after["duration_ns"])
    assert off.max() <= collect.TICK_NS // 2
    for name in ("rank", "step", "tokens"):
        assert (before[name] == after[name]).all()


def test_what_is_written_again_is_the_same_to_the_byte(tmp_path: Path) -> None:
    again = tmp_path / "again"
    again.mkdir()
    stored(again, stored(tmp_path, steps()))
    first, second = (folder / "steps.parquet" for folder in (tmp_path, again))
    assert first.read_bytes() == second.read_bytes()


def test_times_take_less_room_than_as_numbers_of_a_dictionary(tmp_path: Path) -> None:
    stored(tmp_path, steps())
    path = tmp_path / "steps.parquet"
    other = tmp_path / "other.parquet"
    pq.write_table(pq.read_table(path), other, use_dictionary=True, **WRITING)
    assert path.stat().st_size < 0.8 * other.stat().st_size


def test_what_is_missing_stays_missing(tmp_path: Path) -> None:
    made = {name: np.array([1, 2]) for name in TABLES["requests"].names}
    collect.write_table(tmp_path, "requests", made | {"tpot_ns": np.array([np.nan, 5.0])})
    assert read_table(tmp_path, "requests")["tpot_ns"].to_pylist() == [None, 5.0]
