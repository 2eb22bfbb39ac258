"""What each process notes of itself, on objects built like vLLM's, and stacks of long steps."""

from __future__ import annotations

import logging
import sys
import time
import types
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from repro import policy
from repro.plugin import fault_handling, process_facts, process_hooks, stack_dump
from repro.plugin.live_reader import Follower, Process, processes, recordings
from repro.plugin.recorder import PAUSE, Recorder


def config(rank: int = 0, **more: object) -> Any:
    parallel = {"data_parallel_index": rank, "data_parallel_rank": rank, "data_parallel_size": 4}
    parallel |= {"world_size": 2, **more}
    return SimpleNamespace(
        parallel_config=SimpleNamespace(**parallel), model_config=SimpleNamespace(is_moe=True)
    )


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The classes that vLLM's processes build, and what they then call."""

    class Built:
        def __init__(self, vllm_config: Any) -> None:
            self.vllm_config = vllm_config

    class Wrapper:
        def execute_model(self, seconds: float) -> str:
            time.sleep(seconds)
            return "output"

    names: dict[str, Any] = {
        "vllm.v1.engine.async_llm": {"AsyncLLM": type("AsyncLLM", (Built,), {})},
        "vllm.v1.engine.llm_engine": {"LLMEngine": type("LLMEngine", (Built,), {})},
        "vllm.v1.executor.abstract": {"Executor": type("Executor", (Built,), {})},
        "vllm.v1.engine.core": {"freeze_gc_heap": lambda: None},
        "vllm.v1.worker.worker_base": {"WorkerWrapperBase": Wrapper},
        "vllm.entrypoints.launchers.utils.server_utils": {"freeze_gc_heap": lambda: None},
    }
    for name, content in names.items():
        module = types.ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(fault_handling, "_said", set())
    return SimpleNamespace(**{k: v for content in names.values() for k, v in content.items()})


def made(folder: Path, **policies: str) -> Recorder:
    serving = {role: policy.serving(name) for role, name in policies.items()}
    recorder = Recorder(folder, policies=serving, asked=policies)
    recorder.write(PAUSE, 1, 1, 0, 2)
    return recorder


def noted(folder: Path) -> Process:
    (path,) = recordings(folder)
    process = Follower(path).process()
    assert process is not None
    return process


def test_a_main_process_is_a_front_end_once_it_builds_an_engines_client(
    tmp_path: Path, vllm: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    process_hooks.apply(made(tmp_path, frontend="freeze"))
    assert noted(tmp_path).role == "launcher"
    assert processes(tmp_path) == [], "no engine, as in `vllm serve --help`"
    vllm.AsyncLLM(config(2))
    process = noted(tmp_path)
    assert (process.role, process.rank) == ("frontend", 2), "of the rank this pod serves"
    about = {"dp_rank": 2, "dp_size": 4, "world_size": 2, "moe": True}
    assert about.items() <= process.about.items()
    assert len(processes(tmp_path)) == 1
    assert f"repro: frontend 2: recording into {tmp_path}, policy freeze" in caplog.text
    assert "policy freeze is not in force: its heap is not frozen" in caplog.text


def test_an_api_server_is_noted_again_after_its_own_freeze(tmp_path: Path, vllm: Any) -> None:
    recorder = made(tmp_path)
    process_hooks.apply(recorder)
    vllm.AsyncLLM(vllm_config=config())
    recorder.note(frozen=-1)
    sys.modules["vllm.entrypoints.launchers.utils.server_utils"].freeze_gc_heap()
    assert noted(tmp_path).about["frozen"] >= 0


def test_under_ray_engine_cores_and_workers_are_main_processes(tmp_path: Path, vllm: Any) -> None:
    process_hooks.apply(made(tmp_path))
    vllm.Executor(config(5))
    assert (noted(tmp_path).role, noted(tmp_path).rank) == ("engine", 5)


def test_a_node_that_only_holds_workers_has_no_engine_core(tmp_path: Path, vllm: Any) -> None:
    process_hooks.apply(made(tmp_path))
    vllm.Executor(config(0, node_rank_within_dp=1))
    assert noted(tmp_path).role == "launcher"


@pytest.mark.parametrize("asked", ["freeze", "stock"])
def test_a_policy_that_cannot_act_inside_the_engine_core_is_said_once(
    asked: str,
    tmp_path: Path,
    vllm: Any,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    recorder = made(tmp_path, worker=asked)
    process_hooks.apply(recorder)
    recorder.declare("engine", 0)
    process_hooks.worker_begins(recorder, SimpleNamespace(vllm_config=config(3)))
    assert recorder.about["worker_inside"] is True
    assert list(tmp_path.glob("census-*")) == [], "vLLM's own freeze is still to come"
    sys.modules["vllm.v1.engine.core"].freeze_gc_heap()
    assert len(list(tmp_path.glob("census-*"))) == 1
    said = [r.message for r in caplog.records if "cannot act" in r.message]
    assert len(said) == (asked == "freeze")
    assert all("set REPRO_ENGINE_POLICY=freeze" in message for message in said)


def test_an_unknown_process_is_named_in_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    for module in (process_facts, sys.modules["repro.plugin.recorder"]):
        monkeypatch.setattr(module, "process_name", lambda: "VLLM_DP_Coordinator")
    made(tmp_path)
    assert caplog.text.count("process VLLM_DP_Coordinator is no front end") == 1


# --- stacks of long steps -------------------------------------------------------------------------


def test_only_a_long_step_leaves_its_stack(
    tmp_path: Path, vllm: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    stack_dump.apply(made(tmp_path), bound=0.2)
    wrapper = vllm.WorkerWrapperBase()
    assert wrapper.execute_model(0) == "output"
    (path,) = tmp_path.glob("stacks-*.txt")
    assert path.read_text() == ""
    began = time.monotonic_ns()
    wrapper.execute_model(0.4)
    text = path.read_text()
    assert "in execute_model" in text, "the line that held the step"
    start, length = text.splitlines()[-2].removeprefix("in the step from ").split(" ns (monotonic)")
    assert began <= int(start) <= time.monotonic_ns()
    assert int(length.split()[1]) >= 400
    monkeypatch.setattr(stack_dump, "MOST_STACKS", 1)
    wrapper.execute_model(0.4)
    assert path.read_text() == text, "the file is bounded"


def test_a_folder_that_is_gone_costs_no_step(
    tmp_path: Path, vllm: Any, caplog: pytest.LogCaptureFixture
) -> None:
    recorder = made(tmp_path / "recording")
    recorder.directory = tmp_path / "gone"
    stack_dump.apply(recorder, bound=0.1)
    wrapper = vllm.WorkerWrapperBase()
    assert [wrapper.execute_model(0) for _ in range(3)] == ["output"] * 3
    assert caplog.text.count("stacks of long steps failed") == 1


@pytest.mark.parametrize("text", ["fast", "-1", "nan", "1e9"])
def test_a_bound_that_is_none_is_named(text: str) -> None:
    with pytest.raises(ValueError, match="give milliseconds"):
        stack_dump.bound_s(text)
