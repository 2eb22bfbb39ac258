"""`repro check`, what keeps recordings from vLLM, and what installing beside a server brings."""

from __future__ import annotations

import http.server
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import prometheus_client
import pytest
import recordings

from repro import cli, plugin, policy
from repro.plugin.live_reader import processes
from repro.plugin.metrics import PauseCounters
from repro.plugin.recorder import PAUSE, Recorder
from repro.server import environment

STATE = {"frozen": 800_000, "heap_frozen": True, "thresholds": [700, 10, 10], "collector": True}


def process(folder: Path, role: str, rank: int = 0, asked: str = "stock", **state: object) -> None:
    """One warm process, frozen as vLLM 0.32.0 has it unless `state` says otherwise."""
    known = policy.SERVING.get(asked, policy.serving("stock"))
    made = Recorder(folder, policies={role: known}, asked={role: asked})
    made.declare(role, rank)
    made.write(PAUSE, 1, 1, 0, 2)
    made.note(**{**STATE, "not_in_force": "", "vllm": "0.32.0", **state})


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, list[str]]:
    status = cli.main(["check", *arguments])
    return status, capsys.readouterr().out.splitlines()


def test_every_process_as_asked_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for role, rank in (("worker", 9), ("worker", 8), ("engine", 8), ("frontend", 0)):
        process(tmp_path, role, rank)
    process(tmp_path, "launcher")
    status, lines = said(capsys, str(tmp_path))
    assert status == 0
    assert [line.split(" (")[0] for line in lines] == [
        *("front end 0", "engine core 8", "worker 8", "worker 9")
    ]
    assert "frozen, 800,000 frozen objects; thresholds [700, 10, 10]; collector on" in lines[3]
    assert all("vLLM 0.32.0" in line and line.endswith("; as asked") for line in lines)


@pytest.mark.parametrize(
    ("asked", "state", "wrong"),
    [
        ("frezee", {}, "there is no policy 'frezee'"),
        ("no-freeze", {"not_in_force": "its heap is frozen"}, "its heap is frozen"),
        ("stock", {"heap_frozen": ""}, "not warm yet"),
    ],
)
def test_a_process_that_is_not_as_asked_fails_the_check(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    asked: str,
    state: dict[str, str],
    wrong: str,
) -> None:
    process(tmp_path, "worker", 0, asked, **state)
    process(tmp_path, "worker", 1)
    status, lines = said(capsys, str(tmp_path))
    assert status == 1
    assert lines[0].endswith(f"NOT AS ASKED: {wrong}")
    assert lines[1].endswith("; as asked")


def test_a_server_whose_workers_do_not_record_fails_the_check(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    process(tmp_path, "engine")
    status, lines = said(capsys, str(tmp_path))
    assert (status, "no worker has recorded" in lines[-1]) == (1, True)
    process(tmp_path / "uni", "engine", worker_inside=True)
    status, (line,) = said(capsys, str(tmp_path / "uni"))
    assert status == 0
    assert "worker inside" in line


def test_a_recording_of_an_older_version_is_said_to_be_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Recorder, "_write_about", lambda recorder, role: None)
    recordings.serving(tmp_path, steps=3)
    status, lines = said(capsys, str(tmp_path))
    assert status == 1
    assert all("recorded by an older version" in line for line in lines)


