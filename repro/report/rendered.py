"""Rendered copies of the notebooks: Markdown with their figures, for readers who only browse.

A hash of what they are made from lies beside them, so that a test can tell when they are stale.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter

from repro.dataset.stored import RUNS, is_packed
from repro.report.kernels import Kernels
from repro.report.source import project

MADE_FROM = "made_from.sha256"
HEADER = "*Made by `make rendered` from [`notebooks/{name}.ipynb`](../notebooks/{name}.ipynb).*\n\n"


def render(out: Path) -> list[Path]:
    """Execute every notebook of the project on `data/` and write it as Markdown without code.

    Parameters
    ----------
    out : Path
        The folder; what is in it goes.

    Returns
    -------
    list of Path
        The Markdown files, the index first.

    Raises
    ------
    papermill.PapermillExecutionError
        If a cell fails.
    """
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    exporter = MarkdownExporter(exclude_input=True)
    written, index = [], ["# The notebooks, rendered", ""]
    for path in notebooks():
        executed = out / path.name
        with Kernels() as kernels:
            kernels.execute(path, executed, cwd=project())
        resources = {"output_files_dir": f"{path.stem}_files"}
        notebook = nbformat.read(executed, as_version=4)
        body, found = exporter.from_notebook_node(notebook, {**resources, "unique_key": path.stem})
        executed.unlink()
        for name, data in found["outputs"].items():
            (out / name).parent.mkdir(exist_ok=True)
            (out / name).write_bytes(data)
        written.append(out / f"{path.stem}.md")
        tidy = re.sub(r"\n{3,}", "\n\n", body).strip() + "\n"
        written[-1].write_text(HEADER.format(name=path.stem) + tidy, encoding="utf-8")
        title = next(line for line in body.splitlines() if line.startswith("# "))
        index.append(f"- [`{path.stem}`]({path.stem}.md): {title.removeprefix('# ')}")
    (out / "README.md").write_text("\n".join(index) + "\n", encoding="utf-8")
    (out / MADE_FROM).write_text(inputs() + "\n")
    return [out / "README.md", *written]


def notebooks() -> list[Path]:
    """The project's notebooks."""
    return sorted((project() / "notebooks").glob("*.ipynb"))


def inputs() -> str:
    """A hash of the notebooks, of what draws and tabulates for them, and of the data."""
    digest = hashlib.sha256()
    for path in _inputs(project()):
        digest.update(path.relative_to(project()).as_posix().encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _inputs(root: Path) -> Iterator[Path]:
    yield from notebooks()
    for folder in ("tables", "figures"):
        yield from sorted((root / "repro" / "report" / folder).glob("*.py"))
    for campaign in sorted(filter(is_packed, (root / "data").iterdir())):
        yield campaign / RUNS
        yield from sorted(campaign.glob("*.parquet"))
