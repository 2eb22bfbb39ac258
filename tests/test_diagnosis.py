"""`repro report` and `repro watch`: right numbers from a recording, in a real browser and live."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import recordings
from recordings import MS, STALL_MS, serving

from repro import cli
from repro.plugin.recorder import PAUSE, STEP
from repro.server import launches, numbers, report
from repro.server.remedies import advice
from repro.server.watch import Watch, watch
from repro.stats.bootstrap import steps_needed

STALLS = range(50, 2000, 50)


def only(folder: Path) -> launches.Launch:
    (found,) = launches.read(folder)
    return found


def advised(folder: Path) -> str:
    launch = only(folder)
    return " ".join(advice(launch, numbers.hit_shares(launch, numbers.hits(launch))))


def test_an_idle_server_makes_no_long_step(tmp_path: Path) -> None:
    launch = only(serving(tmp_path, steps=300, idle_after=[100, 200]))
    assert launch.campaign.itl["itl_ns"].max() < 30 * MS
    assert len(launch.campaign.itl) == 301 - 2  # the two empty steps begin none, but end one


def test_the_tail_with_and_without_the_steps_that_pauses_hit(tmp_path: Path) -> None:
    launch = only(serving(tmp_path, stalls=STALLS))
    hit = numbers.hits(launch)
    (share,) = numbers.hit_shares(launch, hit).to_dict("records")
    assert (share["role"], share["generation"], share["steps"]) == ("worker", 2, len(STALLS))
    assert share["tokens"] == 8 * len(STALLS)
    found = numbers.tails(launch, hit)
    assert found["all steps"][1].value > STALL_MS * MS
    assert found["steps that no pause hit"][1].value < 30 * MS
    assert not found["all steps"][2].supported, f"P99.9 needs {steps_needed(0.999)} steps"


def test_one_hit_is_laid_over_every_step_it_overlaps(tmp_path: Path) -> None:
    launch = only(serving(tmp_path, steps=100))
    itl = launch.campaign.itl
    start = (itl["t_ns"] - itl["itl_ns"]).to_numpy()
    pauses = launch.campaign.pauses.iloc[[0]].assign(
        start_ns=start[10] + 1, duration_ns=start[13] - start[10]
    )
    assert np.flatnonzero(numbers._overlapped(itl, pauses)).tolist() == [10, 11, 12, 13]
    ends_as_one_begins = pauses.assign(duration_ns=start[13] - start[10] - 1)
    assert np.flatnonzero(numbers._overlapped(itl, ends_as_one_begins)).tolist() == [10, 11, 12]


def test_tensor_parallel_ranks_are_one_observation(tmp_path: Path) -> None:
    launch = only(serving(tmp_path, steps=100, ranks=4))
    assert len(launch.campaign.itl) == 99
    assert set(launch.campaign.pauses["rank"]) == {0, 1, 2, 3}


def test_more_ranks_meet_more_stalls(tmp_path: Path) -> None:
    launch = only(serving(tmp_path, stalls=range(100, 2000, 300)))
    found = numbers.more_ranks(launch, numbers.hits(launch))
    p99 = {
        kind: table[table["quantile"] == 0.99].set_index("ranks")["value_ms"]
        for kind, table in found.items()
    }
    assert p99["all steps"][1] < 30 < STALL_MS < p99["all steps"][16]
    assert p99["steps that no pause hit"][16] < 30


def test_the_advice_follows_the_recording(tmp_path: Path) -> None:
    assert "Freeze the worker" in advised(serving(tmp_path / "a", stalls=STALLS))
    assert "moves P99." in advised(tmp_path / "a")
    assert "Leave the worker" in advised(serving(tmp_path / "b"))
    assert "nothing left to freeze" in advised(serving(tmp_path / "c", frozen=True))


def test_a_long_hold_of_the_event_loop_is_told(tmp_path: Path) -> None:
    assert "output handler" not in advised(serving(tmp_path / "a"))
    held = serving(tmp_path / "b", hold_ms=3200)
    assert "For up to 3.20 s the API server's output handler" in advised(held)


def test_launches_are_kept_apart_the_newest_first(tmp_path: Path) -> None:
    serving(tmp_path, launch=10**18, steps=10)
    serving(tmp_path, launch=2 * 10**18, steps=20)
    found = launches.read(tmp_path)
    assert [len(launch.campaign.itl) for launch in found] == [19, 9]
    assert [launch.began.year for launch in found] == [2033, 2001]
    text = report.write(tmp_path, tmp_path / "page.html").read_text()
    assert text.index("Launch of 2033") < text.index("Launch of 2001")


def test_a_server_that_was_never_asked(tmp_path: Path) -> None:
    text = report.write(serving(tmp_path, steps=0), tmp_path / "page.html").read_text()
    assert "send this server some load" in text


def test_a_recording_that_stopped_says_so(tmp_path: Path) -> None:
    os_error = OSError(28, "No space left on device")
    made = recordings.recorder(tmp_path, "worker")
    for step in range(3):
        made.write(STEP, 20 * MS * step + 1, MS, 1, step)
    made._stop(os_error)
    assert "stopped early" in advised(tmp_path)


@pytest.mark.parametrize("command", ["report", "watch"])
def test_a_folder_without_a_recording_is_one_line(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in (tmp_path, tmp_path / "missing"):
        assert cli.main([command, str(folder)]) == 1
        said = capsys.readouterr().err
        assert f"{folder}: holds no recording; start vLLM with REPRO_RECORD_DIR" in said
        assert len(said.splitlines()) == 1


# --- the page in a browser ------------------------------------------------------------------

BROWSER = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chrome")


class Browser:
    """A headless Chromium, spoken to by its DevTools protocol."""

    def __init__(self, profile: Path) -> None:
        from websocket import create_connection

        assert BROWSER is not None
        options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0"]
        options += [
            "--disable-background-networking",
            "--no-first-run",
            f"--user-data-dir={profile}",
        ]
        self.process = subprocess.Popen(
            [BROWSER, *options, "about:blank"], stderr=subprocess.PIPE, text=True
        )
        assert self.process.stderr is not None
        while not (line := self.process.stderr.readline()).startswith("DevTools listening on"):
            assert self.process.poll() is None, "the browser ended"
        port = re.search(r"127\.0\.0\.1:(\d+)/", line)
        assert port is not None
        with urllib.request.urlopen(f"http://127.0.0.1:{port[1]}/json/list") as answer:
            (tab,) = [tab for tab in json.load(answer) if tab["type"] == "page"]
        self.tab = create_connection(tab["webSocketDebuggerUrl"], timeout=30, suppress_origin=True)
        self.events: list[dict[str, Any]] = []
        self.number = 0
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable")

    def ask(self, method: str, **params: Any) -> dict[str, Any]:
        self.number += 1
        self.tab.send(json.dumps({"id": self.number, "method": method, "params": params}))
        while (message := json.loads(self.tab.recv())).get("id") != self.number:
            self.events.append(message)
        assert "error" not in message, message
        result: dict[str, Any] = message["result"]
        return result

    def open(self, path: Path, width: int) -> None:
        self.events.clear()
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 800}
        self.ask("Emulation.setDeviceMetricsOverride", **size)
        self.ask("Page.navigate", url=path.as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(json.loads(self.tab.recv()))

    def evaluate(self, expression: str) -> Any:
        return self.ask("Runtime.evaluate", expression=expression, returnByValue=True)["result"][
            "value"
        ]

    def of_kind(self, *methods: str) -> list[dict[str, Any]]:
        return [event["params"] for event in self.events if event.get("method") in methods]

    def close(self) -> None:
        self.tab.close()
        self.process.terminate()
        self.process.wait(timeout=30)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if BROWSER is None:
        pytest.skip("no Chromium is installed here")
    made = Browser(tmp_path_factory.mktemp("profile"))
    yield made
    made.close()


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = serving(tmp_path_factory.mktemp("recording"), stalls=STALLS)
    assert cli.main(["report", str(folder)]) == 0
    return folder / "report.html"


@pytest.mark.browser
@pytest.mark.parametrize("width", [1280, 400])
def test_the_page_in_a_browser(browser: Browser, written: Path, width: int) -> None:
    browser.open(written, width)
    wrong = browser.of_kind("Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled")
    assert wrong == []
    sent = [event["request"]["url"] for event in browser.of_kind("Network.requestWillBeSent")]
    assert {url.partition(":")[0] for url in sent} <= {"file", "data"}
    drawn = browser.evaluate("[...document.images].map(i => [i.naturalWidth, i.width])")
    assert len(drawn) == 3
    assert all(natural > 500 and 300 < shown <= width for natural, shown in drawn)
    assert browser.evaluate("document.documentElement.scrollWidth") <= width, "no sideways scroll"
    smallest = "Math.min(...[...document.querySelectorAll('p, td, th, figcaption')]"
    size = browser.evaluate(smallest + ".map(e => parseFloat(getComputedStyle(e).fontSize)))")
    assert size >= 12


# --- live -----------------------------------------------------------------------------------


def test_watch_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    serving(tmp_path, steps=1000, stalls=[990])
    watch(tmp_path, once=True)
    said = capsys.readouterr().out
    worker = next(line.split() for line in said.splitlines() if line.lstrip().startswith("worker"))
    assert worker[:2] == ["worker", "0"]
    assert worker[2:5] == ["0", "0", "2"]
    assert worker[7] == "400"
    assert float(worker[8]) == pytest.approx(9600 / 23 / 10, rel=0.05)


def test_watch_counts_what_comes_and_ends_with_ctrl_c(tmp_path: Path) -> None:
    made = recordings.recorder(tmp_path, "worker")
    made.write(PAUSE, time.monotonic_ns(), MS, 0, 2)
    command = [sys.executable, "-m", "repro", "watch", str(tmp_path), "--every-s", "0.1"]
    shown = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "COLUMNS": "120", "TERM": "xterm", "FORCE_COLOR": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    time.sleep(3)
    made.write(PAUSE, time.monotonic_ns(), 777 * MS, 0, 2)
    time.sleep(2)
    shown.send_signal(signal.SIGINT)
    said, wrong = shown.communicate(timeout=20)
    assert shown.returncode == 0
    assert wrong == ""
    assert "777" in said


def test_watch_turns_to_a_newer_launch(tmp_path: Path) -> None:
    serving(tmp_path, launch=10**18, steps=10)
    shown = Watch(tmp_path)
    shown.look()
    serving(tmp_path, launch=2 * 10**18, steps=20)
    shown.look()
    assert sum(len(tally.steps) for _, tally in shown.processes.values()) == 20


def test_watch_refuses_no_time_at_all(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="every_s 0: give seconds above 0"):
        watch(serving(tmp_path, steps=1), every_s=0)
