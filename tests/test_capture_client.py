"""A run that only captures, from the client to the data frame; the engine is replaced here."""

from __future__ import annotations

import dataclasses
import gc
import json
import sys
import types
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from repro import dataset
from repro.analysis.captures import capture_times
from repro.experiment import collect, provenance, verify
from repro.experiment.clients import capture
from repro.experiment.clients.engine import engine_arguments
from repro.experiment.clients.server import server_arguments
from repro.experiment.config import Experiment
from repro.experiment.grid import grid
from repro.experiment.verify import NotAsRequested
from repro.plugin import rpc
from repro.plugin.recorder import PAUSE, Recorder

NAMES = ("gc-on", "frozen", "collect-per-graph")
SPAN_NS = 1_000_000_000


class Engine:
    """Stands in for an engine with one worker: records what a capture leaves in the raw files."""

    def __init__(self, raw: Path, experiment: Experiment) -> None:
        self.engine_core = SimpleNamespace(shutdown=lambda: None)
        self.asked: list[str] = []
        self.now = 1
        self.frozen = 375
        self.recorders = {}
        for role in ("frontend", "engine", "worker"):
            recorder = Recorder(raw, strict=True)
            recorder.declare(role, 0)
            recorder.write(PAUSE, 1, 1, 0, 0)
            self.recorders[role] = recorder
        self.capture(experiment.capture_policy)

    def capture(self, name: str) -> None:
        worker = self.recorders["worker"]
        worker.census("capture")
        self.now += 10 * SPAN_NS
        for number in range(8 if name == "collect-per-graph" else 2):
            worker.write(PAUSE, self.now + number * 1000, 500, 0, 2)
        worker.capture(
            kind="capture",
            capture_policy=name,
            start_ns=self.now,
            duration_ns=SPAN_NS,
            graphs=12,
            memory_bytes=5,
        )

    def collective_rpc(self, method: str, args: tuple[str]) -> list[dict[str, Any]]:
        assert method == rpc.RECAPTURE_RPC
        self.asked.append(args[0])
        self.capture(args[0])
        return [{"rank": 0, "capture_policy": args[0], "freeze_count": 0, "free_bytes": 1}]

    def census(self, _: object, experiment: Experiment, point: str) -> list[dict[str, Any]]:
        counts = self.recorders["worker"].census(point)
        about = {"policy": "no-freeze", "freeze_count_before": 375, "freeze_count": self.frozen}
        about |= {"runner": "vllm.v1.worker.gpu.model_runner", "capture_sizes": 4}
        workers = [{**counts, **about, "frozen": self.frozen}]
        verify.policy_took_effect(experiment, workers)
        return workers


@pytest.fixture
def experiment() -> Experiment:
    (made,) = grid(client="capture", capture_policies=NAMES, recaptures=3, replicates=1)
    return made


@pytest.fixture
def engine(tmp_path: Path, experiment: Experiment, monkeypatch: pytest.MonkeyPatch) -> Engine:
    raw = tmp_path / "campaign" / "run" / collect.RAW
    raw.mkdir(parents=True)
    made = Engine(raw, experiment)
    monkeypatch.setattr(capture, "start_engine", lambda experiment, **more: made)
    monkeypatch.setattr(capture, "heap_census", made.census)
    monkeypatch.setattr(provenance, "vllm_version", lambda: "0.23.0")
    return made


def measure(tmp_path: Path, experiment: Experiment) -> Path:
    folder = tmp_path / "campaign" / "run"
    capture.measure(experiment, folder, lambda phase, seconds: None).write(folder, experiment)
    collect.finish(folder, experiment, datetime.now(UTC) - timedelta(minutes=5), {})
    return folder


