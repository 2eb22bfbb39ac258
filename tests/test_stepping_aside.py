"""A fault of our own inside vLLM fails an experiment; in a server it is said once.

At every hook, on worker objects laid out like each vLLM's own (see `test_patch.py`).
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from test_patch import AFTER, BEFORE, vllm_stub, worker

from repro import plugin, policy
from repro.plugin import fault_handling, step_hooks, worker_hooks
from repro.plugin.capture import recorded

__all__ = ["vllm_stub"]  # a fixture that every test here uses


class Broken:
    """Whatever is asked of it fails, as a recorder with a fault nobody thought of would."""

    role = "worker"

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __getattr__(self, name: str) -> Callable[..., None]:
        def fail(*args: object, **kwargs: object) -> None:
            self.asked.append(name)
            raise RuntimeError(f"{name} is broken")

        return fail


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fault_handling, "_said", set())
    monkeypatch.delenv(fault_handling.STRICT, raising=False)


def said(caplog: pytest.LogCaptureFixture, text: str) -> int:
    return len([record for record in caplog.records if text in record.message])


def warm_up(made: Any, broken: Any) -> None:
    worker_hooks.wrap_warm_up(made, policy.serving("freeze"), broken)
    assert made.compile_or_warm_up_model() == "times"


def shut_down(made: Any, broken: Any) -> None:
    worker_hooks.wrap_shutdown(made, policy.serving("freeze"), broken)
    made.shutdown()


def take_steps(made: Any, broken: Any) -> None:
    made.execute_model = lambda scheduler_output: "output"
    step_hooks.record_steps(made, broken)
    for _ in range(3):
        assert made.execute_model(SimpleNamespace(total_num_scheduled_tokens=1)) == "output"


def take_a_step_of_another_shape(made: Any, broken: Any) -> None:
    made.execute_model = lambda scheduler_output, more=None: "output"
    step_hooks.record_steps(made, broken)
    assert made.execute_model(object(), more=1) == made.execute_model(object()) == "output"


def capture(made: Any, broken: Any) -> None:
    counter = SimpleNamespace(
        compilation_counter=SimpleNamespace(num_cudagraph_captured=0), __name__="counter"
    )
    sys.modules["vllm.compilation.counter"] = counter  # type: ignore[assignment]
    try:
        timed = recorded(broken, "capture", "stock", lambda: 5)
    finally:
        del sys.modules["vllm.compilation.counter"]
    assert timed() == 5


def freeze(made: Any, broken: Any) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(worker_hooks.apply_policy, "apply", broken.freeze)
        worker_hooks.wrap_warm_up(made, policy.serving("freeze"), None)
        assert made.compile_or_warm_up_model() == "times"


HOOKS = [warm_up, shut_down, take_steps, take_a_step_of_another_shape, capture, freeze]


@pytest.mark.parametrize("hook", HOOKS, ids=lambda hook: hook.__name__)
@pytest.mark.parametrize("source", [BEFORE, AFTER])
def test_a_fault_at_a_hook_is_said_once_and_vllm_goes_on(
    hook: Callable[[Any, Any], None], source: str, caplog: pytest.LogCaptureFixture
) -> None:
    hook(worker(source), Broken())
    assert said(caplog, "vLLM goes on without it") == 1


@pytest.mark.parametrize("hook", HOOKS, ids=lambda hook: hook.__name__)
def test_the_same_fault_fails_an_experiment(
    hook: Callable[[Any, Any], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(fault_handling.STRICT, "1")
    with pytest.raises((RuntimeError, AttributeError, TypeError)):
        hook(worker(AFTER), Broken())


def test_a_step_that_cannot_be_recorded_costs_one_try(caplog: pytest.LogCaptureFixture) -> None:
    broken = Broken()
    take_steps(worker(AFTER), broken)
    assert broken.asked == ["write"], "the hook took itself out"


INSTALL = """
import gc, sys, types, logging
logging.basicConfig(format="%(message)s")
vllm = types.ModuleType("vllm"); vllm.__version__ = "9.9.9"; vllm.__path__ = []
sys.modules["vllm"] = vllm
for name in ("v1", "v1.worker"):
    sys.modules["vllm." + name] = types.ModuleType("vllm." + name)
    sys.modules["vllm." + name].__path__ = []
base = sys.modules["vllm.v1.worker.worker_base"] = types.ModuleType("worker_base")
class WorkerWrapperBase:
    worker = types.SimpleNamespace()  # of a layout nobody knows
    if "no-hook" not in sys.argv:
        def init_device(self): return "device"
base.WorkerWrapperBase = WorkerWrapperBase
core = sys.modules["vllm.v1.engine"] = types.ModuleType("engine"); core.__path__ = []
core = sys.modules["vllm.v1.engine.core"] = types.ModuleType("core")
core.EngineCore = type("EngineCore", (), {"collective_rpc": lambda self, *a: "answers"})
clients = sys.modules["vllm.v1.engine.core_client"] = types.ModuleType("core_client")
clients.SyncMPClient = type("SyncMPClient", (), {"collective_rpc": None})
clients.AsyncMPClient = type("AsyncMPClient", (), {"collective_rpc_async": None})
from repro import plugin
plugin.install(); plugin.install()
if "no-hook" not in sys.argv:
    assert WorkerWrapperBase().init_device() == WorkerWrapperBase().init_device() == "device"
print(plugin.own_recorder is not None)
"""


def install(tmp_path: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", INSTALL, *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, plugin.RECORD_DIR: str(tmp_path / "recording"), **variables},
    )


WRONG_STARTS: dict[str, tuple[tuple[str, ...], dict[str, str], str, str]] = {
    "unknown policy": ((), {plugin.POLICY: "thaw"}, "unknown policy 'thaw': choose one of", "T"),
    "unknown capture policy": ((), {plugin.CAPTURE_POLICY: "x"}, "unknown capture policy 'x'", "T"),
    "unwritable folder": ((), {plugin.RECORD_DIR: "/proc/none"}, "recording failed", "F"),
    "unknown layout": (("no-hook",), {}, "WorkerWrapperBase has no init_device", "T"),
    "unknown worker": ((), {}, "hooking a worker failed", "T"),
}


@pytest.mark.parametrize("wrong", WRONG_STARTS)
def test_a_fault_at_the_start_is_said_once_and_vllm_goes_on(wrong: str, tmp_path: Path) -> None:
    arguments, variables, named, recorded = WRONG_STARTS[wrong]
    ended = install(tmp_path, *arguments, **variables)
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr.count(named) == 1
    assert ended.stdout.startswith(recorded), "what can still be recorded is"


@pytest.mark.parametrize("wrong", WRONG_STARTS)
def test_the_same_fault_at_the_start_fails_an_experiment(wrong: str, tmp_path: Path) -> None:
    arguments, variables, _, _ = WRONG_STARTS[wrong]
    ended = install(tmp_path, *arguments, **variables, **{fault_handling.STRICT: "1"})
    assert ended.returncode == 1
    assert "Error" in ended.stderr.splitlines()[-1] or "Unknown" in ended.stderr.splitlines()[-1]