def test_a_folder_without_a_recording_gets_the_remedies(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    process(tmp_path, "launcher")  # as `vllm serve --help` leaves it
    for command in ("check", "watch", "report"):
        assert cli.main([command, str(tmp_path)]) == 1
        error = capsys.readouterr().err
        causes = (environment.PREFIXES, environment.RUST, environment.TARGET, "VLLM_PLUGINS")
        for part in (str(tmp_path), "holds no recording", *causes):
            assert part in error, command


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """A server's `/metrics` of two workers, one of them mistyped."""
    process(tmp_path, "worker", 0, asked='fr"eze')
    process(tmp_path, "worker", 1)
    registry = prometheus_client.CollectorRegistry()
    registry.register(PauseCounters(tmp_path, processes(tmp_path)[0].launch_ns))

    class Metrics(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/metrics" else 404)
            self.end_headers()
            self.wfile.write(prometheus_client.generate_latest(registry))

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Metrics) as served:
        threading.Thread(target=served.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{served.server_port}"
        served.shutdown()


def test_a_running_server_is_checked_by_its_metrics(
    address: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, lines = said(capsys, address)
    assert status == 1
    assert "there is no policy" in lines[0]
    assert (status, lines[1:]) == (
        said(capsys, str(tmp_path))[0],
        said(capsys, str(tmp_path))[1][1:],
    )


def test_no_server_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", "http://127.0.0.1:9"]) == 1
    assert "http://127.0.0.1:9/metrics: no answer" in capsys.readouterr().err


# --- the environment ------------------------------------------------------------------------------


def remedies(**variables: str) -> dict[str, str]:
    return {what: remedy for what, _, remedy in environment.obstacles(variables)}


def test_a_plain_environment_has_no_obstacle() -> None:
    assert remedies() == {}
    assert remedies(VLLM_PLUGINS="lora,repro", VLLM_USE_RUST_FRONTEND="0") == {}


def test_each_obstacle_is_named_with_the_line_that_mends_it() -> None:
    assert remedies(VLLM_PLUGINS="lora")["VLLM_PLUGINS"] == "export VLLM_PLUGINS=lora,repro"
    assert remedies(VLLM_PLUGINS="")["VLLM_PLUGINS"] == "export VLLM_PLUGINS=repro"
    assert "unset" in remedies(VLLM_USE_RUST_FRONTEND="1")["front end"]
    assert "choose one of stock" in remedies(REPRO_ENGINE_POLICY="x")["REPRO_ENGINE_POLICY"]


def test_a_user_without_rights_installs_beside_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(environment.os, "access", lambda place, mode: False)
    assert list(remedies(REPRO_RECORD_DIR="/recordings")) == [plugin.RECORD_DIR]
    monkeypatch.setattr(environment, "entry_points", lambda group: [])
    assert "PYTHONPATH=~/repro" in remedies()["rights"]


@pytest.mark.parametrize(
    ("variables", "mended"),
    [
        ({}, False),
        ({environment.PREFIXES: "MY_,REPRO_"}, True),
        ({environment.PREFIXES: "OTHER_"}, False),
        ({environment.NAMES: f"{plugin.RECORD_DIR}, {plugin.POLICY}"}, True),
        ({environment.NAMES: plugin.RECORD_DIR}, False),
    ],
)
def test_ray_copies_our_variables_only_if_told_to(variables: dict[str, str], mended: bool) -> None:
    asked = {plugin.RECORD_DIR: "/tmp", plugin.POLICY: "freeze", "RAY_ADDRESS": "auto"}
    assert ("Ray" not in remedies(**asked, **variables)) == mended


# --- what is installed beside a server ------------------------------------------------------------

WITHOUT_EXTRAS = """
import importlib.abc, sys
extras = {"jupyterlab", "nbconvert", "nbformat", "papermill", "tqdm", "IPython", "snakemake"}
class Missing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in extras:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Missing())
from repro import cli
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.parametrize("command", ["report", "watch --once", "check", "advise"])
def test_the_diagnosis_needs_no_notebook(tmp_path: Path, command: str) -> None:
    folder = [str(recordings.serving(tmp_path, steps=300))] if command != "advise" else []
    words = [sys.executable, "-c", WITHOUT_EXTRAS, *command.split(), *folder]
    ended = subprocess.run(words, capture_output=True, text=True)
    assert ended.returncode == (1 if command == "check" else 0), ended.stderr
    assert ended.stdout
    assert "Traceback" not in ended.stderr
