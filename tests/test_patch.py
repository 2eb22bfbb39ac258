"""Where a policy meets a Worker, on worker objects laid out like each vLLM's own.

The real workers are met in `test_engine.py`; here are the layouts this machine cannot run
(CUDA workers of 0.22.1 and 0.23.0), reduced to the calls that the patch hooks.
"""

from __future__ import annotations

import functools
import gc
import sys
import types
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from repro import policy
from repro.plugin import apply_policy, capture, hook_points, step_hooks, worker_hooks
from repro.plugin.hook_points import UnknownLayout
from repro.plugin.worker_hooks import hook_worker

calls: list[str] = []


@pytest.fixture(autouse=True)
def vllm_stub(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The few names of vLLM that the patch asks for, and the collector's calls written down."""
    gc_utils = types.ModuleType("vllm.utils.gc_utils")
    gc_utils.freeze_gc_heap = lambda: calls.append("upstream freeze")  # type: ignore[attr-defined]
    gc_utils.maybe_attach_gc_debug_callback = (  # type: ignore[attr-defined]
        lambda: calls.append("debug callback")
    )
    utils = types.ModuleType("vllm.utils")
    utils.gc_utils = gc_utils  # type: ignore[attr-defined]
    vllm = types.ModuleType("vllm")
    vllm.__version__ = "9.9.9"  # type: ignore[attr-defined]
    for name, module in {
        "vllm": vllm,
        "vllm.utils": utils,
        "vllm.utils.gc_utils": gc_utils,
    }.items():
        monkeypatch.setitem(sys.modules, name, module)
    for name in ("freeze", "unfreeze", "disable", "enable"):
        monkeypatch.setattr(gc, name, lambda name=name: calls.append(name))
    monkeypatch.setattr(gc, "collect", lambda generation=2: calls.append(f"collect {generation}"))
    calls.clear()
    yield


FREEZE = ["collect 0", "collect 1", "collect 2", "freeze"]


def worker(source: str, device: str = "cuda") -> Any:
    """A worker whose class is defined in a module of its own, as vLLM's are."""
    module = {"calls": calls, "freeze_gc_heap": lambda: calls.append("upstream freeze")}
    if "freeze_gc_heap" not in source:
        del module["freeze_gc_heap"]
    exec(source, module)
    made: Any = module["Worker"]()  # type: ignore[operator]
    made.rank = 0
    made.device = SimpleNamespace(type=device)
    parallel = SimpleNamespace(data_parallel_index=2, world_size=4)
    made.vllm_config = SimpleNamespace(
        parallel_config=parallel,
        compilation_config=SimpleNamespace(cudagraph_capture_sizes=[1, 2, 4]),
    )
    made.model_runner = SimpleNamespace(capture_model=lambda: calls.append("capture"))
    return made


BODY = """
class Worker:
    def compile_or_warm_up_model(self):
        self.model_runner.capture_model()
        calls.append("warm")
        {last}
        return "times"
    def execute_model(self, scheduler_output): ...
    def shutdown(self):
        {first}
        calls.append("down")
"""
BEFORE = BODY.format(last="", first="")  # 0.22.1, and the CPU worker's warm-up to this day
AFTER = BODY.format(
    last="freeze_gc_heap(); calls.append('debug callback')", first="import gc; gc.unfreeze()"
)


def run(made: Any, name: str) -> list[str]:
    hook_worker(made, policy.serving(name), policy.capture("stock"), None)
    assert made.compile_or_warm_up_model() == "times"
    made.shutdown()
    return calls


@pytest.mark.parametrize("source", [BEFORE, AFTER])
def test_freeze_is_the_last_thing_then_the_debug_callback(source: str) -> None:
    assert run(worker(source), "freeze")[:7] == ["capture", "warm", *FREEZE, "debug callback"]


@pytest.mark.parametrize("source", [BEFORE, AFTER])
def test_freeze_thaws_first_thing_at_shutdown(source: str) -> None:
    after = run(worker(source), "freeze")[7:]
    assert after[0] == "unfreeze"
    assert after[-1] == "down"


@pytest.mark.parametrize("source", [BEFORE, AFTER])
def test_no_freeze_undoes_upstream(source: str) -> None:
    assert not {"freeze", "upstream freeze"} & set(run(worker(source), "no-freeze"))


def test_stock_leaves_each_vllm_as_it_is() -> None:
    assert run(worker(BEFORE), "stock") == ["capture", "warm", "down"]
    calls.clear()
    expected = ["capture", "warm", "upstream freeze", "debug callback", "unfreeze", "down"]
    assert run(worker(AFTER), "stock") == expected


def test_upstreams_function_is_put_back() -> None:
    made = worker(AFTER)
    run(made, "no-freeze")
    calls.clear()
    type(made).compile_or_warm_up_model(made)
    assert "upstream freeze" in calls


def test_a_freeze_in_a_parent_class_is_found() -> None:
    source = AFTER + (
        "class Base(Worker): pass\n"
        "class Worker(Base):\n"
        "    def compile_or_warm_up_model(self):\n"
        "        return super().compile_or_warm_up_model()\n"
    )
    assert "upstream freeze" not in run(worker(source), "no-freeze")


@pytest.mark.parametrize("missing", ["compile_or_warm_up_model", "shutdown", "execute_model"])
def test_an_unknown_layout_names_the_version(missing: str) -> None:
    source = BEFORE.replace(f"def {missing}", f"def other_{missing}")
    with pytest.raises(UnknownLayout, match=rf"vLLM 9\.9\.9.*{missing}.*0\.22\.1 to 0\.32\.0"):
        hook_worker(worker(source), policy.serving("freeze"), policy.capture("stock"), None)


@pytest.mark.parametrize("source", [BEFORE, AFTER])
def test_a_second_warm_up_applies_the_policy_and_wraps_nothing_again(source: str) -> None:
    """Elastic expert parallelism warms a worker up again."""
    rows: list[tuple[int, ...]] = []
    notes: Any = Notes()
    notes.write = lambda *row: rows.append(row)
    made = worker(source)
    worker_hooks.wrap_warm_up(made, policy.serving("freeze"), notes)
    made.compile_or_warm_up_model()
    evidence = made.repro_evidence
    assert made.compile_or_warm_up_model() == "times"
    assert calls.count("freeze") == 2
    assert calls.count("census ready") == 1
    assert made.repro_evidence is evidence
    made.execute_model(SimpleNamespace(total_num_scheduled_tokens=7))
    assert len(rows) == 1, "each step is recorded once"


def test_a_second_warm_up_acts_once_per_step(monkeypatch: pytest.MonkeyPatch) -> None:
    acted: list[str] = []
    monkeypatch.setattr(apply_policy, "collect_due", lambda: acted.append("due"))
    made = worker(BEFORE)
    worker_hooks.wrap_warm_up(made, policy.serving("between-steps"), None)
    made.compile_or_warm_up_model()
    made.compile_or_warm_up_model()
    made.execute_model(SimpleNamespace(total_num_scheduled_tokens=7))
    assert acted == ["due"]


def test_ranks_are_counted_over_all_engines() -> None:
    assert hook_points.global_rank(worker(BEFORE)) == 8


def test_a_vllm_without_the_hooks_module_is_named() -> None:
    with pytest.raises(UnknownLayout, match=r"vLLM 9\.9\.9: there is no module vllm\."):
        worker_hooks.apply(policy.serving("freeze"), policy.capture("stock"), None)


# --- capture ------------------------------------------------------------------------------


def decorated(method: Any) -> Any:
    """Every `capture_model` of vLLM is behind a decorator of vLLM's or torch's."""

    @functools.wraps(method)
    def outer(self: Any, *args: Any, **kwargs: Any) -> Any:
        return method(self, *args, **kwargs)

    return outer


class V2Runner:
    """0.22 and 0.23: no handling of the collector but a collection before."""

    @decorated
    def capture_model(self) -> int:
        gc.collect()
        calls.append("capture")
        return 5


class V1Runner:
    """Freezes through a method of its own."""

    def _freeze_gc(self) -> Any:
        raise AssertionError("the policy replaces this")

    @decorated
    def capture_model(self) -> int:
        with self._freeze_gc():
            calls.append("capture")
        return 5


LATER = """
def freeze_gc_for_cudagraph_capture():
    raise AssertionError("the policy replaces this")

class LaterRunner:
    @decorated
    def capture_model(self):
        with freeze_gc_for_cudagraph_capture():
            calls.append("capture")
        return 5
"""


def later_runner() -> Any:
    """After 0.23: a function of the runner's module."""
    module = types.ModuleType("later_runner")
    vars(module).update(calls=calls, decorated=decorated)
    sys.modules["later_runner"] = module
    exec(LATER, vars(module))
    return module.LaterRunner()


@pytest.fixture
def torch_stub(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    config = SimpleNamespace(force_cudagraph_gc=False)
    torch = types.ModuleType("torch")
    torch.compiler = SimpleNamespace(config=config)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch", torch)
    return config


@pytest.mark.parametrize("runner", [V1Runner, V2Runner, later_runner])
@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        ("gc-on", ["collect 2"], []),
        ("frozen", ["collect 2", "freeze"], ["unfreeze", "collect 2"]),
        (
            "frozen-disabled",
            ["collect 2", "freeze", "disable"],
            ["unfreeze", "collect 2", "enable"],
        ),
        ("collect-per-graph", ["collect 2"], []),
    ],
)
def test_each_capture_policy_on_each_runner(
    runner: Callable[[], Any],
    name: str,
    before: list[str],
    after: list[str],
    torch_stub: SimpleNamespace,
) -> None:
    made = worker(BEFORE)
    made.model_runner = runner()
    capture.wrap_capture(made, policy.capture(name), None)
    assert made.model_runner.capture_model() == 5
    at = calls.index("capture")
    own = 1 if runner is V2Runner else 0  # its own collection comes between
    assert calls[: at - own] == before
    assert calls[at + 1 :] == after
    assert torch_stub.force_cudagraph_gc is False, "left as it was found"


