"""Data-parallel ranks of a mixture of experts on vLLM's CPU backend: what the plugin supplies."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from repro import dataset
from repro.analysis.tails import step_intervals
from repro.dataset.run import read_document
from repro.experiment import collect
from repro.experiment.config import Experiment
from repro.experiment.supervise import RunFailed, run_child
from repro.plugin import cpu_collectives, fault_handling, hook_points

LOCKSTEP = {
    "client": "async_engine",
    "model": "tiny-moe",
    "device": "cpu",
    "data_parallel_size": 2,
    "enforce_eager": True,
    "max_num_seqs": 64,
    "concurrency": 64,
    "duration_s": 30.0,
}
SIZES = [1, 3, 2]


def worker(device: str, data_parallel_size: int) -> Any:
    parallel = SimpleNamespace(data_parallel_size=data_parallel_size)
    config = SimpleNamespace(parallel_config=parallel)
    return SimpleNamespace(vllm_config=config, device=SimpleNamespace(type=device))


@pytest.mark.parametrize(
    ("strict", "device", "ranks", "supplied"),
    [
        ("1", "cpu", 2, True),
        ("0", "cpu", 2, False),  # someone's server
        ("1", "cuda", 2, False),
        ("1", "cpu", 1, False),
    ],
)
def test_only_an_experiment_in_lockstep_on_the_cpu_is_supplied(
    strict: str, device: str, ranks: int, supplied: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Communicator:
        all_gatherv = reduce_scatterv = None

    module = SimpleNamespace(CpuCommunicator=Communicator)
    monkeypatch.setenv(fault_handling.STRICT, strict)
    monkeypatch.setattr(hook_points, "vllm_module", lambda _: module)
    record = cpu_collectives.supply(worker(device, ranks))
    assert bool(record) == supplied == (Communicator.all_gatherv is not None)
    if supplied:
        assert record["supplied"] == ["all_gatherv", "reduce_scatterv"]
        assert record["cpus"] == sorted(os.sched_getaffinity(0))


def exchange(rank: int, folder: str) -> None:
    """One rank: gather rows of its own number, then reduce rows that tell whose they are."""
    import torch
    from torch import distributed

    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=len(SIZES)
    )
    group = SimpleNamespace(world_size=len(SIZES), rank_in_group=rank, device_group=None)
    rows = torch.full((SIZES[rank], 2), float(rank))
    gathered = cpu_collectives.all_gatherv(group, [rows, rows[:, 0].long()], 0, SIZES)
    given = torch.arange(sum(SIZES)).float().reshape(-1, 1) * (rank + 1)
    own = cpu_collectives.reduce_scatterv(group, given, 0, SIZES)
    even = cpu_collectives.all_gatherv(group, rows[:1])
    untouched = bool((given.flatten() == torch.arange(sum(SIZES)) * (rank + 1)).all())
    found = [each.tolist() for each in (*gathered, own, even)]
    Path(folder, f"{rank}.json").write_text(json.dumps([*found, untouched]))


def test_ranks_with_unlike_numbers_of_rows(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="vLLM brings it")
    code = """
import os, sys, torch, test_cpu_collectives as ranks
folder = sys.argv[1]
for rank in range(len(ranks.SIZES)):
    if os.fork() == 0:
        ranks.exchange(rank, folder)
        os._exit(0)
for _ in ranks.SIZES:
    os.wait()
