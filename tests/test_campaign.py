"""A campaign: order, resume, what a failed run leaves. The child process is replaced here."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from builders import document

from repro.dataset.run import DatasetError, read_document
from repro.experiment import campaign, provenance
from repro.experiment.campaign import CampaignError, interleaved, run_campaign
from repro.experiment.config import Experiment
from repro.experiment.grid import grid
from repro.experiment.provenance import NoVllm
from repro.experiment.supervise import RunFailed


class Child:
    """Stands in for the engine's process; notes what it was asked to run."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.fails: set[str] = set()

    def run(self, experiment: Experiment, folder: Path, report: object) -> None:
        self.ran.append(experiment.policy)
        if experiment.policy in self.fails:
            raise RunFailed("worker died")

    def finish(self, folder: Path, experiment: Experiment, *_: object) -> None:
        found = document(folder.name)
        (folder / "run.json").write_text(json.dumps(found))


@pytest.fixture
def child(monkeypatch: pytest.MonkeyPatch) -> Child:
    made = Child()
    monkeypatch.setattr(campaign, "run_child", made.run)
    monkeypatch.setattr(campaign.collect, "finish", made.finish)
    monkeypatch.setattr(provenance, "vllm_version", lambda: "0.32.0")
    return made


def measure(root: Path, experiments: list[Experiment]) -> Path:
    return run_campaign(experiments, root, progress=False)


def test_finished_runs_are_never_measured_again(tmp_path: Path, child: Child) -> None:
    measure(tmp_path, grid(replicates=1))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("run.json")}
    measure(tmp_path, grid(replicates=2))
    assert len(child.ran) == 4
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())


def test_a_failed_run_is_marked_and_the_others_go_on(tmp_path: Path, child: Child) -> None:
    child.fails = {"freeze"}
    with pytest.raises(CampaignError, match=r"2 of 4 runs failed.*the first: worker died"):
        measure(tmp_path, grid(replicates=2))
    status = [read_document(path.parent)["status"] for path in tmp_path.rglob("run.json")]
    assert sorted(status) == ["failed", "failed", "ok", "ok"]
    failed = next(d for d in map(read_document, tmp_path.glob("*freeze*")) if "reason" in d)
    assert failed["reason"] == "worker died"


def test_a_failed_run_is_measured_again(tmp_path: Path, child: Child) -> None:
    child.fails = {"freeze"}
    with pytest.raises(CampaignError):
        measure(tmp_path, grid(replicates=1))
    child.fails = set()
    measure(tmp_path, grid(replicates=1))
    assert [d["status"] for d in map(read_document, tmp_path.glob("0*"))] == ["ok", "ok"]


def test_an_unfinished_run_is_measured_again(tmp_path: Path, child: Child) -> None:
    (experiment,) = grid(policies=["freeze"], replicates=1)
    left = tmp_path / campaign.run_name(experiment, "0.32.0")
    left.mkdir()
    (tmp_path / campaign.LOCK).touch()  # every campaign leaves one
    (left / "itl.parquet").write_bytes(b"half")
    measure(tmp_path, [experiment])
    assert child.ran == ["freeze"]
    assert not (left / "itl.parquet").exists()


def test_what_cannot_be_read_is_not_measured_over(tmp_path: Path, child: Child) -> None:
    (experiment,) = grid(policies=["freeze"], replicates=1)
    left = tmp_path / campaign.run_name(experiment, "0.32.0")
    left.mkdir()
    newer = document(left.name) | {"schema_version": 99}
    (left / "run.json").write_text(json.dumps(newer))
    with pytest.raises(DatasetError, match="99"):
        measure(tmp_path, [experiment])
    assert json.loads((left / "run.json").read_text()) == newer