@pytest.mark.parametrize("found", [False, True])
@pytest.mark.parametrize(
    ("name", "during"), [("collect-per-graph", lambda found: True), ("gc-on", lambda found: found)]
)
def test_only_collect_per_graph_tells_pytorch_to_collect(
    name: str, during: Callable[[bool], bool], found: bool, torch_stub: SimpleNamespace
) -> None:
    """What `gc-on` shows is PyTorch's own default, whatever that is."""
    seen = []
    torch_stub.force_cudagraph_gc = found

    class Runner:
        def capture_model(self) -> int:
            seen.append(torch_stub.force_cudagraph_gc)
            return 0

    made = worker(BEFORE)
    made.model_runner = Runner()
    capture.wrap_capture(made, policy.capture(name), None)
    made.model_runner.capture_model()
    assert seen == [during(found)]
    assert torch_stub.force_cudagraph_gc is found, "left as it was found"


@pytest.fixture
def counter(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """vLLM's count of captured graphs."""
    made = types.ModuleType("vllm.compilation.counter")
    made.compilation_counter = SimpleNamespace(num_cudagraph_captured=0)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm.compilation", types.ModuleType("vllm.compilation"))
    monkeypatch.setitem(sys.modules, "vllm.compilation.counter", made)
    return made.compilation_counter  # type: ignore[no-any-return]


class Notes:
    """A recorder that keeps what it is told."""

    role = "worker"
    about: dict[str, object] = {}  # noqa: RUF012

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def census(self, point: str) -> dict[str, Any]:
        calls.append(f"census {point}")
        return {}

    def capture(self, **row: Any) -> None:
        self.rows.append(row)

    def declare(self, role: str, rank: int) -> None: ...


def test_a_capture_for_profiling_is_passed_on_and_not_recorded(counter: SimpleNamespace) -> None:
    notes: Any = Notes()
    timed = capture.recorded(notes, "capture", "stock", lambda **how: 5 if how else 7)
    assert timed(profile_only=True) == 5
    assert (notes.rows, calls) == ([], [])
    assert timed() == 7
    assert calls == ["census capture"], "before the span, not in it"
    (row,) = notes.rows
    assert (row["kind"], row["capture_policy"], row["memory_bytes"]) == ("capture", "stock", 7)


def test_a_capture_policy_on_the_cpu_is_refused() -> None:
    made = worker(BEFORE, device="cpu")
    with pytest.raises(UnknownLayout, match="needs CUDA graphs"):
        capture.wrap_capture(made, policy.capture("frozen"), None)


def test_steps_are_recorded_with_their_tokens() -> None:
    rows: list[tuple[int, ...]] = []
    made = worker(BEFORE)
    recorder: Any = SimpleNamespace(write=lambda *row: rows.append(row))
    step_hooks.record_steps(made, recorder)
    for tokens in (7, 9):
        made.execute_model(SimpleNamespace(total_num_scheduled_tokens=tokens))
    assert [(row[3], row[4]) for row in rows] == [(7, 0), (9, 1)]
    assert rows[1][1] >= rows[0][1] + rows[0][2]
