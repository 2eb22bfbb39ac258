"""The notebooks are stored clean, refuse what they do not know, and run on recorded data."""

from __future__ import annotations

import builtins
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nbformat
import pandas as pd
import pytest
from builders import END, START, run
from campaigns import recaptures, story
from ranked import every, several

from repro import dataset
from repro.experiment.fields import ConfigError
from repro.report import notebook
from repro.report.explore import LOADS, amounts_to, explore, settings
from repro.report.notebook import check
from repro.report.page import ReportError, executing, html_page
from repro.report.rendered import MADE_FROM, inputs

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
assert {path.stem for path in NOTEBOOKS} >= {"capture_time", "itl_tails", "claims", "wide_ep"}
MINE = NOTEBOOKS
NO_HEAD = ("", "")


def papermill(path: Path, out: Path, **parameters: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "papermill", "--no-progress-bar", str(path), str(out)]
    for name, value in parameters.items():
        command += ["-p", name, str(value)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)


def parameters_cell(path: Path) -> nbformat.NotebookNode:
    cells = nbformat.read(path, as_version=4).cells
    (cell,) = [cell for cell in cells if "parameters" in cell.metadata.get("tags", [])]
    return cell


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_stored_without_outputs_and_valid(path: Path) -> None:
    stored = nbformat.read(path, as_version=4)
    nbformat.validate(stored)
    for cell in stored.cells:
        assert cell.cell_type == "markdown" or (cell.outputs, cell.execution_count) == ([], None)
    assert len({cell.id for cell in stored.cells}) == len(stored.cells)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_one_parameter_a_line_each_with_a_comment_and_checked(path: Path) -> None:
    lines = parameters_cell(path).source.splitlines()
    namespace: dict[str, Any] = {}
    for line in lines:
        assert re.fullmatch(r"[a-z_]+ = [^#]+?  +# .+", line), line
    exec("\n".join(lines), namespace)
    del namespace["__builtins__"]
    assert namespace["source"] == ""
    assert vars(check({**namespace, "In": ["", "\n".join(lines)]})).keys() == namespace.keys()
    first_code = next(
        cell.source
        for cell in nbformat.read(path, as_version=4).cells
        if cell.cell_type == "code" and "parameters" not in cell.metadata.get("tags", [])
    )
    assert "notebook.check(globals())" in first_code


@pytest.mark.parametrize("path", MINE, ids=lambda path: path.stem)
def test_no_measured_number_in_prose(path: Path) -> None:
    # The report's number and its quotation, the level, and what other threads reported.
    quoted = {"#44363", "56", "6.25", "95%", "#21146", "#24128", "#8577", "#54646"}
    quoted |= {"35", "2", "67", "0.49", "39", "6", "25", "10", "23", "0.65", "12", "0.3"}
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "markdown":
            assert set(re.findall(r"(?<![\w#.])#?\d[\d.]*%?", cell.source)) <= quoted


def one_and_two_ranks(folder: Path) -> Path:
    apart = [every(100), every(100, 14)]
    for name, pauses_at in (("alone", apart[:1]), ("two", apart)):
        changes = {"experiment__client": "async_engine"}
        several(folder, name=name, pauses_at=pauses_at, **changes)
        frozen = changes | {"experiment__policy": "freeze", "pause_ms": 2.0}
        several(folder, name=f"{name}-frozen", pauses_at=pauses_at, **frozen)
    return folder


