"""The advice: its words, and its rule against every recorded campaign."""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from campaigns import captures

from repro import dataset
from repro.analysis.gc_cost import full_collections
from repro.analysis.passes import FIRST, LATER
from repro.analysis.recorded_setting import setting_of
from repro.analysis.trigger import trigger_table
from repro.cli import main
from repro.dataset import Campaign
from repro.theory.advice import HELD_A_REQUEST, Advice, Setting, advise
from repro.theory.cpython_rule import UnknownCollector

DATA = Path(__file__).parent.parent / "data"
PRODUCTION = DATA / "h200-production"
"""Multi-token prediction and expert load balancing: not the plain decoding that advice is for."""
CAMPAIGNS = [
    path for path in sorted(DATA.iterdir()) if dataset.is_campaign(path) and path != PRODUCTION
]


@pytest.fixture(scope="module", params=CAMPAIGNS, ids=lambda path: path.name)
def campaign(request: pytest.FixtureRequest) -> Campaign:
    return dataset.load(request.param)


@pytest.fixture(scope="module")
def advised(campaign: Campaign) -> dict[str, Advice]:
    return {run: advise(setting_of(campaign, run)) for run in workers_of(campaign)}


@functools.cache
def triggers(path: Path) -> pd.DataFrame:
    """The trigger table of a campaign, with the requests in flight of each run."""
    campaign = dataset.load(path)
    return trigger_table(campaign).merge(campaign.runs[["run", "concurrency"]], on="run")


def workers_of(campaign: Campaign) -> list[str]:
    """Runs of one policy under load with steps and a counted worker: what advice is given on."""
    loaded = dataset.under_load(campaign)
    runs = set(loaded.runs.loc[loaded.runs["switch_s"] == 0, "run"]) & set(loaded.steps["run"])
    counted = loaded.census[loaded.census["role"] == "worker"]
    return [str(run) for run in counted["run"].unique() if run in runs]


def test_advice_on_every_recorded_run_came_true(
    campaign: Campaign, advised: dict[str, Advice]
) -> None:
    """Whether they fire, how often, how long: against what each run then did."""
    full = full_collections(campaign)
    table = triggers(campaign.path)
    for run, given in advised.items():
        own = full[(full["run"] == run) & (full["role"] == "worker")]
        told = table[(table["run"] == run) & (table["role"] == "worker")]
        row = told[told["event"] == LATER]
        steps = (dataset.in_window(campaign, campaign.steps)["run"] == run).sum()
        if not given.fires:  # by themselves, that is: drift may bring one in thousands of steps
            assert len(own) <= steps / 2000, run
        elif own.empty:
            # A heap that was just frozen collects later for the first time.
            first = told.loc[told["event"] == FIRST, "predicted_steps"].max()
            frozen = given.setting.frozen and not math.isnan(first)
            assert (first if frozen else given.period_steps) > steps * 2 / 3, run
        else:
            # A frozen heap's pause is told to 5 ms, far less than a step; an unfrozen one's to 60%,
            # since on a host that other groups share an object costs half as much again.
            assert own["duration_ns"].median() / 1e6 == pytest.approx(
                given.pause_ms, rel=0.6, abs=5
            )
        for observed in row["observed_steps"].dropna():
            assert given.period_steps == pytest.approx(observed, rel=0.25), run


def test_the_advice_names_what_it_leaves_out_and_was_measured() -> None:
    """Of unfrozen runs those of 512 collected on both ranks, whatever was switched on."""
    campaign = dataset.load(PRODUCTION)
    full = full_collections(campaign)
    requests = campaign.runs.set_index("run")["concurrency"]
    for run in workers_of(campaign):
        given = advise(setting_of(campaign, run))
        assert not given.fires
        assert "512 requests were enough" in " ".join(given.lines)
        if not given.setting.frozen:
            own = full[(full["run"] == run) & (full["role"] == "worker")]
            assert set(own["rank"]) == ({0, 1} if requests[run] == 512 else set())


def test_multi_token_prediction_brings_the_first_one_sooner_and_the_balancer_does_not() -> None:
    """Of 512 in flight without the freeze, as README says: steps to the first full collection."""
    campaign = dataset.load(PRODUCTION)
    full = full_collections(campaign).merge(campaign.runs[["run", "policy", "vllm_args"]], on="run")
    full = full[(full["role"] == "worker") & (full["policy"] == "no-freeze")]
    predicts = full["vllm_args"].str.contains("mtp")
    assert full.loc[~predicts, "step"].between(1250, 1300).all()
    assert full.loc[predicts, "step"].between(940, 1000).all()
    assert full.groupby(predicts)["vllm_args"].nunique().tolist() == [2, 2]


def test_a_pause_reaches_a_quantile_where_the_advice_says(
    campaign: Campaign, advised: dict[str, Advice]
) -> None:
    """Of unfrozen workers: the share of steps with a full collection, against the share said.

    The steps are those of one rank, the collections those of all: each lengthens everybody's step.
    """
    full = full_collections(campaign)
    for run, given in advised.items():
        if given.setting.frozen or not given.fires:
            continue
        inside = dataset.in_window(campaign, campaign.steps)
        steps = ((inside["run"] == run) & (inside["rank"] == 0)).sum()
        seen = ((full["run"] == run) & (full["role"] == "worker")).sum() / steps
        assert given.reaches(0.99) == (seen > 0.01), run
        if abs(seen - 0.001) > 1 / steps:  # else one collection more or less decides
            assert given.reaches(0.999) == (seen > 0.001), run


