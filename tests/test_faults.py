"""What goes wrong without an engine: writers that die, full disks, cut files, interrupts.

Faults of our own inside vLLM are in `test_stepping_aside.py`, real engines in
`test_faults_engine.py`.
"""

from __future__ import annotations

import gc
import http.server
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from builders import SECOND, document, run, steady
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from recordings import recorder
from test_campaign import wait_for_pid

from repro import dataset
from repro.dataset import DatasetError, recording
from repro.dataset.run import read_document
from repro.dataset.schema import TABLES
from repro.experiment import campaign, collect, supervise
from repro.experiment.clients import server
from repro.experiment.config import Experiment
from repro.experiment.grid import grid
from repro.experiment.verify import NotAsRequested, recording_is_whole
from repro.plugin import recorder as recorder_module
from repro.plugin import step_hooks
from repro.plugin.recorder import PAUSE, STEP, Recorder

# --- recordings --------------------------------------------------------------------------------


def said(caplog: pytest.LogCaptureFixture, text: str) -> int:
    return len([record for record in caplog.records if text in record.message])


def test_vllms_own_fault_stays_vllms(tmp_path: Path) -> None:
    made: Any = SimpleNamespace(execute_model=lambda scheduler_output: 1 / 0)
    step_hooks.record_steps(made, Recorder(tmp_path))
    with pytest.raises(ZeroDivisionError):
        made.execute_model(SimpleNamespace(total_num_scheduled_tokens=1))
    ((step,),) = [r.of_kind(STEP) for r in recording.read_all(tmp_path)]
    assert step["a"] == 1


def test_a_callback_that_raises_stops_the_recording_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    made = Recorder(tmp_path)
    made.write(STEP, 1, 1, 1, 1)
    monkeypatch.setattr(recorder_module.time, "monotonic_ns", lambda: "midnight")
    made.watch_collector()
    try:
        for _ in range(3):
            gc.collect()
    finally:
        gc.callbacks.pop()
    assert said(caplog, "stopped") == 1
    (found,) = recording.read_all(tmp_path)
    assert not found.complete
    with pytest.raises(NotAsRequested, match="recorder stopped early"):
        recording_is_whole(Experiment(executor="uni"), [found, *pretend("frontend", "engine")])


def pretend(*roles: str) -> list[Any]:
    return [SimpleNamespace(role=role, rank=0, events=[1], complete=True) for role in roles]


def test_a_process_id_used_again_is_another_recording(tmp_path: Path) -> None:
    """The system gives the id of a dead process to a new one; here both are this very process."""
    first, second = recorder(tmp_path, "worker", 0), recorder(tmp_path, "worker", 1)
    first.write(STEP, 1, 1, 1, 1)
    second.write(STEP, 2, 2, 2, 2)
    found = sorted(recording.read_all(tmp_path), key=lambda r: r.rank)
    assert [list(r.events["start_ns"]) for r in found] == [[1], [2]]
    assert found[0].pid == found[1].pid
    assert found[0].opened_ns < found[1].opened_ns


def test_a_fork_goes_on_on_the_same_clock(tmp_path: Path) -> None:
    made = recorder(tmp_path, "engine")
    made.watch_collector()
    before = time.monotonic_ns()
    try:
        gc.collect()
        if (child := os.fork()) == 0:
            gc.collect()
            os._exit(0)
        os.waitpid(child, 0)
    finally:
        gc.callbacks.pop()
    after = time.monotonic_ns()
    found = {r.pid: r for r in recording.read_all(tmp_path)}
    starts = [found[pid].of_kind(PAUSE)["start_ns"][-1] for pid in (os.getpid(), child)]
    assert before < starts[0] < starts[1] < after
    assert before < found[child].opened_ns < starts[1]
    assert found[child].launch_ns == found[os.getpid()].launch_ns


def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """A folder on a file system of its own of so many bytes, where mounting one is allowed."""
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("no tmpfs can be mounted here; test_recorder fills a disk by RLIMIT_FSIZE")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture
def two_segments(tmp_path: Path) -> Iterator[Path]:
    yield from small_disk(tmp_path / "disk", "2200k")


def test_a_disk_full_of_recordings_is_said_once(
    two_segments: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = recorder(two_segments, "worker")
    for step in range(3 * recorder_module.SEGMENT_EVENTS):
        made.write(STEP, 1, 1, 1, step)
    made.census("shutdown")
    assert said(caplog, "No space left on device; free space there and restart") == 1
    (found,) = recording.read_all(two_segments)
    assert len(found.events) == 2 * recorder_module.SEGMENT_EVENTS
    assert not found.complete


# --- run directories --------------------------------------------------------------------------

many = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


@many
@given(st.sampled_from(sorted(TABLES)), st.data())
def test_any_table_cut_at_any_byte_is_named(
    tmp_path_factory: pytest.TempPathFactory, name: str, data: st.DataObject
) -> None:
    root = tmp_path_factory.mktemp("cut")
    columns = {TABLES[name].names[-1]: [1, 2, 3]}
    path = run(root, "a", {**steady(SECOND), name: columns}) / f"{name}.parquet"
    whole = path.read_bytes()
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    with pytest.raises(DatasetError) as error:
        dataset.load(root)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@many
@given(st.lists(st.sampled_from([*TABLES, "run.json"]), unique=True), st.booleans())
def test_a_run_half_written_is_unfinished_and_hides_no_other(
    tmp_path_factory: pytest.TempPathFactory, written: list[str], raw: bool
) -> None:
    """Whatever a killed campaign left of a run, as long as `run.json`, the last, is not whole."""
    root = tmp_path_factory.mktemp("half")
    run(root, "good", steady(SECOND))
    half = root / "half"
    half.mkdir()
    (half / "engine.log").write_text("INFO")
    if raw:
        recorder(half / "raw", "worker").write(STEP, 1, 1, 1, 1)
    for name in written:
        (half / f"{name}.partial").write_bytes(b"PAR1")
        if name != "run.json":
            (half / f"{name}.parquet").write_bytes(b"PAR1 cut")
    loaded = dataset.load(root)
    assert list(loaded.runs["run"]) == ["good"]
    assert not campaign.finished(half)


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
