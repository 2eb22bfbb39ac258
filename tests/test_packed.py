"""Packed campaigns: read as before they were packed, refused where damaged, never overwritten."""

from __future__ import annotations

import gzip
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from builders import run, steady, table

from repro.dataset import DatasetError, load
from repro.dataset.pack import main, pack
from repro.dataset.schema import TABLES
from repro.dataset.stored import RUNS
from repro.experiment.campaign import CampaignError, run_campaign


@pytest.fixture
def measured(tmp_path: Path) -> Path:
    """Two runs that are ok, one of them without gaps, and a failed one."""
    root = tmp_path / "measured"
    run(root, "b", steady())
    run(root, "a", {"steps": {"start_ns": [10**12], "tokens": [7]}})
    run(root, "c", status="failed", reason="worker died", log_tail=["Killed"])
    return root


@pytest.fixture
def packed(measured: Path, tmp_path: Path) -> Path:
    return pack([measured], tmp_path / "packed")


def refused(folder: Path) -> str:
    with pytest.raises(DatasetError) as error:
        load(folder)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_packed_campaign_reads_as_its_run_directories(measured: Path, packed: Path) -> None:
    before, after = load(measured), load(packed)
    for name in ("runs", "failed", *TABLES):
        pd.testing.assert_frame_equal(getattr(before, name), getattr(after, name))
    assert set(after.itl["run"]) == {"b"}
    assert list(after.failed["reason"]) == ["worker died"]


def test_tables_without_rows_take_no_file(packed: Path) -> None:
    assert {path.name for path in packed.iterdir()} == {RUNS, "steps.parquet", "itl.parquet"}


def test_packing_again_gives_the_same_bytes(packed: Path) -> None:
    before = {path: path.read_bytes() for path in packed.iterdir()}
    pack([packed], packed)
    assert {path: path.read_bytes() for path in packed.iterdir()} == before
    assert before[packed / RUNS][4:8] == bytes(4), "gzip's time of packing"


def test_runs_are_added_and_none_is_lost(packed: Path, tmp_path: Path) -> None:
    run(tmp_path / "later", "a2", steady())
    with pytest.raises(DatasetError, match="holds runs; name it among the campaigns"):
        pack([tmp_path / "later"], packed)
    pack([packed, tmp_path / "later"], packed)
    assert list(load(packed).runs["run"]) == ["a", "a2", "b"]


def test_a_run_that_comes_twice_is_refused(measured: Path, packed: Path) -> None:
    before = (packed / RUNS).read_bytes()
    with pytest.raises(DatasetError, match="'a' occurs in more than one run"):
        pack([packed, measured], packed)
    assert (packed / RUNS).read_bytes() == before


def test_a_source_without_runs_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="empty: has no finished run"):
        pack([tmp_path / "empty"], tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_the_command_packs_and_refuses_in_one_line(
    measured: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    into = measured.parent / "new"
    monkeypatch.setattr(sys, "argv", ["pack", str(measured), str(into)])
    main()
    assert capsys.readouterr().out == f"{into}\n"
    with pytest.raises(SystemExit, match=r"^pack: .*holds runs; name it among the campaigns"):
        main()


def test_run_directories_are_not_packed_over(measured: Path) -> None:
    with pytest.raises(DatasetError, match="pack them into another folder"):
        pack([measured], measured)


def test_nothing_is_measured_into_a_packed_campaign(packed: Path) -> None:
    with pytest.raises(CampaignError, match="holds packed runs; measure into another folder"):
        run_campaign([], packed)


def test_a_line_cut_short_is_named(packed: Path) -> None:
    text = gzip.decompress((packed / RUNS).read_bytes())
    (packed / RUNS).write_bytes(gzip.compress(text[: len(text) - 20]))
    assert f"{RUNS}, line 3: cannot be read" in refused(packed)


@pytest.mark.parametrize(
    "damaged",
    [
        lambda whole: whole[: len(whole) // 2],
        lambda whole: whole[:12] + b"\xff" * len(whole[12:]),
        lambda whole: gzip.decompress(whole),
        lambda whole: gzip.compress(b"\xff"),
    ],
    ids=["cut short", "overwritten", "not compressed", "no text"],
)
def test_runs_that_are_no_whole_gzip_file_are_named(
    packed: Path, damaged: Callable[[bytes], bytes]
) -> None:
    (packed / RUNS).write_bytes(damaged((packed / RUNS).read_bytes()))
    assert f"{RUNS}: is no whole gzip file of text" in refused(packed)


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (table("itl", {"t_ns": [1]}), "has no column 'run'"),
        (table("itl", {"t_ns": [1]}).append_column("run", pa.array(["z"])), "has rows of 'z'"),
        (pa.table({"run": ["a"], "fare": [7.25]}), "must have t_ns int64"),
    ],
)
def test_a_foreign_table_is_refused(packed: Path, made: pa.Table, said: str) -> None:
    pq.write_table(made, packed / "itl.parquet")
    message = refused(packed)
    assert str(packed / "itl.parquet") in message
    assert said in message


def test_a_table_cut_short_is_refused(packed: Path) -> None:
    path = packed / "itl.parquet"
    path.write_bytes(path.read_bytes()[:-9])
    assert f"{path}: is no whole parquet file" in refused(packed)
