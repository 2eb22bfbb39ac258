"""The cross-over: both policies in turn inside one engine, read back as one run per period."""

from __future__ import annotations

import gc
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from builders import MS, SECOND, START, run
from engines import measure

from repro import cli, dataset
from repro.analysis.arms import pairs
from repro.analysis.gc_cost import full_collections
from repro.analysis.passes import FIRST
from repro.analysis.tails import effect, step_intervals, tail_table
from repro.analysis.trigger import _left, trigger_table
from repro.claims import evaluate
from repro.dataset.run import read_document
from repro.dataset.tables import read_table
from repro.experiment import verify
from repro.experiment.clients import Report, closed_loop
from repro.experiment.clients.closed_loop import ClosedLoop
from repro.experiment.config import ConfigError, Experiment
from repro.experiment.grid import PARAMETERS, grid
from repro.experiment.verify import NotAsRequested
from repro.plugin import apply_policy, rpc, worker_hooks
from repro.policy import ALTERNATE, serving

ROOT = Path(__file__).parent.parent
ORDER = ("freeze", "no-freeze", "no-freeze", "freeze")
BEFORE = (START - SECOND, "window-start", 0, 900)
"""Before load: of no period."""

AFTERWARDS = [(START + 44 * SECOND, point, 0, 900) for point in ("shutdown", "thawed")]


def heaps(counts: list[tuple[int, str, int, int]]) -> dict[str, Any]:
    """A census of the worker: time in ns, point, frozen and tracked objects."""
    time, point, frozen, tracked = (list(column) for column in zip(*counts, strict=True))
    return {"t_ns": time, "point": point, "frozen": frozen, "tracked": tracked}


