"""`repro watch`: the last minutes of a running server, as the page has them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import recordings
from recordings import MS, only_launch, serving

from repro.plugin.recorder import PAUSE, STEP
from repro.server import numbers
from repro.server.remedies import advice, answer
from repro.server.watch import watch


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")


def test_watch_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    serving(tmp_path, steps=1000, stalls=[990])
    watch(tmp_path, once=True)
    said = capsys.readouterr().out
    worker = next(line.split() for line in said.splitlines() if line.lstrip().startswith("worker"))
    assert worker[:2] == ["worker", "0"]
    assert worker[2:5] == ["0", "0", "1"], "start-up is no service"
    assert worker[6] == "400"
    assert float(worker[7]) == pytest.approx(1000 / 23.4, rel=0.02)


def test_watch_fits_a_terminal_of_80_columns(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    watch(serving(tmp_path, steps=20_000), once=True)
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    for start in ("process  ", "front end  ", "engine core 0  ", "worker 0  "):
        assert any(line.startswith(start) for line in lines), start
    assert not any("…" in line for line in lines)


def test_watch_says_what_the_page_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    serving(tmp_path, steps=2000, stalls=range(50, 2000, 50))
    watch(tmp_path, once=True)
    said = " ".join(capsys.readouterr().out.split())
    launch = only_launch(tmp_path)
    found = numbers.measure(launch)
    for line in (*answer(launch, found), *advice(launch, found)):
        assert " ".join(line.split()) in said
    assert "P99 423 ms, without the collector 26.0 ms" in said


def test_watch_looks_at_the_last_ten_minutes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    serving(tmp_path, steps=2000, stalls=[10, 1990], idle_after=[20])
    watch(tmp_path, once=True)
    assert "its last 107 s of service" in capsys.readouterr().out
    serving(tmp_path / "later", steps=2000, stalls=[10, 1990], idle_after=range(100, 120))
    watch(tmp_path / "later", once=True)
    assert "1 full collection," in capsys.readouterr().out, "the first was more than 10 min ago"


def test_watch_counts_what_comes_and_ends_with_ctrl_c(tmp_path: Path) -> None:
    made = recordings.recorder(tmp_path, "worker")
    begun = time.monotonic_ns()
    for step in range(100):
        made.write(STEP, begun + 10 * MS * step, 9 * MS, 8, step)
    command = [sys.executable, "-m", "repro", "watch", str(tmp_path), "--every-s", "0.1"]
    shown = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "COLUMNS": "120", "TERM": "xterm", "FORCE_COLOR": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    read_until(shown, "worker 0")
    made.write(PAUSE, begun + 1000 * MS, 777 * MS, 0, 2)
    made.write(STEP, begun + 2000 * MS, 9 * MS, 8, 100)
    read_until(shown, "777")
    shown.send_signal(signal.SIGINT)
    _, wrong = shown.communicate(timeout=60)
    assert shown.returncode == 0
    assert wrong == ""


def read_until(shown: subprocess.Popen[str], text: str) -> None:
    """Read what a process prints until a line holds the text."""
    assert shown.stdout is not None
    ending = threading.Timer(120, shown.kill)
    ending.start()
    assert any(text in line for line in shown.stdout), f"{text!r} was never shown"
    ending.cancel()


def test_watch_turns_to_a_newer_launch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for launch, year in ((10**18, 2001), (2 * 10**18, 2033)):
        serving(tmp_path, launch=launch, steps=10)
        watch(tmp_path, once=True)
        assert f"vLLM of {year}" in capsys.readouterr().out


def test_watch_refuses_no_time_at_all(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="every_s 0: give seconds above 0"):
        watch(serving(tmp_path, steps=1), every_s=0)