def test_a_run_that_only_captured_gets_no_advice(tmp_path: Path) -> None:
    captures(tmp_path / "c", {"gc-on": 5.0}, replicates=1)
    only = dataset.load(tmp_path / "c")
    with pytest.raises(ValueError, match="gc-on-0: drove no load; take a run with a client"):
        setting_of(only, "gc-on-0")


def test_the_rate_is_the_recorded_one() -> None:
    """Containers held a request, from runs in which something else than the threshold tells it."""
    rates = []
    for path in CAMPAIGNS:
        table = triggers(path)
        told = table[(table["role"] == "worker") & (table["held_from"] == "other arms")]
        rates += (told["promoted"] / told["concurrency"]).dropna().tolist()
    if not rates:
        pytest.skip("no such run in data/")
    assert sorted(rates)[len(rates) // 2] == pytest.approx(HELD_A_REQUEST, rel=0.15)


def test_few_requests_are_told_to_leave_everything() -> None:
    given = advise(Setting(concurrency=256, policy="no-freeze"))
    assert not given.fires
    assert math.isinf(given.period_steps)
    assert given.to_set == "Set nothing for the workers."
    assert given.lines[-1].startswith("API server")


def test_nothing_is_recommended_that_is_set() -> None:
    given = advise(Setting(policy="freeze-thresholds", others_set=True))
    assert not any("freeze-thresholds" in line for line in given.lines)


def test_a_pause_within_a_step_is_in_no_gap() -> None:
    for step_ms, said in ((29.0, "no gap"), (0.1, "the longest gaps do")):
        lines = advise(Setting(policy="freeze", step_ms=step_ms)).lines
        assert any(said in line for line in lines)


def test_a_higher_threshold_needs_more_requests() -> None:
    def fires(python: str, load: int) -> bool:
        return advise(Setting(concurrency=load, python=python, policy="no-freeze")).fires

    assert fires("3.12.3", 1024)
    assert not fires("3.13.0", 1024)
    assert fires("3.13.0", 2048)
    assert fires("3.14.5", 2048)


def test_many_ranks_bring_it_into_p999() -> None:
    asked = {"vllm": "0.22.1", "step_ms": 30, "kept": 0.0}
    one, many = (advise(Setting(ranks=ranks, **asked)) for ranks in (1, 32))
    assert not one.reaches(0.999)
    assert many.reaches(0.999)
    assert many.stalled_share < 13 * one.stalled_share, "offsets of a burst are shared"
    text = " ".join(many.lines)
    assert "if the 32 ranks collect in different steps" in text
    assert "about 5" in text, "seconds"
    assert "REPRO_POLICY=freeze" in text


def test_a_frozen_worker_is_left_alone() -> None:
    text = " ".join(advise(Setting()).lines)
    assert "frozen already" in text


def test_without_automatic_collection_none_fires() -> None:
    assert not advise(Setting(policy="disable")).fires
    assert not advise(Setting(policy="thresholds")).fires


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"concurrency": 0}, "concurrency 0"),
        ({"device": "tpu"}, "device 'tpu': choose one of cuda, cpu"),
        ({"vllm": "new"}, "vllm 'new'"),
        ({"step_ms": 0.0}, "step_ms 0.0"),
        ({"policy": "thaw"}, "unknown policy 'thaw'"),
    ],
)
def test_what_is_not_allowed_is_one_line(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        Setting(**fields)


def test_a_crossover_gets_no_advice_the_engines_beside_it_do(
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = DATA / "cpu-crossover"
    assert main(["advise", "--run", str(path)]) == 0
    said = capsys.readouterr().out
    assert said.count("a cross-over's heap has two policies; take a run of one") == 16
    assert said.count("no-freeze-c1024-r") == 3
    run = next(run for run in dataset.load(path).runs["run"] if "-alternate-" in run)
    assert main(["advise", "--run", str(path / run.partition("/")[0])]) == 1
    assert "take a run of one" in capsys.readouterr().err


def test_a_run_without_steps_is_refused_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    path = DATA / "cpu-memory"
    run = next(run for run in dataset.load(path).runs["run"] if "-no-freeze-" in run)
    assert main(["advise", "--run", str(path / run)]) == 1
    said = capsys.readouterr().err
    assert f"run {run}: has no table of steps" in said
    assert "Traceback" not in said


def test_a_run_that_is_not_there_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    path = DATA / "cpu-memory"
    assert main(["advise", "--run", str(path / "none")]) == 1
    assert f"{path} has no run of this name that is ok" in capsys.readouterr().err


def test_a_short_python_version_and_an_untried_vllm() -> None:
    said = " ".join(advise(Setting(python="3.13", vllm="0.25.0")).lines)
    assert "Python 3.13 collects above 2,000" in said
    assert "vLLM 0.25.0 was not measured here" in said


def test_the_incremental_collector_is_refused() -> None:
    with pytest.raises(UnknownCollector, match=r"3\.14\.0 to 3\.14\.4"):
        Setting(python="3.14.2")


def test_the_command_advises_on_numbers_and_on_runs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["advise", "--concurrency", "256", "--policy", "no-freeze"]) == 0
    assert "not expected in the workers in plain decoding" in capsys.readouterr().out
    path = DATA / "cpu-policies"
    assert main(["advise", "--run", str(path)]) == 0
    both = capsys.readouterr().out
    run = dataset.load(path).runs["run"].iloc[0]
    assert main(["advise", "--run", str(path / run)]) == 0
    alone = capsys.readouterr().out
    assert alone.startswith(run)
    assert alone in both