def crossover(root: Path, census: dict[str, Any] | None = None, **changes: Any) -> dataset.Campaign:
    """Four periods of 10 s, 1 s apart, with gaps of 20 ms frozen and 40 ms not."""
    starts = START + 11 * SECOND * np.arange(4)
    gaps = [np.full(10 * SECOND // g, g) for g in (20 * MS, 40 * MS, 40 * MS, 20 * MS)]
    time = np.concatenate([s + np.cumsum(g) for s, g in zip(starts, gaps, strict=True)])
    gap = np.concatenate(gaps)
    run(
        root,
        "a",
        {
            # Latest first: no order of rows is promised.
            "itl": {"t_ns": time[::-1] - 1, "itl_ns": gap[::-1], "count": 8},
            "steps": {"start_ns": time - 1, "step": np.arange(len(time))},
            "pauses": {"start_ns": starts + 10 * SECOND + 500 * MS, "generation": [2] * 4},
            "periods": {"policy": list(ORDER), "start_ns": starts, "end_ns": starts + 10 * SECOND},
            "census": census or heaps([BEFORE, *AFTERWARDS]),
        },
        experiment__policy="alternate",
        experiment__switch_s=10.0,
        window__start_ns=START - 5 * MS,
        window__end_ns=int(starts[-1]) + 10 * SECOND + 5 * MS,
        **changes,
    )
    return dataset.load(root)


def test_each_period_is_a_run_of_its_policy(tmp_path: Path) -> None:
    campaign = crossover(tmp_path)
    assert campaign.runs["run"].tolist() == [f"a/{number}" for number in range(4)]
    assert tuple(campaign.runs["policy"]) == ORDER
    assert campaign.runs["tokens_per_s"].round().tolist() == [400, 200, 200, 400]
    assert campaign.pauses.empty, "a switch's own collections belong to no period"
    assert step_intervals(campaign.steps)["interval_ns"].max() == 40 * MS, "none over a switch"


def test_a_period_has_the_counts_around_it_and_the_last_those_of_the_shutdown(
    tmp_path: Path,
) -> None:
    counts = [BEFORE]
    for number, policy in enumerate(ORDER):
        start, heap = START + 11 * SECOND * number, (900, 1) if policy == "freeze" else (0, 901)
        counts += [(start - 3 * MS, "window-start", *heap)]
        counts += [(start + 10 * SECOND + 3 * MS, "window-end", *heap)]
    census = crossover(tmp_path, heaps([*counts, *AFTERWARDS])).census
    of_period = {str(run): rows for run, rows in census.groupby("run", observed=True)}
    both = ["window-start", "window-end"]
    assert [rows["point"].tolist() for rows in of_period.values()] == [
        *([both] * 3),
        [*both, "shutdown", "thawed"],
    ]
    frozen = [bool((rows["frozen"].iloc[:2] == 900).all()) for rows in of_period.values()]
    assert frozen == [policy == "freeze" for policy in ORDER]


def test_the_rule_is_judged_only_where_the_counts_tell_what_requests_keep(tmp_path: Path) -> None:
    counts = [BEFORE]
    for number, policy in enumerate(ORDER):
        start, heap = START + 11 * SECOND * number, (900, 1) if policy == "freeze" else (0, 901)
        counts += [(start - 3 * MS, "window-start", *heap)]
    judged = trigger_table(crossover(tmp_path, heaps(counts)))
    assert judged["run"].unique().tolist() == ["a/0", "a/3"], "the frozen periods"


def test_a_freeze_under_load_has_no_requests_that_start_at_once() -> None:
    row = {"old": 1000, "kept_in_all": 100, "tracked_end": 100.0}
    assert _left({**row, "switch_s": 0.0}, FIRST) == 800
    assert _left({**row, "switch_s": 48.0}, FIRST) == 1000


def test_an_older_cross_over_without_counts_between_periods_has_none(tmp_path: Path) -> None:
    assert crossover(tmp_path).census.empty


def test_its_arms_compare_like_any_two(tmp_path: Path) -> None:
    campaign = crossover(tmp_path)
    (pair,) = pairs(campaign)
    assert (pair.baseline, pair.treated) == ("no-freeze", "freeze")
    assert effect(campaign, pair.baseline, pair.treated, 0.5).value == pytest.approx(0.5)
    assert set(tail_table(campaign)["runs"]) == {2}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"policy": "freeze", "switch_s": 5.0}, "only policy 'alternate' switches"),
        ({"policy": "alternate"}, "even number of periods"),
        ({"policy": "alternate", "switch_s": 20.0}, "even number of periods"),
        ({"policy": "alternate", "switch_s": 30.0, "client": "serve"}, "needs client 'engine'"),
    ],
)
def test_what_cannot_alternate_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Experiment(duration_s=60.0, **fields)
    assert Experiment(policy="alternate", duration_s=60.0, switch_s=15.0).switch_s == 15


FROZEN, THAWED = (900_000, 0), (375, 899_625)
"""Objects frozen, and tracked."""


class Engine:
    """Stands for vLLM in a test of the order of calls alone."""

    def __init__(self, *, thaws_by_itself: bool = False, flips_nothing: bool = False) -> None:
        self.flips_nothing = flips_nothing
        self.calls: list[bool] = []
        self.asked: list[str] = []
        self.model_config = SimpleNamespace(get_vocab_size=lambda: 512)
        self.counted: list[str] = []
        self.thaws_by_itself = thaws_by_itself

    def collective_rpc(self, method: str, args: tuple[Any]) -> list[Any]:
        self.asked.append(method)
        if method == rpc.FLIP_RPC:
            self.calls.append(*args)
            return [899_000 if self.flips_nothing and not args[0] else 400]
        if method == rpc.SWITCH_RPC:
            self.calls.append(*args)
            return [FROZEN if args[0] else THAWED]
        assert method == rpc.CENSUS_RPC
        self.counted += args
        thawed = not self.calls[-1] or (self.thaws_by_itself and args[0] == "window-end")
        return [dict(zip(("frozen", "tracked"), THAWED if thawed else FROZEN, strict=True))]

    def step(self) -> list[Any]:
        return []


def alternating(engine: Engine, report: Report = lambda phase, seconds: None) -> ClosedLoop:
    experiment = Experiment(policy="alternate", duration_s=1.5, switch_s=0.125)
    loop = ClosedLoop(engine, experiment, report)
    loop._alternate()
    return loop