@pytest.mark.parametrize("path", MINE, ids=lambda path: path.stem)
def test_runs_on_recorded_data_and_joins_the_report(path: Path, tmp_path: Path) -> None:
    if path.stem == "capture_time":
        seconds = {"gc-on": 57.0, "frozen": 56.0, "collect-per-graph": 90.0}
        folder = recaptures(tmp_path / "c", seconds, full={"collect-per-graph": 102})
        expected = ["**reproduced**", "capture again", "the same in memory", "ns per object"]
    elif path.stem == "wide_ep":
        folder = one_and_two_ranks(tmp_path / "c")
        expected = ["Predicted, not measured", "| 2 | stalled share (%) |"]
    elif path.stem == "mechanism":
        folder = story(tmp_path / "c", length_s=12)
        expected = ["from one to the next", "CPython's rule"]
    else:
        folder = story(tmp_path / "c", length_s=12)
        expected = ["P99 (ms)", "against **no-freeze**: "]
    done = papermill(path, tmp_path / path.name, source=folder)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "unknown parameter" not in done.stderr.lower(), "papermill could not read the cell"
    executed = nbformat.read(tmp_path / path.name, as_version=4)
    shown = json.dumps([cell.get("outputs", []) for cell in executed.cells])
    for words in expected:
        assert words in shown
    page = html_page(
        NO_HEAD, [tmp_path / path.name], tmp_path / "report" / "index.html"
    ).read_text()
    # Of `mechanism` every figure needs several loads or policies.
    assert page.count("<img") >= {"mechanism": 0, "wide_ep": 2}.get(path.stem, 1)
    assert not re.findall(r'(?:src|href)="(?!data:|#)', page)
    assert "http" not in re.sub(r'src="data:[^"]*"', "", page)


def test_mistyped_parameter_stops_the_notebook(tmp_path: Path) -> None:
    path = ROOT / "notebooks" / "itl_tails.ipynb"
    done = papermill(path, tmp_path / "out.ipynb", concurency=512)
    assert done.returncode != 0
    assert "unknown parameter 'concurency': this notebook has source, policies," in done.stderr


def injected(cell: str, **values: Any) -> dict[str, Any]:
    """The globals of a notebook that papermill put `cell` into."""
    own = 'source = ""\npolicies = ["freeze"]'
    namespace: dict[str, Any] = {"In": ["", own, f"# Parameters\n{cell}"]}
    exec(f"{own}\n{cell}", namespace)
    return namespace | values


@pytest.mark.parametrize(
    ("cell", "line"),
    [
        ("polices = ['freeze']", "unknown parameter 'polices': this notebook has source, policies"),
        ("policies = ['frozen']", "policies 'frozen': choose one of stock, no-freeze"),
        ("policies = ['freeze', 'freeze']", "policies freeze,freeze: name each once"),
        ("policies = 3", "policies 3: allowed is different names out of stock"),
        ("source = 3", "source 3: allowed is a text"),
    ],
)
def test_bad_parameters_say_so_in_one_line(cell: str, line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check(injected(cell))
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("bad", [1, 0.5, "x"])
def test_a_factor_is_beyond_one(bad: object) -> None:
    with pytest.raises(ConfigError, match=r"^factor .*: allowed is a number from 1\.1"):
        check({"In": ["source = ''\nfactor = 5"], "source": "", "factor": bad})


def test_lists_given_on_papermills_command_line_arrive_as_text() -> None:
    use = check(injected("policies = \"[freeze, 'stock']\""))
    assert use.policies == ("freeze", "stock")


def test_names_of_later_cells_are_no_parameters() -> None:
    namespace = injected("policies = ['freeze']", campaign=object(), figures=builtins)
    assert vars(check(namespace)) == {"source": "", "policies": ("freeze",)}


def of(source: Path) -> SimpleNamespace:
    return SimpleNamespace(source=str(source))


def test_execute_says_the_first_error_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "notebooks").mkdir()
    shutil.copy(ROOT / "notebooks" / "capture_time.ipynb", tmp_path / "notebooks")
    monkeypatch.chdir(tmp_path)
    with (
        pytest.raises(
            ReportError, match=r"^capture_time: DatasetError: .* is no campaign; .*; see "
        ),
        executing(tmp_path / "nowhere", tmp_path / "out") as executed,
    ):
        list(executed)


def test_execute_needs_the_notebooks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ReportError, match="has no notebooks; run this in the project's folder"):
        executing(tmp_path, tmp_path / "out").__enter__()


