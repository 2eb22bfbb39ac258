"""`repro report`: launches and files chosen, logs, benchmarks, and the page in a real browser."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import recordings
from browser import Browser
from recordings import MS, serving

from repro import cli
from repro.plugin.recorder import PAUSE
from repro.server import launches, numbers, outside, report

STALLS = range(50, 2000, 50)


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


def test_nothing_is_predicted_from_nothing(tmp_path: Path) -> None:
    text = report.write(serving(tmp_path / "a"), tmp_path / "page.html").read_text()
    assert "More ranks" not in text
    text = report.write(serving(tmp_path / "b", stalls=STALLS), tmp_path / "page.html").read_text()
    assert "More ranks" in text


def test_the_stacks_of_long_steps_are_named(tmp_path: Path) -> None:
    (worker,) = [m for m in recordings.only_launch(serving(tmp_path)).members if m.role == "worker"]
    assert worker.stacks.name not in report.write(tmp_path, tmp_path / "page.html").read_text()
    worker.stacks.write_text("Timeout")
    assert worker.stacks.name in report.write(tmp_path, tmp_path / "page.html").read_text()


@pytest.mark.parametrize("command", ["report", "watch"])
def test_a_folder_without_a_recording_is_one_line(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in (tmp_path, tmp_path / "missing"):
        assert cli.main([command, str(folder)]) == 1
        said = capsys.readouterr().err
        assert f"{folder}: holds no recording; start vLLM with REPRO_RECORD_DIR" in said
        assert len(said.splitlines()) == 1


@pytest.mark.parametrize(
    ("line", "row", "limit"),
    [
        (
            "(EngineCore_DP0 pid=77) INFO 11-27 05:13:35 [gc_utils.py:90] GC took 412.500ms to "
            "complete. Collected 0 objects (out of 812345) in GC generation 2.",
            ["EngineCore_DP0 pid=77", "2", "1", "0.412", "412"],
            "no API server",
        ),
        (
            "[2025-11-27 05:13:35 DP1 TP3] GC end: Time 1764220415.5 | Generation 1 | Duration: "
            "0.0312s | Collected: 12 | Uncollectable: 0 ",
            ["DP1 TP3", "1", "1", "0.0312", "31.2"],
            "below 0.05 ms",
        ),
        (
            "[2025-11-27 05:13:35 TP0] LONG GARBAGE COLLECTION DETECTED | Generation 2 | "
            "Duration: 0.4125s | # Objects: gen0=1, gen1=2, gen2=812345 | This may cause jitter",
            ["TP0", "2", "1", "0.412", "412"],
            "lower bounds",
        ),
        (
            "INFO 07-26 GC gen2 143.6ms collected=243 uncollectable=0 builtins.function=60915",
            ["not named", "2", "1", "0.144", "144"],
            "none of the engine",
        ),
    ],
)
def test_a_log_with_collections(tmp_path: Path, line: str, row: list[str], limit: str) -> None:
    log = tmp_path / "server.log"
    log.write_text(f"other\n{line}\n")
    rows, limits = outside.gc_log(log)
    assert rows.to_numpy().tolist() == [[rows["source"][0], *row]]
    text = report.write(log, tmp_path / "page.html").read_text()
    assert limit in text
    assert "it cannot say" in limits[-1]
    log.write_text("GC start: Time 1764220415.5 | Generation 1")
    with pytest.raises(ValueError, match="known are those of vLLM's VLLM_GC_DEBUG=1, SGLang's"):
        outside.gc_log(log)


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


# --- the page in a browser ------------------------------------------------------------------


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
    tables = browser.evaluate(
        "[...document.querySelectorAll('table')].map(t => [t.parentNode.className,"
        " t.offsetWidth <= t.parentNode.clientWidth, t.parentNode.tabIndex,"
        " getComputedStyle(t.parentNode).overflowX,"
        " getComputedStyle(t.parentNode).backgroundImage.split('linear-gradient').length - 1])"
    )
    assert {tuple(each[:1] + each[2:]) for each in tables} == {("wide", 0, "auto", 4)}
    assert all(each[1] for each in tables) or width == 400, "at 1280 px every table fits"
    smallest = "Math.min(...[...document.querySelectorAll('p, td, th, figcaption')]"
    size = browser.evaluate(smallest + ".map(e => parseFloat(getComputedStyle(e).fontSize)))")
    assert size >= 12
