"""Figures, tables and claims of the mechanism, on campaigns of invented numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from builders import MS, SECOND, START, document, run
from campaigns import ROLES, census, decided, decode, story

from repro import dataset
from repro.analysis import arms
from repro.analysis.arms import VLLM_HANDLER, output_handler
from repro.analysis.mechanism import garbage_left, policies_table
from repro.claims import Verdict
from repro.dataset import Campaign
from repro.policy import ALTERNATE, SERVING
from repro.report import style
from repro.report.figures import FIGURES, NotApplicable

LENGTH_S = 12


def arm(
    folder: Path, name: str, *, every: int = 60, full_ms: float = 400.0, **changes: Any
) -> None:
    """One run of one arm, its worker counted with its garbage at the end."""
    tables = decode(full_ms, every, LENGTH_S, seed=0)
    heap = pd.DataFrame(census("no-freeze"))
    end = {"role": "worker", "point": "thawed", "tracked": 820_000, "garbage": 7, "enabled": True}
    heap = pd.concat([heap, pd.DataFrame([end | {"garbage_bytes": 900}])])
    heap.loc[heap["point"] == "shutdown", ["garbage", "garbage_bytes"]] = (30, 4_000)
    tables["census"] = {name: column.tolist() for name, column in heap.fillna(0).items()}
    run(folder, name, tables, window__end_ns=START + LENGTH_S * SECOND, **changes)


@pytest.fixture(scope="module")
def loads(tmp_path_factory: pytest.TempPathFactory) -> Campaign:
    folder = tmp_path_factory.mktemp("data") / "loads"
    for policy in ("no-freeze", "freeze"):
        for load, every in ((256, 10**6), (512, 10**6), (1024, 100)):
            settings = {"experiment__concurrency": load, "experiment__policy": policy}
            arm(folder, f"{policy}-{load}", every=every, **settings)
    return dataset.load(folder)


POLICIES = {
    "stock": ("stock", "stock", "stock"),
    "again": ("freeze-again", "freeze-again", "freeze-again"),
    "mixed": ("thresholds", "freeze-thresholds", "stock"),
}


@pytest.fixture(scope="module")
def policies(tmp_path_factory: pytest.TempPathFactory) -> Campaign:
    folder = tmp_path_factory.mktemp("data") / "policies"
    for name, (worker, engine, frontend) in POLICIES.items():
        arm(
            folder,
            name,
            full_ms={"stock": 300.0, "again": 3.0, "mixed": 1.0}[name],
            experiment__policy=worker,
            experiment__engine_policy=engine,
            experiment__frontend_policy=frontend,
        )
    return dataset.load(folder)


def test_the_map_names_the_load_from_which_full_collections_come(loads: Campaign) -> None:
    said = FIGURES["trigger_map"](loads).get_suptitle().replace("\n", " ")
    assert "none up to 512, seen from 1024 on" in said.replace("1,024", "1024")


def test_requests_of_another_kind_have_a_mark_of_their_own(tmp_path: Path) -> None:
    for load in (256, 512, 1024):
        arm(tmp_path / "c", str(load), every=10**6, experiment__concurrency=load)
    full = {"experiment__concurrency": 512, "experiment__structured_output": True}
    arm(tmp_path / "c", "structured", every=100, **full)
    drawn = FIGURES["trigger_map"](dataset.load(tmp_path / "c"))
    assert "was seen up to 1,024" in drawn.get_suptitle(), "of the usual requests"
    said = [text.get_text() for text in drawn.legends[0].get_texts()]
    assert said[:3] == ["freeze", "structured=True", "CPython's rule"]
    usual, structured, *_ = drawn.axes[-1].lines
    assert (len(usual.get_xdata()), max(usual.get_ydata())) == (3, 0)
    assert (len(structured.get_xdata()), min(structured.get_ydata()) > 0) == (1, True)
    assert usual.get_marker() != structured.get_marker()


def test_two_loads_are_no_map(tmp_path: Path) -> None:
    for load in (256, 512):
        arm(tmp_path / "c", str(load), experiment__concurrency=load)
    with pytest.raises(NotApplicable, match="at 3 loads or more"):
        FIGURES["trigger_map"](dataset.load(tmp_path / "c"))


def test_the_freeze_alone_is_no_comparison_of_policies(tmp_path: Path) -> None:
    campaign = dataset.load(story(tmp_path / "c", length_s=LENGTH_S))
    with pytest.raises(NotApplicable, match="no policy beyond the freeze"):
        FIGURES["policies_compared"](campaign)


@pytest.mark.parametrize(
    ("name", "of"),
    [
        ("trigger_map", "loads"),
        ("policies_compared", "policies"),
    ],
)
def test_nothing_is_cut_off_and_bytes_are_the_same(
    name: str, of: str, request: pytest.FixtureRequest
) -> None:
    campaign: Campaign = request.getfixturevalue(of)
    drawn = FIGURES[name](campaign)
    assert style.encoded(drawn) == style.encoded(FIGURES[name](campaign))
    with style.applied():
        drawn.draw_without_rendering()
        boxes = [part.get_tightbbox() for part in (*drawn.texts, *drawn.legends, *drawn.axes)]
    for box in boxes:
        assert box.x0 >= -1 and box.x1 <= drawn.bbox.x1 + 1
        assert box.y0 >= -1 and box.y1 <= drawn.bbox.y1 + 1


def test_an_arm_is_named_by_the_policies_of_all_its_processes(policies: Campaign) -> None:
    assert set(policies.runs["arm"]) == {
        "stock",
        "all freeze-again",
        "engine freeze-thresholds, front end stock: thresholds",
    }
    labels = [
        text.get_text() for text in FIGURES["policies_compared"](policies).axes[0].get_yticklabels()
    ]
    assert labels == arms.labels(policies)


def test_the_message_is_of_the_worst_where_the_freeze_alone_is_best(tmp_path: Path) -> None:
    for frontend, full_ms in (("stock", 20.0), ("no-freeze", 400.0)):
        about = {"experiment__policy": "freeze", "experiment__frontend_policy": frontend}
        for replicate in (0, 1):
            arm(tmp_path, f"{frontend}{replicate}", full_ms=full_ms, **about)
    (title,) = FIGURES["policies_compared"](dataset.load(tmp_path)).texts
    assert title.get_text().startswith("P99 ITL is highest with front end no-freeze: freeze: ")
    assert " of freeze" in title.get_text().replace("\n", " ")


@pytest.mark.parametrize("name", ["cpu-every-policy", "h200-every-policy"])
def test_every_serving_policy_is_compared_in_one_campaign(name: str) -> None:
    campaign = dataset.load(Path(__file__).parents[1] / "data" / name)
    others = [name for name in SERVING if name not in ("stock", "no-freeze", "freeze", ALTERNATE)]
    expected = {"no-freeze", "freeze", *(f"worker and engine {name}" for name in others)}
    assert set(arms.labels(campaign)) == expected
    twice = campaign.runs.groupby("arm").size().eq(2)
    (title,) = FIGURES["policies_compared"](campaign).texts
    assert twice.all() == ("does not decide" not in title.get_text())


def test_policies_are_compared_by_what_was_measured(policies: Campaign) -> None:
    table = policies_table(policies).set_index("policy")
    assert table["ms_per_1000_steps"].idxmax() == "stock"
    assert table["tokens_per_s"].eq(100.0).all()


def test_garbage_is_what_was_counted_at_the_end(policies: Campaign) -> None:
    left = garbage_left(policies).drop(columns="arm")
    assert left.drop_duplicates().to_dict("list") == {
        "since": [30],
        "since_bytes": [4_000],
        "kept": [7],
        "kept_bytes": [900],
    }


def verdict(claim: str, campaign: Campaign) -> str:
    return decided(claim, campaign)["verdict"]


def test_little_garbage_is_little_and_much_is_not(policies: Campaign) -> None:
    assert verdict("little-is-left", policies) == Verdict.REPRODUCED
    policies.census["garbage_bytes"] *= 10_000
    assert verdict("little-is-left", policies) == Verdict.CONTRADICTED
    policies.census["garbage_bytes"] //= 10_000


def served(root: Path, policy: str, full_ms: float, tokens_per_s: float, **changes: Any) -> None:
    """Three runs of a policy through HTTP."""
    for replicate in range(3):
        run(
            root,
            f"{policy}-{full_ms:g}-{replicate}",
            decode(full_ms, 30, 120, seed=replicate),
            window__end_ns=START + 120 * SECOND,
            experiment__policy=policy,
            experiment__client="serve",
            experiment__concurrency=1024,
            experiment__replicate=replicate,
            summary__tokens_per_s=tokens_per_s + replicate / 10,
            **changes,
        )


@pytest.mark.parametrize(
    ("full_ms", "rate", "expected"),
    [
        ((400.0, 2.0), (100.0, 120.0), Verdict.REPRODUCED),
        ((400.0, 2.0), (100.0, 101.0), Verdict.CONTRADICTED),
        ((400.0, 390.0), (100.0, 120.0), Verdict.CONTRADICTED),
    ],
)
def test_a_better_policy_must_meet_both_goals(
    full_ms: tuple[float, float], rate: tuple[float, float], expected: str, tmp_path: Path
) -> None:
    for name, length, tokens in zip(("stock", "freeze-again"), full_ms, rate, strict=True):
        served(tmp_path / "c", name, length, tokens)
    assert verdict("better-policy", dataset.load(tmp_path / "c")) == expected


@pytest.mark.parametrize(
    ("gpu", "vllm", "expected"),
    [
        ("H100", "0.23.0", Verdict.REPRODUCED),
        ("H100", "0.22.1", Verdict.NOT_MEASURED),
        (None, "0.32.0", Verdict.NOT_MEASURED),
    ],
)
def test_a_freeze_counts_as_stock_only_where_the_release_freezes(
    gpu: str | None, vllm: str, expected: str, tmp_path: Path
) -> None:
    machine = {"machine__gpu_name": gpu, "versions__vllm": vllm}
    served(tmp_path / "c", "no-freeze", 400.0, 99.0, **machine)
    served(tmp_path / "c", "freeze", 400.0, 100.0, **machine)
    served(tmp_path / "c", "freeze-thresholds", 2.0, 120.0, **machine)
    assert verdict("better-policy", dataset.load(tmp_path / "c")) == expected


@pytest.mark.parametrize(
    ("full_ms", "expected"),
    [
        ((100.0, 2.0), Verdict.REPRODUCED),
        ((2.0, 100.0), Verdict.CONTRADICTED),
        ((2.0, 2.0), Verdict.NO_EFFECT),
    ],
)
def test_policies_of_every_process_are_held_against_the_freeze(
    full_ms: tuple[float, float], expected: str, tmp_path: Path
) -> None:
    for arm_name, others in (("freeze", "stock"), ("thresholds", "freeze-thresholds")):
        for replicate in range(2):
            run(
                tmp_path / "c",
                f"{arm_name}-{replicate}",
                decode(full_ms[arm_name != "freeze"], 30, 120, seed=replicate),
                window__end_ns=START + 120 * SECOND,
                experiment__policy=arm_name,
                experiment__engine_policy=others,
                experiment__frontend_policy=others,
                experiment__concurrency=1024,
                experiment__replicate=replicate,
            )
    assert verdict("beyond-freeze", dataset.load(tmp_path / "c")) == expected


def test_runs_of_before_have_the_defaults_of_what_was_added(tmp_path: Path) -> None:
    made = document("a")
    assert "engine_policy" not in made["experiment"], "as older runs are"
    run(tmp_path / "c", "a", {"pauses": {"start_ns": [START], "duration_ns": MS}})
    runs = dataset.load(tmp_path / "c").runs
    assert runs.loc[0, ["engine_policy", "frontend_policy"]].tolist() == ["stock", "stock"]
    assert set(ROLES) == {"frontend", "engine", "worker"}


def test_an_output_handler_is_named_by_what_it_does() -> None:
    runs = pd.DataFrame(
        {
            "output_chunk": [0, 4096, 0, 0, 4096],
            "output_handler": ["vllm", "vllm", "fair", "vllm", "vllm"],
            "output_yield_ms": [0.0, 0.0, 0.0, 5.0, 20.0],
        }
    )
    said = [VLLM_HANDLER, "whole steps", "every message", "5 ms", "whole steps, 20 ms"]
    assert output_handler(runs).tolist() == said
    assert output_handler(runs.head(0)).empty


def test_only_vllms_own_handler_is_judged_as_a_policy(tmp_path: Path) -> None:
    """One that yields differs in more than its policy: it is neither a base nor a case."""
    for name, length, tokens in (("stock", 400.0, 100.0), ("freeze-again", 390.0, 101.0)):
        served(tmp_path / "c", name, length, tokens)
        served(tmp_path / "c", name, 2.0, 150.0, experiment__output_yield_ms=5.0)
    assert verdict("better-policy", dataset.load(tmp_path / "c")) == Verdict.CONTRADICTED
