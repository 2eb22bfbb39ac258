"""Recordings followed as they grow, and the counters that a server's `/metrics` makes of them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from repro.plugin import fault_handling, metrics, process_facts
from repro.plugin import recorder as plugin_recorder
from repro.plugin.live_reader import CHUNK_BYTES, Follower, Launch, processes
from repro.plugin.metrics import PauseCounters
from repro.plugin.recorder import EVENT, HEADER_BYTES, LAUNCH, PAUSE, STEP, Recorder

MS = 1_000_000


def recorder(folder: Path, role: str = "worker", rank: int = 0) -> Recorder:
    made = Recorder(folder)
    made.declare(role, rank)
    return made


def follower(folder: Path) -> Follower:
    (path,) = folder.glob("events-*.bin")
    return Follower(path)


def test_each_event_comes_once(tmp_path: Path) -> None:
    made = recorder(tmp_path)
    made.write(STEP, 1, 1, 1, 0)
    followed = follower(tmp_path)
    assert [event[3] for event in followed.new_events()] == [0]
    assert followed.new_events() == []
    many = CHUNK_BYTES // EVENT.size * 3 + 7
    for step in range(many):
        made.write(STEP, 1, 1, 1, step)
    assert [event[3] for event in followed.new_events()] == list(range(many))
    assert followed.new_events() == []


def test_a_slot_about_to_be_filled_is_waited_for_then_passed_over(tmp_path: Path) -> None:
    made = recorder(tmp_path)
    made.write(STEP, 1, 1, 1, 0)
    next(made._slots)  # another thread drew it, and has not written yet
    made.write(STEP, 1, 1, 1, 2)
    followed = follower(tmp_path)
    assert [event[3] for event in followed.new_events()] == [0]
    assert [event[3] for event in followed.new_events()] == [2], "nobody will fill it"
    next(made._slots)
    made.write(STEP, 1, 1, 1, 4)
    assert followed.new_events() == []
    (path,) = tmp_path.glob("events-*.bin")
    with path.open("r+b") as file:
        file.seek(HEADER_BYTES + 3 * EVENT.size)
        file.write(EVENT.pack(1, 1, 1, 3, STEP))
    assert [event[3] for event in followed.new_events()] == [3, 4]


def test_a_removed_folder_is_read_to_its_end(tmp_path: Path) -> None:
    folder = tmp_path / "recording"
    made = recorder(folder)
    made.write(PAUSE, 1, 5, 0, 2)
    launch = Launch(folder, made.launch_ns)
    assert [len(events) for _, events in launch.new_events()] == [1]
    shutil.rmtree(folder)
    made.write(PAUSE, 2, 5, 0, 2)
    assert [len(events) for _, events in launch.new_events()] == [1]
    assert processes(folder) == []


def test_only_this_launch_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = {}
    for launch in (100, 200):
        monkeypatch.setenv(LAUNCH, str(launch))
        made[launch] = recorder(tmp_path)
        made[launch].write(PAUSE, 1, launch, 0, 2)
    (tmp_path / "events-0-0.bin").write_bytes(b"of something else")
    assert {process.launch_ns for process in processes(tmp_path)} == {100, 200}
    ((process, events),) = Launch(tmp_path, 100).new_events()
    assert (process.launch_ns, events[0][1]) == (100, 100)


def test_processes_of_one_launch_share_its_number(tmp_path: Path) -> None:
    program = (
        "import os, subprocess, sys; from pathlib import Path;"
        "from repro.plugin.recorder import Recorder;"
        "made = Recorder(Path(sys.argv[1])); made.write(1, 1, 1, 1, 1);"
        "len(sys.argv) > 2 or subprocess.run([sys.executable, *sys.orig_argv[1:], 'child']);"
        "os.fork() or (made.write(1, 1, 1, 1, 1), os._exit(0))"
    )
    clean = {name: value for name, value in os.environ.items() if name != LAUNCH}
    for _ in range(2):
        subprocess.run([sys.executable, "-c", program, str(tmp_path)], env=clean, check=True)
    found = [Follower(path).process() for path in tmp_path.glob("events-*.bin")]
    launches = [process.launch_ns for process in found if process]
    assert sorted(map(launches.count, set(launches))) == [4, 4]


def samples(counters: PauseCounters) -> dict[tuple[str, ...], float]:
    """Values by name and labels, in the order of their names; of buckets the bound, too."""
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in counters.collect()
        for sample in family.samples
    }


def totals(counters: PauseCounters) -> dict[tuple[str, ...], float]:
    """Those that count all pauses of a process and generation."""
    return {key: value for key, value in samples(counters).items() if key[0].endswith("_total")}


def test_counters_by_process_rank_and_generation(tmp_path: Path) -> None:
    worker, engine = recorder(tmp_path, "worker", 3), recorder(tmp_path, "engine")
    counters = PauseCounters(tmp_path, worker.launch_ns)
    assert samples(counters) == {}
    worker.write(PAUSE, 1, 400 * MS, 0, 2)
    worker.write(STEP, 1, 50 * MS, 1, 1)
    engine.write(PAUSE, 1, 2 * MS, 0, 0)
    samples(counters)
    worker.write(PAUSE, 2, 100 * MS, 0, 2)
    assert totals(counters) == {
        ("repro_gc_pauses_total", "2", "worker", "3", ""): 2,
        ("repro_gc_pause_seconds_total", "2", "worker", "3", ""): 0.5,
        ("repro_gc_pauses_total", "0", "engine", "0", ""): 1,
        ("repro_gc_pause_seconds_total", "0", "engine", "0", ""): 0.002,
    }


def test_a_histogram_shows_the_one_long_pause(tmp_path: Path) -> None:
    worker = recorder(tmp_path)
    for length in (MS, 3 * MS, 500 * MS, 9000 * MS):
        worker.write(PAUSE, 1, length, 0, 2)
    found = samples(PauseCounters(tmp_path, worker.launch_ns))
    name = "repro_gc_pause_duration_seconds"
    bounds = {"0.001": 1, "0.002": 1, "0.005": 2, "0.2": 2, "0.5": 3, "5.0": 3, "+Inf": 4}
    for bound, number in bounds.items():
        assert found[(f"{name}_bucket", "2", bound, "worker", "0", "")] == number, bound
    assert found[(f"{name}_count", "2", "worker", "0", "")] == 4
    assert found[(f"{name}_sum", "2", "worker", "0", "")] == 9.504


def named(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Have this process be one that vLLM named so; its own API server, if it is one."""
    monkeypatch.setattr(process_facts, "process_name", lambda: name)
    monkeypatch.setattr(plugin_recorder, "process_name", lambda: name)
    monkeypatch.setenv(process_facts.SERVER, "")


