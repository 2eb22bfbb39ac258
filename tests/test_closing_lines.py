"""The last lines of `make reproduce`, and the exit status of `make bench`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from campaigns import story

from benchmarks import bench_recorder
from repro import dataset
from repro.claims import CLAIMS, evaluate
from repro.dataset.schema import NS_PER_S
from repro.report.closing_lines import closing_lines, too_short

DATA = Path(__file__).parent.parent / "data"


def test_every_decided_claim_has_a_line_with_its_number(tmp_path: Path) -> None:
    campaign = dataset.load(story(tmp_path / "c", length_s=12))
    lines = closing_lines(campaign, evaluate([campaign]), tmp_path / "index.html")
    measured, *claims, undecided, files = lines
    assert measured.startswith("Measured: 2 runs with freeze and 2 runs with no-freeze; Abacus 2,")
    assert any("P99 ITL ×" in line for line in claims)
    assert f"Not measured by these runs: {len(CLAIMS) - len(claims)} claims" in undecided
    assert files == f"Page: {tmp_path / 'index.html'}; data: {campaign.path}"


def test_periods_of_one_engine_are_called_so_and_those_without_a_full_collection_told() -> None:
    campaign = dataset.subset(dataset.load(DATA / "cpu-crossover"), switch_s=60.0, replicate=0)
    nothing = evaluate([campaign]).iloc[:0]
    measured, *_ = closing_lines(campaign, nothing, Path("index.html"))
    assert measured.startswith(
        "Measured: 4 periods with freeze and 4 periods with no-freeze, in turn in one engine;"
    )
    assert too_short(campaign) == [], "a full collection in each"
    cut_s = campaign.runs["window_start_ns"] + 30 * NS_PER_S
    short = replace(campaign, runs=campaign.runs.assign(window_end_ns=cut_s))
    (line,) = too_short(short)
    assert line.startswith("Too short: 4 of 4 periods without the freeze had no full collection")


@pytest.mark.parametrize(("us", "status"), [(1.9, 0), (2.1, 1)])
def test_a_recorder_over_its_target_is_a_failure(
    us: float, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = iter([1.0, 1.0, 1.0 + us, 1.0, 1.0])  # bare, empty, recorded; a step
    monkeypatch.setattr(bench_recorder, "per_call_us", lambda call: next(times))
    assert bench_recorder.main() == status