def test_report_refuses_what_was_not_executed(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match=r"claims\.ipynb: has no outputs; run it with papermill"):
        html_page(NO_HEAD, [ROOT / "notebooks" / "claims.ipynb"], tmp_path / "page.html")
    (tmp_path / "bad.ipynb").write_text("{")
    with pytest.raises(ReportError, match=r"bad\.ipynb: is no notebook"):
        html_page(NO_HEAD, [tmp_path / "bad.ipynb"], tmp_path / "page.html")


def test_a_figure_that_does_not_apply_says_so_in_the_notebook(tmp_path: Path) -> None:
    run(tmp_path / "c", "a", window__start_ns=START, window__end_ns=END)
    (campaign,) = notebook.campaigns(of(tmp_path / "c"), suits=bool, root=tmp_path)
    assert "of c: no gap between tokens" in notebook.figure("itl_tail", campaign).data


def test_a_section_without_anything_to_show_is_not_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[Any] = []
    monkeypatch.setattr(notebook, "display", lambda *parts: shown.extend(parts))
    (campaign,) = notebook.campaigns(of(story(tmp_path / "c", length_s=2)), suits=bool)
    notebook.section("Silences", "About.", "silence", pd.DataFrame(), "", of=campaign)
    assert not shown
    notebook.section("Tail", "About.", "itl_tail", "A sentence.", of=campaign)
    assert [type(part).__name__ for part in shown] == ["Markdown", "Image", "Markdown"]


OWN = [path for path in NOTEBOOKS if path.stem != "wide_ep"]


@pytest.mark.parametrize("path", OWN, ids=lambda path: path.stem)
def test_a_notebook_opens_with_its_answer_and_has_a_cell_to_explore(path: Path) -> None:
    cells = nbformat.read(path, as_version=4).cells
    assert cells[3].source == "## The answer"
    assert sum("notebook.explore(" in cell.source for cell in cells) == 1


def test_without_a_front_end_a_table_stands_for_the_widgets(tmp_path: Path) -> None:
    campaign = dataset.load(story(tmp_path / "c", length_s=4, experiment__concurrency=1024))
    shown = explore([campaign]).data
    assert "arm **no-freeze**" in shown
    assert "| 256 | never |" in shown
    assert len(shown.splitlines()) == 2 + 2 + len(LOADS)


def test_the_widgets_follow_campaign_and_arm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ipywidgets")
    monkeypatch.setenv("JPY_SESSION_NAME", "notebook")
    for name, load in (("a", 256), ("b", 1024)):
        story(tmp_path / name, length_s=4, experiment__concurrency=load)
    box = explore([dataset.load(tmp_path / name) for name in ("a", "b")])
    campaign, arm, _, in_flight, _, _ = box.children
    assert campaign.options == ("a", "b")
    assert arm.options == ("no-freeze", "freeze")
    in_flight.value = 512
    campaign.value = "b"
    assert in_flight.value < 512, "as many as a step of the run held"


def test_sliders_change_what_is_said(tmp_path: Path) -> None:
    campaign = dataset.load(story(tmp_path / "c", length_s=4, experiment__concurrency=1024))
    setting = settings(campaign)["no-freeze"]
    few, many = (
        amounts_to(campaign, setting, {"ranks": 4, "concurrency": load, "heap_objects": 900_000})
        for load in (64, 2048)
    )
    assert "not expected" in few[0].data
    assert "Full collections are expected" in many[0].data
    assert "4 ranks" in many[1].data


def test_the_rendered_copies_are_of_these_notebooks_and_data() -> None:
    made_from = (ROOT / "rendered" / MADE_FROM).read_text().strip()
    assert made_from == inputs(), "stale: run `make rendered`"
    assert {path.stem for path in (ROOT / "rendered").glob("*.md")} == {
        "README",
        *(path.stem for path in NOTEBOOKS),
    }
    size = sum(path.stat().st_size for path in (ROOT / "rendered").rglob("*.*"))
    assert size < 3_000_000
