"""The pages of `repro page` and `repro report` in a real browser, and the head of the former."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import nbformat
import pandas as pd
import pytest
from browser import Browser
from campaigns import story
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from recordings import serving

from repro import claims, cli, dataset, fmt
from repro.claims import evaluate
from repro.claims.comparison import compare, measured, most_alike
from repro.dataset.pack import pack
from repro.report import style, summary
from repro.report.page import html_page

DATA = Path(__file__).parent.parent / "data"
PAGES = ("page", "report")
WIDE = pd.DataFrame([{f"column {number}": "some words in a cell" for number in range(12)}])


@pytest.fixture(scope="module", autouse=True)
def without_the_slow_claim() -> Iterator[None]:
    """The prediction for wide groups takes seconds, and no test here is about it."""
    with pytest.MonkeyPatch.context() as patch:
        quick = [claim for claim in claims.CLAIMS if claim.id != "wide-ep-width"]
        patch.setattr(claims, "CLAIMS", quick)
        yield


def executed(path: Path) -> Path:
    """A notebook with all that a page has to fit in: a wide table, long code, a wide figure."""
    from repro.report.figures import FIGURES

    figure = FIGURES["itl_tail"](dataset.load(story(path.parent / "drawn", length_s=12)))
    shown = [
        new_output("display_data", {"text/markdown": fmt.markdown_table(WIDE)}),
        new_output("display_data", {"image/png": b64encode(style.encoded(figure)).decode()}),
        new_output("stream", text="a line without an end " * 20),
    ]
    code = "a_long_name = " + " + ".join(["another_long_name"] * 20)
    cells = [
        new_markdown_cell("# A notebook\n\nWords.\n\n## A section of `it`\n\nMore words."),
        new_code_cell(code, outputs=shown),
        new_markdown_cell("## Another"),
    ]
    nbformat.write(new_notebook(cells=cells), path)
    return path


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Both pages; the campaign has a recorded one to stand beside."""
    root = tmp_path_factory.mktemp("pages")
    mine = story(root / "runs" / "mine", length_s=12)
    story(root / "data" / "recorded", length_s=12)
    story(root / "data" / "http", length_s=12, experiment__client="serve")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(summary, "project", lambda: root)
        page = root / "out" / "index.html"
        campaign = dataset.load(mine)
        opening = summary.head(campaign, evaluate([campaign]), page)
        html_page(opening, [executed(root / "stub.ipynb")], page)
    recording = serving(root / "recording", stalls=range(50, 2000, 50))
    assert cli.main(["report", str(recording)]) == 0
    return {"page": page, "report": recording / "report.html"}


@pytest.mark.browser
@pytest.mark.parametrize("width", [1280, 400])
@pytest.mark.parametrize("name", PAGES)
def test_nothing_is_logged_fetched_or_cut_off(
    browser: Browser, pages: dict[str, Path], name: str, width: int
) -> None:
    browser.open(pages[name], width)
    assert browser.faults() == []
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    drawn = browser.evaluate("[...document.images].map(i => [i.naturalWidth, i.width])")
    assert drawn and all(natural > 500 and 300 < shown <= width for natural, shown in drawn)
    wide = "[...document.querySelectorAll('table')].filter(t => t.scrollWidth > t.clientWidth)"
    marked = "every(t => getComputedStyle(t).backgroundImage.includes('gradient'))"
    assert browser.evaluate(f"{wide}.{marked}"), "a table that scrolls shows it"


@pytest.mark.browser
@pytest.mark.parametrize(("name", "verdict"), [("page", ".verdict"), ("report", ".advice")])
def test_the_verdict_is_on_the_first_screen(
    browser: Browser, pages: dict[str, Path], name: str, verdict: str
) -> None:
    browser.open(pages[name], 1280)
    top = f"document.querySelector('{verdict}').getBoundingClientRect()"
    assert 0 < browser.evaluate(f"{top}.top") < browser.evaluate(f"{top}.bottom") < 900


