"""Faults while a campaign runs, without an engine: interrupts, hangs, taken ports."""

from __future__ import annotations

import http.server
import json
import shutil
import signal
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime
from pathlib import Path

import psutil
import pytest
from builders import SECOND, document, run, steady
from test_campaign import wait_for_pid

from repro import dataset
from repro.dataset.run import read_document
from repro.experiment import campaign, collect, supervise
from repro.experiment.clients import server
from repro.experiment.config import Experiment
from repro.experiment.grid import grid

# --- a campaign, interrupted ------------------------------------------------------------------

STAGES = ("start", "ready", "ramp", "measure", "stop")

INTERRUPTED = """
import sys, time
from pathlib import Path
from repro import cli
from repro.experiment import campaign, collect, provenance, supervise
provenance.vllm_version = lambda: "0.32.0"
root, told, stage = sys.argv[1:]
child = '''
import json, os, subprocess, sys, time
told, stage = sys.argv[1:]
grandchild = subprocess.Popen(["sleep", "1000"])
for phase in ("start", "ready", "ramp", "measure", "stop"):
    print(json.dumps({"event": "phase", "phase": phase, "seconds": 1}), flush=True)
    if phase == stage:
        open(told, "w").write(str(grandchild.pid))
        time.sleep(1000)
grandchild.kill()
grandchild.wait()
print(json.dumps({"event": "done"}), flush=True)
'''
supervise.CHILD = (sys.executable, "-c", child, told, stage)
def hang(*arguments):
    open(told, "w").write("0")
    time.sleep(1000)
if stage == "finish":
    collect.finish = hang
if stage == "clean":
    def finish(folder, *rest):
        collect.write_run(folder, __import__("json").loads(sys.stdin.read()))
        collect.shutil.rmtree(folder / collect.RAW)
    collect.finish, collect.shutil.rmtree = finish, hang
sys.exit(cli.main(["run", root, "--policies", "freeze", "--replicates", "2"]))
"""


@pytest.mark.parametrize("stage", [*STAGES, "finish", "clean"])
def test_sigint_at_every_stage_of_a_campaign(tmp_path: Path, stage: str) -> None:
    root, told = tmp_path / "campaign", tmp_path / "told"
    experiments = grid(policies=["freeze"], replicates=2, duration_s=60.0)
    first, second = (root / campaign.run_name(e, "0.32.0") for e in experiments)
    kept = run(root, first.name, steady(SECOND)) / "run.json"
    before = kept.read_bytes(), kept.stat().st_mtime_ns
    running = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, str(root), str(told), stage],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert running.stdin is not None
    running.stdin.write(json.dumps(document(second.name)))
    running.stdin.close()
    running.stdin = None
    grandchild = wait_for_pid(told)
    left = psutil.Process(running.pid).children(recursive=True)
    running.send_signal(signal.SIGINT)
    _, wrong = running.communicate(timeout=120)
    assert running.returncode == 130
    assert wrong.splitlines()[-1] == (
        "repro: interrupted; finished runs are kept, run again to go on"
    )
    assert not psutil.wait_procs(left, timeout=60)[1]
    assert not grandchild or not psutil.pid_exists(grandchild)
    assert (kept.read_bytes(), kept.stat().st_mtime_ns) == before
    loaded = dataset.load(root)
    measured = {first.name, second.name} if stage == "clean" else {first.name}
    assert set(loaded.runs["run"]) == measured
    with campaign.locked(root):
        pass  # the next campaign may begin


HANGS = """
import json, os, subprocess, sys, time
say = lambda **event: print(json.dumps(event), flush=True)
core = subprocess.Popen(["VLLM::EngineCore", "1000"], executable="/bin/sleep")
time.sleep(1)
say(event="phase", phase="ramp", seconds=0)
time.sleep(1)
core.kill()  # and is not waited for: a zombie is dead too
time.sleep(1000)  # as vLLM's front end, waiting for an engine core that is no more
"""


def test_a_client_that_waits_for_a_dead_engine_core_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervise, "CHILD", (sys.executable, "-c", HANGS))
    monkeypatch.setattr(supervise, "DEATH_S", 3.0)
    began = time.monotonic()
    with pytest.raises(supervise.RunFailed, match=r"VLLM::EngineCore 1000 ended in the middle"):
        supervise.run_child(Experiment(), tmp_path, lambda phase, seconds: None)
    assert time.monotonic() - began < supervise.SILENCE_S / 2
    assert not psutil.Process().children(recursive=True)


def test_a_client_that_is_killed_is_said_to_have_no_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dies = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    monkeypatch.setattr(supervise, "CHILD", (sys.executable, "-c", dies))
    with pytest.raises(supervise.RunFailed, match="measuring process ended without a result"):
        supervise.run_child(Experiment(), tmp_path, lambda phase, seconds: None)


AT_ONCE = """
import json, subprocess, sys, time
core = subprocess.Popen(["VLLM::EngineCore", "1000"], executable="/bin/sleep")
time.sleep(1)
phase = lambda name: json.dumps({"event": "phase", "phase": name, "seconds": 0}) + "\\n"
print(phase("ramp"), end="", flush=True)
time.sleep(1)
print(phase("measure") + phase("stop"), end="", flush=True)  # one write
core.kill()
core.wait()
time.sleep(6)  # as a client that works its result out
print(json.dumps({"event": "done"}), flush=True)
"""


