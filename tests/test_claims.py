"""Each claim can be reproduced, can fail, and is left open where the data cannot decide it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import SECOND, run
from campaigns import captures, census, decided, recaptures, story

from repro import dataset
from repro.claims import CLAIMS, Claim, Outcome, Verdict, decide, evaluate, registry, to_markdown
from repro.claims.tail import FALLS
from repro.claims.verdict import SAME, Sample, detail, judge, more_for_share, more_needed, same
from repro.dataset import Campaign
from repro.stats.estimate import Estimate
from repro.stats.ratios import ratio_of_runs

FROZEN = {"heap": {"frozen": 800_000, "tracked": 9}}
GPU = {"machine__gpu_name": "H100"}


def verdict(claim: str, *folders: Path) -> str:
    return decided(claim, *map(dataset.load, folders))["verdict"]


def counted(folder: Path, policy: str = "freeze", **changes: Any) -> Path:
    """Two runs with a census alone; `heap` changes its columns, the rest `run.json`."""
    heap = changes.pop("heap", {})
    for replicate in range(2):
        rows = census(policy) | heap
        run(
            folder,
            f"{policy}-{replicate}",
            {"census": rows},
            experiment__policy=policy,
            experiment__replicate=replicate,
            **changes,
        )
    return folder


def test_every_claim_is_open_without_data() -> None:
    table = evaluate([])
    assert list(table["id"]) == [claim.id for claim in CLAIMS]
    assert set(table["verdict"]) == {Verdict.NOT_MEASURED}
    assert table["reason"].str.startswith("needs ").all()


@pytest.mark.parametrize("claim", ["p99-falls", "wide-ep"])
@pytest.mark.parametrize(
    ("frozen_ms", "expected"),
    [(2.0, "reproduced"), (400.0, "no effect"), (2000.0, "contradicted")],
)
def test_tail(claim: str, frozen_ms: float, expected: str, tmp_path: Path) -> None:
    ranks = {"p99-falls": 1, "wide-ep": 2}[claim]
    folder = story(
        tmp_path / "c",
        full_ms={"freeze": frozen_ms},
        length_s=60,
        every=30,
        experiment__data_parallel_size=ranks,
        experiment__enable_expert_parallel=ranks > 1,
    )
    assert verdict(claim, folder) == expected
    other = {"p99-falls": "wide-ep", "wide-ep": "p99-falls"}[claim]
    assert verdict(other, folder) == "not measured"


def test_tail_needs_two_runs_an_arm(tmp_path: Path) -> None:
    folder = story(tmp_path / "c", full_ms={"freeze": 2.0}, every=30, replicates=1)
    row = decided("p99-falls", dataset.load(folder))
    assert row["verdict"] == "not measured"
    assert "needs 2 runs per arm, there are 1" in row["reason"]


def test_tail_needs_steps(tmp_path: Path) -> None:
    folder = story(tmp_path / "c", length_s=4)
    row = decided("p99-falls", dataset.load(folder))
    assert row["verdict"] == "not measured"
    assert "needs 500 steps" in row["reason"]


def test_some_cases_are_enough_for_the_tail_but_not_for_memory(tmp_path: Path) -> None:
    good = story(tmp_path / "good")
    bad = story(tmp_path / "bad", full_ms={"freeze": 2000.0})
    assert verdict("p99-falls", bad, good) == "reproduced"
    unfrozen = counted(tmp_path / "unfrozen", policy="no-freeze", heap={"frozen": 0})
    assert verdict("engine-frozen", unfrozen, good) == "contradicted"


def test_the_mean_over_cases_decides_what_each_leaves_open(tmp_path: Path) -> None:
    one, *others = [
        captures(tmp_path / str(case), {"gc-on": 57.0, "frozen": 54.32}) for case in range(8)
    ]
    assert verdict("capture-time", one) == verdict("capture-time", one, one) == "undecided"
    row = decided("capture-time", *map(dataset.load, (one, *others)))
    assert row["verdict"] == "reproduced"
    assert "mean of 8 cases" in row["number"]
    assert len(row["runs"].split(", ")) == 8 * len(dataset.load(one).runs)


def test_of_several_undecided_cases_the_narrowest_stands(tmp_path: Path) -> None:
    between = {"wide": (0.2, 2.0), "narrow": (0.7, 1.1), "middle": (0.5, 1.2)}
    one = Claim("some", "A claim.", criterion="any", needs="anything")

    def outcome(campaign: Campaign) -> list[Outcome]:
        low, high = between[campaign.path.name]
        ratio = Estimate(value=0.9, low=low, high=high, supported=True, needs=2, steps=2)
        number = campaign.path.name
        return [Outcome(verdict=Verdict.UNDECIDED, number=number, reason="", runs=(), ratio=ratio)]

    one.test = outcome
    for name in between:
        run(tmp_path / name, "a")
    row = decide(one, [dataset.load(tmp_path / name) for name in between])
    assert (row["number"], row["reason"]) == ("narrow", " (other cases: 2 undecided)")


def test_a_mean_that_hangs_on_one_case_decides_nothing(tmp_path: Path) -> None:
    """Of five cases it lies within the bounds, of any four of them it does not."""
    cases = [captures(tmp_path / str(case), {"gc-on": 57.0, "frozen": 54.32}) for case in range(5)]
    row = decided("capture-time", *map(dataset.load, cases))
    assert row["verdict"] == "undecided"
    assert "mean of 5 cases ×0.953 (0.950 to 0.956), without one of them" in row["reason"]


@pytest.mark.parametrize(
    ("frozen", "expected"),
    [(56.0, "reproduced"), (28.0, "contradicted"), (54.2, "undecided")],
)
def test_capture_time(frozen: float, expected: str, tmp_path: Path) -> None:
    folder = captures(tmp_path / "c", {"gc-on": 57.0, "frozen": frozen})
    assert verdict("capture-time", folder) == expected


@pytest.mark.parametrize(
    ("more", "expected"), [(1.1, "contradicted"), (1.005, "reproduced"), (1.01, "undecided")]
)
def test_capture_memory(more: float, expected: str, tmp_path: Path) -> None:
    for name, memory in (("gc-on", 6e9), ("frozen", 6e9 * more)):
        for replicate in range(2):
            span = {"kind": ["capture"], "start_ns": [SECOND], "duration_ns": [SECOND]}
            span |= {"memory_bytes": [int(memory * (1 + 1e-4 * replicate))], "capture_policy": name}
            run(tmp_path / "c", f"{name}-{replicate}", {"captures": span})
    assert verdict("capture-memory", tmp_path / "c") == expected


@pytest.mark.parametrize(("frozen", "expected"), [(5.0, "reproduced"), (2.5, "contradicted")])
def test_captures_made_again_decide_too(frozen: float, expected: str, tmp_path: Path) -> None:
    """The start-up captures, three times as long and one per run, are not mixed with them."""
    folder = recaptures(tmp_path / "c", {"gc-on": 5.0, "frozen": frozen}, first=3.0)
    assert verdict("capture-time", folder) == expected


@pytest.mark.parametrize(("memory", "expected"), [(1.0, "reproduced"), (0.5, "not measured")])
def test_memory_that_a_driver_keeps_decides_nothing(
    memory: float, expected: str, tmp_path: Path
) -> None:
    folder = recaptures(tmp_path / "c", {"gc-on": 5.0, "frozen": 5.0}, memory=memory)
    assert verdict("capture-memory", folder) == expected


@pytest.mark.parametrize(
    ("full", "expected"),
    [
        ({"gc-on": 2, "collect-per-graph": 104}, "reproduced"),
        ({"gc-on": 51, "collect-per-graph": 104}, "reproduced"),
        ({"gc-on": 52, "collect-per-graph": 104}, "contradicted"),
        ({"gc-on": 104, "collect-per-graph": 104}, "contradicted"),
    ],
)
def test_collections_are_held_against_those_asked_for(
    full: dict[str, int], expected: str, tmp_path: Path
) -> None:
    folder = captures(tmp_path / "c", {"gc-on": 5.0, "collect-per-graph": 50.0}, full=full)
    assert verdict("no-collection-per-graph", folder) == expected


def test_without_captures_told_to_collect_nothing_is_said(tmp_path: Path) -> None:
    folder = captures(tmp_path / "c", {"gc-on": 5.0})
    assert verdict("no-collection-per-graph", folder) == "not measured"


def test_what_the_collector_takes_bounds_what_is_left_open(tmp_path: Path) -> None:
    folder = recaptures(tmp_path / "c", {"gc-on": 5.0, "frozen": 4.75}, experiment__model="a")
    recaptures(folder, {"gc-on": 50.0, "frozen": 47.5}, experiment__model="b")
    row = decided("capture-time", dataset.load(folder))
    assert row["number"].startswith("capture again, b, vLLM 0.32.0"), "the longest is the nearest"
    assert (
        "0.950 to 1.05; the collector takes 10.0% (10.0 to 10.0) of it with gc-on" in row["reason"]
    )


def test_captures_of_two_releases_decide_nothing_about_load(tmp_path: Path) -> None:
    for vllm in ("0.22.1", "0.23.0"):
        recaptures(tmp_path / "c", {"gc-on": 5.0}, versions__vllm=vllm)
    row = decided("patch-is-release", dataset.load(tmp_path / "c"))
    assert row["reason"].startswith("needs runs of vLLM before 0.23")


@pytest.mark.parametrize(("tokens", "expected"), [(1000, "reproduced"), (0, "not measured")])
def test_garbage_counts_after_load_alone(tokens: int, expected: str, tmp_path: Path) -> None:
    counted = {"point": ["shutdown", "thawed"], "t_ns": [1, 2]}
    run(tmp_path / "c", "a", {"census": counted}, summary__output_tokens=tokens)
    assert verdict("little-is-left", tmp_path / "c") == expected


def test_one_capture_an_arm_decides_nothing(tmp_path: Path) -> None:
    folder = captures(tmp_path / "c", {"gc-on": 57.0, "frozen": 56.0}, replicates=1)
    assert verdict("capture-time", folder) == "not measured"


def test_compiling_on_a_cpu_is_no_capture(tmp_path: Path) -> None:
    assert verdict("capture-time", story(tmp_path / "c", length_s=4)) == "not measured"


@pytest.mark.parametrize(
    ("claim", "changes", "expected"),
    [
        ("engine-frozen", {"policy": "no-freeze"}, "reproduced"),
        ("engine-frozen", {"policy": "no-freeze", "heap": {"frozen": 0}}, "contradicted"),
        ("engine-frozen", {"policy": "freeze"}, "not measured"),
        (
            "engine-frozen",
            {"policy": "no-freeze", "heap": {"frozen": 0}, "experiment__engine_policy": "disable"},
            "not measured",
        ),
        ("frontend-frozen", {"policy": "no-freeze"}, "not measured"),
        (
            "frontend-frozen",
            {"policy": "no-freeze", "experiment__client": "serve"},
            "contradicted",
        ),
        (
            "frontend-frozen",
            {"policy": "no-freeze", "experiment__client": "serve", **FROZEN},
            "reproduced",
        ),
        ("worker-not-frozen", {"policy": "no-freeze"}, "reproduced"),
        ("worker-not-frozen", {"policy": "stock", **FROZEN}, "contradicted"),
        ("worker-not-frozen", {"policy": "no-freeze", **GPU}, "not measured"),
        (
            "worker-not-frozen",
            {"policy": "stock", **GPU, "versions__vllm": "0.22.1"},
            "reproduced",
        ),
        ("no-configuration", {"policy": "stock"}, "not measured"),
        ("no-configuration", {"policy": "stock", **GPU}, "contradicted"),
        ("no-configuration", {"policy": "stock", **GPU, **FROZEN}, "reproduced"),
        ("unfreeze-restores", {}, "reproduced"),
        ("unfreeze-restores", {"heap": {"frozen": 800_000}}, "contradicted"),
        ("unfreeze-restores", {"heap": {"enabled": False}}, "contradicted"),
        ("unfreeze-restores", {"heap": {"tracked": 20_000}}, "contradicted"),
        ("unfreeze-restores", {"policy": "no-freeze"}, "not measured"),
    ],
)
def test_heaps(claim: str, changes: dict[str, Any], expected: str, tmp_path: Path) -> None:
    assert verdict(claim, counted(tmp_path / "c", **changes)) == expected


@pytest.mark.parametrize(("seen", "expected"), [(50, "reproduced"), (200_000, "contradicted")])
def test_frozen_objects_are_counted_and_not_timed(seen: int, expected: str, tmp_path: Path) -> None:
    folder = counted(tmp_path / "c", policy="no-freeze")
    counted(folder, policy="freeze", heap={"frozen": 800_000, "tracked": seen})
    row = decided("not-scanned", dataset.load(folder))
    assert (row["verdict"], row["reason"]) == (expected, "no full collections to time")


def test_the_time_of_full_collections_stands_beside_the_count(tmp_path: Path) -> None:
    folder = story(tmp_path / "c", full_ms={"freeze": 400.0}, length_s=12)
    row = decided("not-scanned", dataset.load(folder))
    assert row["verdict"] == "reproduced"
    assert row["reason"].startswith("full collections ×1.0")


def test_collections_after_the_freeze(tmp_path: Path) -> None:
    assert verdict("no-collection", story(tmp_path / "c", length_s=4)) == "contradicted"
    assert verdict("no-collection", counted(tmp_path / "none")) == "reproduced"
    beyond = counted(tmp_path / "beyond", policy="freeze-again")
    assert verdict("no-collection", beyond) == "not measured", "that policy is another claim's"


@pytest.mark.parametrize(
    ("gib", "expected"),
    [((2.0, 2.001), "reproduced"), ((2.6, 2.601), "contradicted"), ((1.9, 2.4), "undecided")],
)
def test_memory(gib: tuple[float, float], expected: str, tmp_path: Path) -> None:
    for policy, sizes in (("no-freeze", (2.0, 2.001)), ("freeze", gib)):
        for replicate, size in enumerate(sizes):
            rows = census(policy) | {"rss_bytes": int(size * 2**30)}
            changes = {"experiment__policy": policy, "experiment__replicate": replicate}
            run(tmp_path / "c", f"{policy}-{replicate}", {"census": rows}, **changes)
    assert verdict("memory-minimal", tmp_path / "c") == expected


@pytest.mark.parametrize(("frozen_ms", "expected"), [(400.0, "reproduced"), (2.0, "contradicted")])
def test_uni(frozen_ms: float, expected: str, tmp_path: Path) -> None:
    folder = story(
        tmp_path / "c", full_ms={"freeze": frozen_ms}, every=30, experiment__executor="uni"
    )
    assert verdict("uni-unchanged", folder) == expected
    assert verdict("p99-falls", folder) == "not measured"


def test_markdown_has_a_row_a_claim(tmp_path: Path) -> None:
    lines = to_markdown(evaluate([dataset.load(story(tmp_path / "c", length_s=12))])).splitlines()
    assert len(lines) == 2 + len(CLAIMS)
    assert len({line.count("|") for line in lines}) == 1


@pytest.mark.parametrize(
    ("value", "low", "high", "more"),
    [
        (1.0, 0.9, 1 / 0.9, 11),  # half-width 0.105, room 0.0488 up to 1.05: 3 * 4.66 runs in all
        (1.0, 0.8, 1.25, 60),
        (2.0, 0.9, 4.4, 2),  # outside: half-width 0.799, room 0.644 down to 1.05
        (1.05, 1.0, 1.1, np.inf),  # on the bound
    ],
)
def test_runs_needed_follow_from_the_width(
    value: float, low: float, high: float, more: float
) -> None:
    ratio = Estimate(value=value, low=low, high=high, supported=True, needs=2, steps=3)
    assert judge(ratio, same(SAME)) is Verdict.UNDECIDED
    assert more_needed(ratio, same(SAME), 3) == more


def test_runs_needed_for_a_share() -> None:
    assert more_for_share(0.0, 2, 1) == 1, "Wilson: 0 of 4 lies below a half, 0 of 3 does not"
    assert more_for_share(0.5, 20, 4) == np.inf


def test_details_of_verdicts() -> None:
    one = Sample(size=3, minutes=1.5)
    wide = detail(Verdict.UNDECIDED, FALLS, one, 1.0)
    assert wide == "1 more run per arm of 1.50 minutes would decide"
    assert detail(Verdict.UNDECIDED, FALLS, one, 5000.0).startswith("over 1,000 more runs per arm")
    assert detail(Verdict.NO_EFFECT, FALLS, one) == "within ±10%"
    assert detail(Verdict.REPRODUCED, FALLS, one, 0.0) == ""


def test_a_claim_is_added_by_one_decorated_function(monkeypatch: pytest.MonkeyPatch) -> None:
    registered: list[Claim] = []
    monkeypatch.setattr(registry, "REGISTERED", registered)
    added = registry.claim("new", "New.", criterion="c", needs="n")(lambda _: [])
    assert [(each.id, each.test) for each in registered] == [("new", added)]
    assert len({each.id for each in CLAIMS}) == len(CLAIMS) == len(registry_of_all())


def registry_of_all() -> list[str]:
    """The names of all decorated tests in the package, from its source."""
    folder = Path(registry.__file__).parent
    return re.findall(
        r"^@claim\(\n    \"(.+)\"", "".join(map(Path.read_text, folder.glob("*.py"))), re.M
    )


def test_ratio_of_runs_is_welchs() -> None:
    found = ratio_of_runs([1.0, 1.1, 1.2], [2.0, 2.2, 2.4])
    # Both arms: three logarithms of the same variance, so 4 degrees of freedom, t = 2.776.
    spread = np.log([1.0, 1.1, 1.2]).var(ddof=1)
    width = 2.776 * np.sqrt(2 * spread / 3)
    assert found.value == pytest.approx(2)
    assert np.log([found.low, found.high]) == pytest.approx([np.log(2) - width, np.log(2) + width])


def test_ratio_of_runs_needs_two_runs() -> None:
    assert not ratio_of_runs([1.0], [2.0, 2.0]).supported
    same = ratio_of_runs([1.0, 1.0], [2.0, 2.0])
    assert (same.low, same.value, same.high) == pytest.approx((2, 2, 2))