@pytest.fixture
def long_periods(monkeypatch: pytest.MonkeyPatch) -> None:
    """Periods as `alternating` asks for count as long."""
    monkeypatch.setattr(closed_loop, "SHORT_S", 0.1)


@pytest.mark.usefixtures("long_periods")
def test_both_policies_come_equally_often_and_as_early_and_the_heap_is_left_frozen() -> None:
    engine = Engine()
    loop = alternating(engine)
    assert engine.calls[-1] is True
    mirrored = [True, False, False, True]
    assert engine.calls == mirrored * 3
    names = [name for name, *_ in loop.ledger.periods]
    assert [name == "freeze" for name in names] == engine.calls
    assert engine.counted == ["window-start", "window-end"] * 12
    assert rpc.FLIP_RPC not in engine.asked
    starts = [start for _, start, _ in loop.ledger.periods]
    ends = [end for *_, end in loop.ledger.periods]
    assert all(end <= start for end, start in zip(ends, starts[1:], strict=False))


def test_short_periods_are_counted_at_both_ends_alone_and_nothing_is_collected_between() -> None:
    engine = Engine()
    loop = alternating(engine)
    first, *others = engine.asked
    assert first == rpc.SWITCH_RPC and rpc.SWITCH_RPC not in others
    assert engine.asked.count(rpc.FLIP_RPC) == 12
    assert engine.counted == ["window-start", "window-end"]
    assert others[-1] == rpc.CENSUS_RPC, "the policy of the last period is checked at its end"
    assert [name == "freeze" for name, *_ in loop.ledger.periods] == engine.calls[1:]
    assert engine.calls[1:] == [True, False, False, True] * 3


def test_the_time_measured_goes_on_from_period_to_period() -> None:
    said: list[float] = []
    alternating(Engine(), lambda phase, seconds: said.append(seconds))
    assert said == sorted(said)
    assert said[-1] > 1.0, "twelve periods of 0.125 s"


def test_a_flip_that_did_not_reach_the_heap_is_no_data() -> None:
    with pytest.raises(NotAsRequested, match="after a thaw"):
        alternating(Engine(flips_nothing=True))
    heap = [{"frozen": 900_000, "tracked": 300}]
    verify.flipped(True, heap, [20])
    with pytest.raises(NotAsRequested, match="after a freeze"):
        verify.flipped(True, heap, [880_000])


@pytest.mark.usefixtures("long_periods")
def test_a_heap_that_another_thaws_within_a_period_is_no_data() -> None:
    with pytest.raises(NotAsRequested, match="objects frozen"):
        alternating(Engine(thaws_by_itself=True))


def test_a_heap_that_is_thawed_at_the_end_of_short_periods_is_no_data() -> None:
    with pytest.raises(NotAsRequested, match="after a freeze"):
        alternating(Engine(thaws_by_itself=True))


def test_a_switch_that_did_not_reach_the_heap_is_no_data() -> None:
    frozen, thawed, thawed_312 = (800_000, 9), (0, 800_009), (375, 799_634)
    verify.switched(True, [frozen])
    verify.switched(False, [thawed, thawed_312])
    wrong = [(True, [thawed]), (True, [frozen, thawed_312]), (False, [frozen]), (True, [])]
    for freeze, heaps in wrong:
        with pytest.raises(NotAsRequested, match="objects frozen"):
            verify.switched(freeze, heaps)


def test_a_switch_collects_everything_and_then_freezes_or_does_not() -> None:
    try:
        for _ in range(2):
            frozen, tracked = worker_hooks.switch(True)
            assert frozen > 10_000 > tracked
        apply_policy.undo(serving(ALTERNATE))
        assert gc.get_freeze_count() == 0, "a shutdown thaws the last period's freeze"
        before = gc.get_stats()[2]["collections"]
        frozen, tracked = worker_hooks.switch(False)
        assert frozen < 1_000 and tracked > 10_000
        assert gc.get_stats()[2]["collections"] == before + 1
    finally:
        gc.unfreeze()


