"""End to end, with a real vLLM engine on this machine: minutes, and nothing replaced."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from engines import measure

from repro import dataset, plugin
from repro.dataset import Campaign
from repro.dataset.run import read_document
from repro.experiment import campaign, provenance, supervise
from repro.experiment.campaign import CampaignError
from repro.experiment.config import MODELS, Experiment

pytestmark = pytest.mark.engine


def worker_of(parent: int) -> psutil.Process:
    """The vLLM worker below a process, once it is there."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        for process in psutil.Process(parent).children(recursive=True):
            try:
                if "Worker" in " ".join(process.cmdline()):
                    return process
            except psutil.Error:
                continue
        time.sleep(0.2)
    raise AssertionError("no worker appeared")


def assert_gone(processes: list[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(processes, timeout=30)
    assert not alive, [process.name() for process in alive]


@pytest.fixture(scope="module")
def frozen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Campaign]:
    root, before = tmp_path_factory.mktemp("campaign"), psutil.Process().children(recursive=True)
    folder = measure(root, policy="freeze", enforce_eager=False)  # a compile is recorded too
    found = read_document(folder)
    assert found["status"] == "ok", (found.get("reason"), found.get("log_tail"))
    yield dataset.load(root)
    left = set(psutil.Process().children(recursive=True)) - set(before)
    assert not any(map(supervise.alive, left)), f"outlived its engine: {left}"


def test_every_process_is_recorded(frozen: Campaign) -> None:
    assert {"frontend", "engine", "worker"} == set(frozen.pauses["role"])
    assert frozen.pauses.groupby("role")["pid"].nunique().max() == 1
    kinds = frozen.captures["kind"].unique().tolist()
    assert kinds in (["compile"], ["capture"])


def test_the_freeze_holds_in_the_worker_and_ends_at_shutdown(frozen: Campaign) -> None:
    worker = frozen.census[frozen.census["role"] == "worker"].set_index("point")
    for point in ("ready", "window-start", "window-end"):
        assert worker.loc[point, "frozen"] > 100_000, point
        assert worker.loc[point, "tracked"] < worker.loc[point, "frozen"] / 10, point
    assert worker.loc["shutdown", "frozen"] < 1000
    assert worker.loc["shutdown", "tracked"] > 100_000
    under_load, ended = worker.loc[["window-end", "shutdown"], ["tracked", "frozen"]].sum(axis=1)
    (requests,) = frozen.runs["concurrency"]
    assert under_load - ended > 4 * requests, "no request is left by then"


def test_client_and_worker_agree_on_the_tokens(frozen: Campaign) -> None:
    """Each token but a request's first is one gap, and each was a token of some step."""
    (run,) = frozen.runs.itertuples()
    requests = frozen.requests
    gaps = dataset.in_window(frozen, frozen.itl)["count"].sum()
    firsts = len(dataset.in_window(frozen, requests))
    assert run.output_tokens == pytest.approx(gaps + firsts, rel=0.05)
    steps = dataset.in_window(frozen, frozen.steps)
    assert steps["step"].is_monotonic_increasing
    assert steps["tokens"].sum() > run.output_tokens


def test_itl_and_steps_are_on_one_clock(frozen: Campaign) -> None:
    itl = dataset.in_window(frozen, frozen.itl)
    steps = dataset.in_window(frozen, frozen.steps)
    assert itl["itl_ns"].median() == pytest.approx(steps["start_ns"].diff().median(), rel=0.3)


CONFIGURED = """
from repro.experiment.clients.engine import engine_arguments
from repro.experiment.config import Experiment
from repro.experiment.verify import executor_is
from vllm import EngineArgs
arguments = engine_arguments(Experiment(policy="no-freeze", executor="uni"))
parallel = EngineArgs(**arguments).create_engine_config().parallel_config
executor_is("uni", parallel.distributed_executor_backend)
"""


@pytest.mark.slow
def test_uni_is_uni_or_the_run_fails() -> None:
    """vLLM's CPU backend turns `uni` into `mp` without a word: such a run is no data."""
    ended = subprocess.run([sys.executable, "-c", CONFIGURED], capture_output=True, text=True)
    if provenance.gpu_query("name"):
        assert ended.returncode == 0, ended.stderr[-3000:]
    else:
        assert "NotAsRequested: executor 'uni' asked for, vLLM took 'mp'" in ended.stderr


@pytest.mark.slow
def test_a_policy_that_does_not_reach_the_worker_fails_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = supervise.environment

    def overridden(experiment: Experiment, folder: Path) -> dict[str, str]:
        return {**original(experiment, folder), plugin.POLICY: "stock"}

    monkeypatch.setattr(supervise, "environment", overridden)
    with pytest.raises(CampaignError, match="policy 'stock' instead of 'freeze'"):
        measure(tmp_path, policy="freeze")


def test_an_engine_that_dies_at_start_says_why_in_one_line(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    config = json.loads((MODELS / "tiny" / "config.json").read_text())
    config["architectures"] = ["NoSuchForCausalLM"]
    (broken / "config.json").write_text(json.dumps(config))
    with pytest.raises(CampaignError, match="NoSuchForCausalLM") as raised:
        measure(tmp_path / "campaign", model=str(broken))
    assert "\n" not in str(raised.value)


CAMPAIGN = """
import sys
from pathlib import Path
from repro.experiment.campaign import run_campaign
from repro.experiment.grid import grid
experiments = grid(policies=["freeze"], replicates=1, enforce_eager=True)
run_campaign(experiments, Path(sys.argv[1]), progress=False)
"""


@pytest.mark.slow
def test_a_killed_kernel_leaves_no_engine(tmp_path: Path) -> None:
    """`kill -9` of the process that runs the campaign, as when a notebook's kernel is killed."""
    kernel = subprocess.Popen([sys.executable, "-c", CAMPAIGN, str(tmp_path)])
    worker_of(kernel.pid)
    children = psutil.Process(kernel.pid).children(recursive=True)
    kernel.kill()
    kernel.wait()
    assert_gone(children)
    assert not list(tmp_path.rglob("run.json")), "an unfinished run is not data"
    with campaign.locked(tmp_path):
        pass  # the lock went with the process