@pytest.mark.browser
def test_contents_reach_the_sections_and_code_is_folded(
    browser: Browser, pages: dict[str, Path]
) -> None:
    browser.open(pages["page"], 1280)
    links = "[...document.querySelectorAll('nav a')]"
    assert browser.evaluate(f"{links}.map(a => a.textContent)") == [
        *("Your run beside ours", "Claims of the pull request", "Claims of this package"),
        *("A notebook", "A section of it", "Another"),
    ]
    reached = f"{links}.map(a => document.querySelectorAll(a.getAttribute('href')).length)"
    assert set(browser.evaluate(reached)) == {1}
    assert browser.evaluate("document.querySelector('details.code pre').checkVisibility()") is False


def test_runs_are_links_to_their_folders(pages: dict[str, Path]) -> None:
    text = pages["page"].read_text(encoding="utf-8")
    targets = {part.partition('"')[0] for part in text.split('href="')[1:]}
    folders = {unquote(target) for target in targets if target.startswith("..")}
    assert "../runs/mine/no-freeze-mp-0" in folders
    assert "../data/recorded" in folders, "the one that went through HTTP is less alike"
    assert all((pages["page"].parent / folder).is_dir() for folder in folders)


def test_runs_that_are_packed_link_to_the_folder_that_has_them(tmp_path: Path) -> None:
    own = story(tmp_path / "c", length_s=12)
    packed = pack([own], tmp_path / "packed")
    for folder, expected in ((own, "c/freeze-mp-0"), (packed, "packed")):
        text = summary.claims_tables(evaluate([dataset.load(folder)]), folder, tmp_path / "p.html")
        targets = {part.partition('"')[0] for part in text.split('href="')[1:]}
        assert expected in targets
        local = {target for target in targets if "://" not in target}
        assert all((tmp_path / target).is_dir() for target in local)


def test_the_answer_has_the_numbers(tmp_path: Path) -> None:
    said = summary.answer(dataset.load(story(tmp_path / "c", length_s=12)))
    assert "stopped a worker for 404\N{NO-BREAK SPACE}ms" in said
    assert "17.7 times per 1,000 steps; frozen, for" in said
    assert "the longest gap is ×0.0" in said
    alone = summary.answer(dataset.load(story(tmp_path / "d", policies=("freeze",), length_s=12)))
    assert "no two arms" in alone
    assert summary.ONE_ENGINE not in said


def test_the_answer_of_a_cross_over_says_whom_it_holds_for() -> None:
    campaign = dataset.load(DATA / "cpu-crossover")
    assert summary.ONE_ENGINE in summary.answer(dataset.subset(campaign, switch_s=60.0))


def test_agreement_of_a_ratio_is_overlap_and_of_the_rest_the_verdict(tmp_path: Path) -> None:
    everything = evaluate([dataset.load(story(tmp_path / "c", length_s=12))])
    one = measured(everything)
    same = compare(one, one)
    assert set(same["outcome"]) <= {"agrees", "undecided"}
    assert len(same) < len(everything), "what was not measured is not compared"
    slow = story(tmp_path / "d", length_s=12, full_ms={"freeze": 400.0, "no-freeze": 2.0})
    recorded = evaluate([dataset.load(slow)], list(one["id"]))
    other = compare(one, recorded).set_index("claim")["outcome"]
    assert other["The freeze drastically reduces P99 ITL in some cases."] == "differs"


def test_claims_that_ones_own_runs_leave_open_are_counted_apart(tmp_path: Path) -> None:
    campaign = dataset.load(story(tmp_path / "c", length_s=12))
    own = measured(evaluate([campaign]))
    undecided = (own["verdict"] == "undecided").sum()
    assert 0 < undecided < len(own)
    said = summary.beside(own, campaign, tmp_path)
    assert f"Your runs speak to {len(own)} claims: " in said
    assert f"and {undecided} are undecided by your runs alone." in said


def test_only_the_same_kind_of_device_is_comparable(tmp_path: Path) -> None:
    gpu = story(tmp_path / "gpu", length_s=12, machine__gpu_name="H100")
    mine = dataset.load(story(tmp_path / "c", length_s=12))
    assert most_alike(mine, [gpu, tmp_path / "c"]) is None
    other = story(tmp_path / "d", length_s=12)
    found = most_alike(mine, [gpu, other])
    assert found is not None
    assert found.path == other
