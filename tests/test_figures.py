"""Every figure is drawn from data alone, says what they say, and comes out the same every time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import pytest
from builders import MS, run, steady
from campaigns import captures, recaptures, story
from matplotlib.figure import Figure
from ranked import every, several

from repro import dataset, fmt
from repro.report import style
from repro.report.figures import FIGURES, NotApplicable, draw_all, published
from repro.report.figures.itl_tail import survival
from repro.report.figures.shared import colour_of
from repro.report.style import save

DATA = Path(__file__).parent.parent / "data"

ELSEWHERE = ("trigger_map", "policies_compared")
ELSEWHERE += ("silence", "output_bound")
"""Drawn in tests of their own, from campaigns that have what they need."""

NAMES = [name for name in FIGURES if name not in ELSEWHERE]
ALONE = [name for name in NAMES if name != "rank_timelines"]
"""Those that apply to one rank."""


@pytest.fixture(scope="module")
def decoding(tmp_path_factory: pytest.TempPathFactory) -> dataset.Campaign:
    return dataset.load(story(tmp_path_factory.mktemp("data") / "decoding", length_s=12))


def message(name: str, campaign: dataset.Campaign) -> str:
    return FIGURES[name](campaign).get_suptitle().replace("\n", " ")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> dataset.Campaign:
    root, apart = tmp_path_factory.mktemp("ranks") / "c", [every(200), every(200, 14)]
    for name, pauses_at in (("one", apart[:1]), ("two", apart)):
        several(root, name=name, pauses_at=pauses_at)
        frozen = {"experiment__policy": "freeze", "pause_ms": 2.0}
        several(root, name=f"{name}-frozen", pauses_at=pauses_at, **frozen)
    return dataset.load(root)


@pytest.fixture
def suited(
    name: str, decoding: dataset.Campaign, ranks: dataset.Campaign, tmp_path: Path
) -> dataset.Campaign:
    """A campaign that the figure applies to."""
    if name == "capture_time":
        return dataset.load(captures(tmp_path / "captures", {"gc-on": 56.0, "frozen": 55.0}))
    return decoding if name in ALONE else ranks


@pytest.mark.parametrize("name", NAMES)
def test_same_bytes_every_time_and_nothing_cut_off_or_laid_over_the_message(
    name: str, suited: dataset.Campaign, tmp_path: Path
) -> None:
    drawn = FIGURES[name](suited)
    first = save(drawn, tmp_path / "a" / name).read_bytes()
    with matplotlib.rc_context({"font.size": 30, "savefig.dpi": 10}):
        again = save(FIGURES[name](suited), tmp_path / "b" / name).read_bytes()
    assert first == again
    assert first.startswith(b"\x89PNG")
    assert_laid_out(drawn)


def test_svg_on_request(decoding: dataset.Campaign, tmp_path: Path) -> None:
    first, again = (save(FIGURES["itl_tail"](decoding), tmp_path / name, "svg") for name in "ab")
    assert first.suffix == ".svg"
    assert b"<svg" in first.read_bytes()
    assert first.read_bytes() == again.read_bytes()


def assert_laid_out(drawn: Figure) -> None:
    with style.applied():  # ticks made while measuring have its fonts
        drawn.draw_without_rendering()
        boxes = [part.get_tightbbox() for part in (*drawn.texts, *drawn.legends, *drawn.axes)]
        below = [axes.get_tightbbox().y1 for axes in drawn.axes]
        message_box = drawn.texts[0].get_window_extent()
    for box in boxes:
        assert box.x0 >= -1 and box.x1 <= drawn.bbox.x1 + 1
        assert box.y0 >= -1 and box.y1 <= drawn.bbox.y1 + 1
    assert max(below) <= message_box.y0 + 1


def test_ranks_are_drawn_with_what_was_measured(ranks: dataset.Campaign) -> None:
    drawn = FIGURES["itl_by_ranks"](ranks)
    points = [line.get_xdata()[0] for line in drawn.axes[0].get_lines() if line.get_marker() == "o"]
    assert sorted(round(point) for point in points) == [1, 1, 2, 2]
    assert "of ITL at 2 ranks: " in drawn.get_suptitle()
    (axes,) = FIGURES["rank_timelines"](ranks).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["rank 0", "rank 1"]


def test_messages_are_computed(decoding: dataset.Campaign, tmp_path: Path) -> None:
    even = dataset.load(story(tmp_path / "even", full_ms={"no-freeze": 2.0}, length_s=12))
    assert message("itl_tail", even) != message("itl_tail", decoding)
    with pytest.raises(NotApplicable, match="longer than two steps"):
        FIGURES["timeline"](even)
    assert "frozen: no clear difference in longest" in message("itl_tail", even)
    assert "frozen: longest" in message("itl_tail", decoding)


@pytest.mark.parametrize(
    ("value", "said"), [(9.994, "9.99"), (9.996, "10.0"), (99.96, "100"), (0.09996, "0.100")]
)
def test_numbers_have_three_digits(value: float, said: str) -> None:
    assert fmt.figures(value) == said


def test_capture_time_compares_the_policies(tmp_path: Path) -> None:
    campaign = dataset.load(captures(tmp_path / "c", {"frozen": 28, "gc-on": 56}))
    assert "10.0% of the capture with gc-on" in message("capture_time", campaign)
    assert "frozen takes ×0.500 (" in message("capture_time", campaign)


def test_capture_time_has_a_panel_a_setting(tmp_path: Path) -> None:
    """Two releases of three models under four policies, each captured again in its process."""
    for vllm in ("0.22.1", "0.23.0"):
        for number, model in enumerate(("dense-0.6b", "moe", "deep")):
            seconds = {"gc-on": 5.0, "frozen": 4.0 + number / 10, "collect-per-graph": 50.0}
            changes = {"experiment__model": model, "versions__vllm": vllm}
            recaptures(tmp_path / "c", seconds, replicates=3, **changes)
    drawn = FIGURES["capture_time"](dataset.load(tmp_path / "c"))
    titles = [axes.get_title(loc="left") for axes in drawn.axes]
    assert len(set(titles)) == 6
    beside = [title.replace("0.22.1", "0.23.0") for title in titles[0:6:2]]
    assert beside == titles[1:6:2], "the releases of one model stand beside each other"
    assert "frozen takes ×0.800 to 0.840 of gc-on" in drawn.get_suptitle().replace("\n", " ")
    assert_laid_out(drawn)


def test_what_dwarfs_the_rest_is_drawn_beside_the_baseline_alone(tmp_path: Path) -> None:
    seconds = {"gc-on": 5.0, "frozen": 4.0, "collect-per-graph": 50.0}
    drawn = FIGURES["capture_time"](dataset.load(recaptures(tmp_path / "c", seconds)))
    shown = [[tick.get_text() for tick in axes.get_yticklabels()] for axes in drawn.axes]
    assert shown == [["gc-on", "frozen"], ["gc-on", "collect-per-graph"]]
    first, second = (axes.get_xlim()[1] for axes in drawn.axes)
    assert second > 5 * first


def test_runs_without_load_are_in_no_figure_of_decoding(tmp_path: Path) -> None:
    recaptures(tmp_path / "c", {"gc-on": 5.0})
    campaign = dataset.load(tmp_path / "c")
    for name in set(NAMES) - {"capture_time"}:
        with pytest.raises(NotApplicable):
            FIGURES[name](campaign)


@pytest.mark.parametrize("name", NAMES)
def test_says_what_is_missing(name: str, tmp_path: Path) -> None:
    run(tmp_path / "empty", "a")
    with pytest.raises(NotApplicable, match="no "):
        FIGURES[name](dataset.load(tmp_path / "empty"))


@pytest.mark.parametrize(
    "changes",
    [
        {"policies": ("stock",)},
        {"policies": ("no-freeze", "freeze", "stock")},
        {"executor": "uni"},
        {"every": 10_000},
        {"replicates": 1},
    ],
    ids=str,
)
def test_any_campaign_is_drawn(changes: dict, tmp_path: Path) -> None:
    if executor := changes.pop("executor", None):
        changes["experiment__executor"] = executor
    campaign = dataset.load(story(tmp_path / "c", length_s=4, **changes))
    for name in NAMES:
        try:
            style.encoded(FIGURES[name](campaign))
        except NotApplicable as missing:
            assert str(missing)


def test_one_run_per_arm_is_no_effect(tmp_path: Path) -> None:
    campaign = dataset.load(story(tmp_path / "c", length_s=12, replicates=1))
    for name in ("itl_tail", "timeline"):
        with pytest.raises(NotApplicable, match="measure two replicates"):
            FIGURES[name](campaign)


def test_the_first_pair_is_drawn(tmp_path: Path) -> None:
    for executor in ("mp", "uni"):
        story(tmp_path / "c", length_s=4, experiment__executor=executor)
    drawn = FIGURES["itl_tail"](dataset.load(tmp_path / "c"))
    assert [text.get_text() for text in drawn.axes[0].texts] == ["freeze", "no-freeze"]
    assert drawn.get_suptitle().startswith("mp: ")


def test_of_several_widths_the_widest_is_drawn(tmp_path: Path) -> None:
    for ranks in (1, 4, 2):
        changes: dict[str, Any] = {"experiment__data_parallel_size": ranks}
        changes |= {"experiment__client": "async_engine", "machine__cpu_count": 16}
        folder = story(tmp_path / f"{ranks}", length_s=4, **changes)
        for run_folder in folder.iterdir():
            document = json.loads((run_folder / "run.json").read_text())
            name = f"{ranks}-{run_folder.name}"
            (run_folder / "run.json").write_text(json.dumps(document | {"run_id": name}))
            run_folder.rename(tmp_path / "1" / name)
    drawn = FIGURES["itl_tail"](dataset.load(tmp_path / "1"))
    assert drawn.get_suptitle().startswith("DP4: ")


def test_stock_looks_like_the_policy_that_does_the_same() -> None:
    campaign = dataset.load(DATA / "h100")
    assert colour_of(campaign, "0.22.1 stock") == style.POLICY_COLOUR["no-freeze"]


def test_the_map_of_loads_leaves_cross_overs_out() -> None:
    with pytest.raises(NotApplicable, match="the heap of a cross-over has two policies"):
        FIGURES["trigger_map"](dataset.load(DATA / "cpu-low-load"))


def test_the_index_names_every_published_figure_and_no_other() -> None:
    root = DATA.parent / "figures"
    files = {(path.parent.name, path.stem) for path in root.rglob("*.*") if path.parent != root}
    assert published(root) == files
    assert {name for _, name in files} <= set(FIGURES)


def test_of_an_indexed_folder_only_the_named_figures_are_drawn(tmp_path: Path) -> None:
    story(tmp_path / "data" / "decoding", length_s=4)
    out = tmp_path / "figures"
    out.mkdir()
    (out / "README.md").write_text("- [The tail](decoding/itl_tail.png): see the step.")
    assert draw_all(tmp_path / "data", out) == [out / "decoding" / "itl_tail.png"]


def test_draw_all_draws_what_applies(tmp_path: Path) -> None:
    story(tmp_path / "data" / "decoding", length_s=4)
    captures(tmp_path / "data" / "capturing", {"gc-on": 56.0, "frozen": 55.0})
    (tmp_path / "data" / "README.md").write_text("no campaign")
    (tmp_path / "data" / "unfinished" / "run").mkdir(parents=True)
    written = draw_all(tmp_path / "data", tmp_path / "figures")
    drawn = [name for name in ALONE if name != "capture_time"]
    assert {path.relative_to(tmp_path / "figures").as_posix() for path in written} == {
        *(f"decoding/{name}.png" for name in drawn),
        "capturing/capture_time.png",
    }
    assert all(path.is_file() for path in written)


def test_survival_is_the_share_of_tokens_with_a_gap_of_x_or_more() -> None:
    rows = pd.DataFrame({"value_ns": np.array([30, 10, 20]) * MS, "count": [1, 90, 9]})
    x, share = survival(rows, points=500)
    assert (x[0], x[-1]) == (10, 30)
    assert share[-1] == pytest.approx(0.01)
    for gap, expected in ((20, 0.1), (30, 0.01)):
        assert share[x >= gap].max() == pytest.approx(expected, rel=0.02)


def test_steady_decoding_without_pauses_has_no_timeline(tmp_path: Path) -> None:
    run(tmp_path / "c", "a", steady())
    campaign = dataset.load(tmp_path / "c")
    with pytest.raises(NotApplicable, match="no collection of a worker"):
        FIGURES["timeline"](campaign)
