"""Someone's own server, and a campaign, whose parts die in turn: real engines, nothing replaced."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from builders import SECOND, run, steady
from servers import Server
from test_faults import small_disk

from repro import cli, dataset, plugin
from repro.dataset import recording
from repro.dataset.run import read_document
from repro.experiment import campaign
from repro.experiment.campaign import CampaignError, run_campaign
from repro.experiment.grid import grid
from repro.plugin.recorder import PAUSE
from repro.server import launches, numbers

pytestmark = [pytest.mark.engine, pytest.mark.slow]

ROLES = {"frontend", "engine", "worker"}

# --- a server that records: the tests go on from one another, the last ends it ------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("server") / "recording"


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    variables = {plugin.RECORD_DIR: str(folder), plugin.POLICY: "freeze"}
    made = Server(folder.parent / "server.log", **variables)
    yield made
    made.end()


def pauses(folder: Path) -> dict[str, int]:
    return {r.role: len(r.of_kind(PAUSE)) for r in recording.read_all(folder) if r.role in ROLES}


def test_metrics_count_what_every_process_recorded(server: Server, folder: Path) -> None:
    assert server.ask(30) == 30
    before = pauses(folder)
    counters = server.counters()
    after = pauses(folder)
    assert set(before) == ROLES
    for role in ROLES:
        of_role = {key: value for key, value in counters.items() if key[1] == role}
        number = sum(v for key, v in of_role.items() if key[0] == "repro_gc_pauses_total")
        assert 0 < before[role] <= number <= after[role]
        seconds = sum(v for key, v in of_role.items() if key[0] == "repro_gc_pause_seconds_total")
        assert 0 < seconds < 60


def test_the_policy_reached_the_worker(server: Server, folder: Path) -> None:
    (launch,), _ = launches.read(folder)
    assert all(worker.frozen for worker in launch.of("worker"))
    said = [line for line in server.said().splitlines() if "repro: " in line]
    assert len(said) == 3, "one line per process, nothing to complain about"
    assert all(f"recording into {folder}, policy" in line for line in said)
    assert cli.main(["check", str(folder)]) == 0
    assert cli.main(["check", f"http://127.0.0.1:{server.port}"]) == 0


def test_a_running_server_is_reported_on_and_watched(
    server: Server, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert [server.ask(40) for _ in range(5)] == [40] * 5
    (launch,), _ = launches.read(folder)
    found = numbers.measure(launch)
    assert found.steps >= 5 * 39
    assert found.steps_longest[0].length_ns < 5 * SECOND, "the time between requests is idle"
    assert cli.main(["report", str(folder), "--out", str(folder.parent / "page.html")]) == 0
    assert "Launch of" in (folder.parent / "page.html").read_text()
    assert cli.main(["watch", str(folder), "--once"]) == 0
    assert {"front end", "engine core 0", "worker 0"} <= {
        line[1:14].strip() for line in capsys.readouterr().out.splitlines()
    }


def test_a_removed_folder_does_not_disturb_the_server(server: Server, folder: Path) -> None:
    before = server.counters()
    shutil.copytree(folder, folder.parent / "copy")
    shutil.rmtree(folder)
    assert server.ask(30) == 30
    after = server.counters()
    assert all(after[key] >= value for key, value in before.items())


def test_a_killed_worker_leaves_its_recording_and_no_process(server: Server, folder: Path) -> None:
    asked = threading.Thread(target=lambda: _until_refused(server), daemon=True)
    asked.start()
    time.sleep(1)
    server.named("Worker").kill()
    assert server.gone(within_s=60)
    asked.join(timeout=60)
    assert set(pauses(folder.parent / "copy")) == ROLES


def _until_refused(server: Server) -> None:
    try:
        while True:
            server.ask(50)
    except (OSError, AssertionError, EOFError):
        return


# --- a server whose disk is full -----------------------------------------------------------------


def test_a_full_disk_stops_a_server_neither_at_its_start_nor_at_its_end(tmp_path: Path) -> None:
    for disk in small_disk(tmp_path / "disk", "1200k"):  # room for one of three processes
        made = Server(tmp_path / "server.log", **{plugin.RECORD_DIR: str(disk)})
        try:
            assert made.ask(30) == 30
            said = [line for line in made.said().splitlines() if "free space there" in line]
            assert len(said) == 2, "once in each process that could not record"
            assert {key[1] for key in made.counters()} == {"frontend"}
            made.process.terminate()
            assert made.gone(within_s=60)
            assert "repro/plugin" not in made.said(), "no traceback of ours"
        finally:
            made.end()
        assert pauses(disk)["frontend"] > 0


# --- a campaign whose engines die ----------------------------------------------------------------


def test_a_killed_worker_and_a_killed_engine_core_fail_their_runs_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path, "measured", steady(SECOND))
    victims = ["VLLM::Worker", "VLLM::EngineCore"]
    killed: list[psutil.Process] = []
    loaded: list[str] = []
    report = campaign.Bar.report

    def kill_when_loaded(shown: campaign.Bar, phase: str, seconds: float) -> None:
        report(shown, phase, seconds)
        if phase == "ramp" and shown.name not in loaded:
            loaded.append(shown.name)
            below = psutil.Process().children(recursive=True)
            killed.extend(below)
            victim = victims.pop(0)
            next(process for process in below if victim in " ".join(process.cmdline())).kill()

    monkeypatch.setattr(campaign.Bar, "report", kill_when_loaded)
    experiments = grid(replicates=1, concurrency=64, duration_s=300.0, enforce_eager=True)
    with pytest.raises(CampaignError, match="2 of 2 runs failed, the others are in"):
        run_campaign(experiments, tmp_path, progress=False)
    assert not victims
    assert not psutil.wait_procs(killed, timeout=30)[1]
    after = dataset.load(tmp_path)
    assert list(after.runs["run"]) == ["measured"]
    of_worker, of_core = (read_document(tmp_path / name) for name in loaded)
    assert "Worker proc VllmWorker-0 died unexpectedly" in of_worker["reason"]
    assert any(word in of_core["reason"] for word in ("EngineDead", "EngineCore", "engine core"))
    for failed in (of_worker, of_core):
        assert "\n" not in failed["reason"]
        assert failed["log_tail"]
