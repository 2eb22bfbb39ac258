"""Faults of recordings and run directories: writers that die, full disks, cut files.

Faults of our own inside vLLM are in `test_stepping_aside.py`, of a campaign in
`test_faults_campaign.py`, with real engines in `test_faults_engine.py`.
"""

from __future__ import annotations

import gc
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from builders import SECOND, run, steady
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from recordings import recorder

from repro import dataset
from repro.dataset import DatasetError, recording
from repro.dataset.schema import TABLES
from repro.experiment import campaign
from repro.experiment.config import Experiment
from repro.experiment.verify import NotAsRequested, recording_is_whole
from repro.plugin import recorder as recorder_module
from repro.plugin import step_hooks
from repro.plugin.recorder import PAUSE, STEP, Recorder


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
