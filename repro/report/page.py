"""Run the notebooks on a campaign, and join them into one HTML page that stands alone."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from html import escape
from pathlib import Path
from string import Template

import nbformat
import papermill
from nbconvert import HTMLExporter

from repro.report.notebook import project
from repro.report.style import PAGE_STYLE

FIRST = "claims"
"""The notebook with the verdicts: it opens the page."""

AT_ONCE = 2
"""Notebooks executed at a time: each kernel keeps one core busy."""

_HERE = Path(__file__).parent
_PAGE = Template((_HERE / "page.html").read_text(encoding="utf-8"))


class ReportError(ValueError):
    """A notebook that cannot go into the report; the message names it and the remedy."""


def execute(source: Path, out: Path) -> list[Path]:
    """Run every notebook of the project on one campaign, by papermill, until one fails.

    Parameters
    ----------
    source : Path
        The campaign's folder.
    out : Path
        Where the executed notebooks go; made if missing.

    Returns
    -------
    list of Path
        The executed notebooks, the verdicts first.

    Raises
    ------
    ReportError
        If there are no notebooks here, or a cell of one fails.
    """
    out.mkdir(parents=True, exist_ok=True)
    found = (project() / "notebooks").glob("*.ipynb")
    notebooks = sorted(found, key=lambda path: (path.stem != FIRST, path.stem))
    if not notebooks:
        raise ReportError(f"{Path.cwd()}: has no notebooks; run this in the project's folder")
    # Absolute: papermill changes the working folder, and that of all threads.
    source, out = source.resolve(), out.resolve()
    with ThreadPoolExecutor(AT_ONCE) as pool:
        done = [pool.submit(_execute_one, path, source, out) for path in notebooks]
        try:
            return [each.result() for each in done]
        finally:
            pool.shutdown(cancel_futures=True)


def _execute_one(path: Path, source: Path, out: Path) -> Path:
    executed = out / path.name
    try:
        papermill.execute_notebook(path, executed, {"source": str(source)}, cwd=project())
    except papermill.PapermillExecutionError as error:
        raise ReportError(f"{path.stem}: {error.ename}: {error.evalue}; see {executed}") from error
    return executed


def html_page(executed: Sequence[Path], out: Path) -> Path:
    """Write one page of all notebooks, in the order given, with a table of contents.

    Parameters
    ----------
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
    # "basic" gives the cells alone: the templates around them load scripts from the network.
    exporter = HTMLExporter(template_name="basic", exclude_anchor_links=True)
    bodies, resources = {}, {}
    for name, notebook in notebooks.items():
        bodies[name], resources = exporter.from_notebook_node(notebook)
    sections = [f'<section id="{escape(name)}">{body}</section>' for name, body in bodies.items()]
    links = [
        f'<li><a href="#{escape(name)}">{escape(_heading(notebook, name))}</a></li>'
        for name, notebook in notebooks.items()
    ]
    page = _PAGE.substitute(
        style=PAGE_STYLE,
        highlight="\n".join(resources["inlining"]["css"]),
        contents="\n".join(links),
        sections="\n".join(sections),
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(page, encoding="utf-8")
    return out.resolve()


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


def _heading(notebook: nbformat.NotebookNode, name: str) -> str:
    """The notebook's first heading, else its name."""
    lines = (line for cell in notebook.cells for line in cell.source.splitlines())
    return next((line.removeprefix("# ") for line in lines if line.startswith("# ")), name)
