"""The recorder: what it writes, what survives, what it costs in objects."""

from __future__ import annotations

import gc
import json
import os
import platform
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from repro import policy
from repro.dataset import recording
from repro.plugin import recorder
from repro.plugin.process_facts import heap_state, identity_from_name, not_in_force
from repro.plugin.recorder import ABOUT, PAUSE, STEP, Recorder

KILLED = """
import gc, os, signal, sys
from pathlib import Path
from repro.plugin.recorder import Recorder, STEP
made = Recorder(Path(sys.argv[1]))
made.watch_collector()
for step in range(100):
    made.write(STEP, step + 1, 10, 1024, step)
gc.collect()
os.kill(os.getpid(), signal.SIGKILL)
"""


def only(folder: Path) -> recording.Recording:
    (found,) = recording.read_all(folder)
    return found


def test_events_survive_kill_9(tmp_path: Path) -> None:
    ended = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)])
    assert ended.returncode == -signal.SIGKILL
    found = only(tmp_path)
    assert found.complete
    assert list(found.of_kind(STEP)["b"]) == list(range(100))
    assert 2 in found.of_kind(PAUSE)["b"] & 3


def test_a_pause_is_recorded_with_generation_and_garbage(tmp_path: Path) -> None:
    made = Recorder(tmp_path)
    made.watch_collector()
    try:
        gc.collect()
        cycles: list[object] = []
        for _ in range(50):
            loop: list[object] = []
            loop.append(loop)
            cycles.append(loop)
        del loop
        cycles.clear()
        gc.collect(1)
    finally:
        gc.callbacks.pop()
    last = only(tmp_path).of_kind(PAUSE)[-1]
    assert last["b"] & 3 == 1
    assert last["a"] >= 50
    assert last["duration_ns"] > 0


def test_no_tracked_object_is_kept_per_event(tmp_path: Path) -> None:
    made = Recorder(tmp_path)
    made.write(STEP, 1, 1, 1, 1)  # maps the first segment
    gc.collect()
    before = len(gc.get_objects())
    for step in range(10_000):
        made.write(STEP, step, 1, 1, step)
    assert len(gc.get_objects()) - before < 10


def test_segments_follow_one_another(tmp_path: Path) -> None:
    made = Recorder(tmp_path)
    count = recorder.SEGMENT_EVENTS * 2 + 5
    for step in range(count):
        made.write(STEP, step + 1, 1, 1, step)
    steps = only(tmp_path).of_kind(STEP)
    assert list(steps["b"]) == list(range(count))


def test_threads_never_share_a_slot(tmp_path: Path) -> None:
    made = Recorder(tmp_path)
    each = 20_000

    def write(thread: int) -> None:
        for step in range(each):
            made.write(STEP, 1, 1, thread, step)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(only(tmp_path).of_kind(STEP)) == 4 * each


def test_a_fork_writes_a_file_of_its_own(tmp_path: Path) -> None:
    made = Recorder(tmp_path)
    made.declare("worker", 3)
    made.write(STEP, 1, 1, 1, 1)
    child = os.fork()
    if child == 0:
        made.write(STEP, 2, 2, 2, 2)
        os._exit(0)
    os.waitpid(child, 0)
    found = {r.pid: r for r in recording.read_all(tmp_path)}
    assert set(found) == {os.getpid(), child}
    assert list(found[child].events["b"]) == [2]
    assert (found[os.getpid()].role, found[os.getpid()].rank) == ("worker", 3)
    assert found[child].role == "frontend", "a fork is not what its parent declared itself to be"


def limited(tmp_path: Path, *, strict: bool) -> Recorder:
    """A recorder that meets its end of disk in the second segment."""
    made = Recorder(tmp_path, strict=strict)
    made.write(STEP, 1, 1, 1, 1)
    return made


@pytest.mark.parametrize("strict", [False, True])
def test_a_full_disk_is_said_once_and_marks_the_recording(
    tmp_path: Path, strict: bool, caplog: pytest.LogCaptureFixture
) -> None:
    made = limited(tmp_path, strict=strict)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    size = recorder.HEADER_BYTES + recorder.SEGMENT_BYTES
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    raised = 0
    try:
        for step in range(recorder.SEGMENT_EVENTS + 10):
            try:
                made.write(STEP, 1, 1, 1, step)
            except OSError as error:
                assert "free space" in str(error)
                raised += 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    found = only(tmp_path)
    assert not found.complete
    assert len(found.of_kind(STEP)) == recorder.SEGMENT_EVENTS, "what fitted is kept"
    assert raised == (1 if strict else 0)
    assert len([r for r in caplog.records if "stopped" in r.message]) == (0 if strict else 1)


def test_a_removed_folder_loses_nothing_of_an_open_recording(tmp_path: Path) -> None:
    folder = tmp_path / "recording"
    made = Recorder(folder)
    made.write(STEP, 1, 1, 1, 1)
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    made.write(STEP, 2, 1, 1, 2)  # into the unlinked file: no fault in the server
    made.census("ready")  # needs the folder: logged, not raised