def test_a_run_that_captures_becomes_data(
    tmp_path: Path, experiment: Experiment, engine: Engine
) -> None:
    folder = measure(tmp_path, experiment)
    found = json.loads((folder / "run.json").read_text())
    assert found["summary"]["output_tokens"] == 0
    assert 300 <= found["wall_s"] < 360, "from the start of the run on"
    assert len(found["policy"]["evidence"]) == 1 + 9
    times = capture_times(dataset.load(folder.parent))
    assert list(times["number"]) == list(range(10))
    assert list(times["capture_policy"]) == ["gc-on", *engine.asked]
    assert list(times["again"]) == [False] + [True] * 9
    full = dict(zip(times["capture_policy"], times["collections_2"], strict=True))
    assert full == {"gc-on": 2, "frozen": 2, "collect-per-graph": 8}
    assert set(times["runner"]) == {"vllm.v1.worker.gpu.model_runner"}
    assert (times["heap"] > 1000).all(), "the heap before each was counted"


def test_each_block_holds_every_policy_once_in_an_order_of_its_own(experiment: Experiment) -> None:
    order = capture.order(experiment)
    blocks = [tuple(order[at : at + 3]) for at in range(0, 9, 3)]
    assert all(sorted(block) == sorted(NAMES) for block in blocks)
    assert len(set(blocks)) > 1
    assert order == capture.order(experiment), "seeded"
    other = Experiment.from_dict({**dataclasses.asdict(experiment), "replicate": 3})
    assert order != capture.order(other)


def test_without_recaptures_the_start_up_capture_is_the_run(
    tmp_path: Path, engine: Engine, experiment: Experiment
) -> None:
    alone = Experiment(client="capture", policy="no-freeze", capture_policy="gc-on")
    folder = measure(tmp_path, alone)
    assert engine.asked == []
    assert len(capture_times(dataset.load(folder.parent))) == 1


def test_a_frozen_heap_fails_the_run(
    tmp_path: Path, engine: Engine, experiment: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    frozen = {"rank": 0, "capture_policy": "gc-on", "freeze_count": 800_000}
    monkeypatch.setattr(engine, "collective_rpc", lambda method, args: [frozen])
    with pytest.raises(NotAsRequested, match="800000 objects were frozen before a capture"):
        measure(tmp_path, experiment)


def test_a_collector_left_off_fails_the_run(
    tmp_path: Path, engine: Engine, experiment: Experiment
) -> None:
    original = engine.collective_rpc

    def and_leave_it_off(method: str, args: tuple[str]) -> list[dict[str, Any]]:
        gc.disable()
        return original(method, args)

    engine.collective_rpc = and_leave_it_off  # type: ignore[method-assign]
    try:
        with pytest.raises(NotAsRequested, match="collector off"):
            measure(tmp_path, experiment)
    finally:
        gc.enable()


@pytest.mark.parametrize(("size", "expected"), [(None, {}), (2048, 2048)])
def test_the_largest_batch_captured_is_vllms_own_unless_asked(
    size: int | None, expected: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    platforms = types.ModuleType("vllm.platforms")
    platforms.current_platform = SimpleNamespace(is_cpu=lambda: False)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", types.ModuleType("vllm"))
    monkeypatch.setitem(sys.modules, "vllm.platforms", platforms)
    arguments = engine_arguments(Experiment(max_cudagraph_capture_size=size))
    assert arguments.get("max_cudagraph_capture_size", {}) == expected


def test_further_engine_arguments_are_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    platforms = types.ModuleType("vllm.platforms")
    platforms.current_platform = SimpleNamespace(is_cpu=lambda: True)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", types.ModuleType("vllm"))
    monkeypatch.setitem(sys.modules, "vllm.platforms", platforms)
    asked = Experiment(vllm_args='{"dtype": "bfloat16", "eplb_config": {"window_size": 200}}')
    assert engine_arguments(asked)["eplb_config"] == {"window_size": 200}
    assert engine_arguments(asked)["dtype"] == "bfloat16", "in place of the experiment's"
    words = server_arguments(asked, "tokenizer", 8000)
    assert words[words.index("--eplb-config") + 1] == '{"window_size": 200}'
