"""The data that a notebook shows: recorded ones, the fittest first, or measured ones."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from builders import run
from campaigns import story

from repro.dataset import DatasetError
from repro.experiment.fields import ConfigError
from repro.report import notebook
from repro.report.source import in_force


def asked(source: object = "", **given: object) -> SimpleNamespace:
    return SimpleNamespace(source=str(source), **given)


def test_source_that_is_no_campaign(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="is no campaign"):
        notebook.campaigns(asked("nowhere"), suits=bool, root=tmp_path)


def test_source_of_which_every_run_failed(tmp_path: Path) -> None:
    failed = run(tmp_path / "c", "a", status="failed")
    document = json.loads((failed / "run.json").read_text())
    (failed / "run.json").write_text(json.dumps(document | {"reason": "it died", "log_tail": []}))
    with pytest.raises(ConfigError, match="no run is ok; the first failed: it died"):
        notebook.campaigns(asked(tmp_path / "c"), suits=bool, root=tmp_path)


def test_default_is_what_suits_of_gpus_repeated_of_most_runs_the_newest(tmp_path: Path) -> None:
    for name, runs, day, gpu, policy in (
        ("repeated", 3, 1, None, "freeze"),
        ("wide", 2, 1, None, "freeze"),
        ("wide", 5, 1, None, "stock"),
        ("old", 1, 2, None, "freeze"),
        ("new", 1, 3, None, "freeze"),
        ("long", 2, 2, None, "freeze"),
        ("gpu", 1, 1, "H100", "freeze"),
        ("other", 3, 4, "H100", "stock"),
    ):
        for number in range(runs):
            changes = {"experiment__policy": policy, "machine__gpu_name": gpu}
            started = f"2026-06-0{day}T00:00:00+00:00"
            run(tmp_path / "data" / name, f"{policy}{number}", started_at=started, **changes)
    found = notebook.campaigns(
        asked(concurrency=(256,), policies=("freeze",)), suits=lambda _: True, root=tmp_path
    )
    assert [campaign.path.name for campaign in found] == [
        *("gpu", "repeated", "wide", "long", "new", "old"),
    ]


def test_a_campaign_that_compares_the_freeze_alone_leads_a_larger_one(tmp_path: Path) -> None:
    story(tmp_path / "data" / "pair", replicates=3, length_s=4)
    for number in range(9):
        policy = {"experiment__policy": "thresholds", "experiment__concurrency": 1024}
        run(tmp_path / "data" / "many", f"{number}", **policy)
    found = notebook.campaigns(asked(), suits=lambda _: True, root=tmp_path)
    assert [campaign.path.name for campaign in found] == ["pair", "many"]


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The experiments that a notebook measures, instead of measuring them."""
    campaign_module = pytest.importorskip("repro.experiment.campaign")
    measured = []

    def run_campaign(experiments: list[Any], root: Path) -> Path:
        measured.extend(experiments)
        run(root, "a")
        return root

    monkeypatch.setattr(campaign_module, "run_campaign", run_campaign)
    return measured


def test_measures_only_when_asked_to(
    tmp_path: Path, measured: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    use = asked("measure", policies=("freeze",), concurrency=(8,), model="", replicates=3, factor=5)
    (found,) = notebook.campaigns(use, suits=lambda c: False, root=tmp_path)
    assert found.path.parent == tmp_path / "runs"
    assert [(e.policy, e.concurrency, e.model) for e in measured] == [("freeze", 8, "tiny")] * 3
    assert "processor" in capsys.readouterr().out, "doctor's line on how busy the machine is"


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"concurrency": (300,)}, "concurrency 300: no campaign fits, recorded is 256; "),
        ({"policies": ("disable",)}, "policies disable: no campaign fits, recorded is freeze and"),
        ({"policies": ("stock",), "model": "moe"}, "no campaign in data/ fits policies stock and"),
    ],
)
def test_what_is_not_recorded_is_said_and_not_measured(
    given: dict[str, Any], line: str, tmp_path: Path, measured: list[Any]
) -> None:
    for name, policy, model in (("one", "freeze", "moe"), ("two", "stock", "tiny")):
        run(tmp_path / "data" / name, "a", experiment__policy=policy, experiment__model=model)
    with pytest.raises(ConfigError) as caught:
        notebook.campaigns(asked(**given), suits=lambda c: True, root=tmp_path)
    said = str(caught.value)
    assert said.startswith(line)
    assert "source=measure measures it on this machine (" in said
    assert "\n" not in said
    assert not measured


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"concurrency": (7,)}, "concurrency 7: c was recorded with 256; leave concurrency out"),
        ({"policies": ("freeze", "disable")}, "policies disable: c was recorded with freeze"),
        ({"output_tokens": (16, 64)}, "output_tokens 16,64: c was recorded with 128 to 384;"),
        ({"replicates": 5}, "replicates 5: c was recorded with 2;"),
    ],
)
def test_what_a_recorded_source_cannot_honour_is_refused_by_name(
    given: dict[str, Any], line: str, tmp_path: Path
) -> None:
    folder = story(tmp_path / "c", length_s=2, experiment__output_tokens=[128, 384])
    with pytest.raises(ConfigError) as caught:
        notebook.campaigns(asked(folder, **given), suits=bool)
    assert str(caught.value).startswith(line)
    assert "\n" not in str(caught.value)


def test_the_table_shows_the_parameters_of_the_runs_shown(tmp_path: Path) -> None:
    folder = story(tmp_path / "c", length_s=2, experiment__output_tokens=[128, 384])
    use = asked(folder, policies=("freeze",), concurrency=None, output_tokens=None, factor=5.0)
    (campaign,) = notebook.campaigns(use, suits=bool)
    assert set(campaign.runs["policy"]) == {"freeze"}
    assert in_force(campaign, "replicates") == "2"
    shown = notebook.resolved(use, campaign).data
    for row in ("| policies | freeze |", "| concurrency | 256 |", "| output_tokens | 128 to 384 |"):
        assert row in shown
