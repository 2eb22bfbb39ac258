"""The last lines of `make reproduce`, and the exit status of `make bench`."""

from __future__ import annotations

from pathlib import Path

import pytest
from campaigns import story

from benchmarks import bench_recorder
from repro import dataset
from repro.claims import CLAIMS
from repro.report.closing_lines import closing_lines


def test_every_decided_claim_has_a_line_with_its_number(tmp_path: Path) -> None:
    campaign = dataset.load(story(tmp_path / "c", length_s=12))
    measured, *claims, undecided, files = closing_lines(campaign, tmp_path / "index.html")
    assert measured.startswith("Measured: 2 runs with freeze and 2 runs with no-freeze; Abacus 2,")
    assert any("P99 ITL ×" in line for line in claims)
    assert f"Not measured by these runs: {len(CLAIMS) - len(claims)} claims" in undecided
    assert files == f"Page: {tmp_path / 'index.html'}; data: {campaign.path}"


@pytest.mark.parametrize(("us", "status"), [(1.9, 0), (2.1, 1)])
def test_a_recorder_over_its_target_is_a_failure(
    us: float, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = iter([1.0, 1.0 + us, 1.0, 1.0])
    monkeypatch.setattr(bench_recorder, "per_call_us", lambda call: next(times))
    assert bench_recorder.main() == status
