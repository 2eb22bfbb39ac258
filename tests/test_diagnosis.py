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
from repro.dataset.recording import ABOUT
from repro.plugin.recorder import LAUNCH, PAUSE, STEP
from repro.server import launches, numbers, outside, report
from repro.server.numbers import Numbers
from repro.server.remedies import advice
from repro.server.tail import quantiles
from repro.server.watch import Watch, watch

STALLS = range(50, 2000, 50)


def measured(folder: Path) -> Numbers:
    launch = launches.read(folder)[0][0]
    return numbers.measure(launch)


def advised(folder: Path) -> str:
    launch = launches.read(folder)[0][0]
    return " ".join(advice(launch, numbers.measure(launch)))


def p99(found: Numbers, kind: str) -> float:
    (estimate,) = quantiles(found.tails[kind], (0.99,))
    assert estimate.supported
    return estimate.value / MS


def test_an_idle_server_makes_no_long_step(tmp_path: Path) -> None:
    found = measured(serving(tmp_path, steps=300, idle_after=[100, 200]))
    assert found.steps_longest[0].length_ns < 30 * MS
    assert found.steps == 301 - 2  # the two empty steps begin none, but end one


def test_the_tail_with_and_without_what_pauses_added(tmp_path: Path) -> None:
    found = measured(serving(tmp_path, stalls=STALLS))
    assert found.effects["worker", 2].hit == len(STALLS)
    assert p99(found, "all") == pytest.approx(STALL_MS + 23, rel=1e-3)
    assert p99(found, "without") == pytest.approx(26, rel=1e-3)
    assert found.booked_ns <= len(STALLS) * STALL_MS * MS
    assert not quantiles(found.tails["all"], (0.999,))[0].supported


def test_tensor_parallel_ranks_are_one_observation(tmp_path: Path) -> None:
    assert measured(serving(tmp_path, steps=100, ranks=4)).steps == 99