def test_events_that_come_at_once_are_all_heard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine may be gone after `stop`: that must not wait for the next event to be read."""
    monkeypatch.setattr(supervise, "CHILD", (sys.executable, "-c", AT_ONCE))
    monkeypatch.setattr(supervise, "DEATH_S", 3.0)
    heard: list[str] = []
    supervise.run_child(Experiment(), tmp_path, lambda phase, seconds: heard.append(phase))
    assert heard == ["ramp", "measure", "stop"]


LEAVES_BEHIND = """
import json, subprocess, sys
subprocess.Popen(["left behind", sys.argv[1]], executable="/bin/sleep", stdout=subprocess.DEVNULL)
print(json.dumps({"event": "done"}), flush=True)
"""


def leave_behind(seconds: float, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = (sys.executable, "-c", LEAVES_BEHIND, str(seconds))
    monkeypatch.setattr(supervise, "CHILD", command)
    supervise.run_child(Experiment(device="cpu"), folder, lambda phase, seconds: None)


def test_a_process_that_outlives_its_run_is_ended_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervise, "GOODBYE_S", 1.0)
    with pytest.raises(supervise.RunFailed, match=r"outlived the engine .* ended: left behind 500"):
        leave_behind(500, tmp_path, monkeypatch)
    commands = [process.info["cmdline"] for process in psutil.process_iter(["cmdline"])]
    assert ["left behind", "500"] not in commands


def test_a_process_that_takes_long_to_end_fails_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As torch and vLLM do at the end of an interpreter when a machine is busy."""
    leave_behind(12, tmp_path, monkeypatch)


SECOND_CAMPAIGN = """
import sys
from pathlib import Path
from repro import cli
from repro.experiment import campaign, provenance
provenance.vllm_version = lambda: "0.32.0"
campaign.measure = lambda *arguments: Path(sys.argv[1], "begun").touch()
sys.exit(cli.main(["run", sys.argv[1]]))
"""


def test_a_second_campaign_on_the_same_directory_begins_nothing(tmp_path: Path) -> None:
    with campaign.locked(tmp_path):
        ended = subprocess.run(
            [sys.executable, "-c", SECOND_CAMPAIGN, str(tmp_path)], capture_output=True, text=True
        )
    assert ended.returncode == 1
    assert ended.stderr.count("\n") == 1
    assert "another campaign is running there; wait for it or name another folder" in ended.stderr
    assert not (tmp_path / "begun").exists()


# --- a server's port ----------------------------------------------------------------------------

BINDS = "import socket, sys; socket.socket().bind(('127.0.0.1', int(sys.argv[-1])))"


class Answers(http.server.BaseHTTPRequestHandler):
    """Another's server, in good health."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()


def test_a_taken_port_is_said_and_no_other_server_is_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The port was free when it was chosen, and is taken when the server would listen on it."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        monkeypatch.setattr(server, "free_port", lambda: other.server_port)
        monkeypatch.setattr(server, "START", (sys.executable, "-c", BINDS))
        monkeypatch.setattr(server, "server_arguments", lambda *asked: [str(asked[-1])])
        with (
            server.Server(Experiment(), "tokenizer") as ours,
            pytest.raises(RuntimeError, match=f"port {other.server_port} is taken, run again"),
        ):
            ours.wait_until_ready(lambda seconds: None)
        other.shutdown()
    assert server.is_free(other.server_port)


# --- the log of a run that failed ----------------------------------------------------------------

LOGS = Path(__file__).parent / "logs"
POINTER = "RuntimeError: Engine core initialization failed. See root cause above."
FIRST_ERRORS = {
    "cache-larger-than-memory": "ValueError: Available memory on node 0",
    "killed-worker": "Worker proc VllmWorker-0 died unexpectedly",
    "missing-module": "ModuleNotFoundError: No module named 'vllm.v1.worker.cpu_model_runner'",
    "negative-layer-size": "RuntimeError: Trying to create tensor with negative dimension -10",
}


@pytest.mark.parametrize("log", FIRST_ERRORS)
def test_a_run_that_failed_reports_the_first_error_of_its_log(log: str, tmp_path: Path) -> None:
    """Logs of real engines, cut to their failing lines; the child only says where to look."""
    shutil.copy(LOGS / f"{log}.log", tmp_path / collect.LOG)
    reason = supervise.explain(POINTER, tmp_path)
    assert reason.startswith(FIRST_ERRORS[log])
    assert "root cause" not in reason
    collect.fail(tmp_path, Experiment(), datetime.now(UTC), {}, reason)
    kept = read_document(tmp_path)["log_tail"]
    assert any(FIRST_ERRORS[log] in line for line in kept)
    assert len(kept) <= collect.LOG_LINES


def test_a_log_without_an_error_leaves_the_reason_and_keeps_its_end(tmp_path: Path) -> None:
    lines = [f"(Worker pid=1) INFO 11-27 08:00:00 [a.py:1] step: {step}" for step in range(50)]
    (tmp_path / collect.LOG).write_text("\n".join(lines))
    assert supervise.explain(POINTER, tmp_path) == POINTER
    assert collect.log_excerpt(collect.log_lines(tmp_path)) == lines[-collect.LOG_LINES :]
