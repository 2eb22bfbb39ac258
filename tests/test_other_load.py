"""Load of other programs is recorded with a run, and marked wherever the run is shown."""

from __future__ import annotations

from pathlib import Path

import pytest
from builders import run
from campaigns import story

from repro import dataset
from repro.experiment import other_load
from repro.experiment.other_load import share, watching
from repro.report import notebook
from repro.report.tables import itl_tails, runs


def test_a_share_is_of_the_cores_that_the_run_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(other_load.os, "sched_getaffinity", lambda _: {0, 1})
    assert share((10.0, 100.0), (20.0, 105.0)) == 0.25
    assert share((10.0, 100.0), (20.0, 90.0)) == 0.0


def test_the_window_alone_is_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = iter([(0.0, 0.0), (1.0, 0.0), (10.0, 5.0), (20.0, 9.0)])
    monkeypatch.setattr(other_load, "cpu_seconds", lambda: next(looks))
    monkeypatch.setattr(other_load, "BEFORE_S", 0)
    monkeypatch.setattr(other_load.os, "sched_getaffinity", lambda _: {0, 1})
    seen: list[str] = []
    found: dict[str, float] = {}
    report = watching(lambda phase, _: seen.append(phase), found)
    phases = ["start", "ramp", "measure", "measure", "stop"]
    for phase in phases:
        report(phase, 0.0)
    assert seen == phases
    assert found == {"before": 0.0, "during": 0.2}


def test_noisy_runs_are_marked_in_every_table(tmp_path: Path) -> None:
    story(tmp_path / "c", policies=("no-freeze",), length_s=4)
    load = {"before": 0.01, "during": 0.4}
    story(tmp_path / "c", policies=("freeze",), length_s=4, other_load=load)
    campaign = dataset.load(tmp_path / "c")
    shown = notebook.table(runs.runs(campaign), campaign).data
    assert "1% before, 40% during" in shown
    assert "not recorded" in shown, "older runs"
    for rows in (runs.runs(campaign), itl_tails.quantiles(campaign), itl_tails.effects(campaign)):
        text = notebook.table(rows, campaign).data
        assert "freeze ‡" in text
        assert "no-freeze ‡" not in text
        assert runs.NOTE in text


def test_runs_that_differ_are_told_apart(tmp_path: Path) -> None:
    for name, chunk, other in (("a", 0, "stock"), ("b", 4096, "freeze-thresholds")):
        changes = {"experiment__output_chunk": chunk, "experiment__frontend_policy": other}
        run(tmp_path / "c", name, **changes)
    shown = runs.runs(dataset.load(tmp_path / "c"))
    assert list(shown["output chunk"]) == [0, 4096]
    assert list(shown["frontend policy"]) == ["stock", "freeze-thresholds"]
    assert "prompt tokens" not in shown
