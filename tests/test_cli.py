"""The command line: one clear line and exit status 1 for whatever is wrong."""

from __future__ import annotations

from pathlib import Path

import builders
import pytest
from campaigns import story

from repro import cli
from repro.doctor import examine
from repro.plugin.hook_points import HOOK_POINTS, HookPoint


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["run", "{tmp}", "--policies", "thaw"], "policies 'thaw': choose one of stock"),
        (["run", "{tmp}", "--concurrency", "0"], "concurrency 0: allowed is whole numbers"),
        (["run", "{tmp}", "--model", "nope"], "model 'nope' has no config.json"),
        (["run", "{tmp}", "--output-tokens", "x"], "output_tokens 'x': allowed is two whole"),
        (
            ["run", "{tmp}", "--recaptures", "2", "--capture-policies", "gc-on"],
            "recaptures 2 with client 'engine': use client 'capture'",
        ),
        (["claims", "{tmp}"], "{tmp}"),
        (["page", "{tmp}", "--out", "{tmp}/out"], "{tmp}"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str], named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    filled = [argument.replace("{tmp}", str(tmp_path)) for argument in arguments]
    assert cli.main(filled) == 1
    said = capsys.readouterr().err
    assert said.startswith("repro: ")
    assert named.replace("{tmp}", str(tmp_path)) in said
    assert len(said.splitlines()) == 1
    assert not list(tmp_path.iterdir()), "nothing is begun"


def test_figures_are_drawn_from_a_folder_of_campaigns(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    story(tmp_path / "data" / "small")
    asked = ["figures", "--data", str(tmp_path / "data"), "--out", str(tmp_path / "figures")]
    assert cli.main(asked) == 0
    drawn = [Path(line) for line in capsys.readouterr().out.split()]
    assert drawn
    assert all(path.stat().st_size > 1000 for path in drawn)


def test_claims_print_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    builders.run(tmp_path / "small", "a", builders.steady())
    assert cli.main(["claims", str(tmp_path / "small")]) == 0
    assert "not measured" in capsys.readouterr().out


def test_predict_says_what_it_rests_on_and_where_it_goes_beyond(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    story(tmp_path / "small", every=200)
    asked = ["predict", "--source", str(tmp_path / "small"), "--ranks", "32"]
    assert cli.main([*asked, "--concurrency", "512"]) == 0
    said = capsys.readouterr().out
    assert "Predicted, not measured: one rank of tiny on Abacus 2 with 256 in flight" in said
    assert "| 32 ranks, no-freeze |" in said
    assert "warning: 512 in flight per rank was not measured, this is for 256" in said
    assert "warning: 32 ranks is a prediction; measured widths nearest to it: 1" in said
    assert cli.main([*asked, "--concurrency", "256"]) == 0
    assert "512" not in capsys.readouterr().out


def test_predict_needs_one_rank_with_and_without(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    builders.run(tmp_path / "small", "a", builders.steady())
    assert cli.main(["predict", "--source", str(tmp_path / "small"), "--ranks", "4"]) == 1
    assert "small: no runs of one rank with and without the freeze" in capsys.readouterr().err
    story(tmp_path / "c", length_s=4)
    assert cli.main(["predict", "--source", str(tmp_path / "c"), "--ranks", "0"]) == 1
    assert "ranks=0 must be 1 or more" in capsys.readouterr().err


def test_the_doctor_looks_at_everything() -> None:
    found = {finding.what: finding for finding in examine()}
    looked_at = {"Python", "vLLM", "hooks", "plugin", "compiler", "memory", "processor", "GPU"}
    assert set(found) == looked_at
    assert all(finding.found for finding in found.values())


def test_the_doctor_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("repro.experiment.provenance.VLLM_DISTRIBUTIONS", ("no-such-thing",))
    finding = next(f for f in examine() if f.what == "vLLM")
    assert finding.blocks
    assert "make env" in str(finding)
    assert cli.main(["doctor"]) == 1


def test_the_doctor_names_each_hook_point_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    added = HookPoint("vllm.v1.engine.core", "EngineCore.no_such_method", "a test")
    monkeypatch.setattr("repro.doctor.HOOK_POINTS", (*HOOK_POINTS, added))
    finding = next(f for f in examine() if f.what == "hooks")
    assert finding.found == "missing vllm.v1.engine.core.EngineCore.no_such_method (a test)"