def test_another_vllm_is_another_run(
    tmp_path: Path, child: Child, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure(tmp_path, grid(policies=["stock"], replicates=1))
    monkeypatch.setattr(provenance, "vllm_version", lambda: "0.23.0")
    measure(tmp_path, grid(policies=["stock"], replicates=1))
    assert child.ran == ["stock", "stock"]


def test_arms_are_interleaved_replicate_by_replicate() -> None:
    order = interleaved(grid(policies=["stock", "no-freeze", "freeze"], replicates=8))
    blocks = [tuple(e.policy for e in order[i : i + 3]) for i in range(0, 24, 3)]
    assert all(set(block) == {"stock", "no-freeze", "freeze"} for block in blocks)
    assert len(set(blocks)) > 2, "not one fixed order"
    assert [e.run_id for e in order] == [
        e.run_id for e in interleaved(grid(policies=["stock", "no-freeze", "freeze"], replicates=8))
    ]


def test_no_run_begins_that_would_not_end_in_time(tmp_path: Path, child: Child) -> None:
    run_campaign(grid(replicates=1, duration_s=60), tmp_path, budget_s=100, progress=False)
    assert child.ran == []


def test_two_campaigns_do_not_share_a_folder(tmp_path: Path, child: Child) -> None:
    held = campaign.locked(tmp_path)
    with held, pytest.raises(CampaignError, match="another campaign is running there"):
        measure(tmp_path, grid(replicates=1))
    measure(tmp_path, grid(replicates=1))


def test_an_unforeseen_fault_is_a_failed_run_too(
    tmp_path: Path, child: Child, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(campaign.collect, "finish", full)
    with pytest.raises(CampaignError, match="No space left"):
        measure(tmp_path, grid(replicates=1))
    reasons = [read_document(path.parent)["reason"] for path in tmp_path.rglob("run.json")]
    assert len(reasons) == 2
    assert all("No space left" in reason for reason in reasons)


def test_a_package_that_is_not_installed_is_refused(
    tmp_path: Path, child: Child, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(provenance, "plugin_registered", lambda: False)
    with pytest.raises(CampaignError, match="pip install the package"):
        measure(tmp_path, grid(replicates=1))
    assert child.ran == []


@pytest.mark.parametrize(
    "fields", [{"client": "capture"}, {"capture_policies": ["gc-on"], "policies": ["stock"]}]
)
def test_captures_without_a_gpu_are_refused_before_the_engine(
    fields: dict[str, Any], tmp_path: Path, child: Child, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(provenance, "gpu_query", lambda *fields: [])
    with pytest.raises(CampaignError, match=r"captures CUDA graphs and there is no GPU") as raised:
        measure(tmp_path / "new", grid(replicates=1, **fields))
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "new").exists()
    monkeypatch.setattr(provenance, "gpu_query", lambda *fields: [["H100"]])
    measure(tmp_path / "new", grid(replicates=1, **fields))
    assert len(child.ran) == 1


def test_a_run_without_load_needs_no_time_for_it(tmp_path: Path, child: Child) -> None:
    """The time a start-up takes is then all there is, whatever `duration_s` says."""
    (alone,) = grid(client="capture", replicates=1, duration_s=1000)
    with campaign.bar([alone], False) as shown:
        assert shown.total == campaign.START_S


def test_a_log_gets_a_line_a_phase_not_one_a_second(capsys: pytest.CaptureFixture[str]) -> None:
    alone = grid(replicates=1, duration_s=60)[0]
    with campaign.bar([alone], True) as shown:
        shown.begin(alone, "this-run")
        for second in range(60):
            shown.report("measure", second)
        shown.report("stop", 0)
    said = capsys.readouterr().err
    assert said.count("this-run: measure") == 1
    assert said.count("this-run: stop") >= 1


def test_too_little_memory_is_refused_before_the_engine(
    tmp_path: Path, child: Child, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(campaign, "MEMORY_NEEDED", 1 << 50)
    with pytest.raises(CampaignError, match=r"GiB of memory available.*close other programs"):
        measure(tmp_path, grid(replicates=1))
    assert child.ran == []


def test_without_vllm_nothing_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "VLLM_DISTRIBUTIONS", ("no-such-distribution",))
    with pytest.raises(NoVllm, match="vLLM is not installed"):
        run_campaign(grid(replicates=1), tmp_path / "new", progress=False)
    assert not (tmp_path / "new").exists()


STUCK = """
import sys, time
from pathlib import Path
from repro.experiment import campaign, provenance, supervise
provenance.vllm_version = lambda: "0.32.0"
supervise.CHILD = (sys.executable, "-c", "import sys, time, subprocess;"
    "grandchild = subprocess.Popen(['sleep', '1000']);"
    "open(sys.argv[1], 'w').write(str(grandchild.pid)); time.sleep(1000)", sys.argv[2])
from repro.experiment.grid import grid
campaign.run_campaign(grid(replicates=1), Path(sys.argv[1]), progress=False)
"""


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_campaign_leaves_no_process(tmp_path: Path, sent: signal.Signals) -> None:
    told = tmp_path / "grandchild"
    running = subprocess.Popen(
        [sys.executable, "-c", STUCK, str(tmp_path / "campaign"), str(told)],
        stderr=subprocess.DEVNULL,
        # A shell starts what it puts in the background with SIGINT ignored, and that is inherited.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    grandchild = wait_for_pid(told)
    running.send_signal(sent)
    assert running.wait(timeout=120) != 0
    wait_until_gone(grandchild)


def wait_for_pid(path: Path) -> int:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if path.exists() and (text := path.read_text()):
            return int(text)
        time.sleep(0.05)
    raise AssertionError(f"{path} was never written")


def wait_until_gone(pid: int) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        stat = Path(f"/proc/{pid}/stat")
        if not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z":
            return
        time.sleep(0.05)
    raise AssertionError(f"process {pid} outlived its campaign")


def test_a_folder_of_other_files_is_refused(tmp_path: Path, child: Child) -> None:
    (tmp_path / "notes.md").write_text("mine")
    with pytest.raises(CampaignError, match=r"holds other files; measure into a new folder"):
        measure(tmp_path, grid(replicates=1))
    assert child.ran == []
    assert [path.name for path in tmp_path.iterdir()] == ["notes.md"]
