"""Runs the notebooks on a campaign, and joins answer, claims and notebooks into one HTML page."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from html import escape
from pathlib import Path
from string import Template

import nbformat
import papermill
from nbconvert import HTMLExporter

from repro.claims import evaluate
from repro.dataset import Campaign
from repro.report.closing_lines import closing_lines
from repro.report.kernels import Kernels
from repro.report.notebook import project
from repro.report.style import PAGE_STYLE
from repro.report.summary import HEAD_CONTENTS, head

SUPERSEDED = "claims"
"""The notebook with the verdicts, whose tables open the page."""

WORKERS = 4
"""Notebooks executed at once; each holds a process of some 400 MB."""

FOLDED = """{%- extends "basic/index.html.j2" -%}
{%- block input_group -%}
<details class="code"><summary>code</summary>{{ super() }}</details>
{%- endblock input_group -%}"""
"""nbconvert's template of the cells alone (those around it load scripts), with the code folded."""

_PAGE = Template((Path(__file__).parent / "page.html").read_text(encoding="utf-8"))
_HEADING = re.compile(r"<h([1-3])>(.*?)</h\1>", re.DOTALL)


class ReportError(ValueError):
    """A notebook that cannot go into the report; the message names it and the remedy."""


def build(campaign: Campaign, out: Path) -> list[str]:
    """Write the page of a campaign into a folder, with its executed notebooks.

    Returns
    -------
    list of str
        What the page says, for the terminal.
    """
    page = out.resolve() / "index.html"
    absolute = replace(campaign, path=campaign.path.resolve())  # `executing` changes the folder
    with executing(absolute.path, out) as executed:
        verdicts = evaluate([absolute])  # beside them
        opening = head(absolute, verdicts, page)
        html_page(opening, list(executed), page)
    return closing_lines(campaign, verdicts, page)


@contextlib.contextmanager
def executing(source: Path, out: Path) -> Iterator[Iterator[Path]]:
    """Run the project's notebooks on one campaign, several at once, beside the `with` block.

    Parameters
    ----------
    source : Path
        The campaign's folder.
    out : Path
        Where the executed notebooks go; made if missing.

    Yields
    ------
    iterator of Path
        The executed notebooks, by name, each when it is done; without `claims`, whose tables open
        the page. None runs on when the block is left.

    Raises
    ------
    ReportError
        If there are no notebooks here; from the iterator, if a cell of one fails.
    """
    found = sorted((project() / "notebooks").glob("*.ipynb"))
    if not found:
        raise ReportError(f"{Path.cwd()}: has no notebooks; run this in the project's folder")
    source, out = source.resolve(), out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    notebooks = [path for path in found if path.stem != SUPERSEDED]
    # papermill changes the working folder of the whole process: once here, not once per thread.
    with contextlib.chdir(project()), ThreadPoolExecutor(WORKERS) as pool, Kernels() as kernels:
        try:
            yield pool.map(lambda path: _execute(kernels, path, source, out / path.name), notebooks)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _execute(kernels: Kernels, path: Path, source: Path, out: Path) -> Path:
    try:
        kernels.execute(path, out, {"source": str(source)})
    except papermill.PapermillExecutionError as error:
        what = f"{error.ename}: {error.evalue}"
        raise ReportError(f"{path.stem}: {what}; see {out}") from error
    return out


def html_page(opening: tuple[str, str], executed: Sequence[Path], out: Path) -> Path:
    """Write one page: answer and claims, then the notebooks in the order given.

    Parameters
    ----------
    opening : tuple of str
        As `summary.head` returns.
    executed : sequence of Path
        Notebooks with their outputs, as papermill writes them.
    out : Path
        The page to write; its folder is made.

    Returns
    -------
    Path
        `out`, absolute.

    Raises
    ------
    ReportError
        If a notebook cannot be read or was not executed.
    """
    notebooks = {path.stem: _read(path) for path in executed}
    first, claims = opening
    exporter = HTMLExporter(
        raw_template=FOLDED,
        exclude_anchor_links=True,
        exclude_input_prompt=True,
        exclude_output_prompt=True,
    )
    contents, sections, highlight = [*HEAD_CONTENTS], [], ""
    for name, notebook in notebooks.items():
        body, resources = exporter.from_notebook_node(notebook)
        body, links = _anchored(body, name)
        contents += links
        sections.append(f'<section id="{escape(name)}">{body}</section>')
        highlight = "\n".join(resources["inlining"]["css"])
    page = _PAGE.substitute(
        style=PAGE_STYLE,
        highlight=highlight,
        first=first,
        claims=claims,
        contents="\n".join(contents),
        sections="\n".join(sections),
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(page, encoding="utf-8")
    return out.resolve()


def _anchored(body: str, name: str) -> tuple[str, list[str]]:
    """The cells with an anchor at each heading, and a line of the contents for each."""
    links: list[str] = []

    def anchor(match: re.Match[str]) -> str:
        level, text = match.groups()
        key = f"{escape(name)}-{len(links)}"
        plain = re.sub(r"<[^>]*>", "", text)
        links.append(f'<li class="l{level}"><a href="#{key}">{plain}</a></li>')
        return f'<h{level} id="{key}">{text}</h{level}>'

    return _HEADING.sub(anchor, body), links


def _read(path: Path) -> nbformat.NotebookNode:
    try:
        notebook = nbformat.read(path, as_version=4)
    except (OSError, ValueError, nbformat.ValidationError) as error:
        raise ReportError(
            f"{path}: is no notebook ({type(error).__name__}); run it again"
        ) from error
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    if code and not any(cell.outputs for cell in code):
        raise ReportError(f"{path}: has no outputs; run it with papermill first")
    return notebook