def scattered(folder: Path, pauses: list[tuple[str, int, int, int]], long_ms: int = 99) -> Path:
    """Steps of 2 ms, every 50th of `long_ms`; pauses (role, ms since start, µs, generation)."""
    rng = np.random.default_rng(0)
    engine, worker = recordings.recorder(folder, "engine"), recordings.recorder(folder, "worker")
    now = origin = worker._opened_ns + 1000 * MS
    for number in range(10_000):
        length = int((long_ms if number % 50 == 49 else 2) * MS + rng.integers(0, MS // 2))
        worker.write(STEP, now, length, 8, number)
        now += length
    made = {"engine": engine, "worker": worker}
    for role, at_ms, us, generation in sorted(pauses, key=lambda each: each[1]):
        made[role].write(PAUSE, origin + at_ms * MS, us * 1000, 0, generation)
    return folder


def test_pauses_without_effect_leave_the_tail_alone(tmp_path: Path) -> None:
    at = np.random.default_rng(1).integers(0, 39_000, size=3000).tolist()
    found = measured(scattered(tmp_path, [("engine", ms, 1000, 0) for ms in at]))
    assert p99(found, "all") == pytest.approx(99.25, abs=0.2)
    assert p99(found, "without") == p99(found, "all")
    effect = found.effects["engine", 0]
    assert effect.hit == pytest.approx(effect.chance_hit, rel=0.1)


def test_one_short_pause_books_no_more_than_itself(tmp_path: Path) -> None:
    found = measured(scattered(tmp_path, [("worker", 60, 600, 0)], long_ms=42))
    assert found.booked_ns <= 600_000
    predicted, _ = numbers.more_ranks(found)
    tables = [table.set_index(["ranks", "quantile"])["value_ms"] for table in predicted.values()]
    assert tables[0][128, 0.99] - tables[1][128, 0.99] <= 0.6
    firm = predicted["all steps"]
    assert not firm[firm["ranks"] > 1]["supported"].any()


def lock_step(folder: Path, first: int, ranks: int, alone: bool = False) -> Path:
    """Ranks from `first` on; the second collects for 480 ms in step 50, and the others wait."""
    engines = [recordings.recorder(folder, "engine", first + n) for n in range(ranks)]
    workers = [recordings.recorder(folder, "worker", first + n) for n in range(ranks)]
    for core in engines:
        core.write(PAUSE, core._opened_ns + MS, MS, 0, 2)
    for rank, worker in enumerate(workers):
        now = workers[0]._opened_ns + 1000 * MS
        for number in range(1000):
            stalled = number == 50 and (rank == 1 or not alone)
            if number == 50 and rank == 1:
                worker.write(PAUSE, now + MS, 480 * MS, 0, 2)
            length = 20 * MS + 480 * MS * stalled
            worker.write(STEP, now, length, 8, number)
            now += length
    return folder


def test_ranks_that_start_at_eight_wait_for_one_another(tmp_path: Path) -> None:
    found = measured(lock_step(tmp_path, 8, 8))
    assert found.groups == [tuple(range(8, 16))]
    assert found.steps == 999
    assert found.stalls[0].whose == "worker 9"
    assert found.stalls[0].what == "generation 2 stalled ranks 8 to 15"
    assert found.effects["worker", 2].hit == 1
    assert found.booked_ns == 480 * MS


def test_ranks_that_do_not_wait_stay_apart(tmp_path: Path) -> None:
    found = measured(lock_step(tmp_path, 0, 2, alone=True))
    assert found.groups == [(0,), (1,)]
    assert found.stalls[0].what == "generation 2 stalled ranks 1"


def with_facts(path: Path, **facts: object) -> None:
    """Write a header's facts as a process would."""
    content = bytearray(path.read_bytes())
    text = json.dumps(facts).encode()
    content[ABOUT] = text.ljust(ABOUT.stop - ABOUT.start, b"\0")
    path.write_bytes(content)


def test_two_hosts_are_one_launch_on_one_clock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for host in range(2):
        monkeypatch.setenv(LAUNCH, str(10**18 + host))
        before = set(tmp_path.glob("events-*"))
        lock_step(tmp_path, 4 * host, 4)
        for path in set(tmp_path.glob("events-*")) - before:
            facts = {"host": str(host), "monotonic_ns": 0, "wall_ns": 10**18 + host * 7 * MS}
            with_facts(path, **facts)
    (launch,), warnings = launches.read(tmp_path)
    assert warnings == []
    assert launch.hosts == 2
    assert {m.shift_ns for m in launch.members} == {0, 7 * MS}
    assert list(launches.engines(launch)) == list(range(8))


def test_several_api_servers_are_named_and_counted_once(tmp_path: Path) -> None:
    serving(tmp_path, steps=50)
    with_facts(next(iter(sorted(tmp_path.glob("events-*")))), server="ApiServer_0")
    (launch,), _ = launches.read(tmp_path)
    found = numbers.measure(launch)
    labels = [m.label for m in launch.members if m.role == "frontend"]
    assert labels == ["front end ApiServer_0"]
    assert found.own[0].taken[0].number == 49, "from the first step to the last"


def test_a_worker_inside_the_engine_core_is_said(tmp_path: Path) -> None:
    core = recordings.recorder(tmp_path, "engine")
    now = core._opened_ns
    for number in range(200):
        stall = 400 * MS if number == 100 else 0
        if stall:
            core.write(PAUSE, now + MS, stall, 0, 2)
        core.write(STEP, now, 20 * MS + stall, 8, number)
        now += 20 * MS + stall
    with_facts(next(iter(tmp_path.glob("events-*"))), worker_inside=True)
    said = advised(tmp_path)
    assert "worker inside" in said
    assert "Leave it as it is" not in said
    assert "REPRO_ENGINE_POLICY=freeze-thresholds" in said


def test_advice_that_is_in_force_is_not_given(tmp_path: Path) -> None:
    serving(tmp_path, stalls=STALLS)
    for path in tmp_path.glob("events-*"):
        with_facts(path, policy="freeze", heap_frozen=False, vllm="0.22.1")
    assert "Set REPRO_POLICY=freeze" not in advised(tmp_path)


def test_bad_files_are_left_out_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    serving(tmp_path, steps=20)
    (tmp_path / "events-1-1.bin").write_bytes(b"nothing")
    assert cli.main(["report", str(tmp_path)]) == 0
    assert "events-1-1.bin: no recording" in capsys.readouterr().err


def test_a_launch_without_an_engine_is_none(tmp_path: Path) -> None:
    made = recordings.recorder(tmp_path, "frontend")
    made.write(PAUSE, made._opened_ns, MS, 0, 2)
    with pytest.raises(launches.NothingRecorded):
        launches.read(tmp_path)


def test_a_page_that_cannot_be_written_names_out(tmp_path: Path) -> None:
    serving(tmp_path, steps=20)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="name another file with --out"):
        report.write(tmp_path, tmp_path / "file" / "page.html")


def test_launches_are_chosen_by_number(tmp_path: Path) -> None:
    serving(tmp_path, launch=10**18, steps=10)
    serving(tmp_path, launch=2 * 10**18, steps=20)
    found, _ = launches.read(tmp_path)
    assert report.choose(found, 2, None)[0].began.year == 2001
    assert [each.began.year for each in report.choose(found, None, 1)] == [2033]
    with pytest.raises(ValueError, match="--launch 3: there are 2"):
        report.choose(found, 3, None)


def test_a_log_of_the_debugger(tmp_path: Path) -> None:
    line = "(EngineCore_DP0 pid=77) INFO 11-27 05:13:35 [gc_utils.py:90] GC took 412.500ms to "
    line += "complete. Collected 0 objects (out of 812345) in GC generation 2."
    log = tmp_path / "server.log"
    log.write_text(f"other\n{line}\n")
    text = report.write(log, tmp_path / "page.html").read_text()
    assert "EngineCore_DP0 (pid 77)" in text
    assert "<td>412</td>" in text or "<td>413</td>" in text
    assert "no API server" in text


def test_a_benchmark_beside_the_recording(tmp_path: Path) -> None:
    result = tmp_path / "bench.json"
    result.write_text(
        json.dumps({"itls": [[0.02] * 40 + [3.0]], "ttfts": [0.1], "start_times": [5.0]})
    )
    said, silences = outside.bench(result)
    assert "ITL of 41 gaps" in said[0]
    assert "P99 needs 500 gaps" in said[0]
    assert silences[0].length_ns == pytest.approx(3e9, rel=1e-6)
    result.write_text("{}")
    with pytest.raises(ValueError, match="--save-detailed"):
        outside.bench(result)


def test_the_advice_follows_the_recording(tmp_path: Path) -> None:
    assert "Set REPRO_POLICY=freeze" in advised(serving(tmp_path / "a", stalls=STALLS))
    assert "Leave it as it is" in advised(serving(tmp_path / "b"))


def test_a_long_hold_of_the_event_loop_is_told(tmp_path: Path) -> None:
    assert "output handler" not in advised(serving(tmp_path / "a"))
    held = serving(tmp_path / "b", hold_ms=3200)
    assert "For up to 3.20 s the API server's output handler" in advised(held)


def test_launches_are_kept_apart_the_newest_first(tmp_path: Path) -> None:
    serving(tmp_path, launch=10**18, steps=10)
    serving(tmp_path, launch=2 * 10**18, steps=20)
    found, _ = launches.read(tmp_path)
    assert [numbers.measure(launch).steps for launch in found] == [19, 9]
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
    assert worker[2:5] == ["0", "0", "1"], "start-up is no service"
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
