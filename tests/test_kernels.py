"""Ctrl-C while notebooks run: nothing is printed but what the command says, and no kernel stays."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import psutil
import pytest
from nbformat.v4 import new_code_cell, new_notebook

BUSY = """
import os, time
from pathlib import Path
try:
    Path({told!r}).write_text(str(os.getpid()))
    time.sleep(1000)
finally:
    time.sleep(1)  # as long as an engine takes to be ended
"""

PAGE = """
import sys, time
from pathlib import Path
from repro.report.page import executing
try:
    with executing(Path("campaign"), Path(sys.argv[1])):
        time.sleep(1000)
except KeyboardInterrupt:
    print("interrupted")
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project whose only notebook stays in its last cell; writes its kernel's pid to `told`."""
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "notebooks").mkdir()
    cells = [
        new_code_cell('source = ""', metadata={"tags": ["parameters"]}),
        new_code_cell("from repro.report import notebook\nuse = notebook.check(globals())"),
        new_code_cell(BUSY.format(told=str(tmp_path / "told"))),
    ]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    notebook = new_notebook(cells=cells, metadata=kernel)
    nbformat.write(notebook, tmp_path / "notebooks" / "stays.ipynb")
    return tmp_path


def interrupted(project: Path, *command: str) -> tuple[str, str]:
    """Output of a command that is interrupted while its notebook is in the last cell."""
    running = subprocess.Popen(
        [sys.executable, *command],
        cwd=project,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    told, deadline = project / "told", time.monotonic() + 120
    while not (told.exists() and told.read_text()):
        assert running.poll() is None and time.monotonic() < deadline, running.communicate()
        time.sleep(0.1)
    kernel = psutil.Process(int(told.read_text()))
    running.send_signal(signal.SIGINT)
    said = running.communicate(timeout=120)
    assert not psutil.wait_procs([kernel], timeout=30)[1]
    return said


def test_of_a_page_only_the_command_itself_says_something(project: Path) -> None:
    assert interrupted(project, "-c", PAGE, "out") == ("interrupted\n", "")


def test_a_kernel_of_papermill_does_not_trace_back(project: Path) -> None:
    _, wrong = interrupted(project, "-m", "papermill", "notebooks/stays.ipynb", "out.ipynb")
    assert "Executing notebook with kernel: python3" in wrong
    assert "Traceback" not in wrong