def test_a_flip_moves_the_whole_heap_and_collects_nothing() -> None:
    before = [generation["collections"] for generation in gc.get_stats()]
    gc.disable()
    try:
        assert worker_hooks.flip(True) < 1_000
        assert gc.get_freeze_count() > 10_000
        assert worker_hooks.flip(False) < 1_000
        assert len(gc.get_objects()) > 10_000
        assert [generation["collections"] for generation in gc.get_stats()] == before
    finally:
        gc.enable()
        gc.unfreeze()


def test_make_reproduce_is_long_enough_for_a_full_collection_per_unfrozen_period() -> None:
    """Judged by the recorded cross-overs of a slow machine of two cores."""
    (recipe,) = re.findall(r"repro (run .*)", (ROOT / "Makefile").read_text())
    asked = vars(cli.parser().parse_args(recipe.replace("$(QUICK)", "runs/quick").split()))
    (experiment,) = grid(**{name: asked[name] for name in PARAMETERS if asked[name] is not None})
    assert experiment.policy == ALTERNATE
    assert experiment.duration_s / experiment.switch_s == 4, "two periods per arm"
    recorded = dataset.load(ROOT / "data" / "cpu-crossover")
    unfrozen = dataset.subset(recorded, switch_s=60.0, policy="no-freeze")
    full = full_collections(unfrozen)
    first = full[full["role"] == "worker"].groupby("run", observed=True)["start_ns"].min()
    after_s = (first - unfrozen.runs.set_index("run")["window_start_ns"]) / SECOND
    assert len(after_s) == 8
    assert after_s.max() < experiment.switch_s


@pytest.mark.engine
def test_a_cross_over_switches_the_worker_and_reads_back_as_periods(tmp_path: Path) -> None:
    folder = measure(tmp_path, policy="alternate", switch_s=2.0, structured_output=True)
    found = read_document(folder)
    assert found["status"] == "ok", (found.get("reason"), found.get("log_tail"))
    periods = dataset.load(tmp_path)
    assert sorted(periods.runs["policy"]) == ["freeze", "freeze", "no-freeze", "no-freeze"]
    length_s = (periods.runs["window_end_ns"] - periods.runs["window_start_ns"]) / 1e9
    longest_step_s = step_intervals(periods.steps)["interval_ns"].max() / 1e9
    assert length_s.between(2.0, 3.0 + longest_step_s).all(), "a period ends with a step"
    assert periods.itl.groupby("run", observed=True)["count"].sum().min() > 0
    # Answers held to a grammar, which cut none of them short.
    assert set(periods.runs["load"].str.contains("structured=True")) == {True}
    drawn = dataset.in_window(periods, periods.requests)["output_tokens"]
    assert drawn.mean() == pytest.approx(40, rel=0.1)
    assert drawn.max() == 64
    # `make reproduce` judges these by one such engine.
    judged = ["engine-frozen", "worker-not-frozen", "not-scanned", "unfreeze-restores"]
    verdicts = evaluate([periods], [*judged, "little-is-left"])
    assert verdicts["verdict"].tolist() == ["reproduced"] * 5, verdicts[["id", "reason"]]


@pytest.mark.engine
def test_short_periods_switch_a_real_worker_and_collect_nothing(tmp_path: Path) -> None:
    folder = measure(tmp_path, policy="alternate", switch_s=0.25, concurrency=8, duration_s=2.0)
    found = read_document(folder)
    assert found["status"] == "ok", (found.get("reason"), found.get("log_tail"))
    periods = dataset.load(tmp_path)
    assert periods.runs["policy"].value_counts().to_dict() == {"freeze": 4, "no-freeze": 4}
    pauses = read_table(folder, "pauses").to_pandas()
    first, last = periods.runs["window_start_ns"].min(), periods.runs["window_end_ns"].max()
    own = pauses[(pauses["role"] == "worker") & pauses["start_ns"].between(first, last)]
    assert not (own["generation"] == 2).any()
    assert periods.census["run"].nunique() == 2, "counted at both ends of the window"