def test_api_servers_on_one_address_are_told_apart_and_the_launcher_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(LAUNCH, "100")
    made = []
    for name in ("ApiServer_0", "ApiServer_1", "EngineCore_DP1"):
        named(monkeypatch, name)
        made.append(Recorder(tmp_path))
        made[-1].write(PAUSE, 1, 1, 0, 2)
    named(monkeypatch, "MainProcess")
    launcher = recorder(tmp_path, "launcher")
    launcher.write(PAUSE, 1, 1, 0, 2)
    expected = {
        ("repro_gc_pauses_total", "2", "frontend", "0", "ApiServer_0"): 1,
        ("repro_gc_pauses_total", "2", "frontend", "1", "ApiServer_1"): 1,
        ("repro_gc_pauses_total", "2", "engine", "1", ""): 1,
    }
    for _ in range(2):  # whichever of the two answers the scrape
        found = totals(PauseCounters(tmp_path, 100))
        assert {key: n for key, n in found.items() if "pauses" in key[0]} == expected


def test_api_servers_with_engines_of_their_own_count_each_pause_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is scraped at its own port: the sum over both ports is the truth."""
    monkeypatch.setenv(LAUNCH, "100")
    counters = {}
    for rank in (4, 5):
        named(monkeypatch, f"APIServer_DPRank_{rank}")
        made = Recorder(tmp_path)
        made.write(PAUSE, 1, 1, 0, 2)
        assert made.rank == rank
        counters[rank] = PauseCounters(tmp_path, 100)
        monkeypatch.setattr(plugin_recorder, "process_name", lambda: "Process-1")
        engine = recorder(tmp_path, "engine", rank)  # started by that server, as one says
        engine.write(PAUSE, 1, 1, 0, 2)
    for rank, counted in counters.items():
        server = f"APIServer_DPRank_{rank}"
        assert {key for key in totals(counted) if "pauses" in key[0]} == {
            ("repro_gc_pauses_total", "2", "frontend", str(rank), server),
            ("repro_gc_pauses_total", "2", "engine", str(rank), server),
        }


SCRAPE = """
import sys
from pathlib import Path
from prometheus_client import Counter, generate_latest
from prometheus_client.openmetrics import exposition, parser
from repro.plugin import metrics
from repro.plugin.recorder import PAUSE, Recorder
from vllm.v1.metrics.prometheus import get_prometheus_registry, unregister_vllm_metrics
made = Recorder(Path(sys.argv[1]))
made.write(PAUSE, 1, 1_500_000_000, 0, 2)
made.note_heap()
metrics.expose(made.directory, made.launch_ns)
Counter("theirs", "A counter of the server's own.").inc()
unregister_vllm_metrics()
registry = get_prometheus_registry()
list(parser.text_string_to_metric_families(exposition.generate_latest(registry).decode()))
print(generate_latest(registry).decode())
"""


@pytest.mark.parametrize("api_servers", [1, 2])
def test_vllms_own_registry_exposes_them(tmp_path: Path, api_servers: int) -> None:
    """With several API servers vLLM keeps its counters in files, and a registry has only those."""
    variables = dict(os.environ)
    if api_servers > 1:
        variables["PROMETHEUS_MULTIPROC_DIR"] = str(tmp_path)
    command = [sys.executable, "-c", SCRAPE, str(tmp_path / "recording")]
    said = subprocess.run(command, env=variables, capture_output=True, text=True, check=True).stdout
    labels = '{generation="2",process="frontend",rank="0",server=""}'
    assert f"repro_gc_pauses_total{labels} 1.0" in said
    assert f"repro_gc_pause_seconds_total{labels} 1.5" in said
    assert "# TYPE repro_gc_pauses_total counter" in said
    assert "# TYPE repro_gc_pause_duration_seconds histogram" in said
    assert re.search(r'^repro_gc_frozen_objects\{.*policy="stock".*\} \d', said, re.M)
    assert "theirs_total 1.0" in said


def test_a_fault_spoils_no_scrape(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    made = recorder(tmp_path)
    made.write(PAUSE, 1, 1, 0, 0)
    counters = PauseCounters(tmp_path, made.launch_ns)
    before = samples(counters)
    monkeypatch.setattr(fault_handling, "_said", set())
    monkeypatch.setattr(metrics.Launch, "new_events", lambda launch: 1 / 0)
    assert samples(counters) == samples(counters) == before
    assert len([r for r in caplog.records if "division by zero" in r.message]) == 1
    monkeypatch.setenv(fault_handling.STRICT, "1")
    with pytest.raises(ZeroDivisionError):
        counters.collect()