"""
    command = [sys.executable, "-c", code, str(tmp_path)]
    subprocess.run(command, cwd=Path(__file__).parent, check=True, timeout=120)
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(len(SIZES))]
    by_rank = [0, 1, 1, 1, 2, 2]
    sums = [[0.0], [6.0, 12.0, 18.0], [24.0, 30.0]]  # 1 + 2 + 3 times the number of the row
    for rank, (rows, numbers, own, even, untouched) in enumerate(found):
        assert rows == [[float(number)] * 2 for number in by_rank]
        assert numbers == by_rank
        assert own == [[value] for value in sums[rank]]
        assert even == [[0.0, 0.0], [1.0, 1.0], [2.0, 2.0]]
        assert untouched, "vLLM may use its input again"


def record(folder: Path, experiment: Experiment, report: Any) -> None:
    (folder / collect.RAW).mkdir(parents=True)
    started_at = datetime.now(UTC)
    run_child(experiment, folder, report)
    collect.finish(folder, experiment, started_at, {})


def stop_second_worker(raw: Path, stopped: list[int]) -> None:
    """Let the worker of rank 1 stand still for two seconds under load, in the ramp or the window.

    As its own census says when load begins. The window is long because on a busy machine a process
    that has slept may get its next turn ten seconds late.
    """
    pids: set[int] = set()
    while not pids:
        time.sleep(0.1)
        for file in raw.glob("census-*"):
            for row in map(json.loads, file.read_text().split("\n")[:-1]):
                if (row["role"], row["rank"], row["point"]) == ("worker", 1, "window-start"):
                    pids.add(row["pid"])
    time.sleep(2)
    worker = psutil.Process(pids.pop())
    stopped.append(time.monotonic_ns())
    worker.send_signal(signal.SIGSTOP)
    time.sleep(2)
    worker.send_signal(signal.SIGCONT)
    stopped.append(time.monotonic_ns())


@pytest.mark.engine
def test_two_ranks_wait_for_each_other(tmp_path: Path) -> None:
    """One worker stands still for two seconds; so does the other."""
    folder = tmp_path / "campaign" / "run"
    stopped: list[int] = []
    threading.Thread(
        target=stop_second_worker, args=(folder / collect.RAW, stopped), daemon=True
    ).start()
    experiment = Experiment(**LOCKSTEP, backlog=16)
    record(folder, experiment, lambda phase, seconds: None)
    document = read_document(folder)
    for evidence in document["policy"]["evidence"]:
        assert evidence["supplied"] == ["all_gatherv", "reduce_scatterv"]
    own, other = (set(each["cpus"]) for each in document["policy"]["evidence"])
    assert own and other and not own & other
    campaign = dataset.load(tmp_path / "campaign")
    heap = campaign.census.set_index(["point", "role", "rank"])["tracked"]
    for rank in range(2):
        left = heap["window-end", "worker", rank] - heap["shutdown", "worker", rank]
        assert left > 4 * experiment.concurrency, "no request is left at shutdown"
    census = campaign.census[campaign.census["point"] == "window-end"]
    roles = {"worker": 2, "engine": 2, "frontend": 1}
    assert census["role"].value_counts().to_dict() == roles
    steps = dataset.in_window(campaign, campaign.steps)
    # A step holds one token of each request in flight, and the prompts of those just let in.
    assert steps.groupby("rank")["tokens"].median().ge(experiment.concurrency).to_dict() == {
        0: True,
        1: True,
    }
    intervals = step_intervals(campaign.steps)
    # A busy machine may stretch other steps and send a signal late: it stood still between these.
    stop_ns, continue_ns = stopped
    until = intervals["t_ns"].clip(upper=continue_ns)
    since = (intervals["t_ns"] - intervals["interval_ns"]).clip(lower=stop_ns)
    held = intervals[until - since > 1.2e9]
    seconds = (stop_ns - document["window"]["start_ns"]) / 1e9
    assert set(held["rank"]) == {0, 1}, f"stopped {seconds} s into the window"


@pytest.mark.engine
@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"enable_expert_parallel": True}, "enable_expert_parallel True on the CPU backend"),
        ({"enforce_eager": False}, "data_parallel_size 2 .* set enforce_eager"),
    ],
)
def test_what_the_cpu_backend_cannot_do_is_refused_before_an_engine_starts(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    began = time.monotonic()
    with pytest.raises(RunFailed, match=message):
        record(tmp_path / "run", Experiment(**{**LOCKSTEP, **changes}), lambda *_: None)
    assert time.monotonic() - began < 120