def test_a_census_counts_this_process(tmp_path: Path) -> None:
    made = Recorder(tmp_path)
    made.census("ready")
    (line,) = next(tmp_path.glob("census-*.jsonl")).read_text().splitlines()
    row = json.loads(line)
    assert row["pid"] == os.getpid()
    assert row["tracked"] > 1000
    assert row["rss_bytes"] > 1 << 20
    assert (row["threshold_0"], row["threshold_1"], row["threshold_2"]) == gc.get_threshold()


def test_a_foreign_file_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "events-1-1.bin"
    path.write_bytes(b"something else entirely" * 10)
    with pytest.raises(recording.RecordingError, match=r"events-1-1\.bin"):
        recording.read(path)


@pytest.mark.parametrize("cut", [0, 10, recorder.HEADER.size])
def test_a_file_cut_short_never_crashes_the_reader(tmp_path: Path, cut: int) -> None:
    Recorder(tmp_path).write(STEP, 1, 1, 1, 1)
    (path,) = tmp_path.glob("events-*.bin")
    path.write_bytes(path.read_bytes()[:cut])
    if cut < recorder.HEADER.size:
        with pytest.raises(recording.RecordingError):
            recording.read(path)
    else:
        assert len(recording.read(path).events) == 0


def test_an_event_cut_short_is_left_out(tmp_path: Path) -> None:
    made = Recorder(tmp_path)
    made.write(STEP, 1, 1, 1, 1)
    made.write(STEP, 2, 2, 2, 0)
    (path,) = tmp_path.glob("events-*.bin")
    content = bytearray(path.read_bytes())
    second = recorder.HEADER_BYTES + recorder.EVENT.size
    content[second + recorder.EVENT.size - 4 : second + recorder.EVENT.size] = b"\0" * 4
    path.write_bytes(content)
    assert list(recording.read(path).events["b"]) == [1]


@pytest.mark.parametrize(
    ("name", "identity"),
    [
        ("EngineCore", ("engine", 0)),
        ("EngineCore_DP3", ("engine", 3)),
        ("VllmWorker-7", ("worker", 7)),
        ("MainProcess", ("frontend", 0)),
        ("VLLM_DP_Coordinator", ("other", 0)),
        ("Process-1", ("other", 0)),
        ("ApiServer_1", ("frontend", 1)),
        ("APIServer_DPRank_9", ("frontend", 9)),
    ],
)
def test_identity_from_vllms_process_names(name: str, identity: tuple[str, int]) -> None:
    assert identity_from_name(name) == identity


def test_a_recording_says_whose_it_is(tmp_path: Path) -> None:
    serving = {"worker": policy.serving("no-freeze")}
    made = Recorder(tmp_path, policies=serving, asked={"worker": "no-freeze"})
    made.declare("worker", 3)
    made.write(STEP, 1, 1, 1, 1)
    made.note(dp_rank=1, moe=True)
    made.census("ready")
    about = only(tmp_path).about
    assert (about["asked"], about["policy"], about["not_in_force"]) == (
        "no-freeze",
        "no-freeze",
        "",
    )
    assert (about["dp_rank"], about["moe"], about["heap_frozen"]) == (1, True, False)
    assert about["thresholds"] == list(gc.get_threshold())
    assert about["python"] == sys.version.split()[0]
    clocks = time.time_ns() - time.monotonic_ns()
    assert abs((about["wall_ns"] - about["monotonic_ns"]) - clocks) < 1_000_000_000
    assert platform.node() not in json.dumps(dict(about))


def test_a_recording_of_an_older_version_is_read(tmp_path: Path) -> None:
    Recorder(tmp_path).write(STEP, 1, 1, 1, 1)
    (path,) = tmp_path.glob("events-*.bin")
    with path.open("r+b") as file:
        file.seek(ABOUT.start)
        file.write(b"\0" * (ABOUT.stop - ABOUT.start))
    found = only(tmp_path)
    assert (dict(found.about), len(found.events)) == ({}, 1)


def test_the_longest_environment_leaves_a_header_that_reads(tmp_path: Path) -> None:
    made = Recorder(tmp_path, asked={"frontend": "\N{SNOWMAN}" * 4000})
    made.write(STEP, 1, 1, 1, 1)
    assert only(tmp_path).about["asked"].startswith("\N{SNOWMAN}")


FROZEN = {"frozen": 10_000, "tracked": 10, "enabled": True}
THAWED = {"frozen": 300, "tracked": 10_000, "enabled": True}


@pytest.mark.parametrize(
    ("name", "counts", "found"),
    [
        ("stock", FROZEN, ""),
        ("stock", THAWED, ""),
        ("freeze", FROZEN, ""),
        ("freeze", THAWED, "its heap is not frozen"),
        ("no-freeze", FROZEN, "its heap is frozen"),
        ("freeze-thresholds", FROZEN, f"its thresholds are {list(gc.get_threshold())}"),
        ("disable", THAWED, "its collector is on"),
        ("disable", THAWED | {"enabled": False}, ""),
        ("freeze", FROZEN | {"enabled": False}, "its collector is off"),
    ],
)
def test_a_policy_not_in_force_is_noticed(name: str, counts: dict[str, int], found: str) -> None:
    assert not_in_force(policy.serving(name), heap_state(counts)) == found
