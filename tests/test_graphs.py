"""Captured again in one process, on runners and a GPU laid out like the real ones.

The stand-ins keep graphs where vLLM 0.22.1, 0.23.0 and 0.32.0 keep them, and refuse what those
and PyTorch's allocator refuse: a graph captured twice, and a memory pool whose graphs are gone.
"""

from __future__ import annotations

import gc
import sys
import types
import weakref
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from repro import policy
from repro.plugin import discard_graphs
from repro.plugin.capture import wrap_capture
from repro.plugin.hook_points import UnknownLayout
from repro.plugin.rpc import RECAPTURE_RPC

SIZES = (4, 2, 1)
PIECES = 3
FULL_AND_PIECES = len(SIZES) * (PIECES + 1)

calls: list[str] = []


class Graph:
    """A CUDA graph in a pool of the GPU's memory."""

    used: ClassVar[dict[int, weakref.WeakSet[Graph]]] = {}

    def __init__(self, pool: int) -> None:
        if pool in self.used and not self.used[pool]:
            raise RuntimeError("use_count > 0 INTERNAL ASSERT FAILED")
        self.used.setdefault(pool, weakref.WeakSet()).add(self)
        counter.num_cudagraph_captured += 1


counter = SimpleNamespace(num_cudagraph_captured=0)


def wrapper_class(entries: str) -> type:
    """`CUDAGraphWrapper` and its breakable twin differ in the name of what they keep."""

    class Wrapper:
        _all_instances: ClassVar[weakref.WeakSet[Any]] = weakref.WeakSet()

        def __init__(self) -> None:
            setattr(self, entries, {})
            self.graph_pool = 0
            type(self)._all_instances.add(self)

        @classmethod
        def clear_all_graphs(cls) -> None:
            for instance in list(cls._all_instances):
                getattr(instance, entries).clear()

        def __call__(self, size: int) -> None:
            kept = getattr(self, entries)
            if size not in kept:
                kept[size] = Graph(self.graph_pool)

    return Wrapper


class Manager:
    """The V2 runner's `ModelCudaGraphManager`."""

    def __init__(self) -> None:
        self.graphs: dict[int, Graph] = {}
        self.pool = 0
        self._graphs_captured = False
        self.hidden_states: object = None
        self.aux_hidden_states: list[object] = []
        self.intermediate_tensors: object = None

    def capture(self, pieces: list[Any]) -> None:
        for size in SIZES:
            for piece in pieces:
                piece(size)
        for size in SIZES:
            if self.hidden_states is None:
                calls.append("allocate hidden states")
                self.hidden_states = object()
            assert size not in self.graphs, f"Graph already captured for {size}"
            self.graphs[size] = Graph(self.pool)
        self._graphs_captured = True


class V2Runner:
    def __init__(self, wrapper: type) -> None:
        self.pieces = [wrapper() for _ in range(PIECES)]
        self.cudagraph_manager = Manager()

    def capture_model(self) -> int:
        calls.append("capture")
        self.cudagraph_manager.capture(self.pieces)
        return 5


class V1Runner:
    """Its full graphs are in a wrapper around the whole model."""

    def __init__(self, wrapper: type) -> None:
        self.pieces = [wrapper() for _ in range(PIECES + 1)]
        self.cudagraph_dispatcher = object()

    def _freeze_gc(self) -> Any:
        raise AssertionError("the policy replaces this")

    def capture_model(self) -> int:
        with self._freeze_gc():
            calls.append("capture")
            for size in SIZES:
                for piece in self.pieces:
                    piece(size)
        return 5


class Notes:
    """A recorder that keeps what it is told."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def census(self, point: str) -> None:
        calls.append(f"census {point}")

    def capture(self, **row: Any) -> None:
        self.rows.append(row)


@pytest.fixture(autouse=True)
def stubs(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """The names of vLLM and torch that a capture made again asks for."""
    pools = iter(range(1, 99))
    wrappers = SimpleNamespace(
        usual=wrapper_class("concrete_cudagraph_entries"), breakable=wrapper_class("entries")
    )
    modules: dict[str, dict[str, Any]] = {
        "vllm": {"__version__": "9.9.9"},
        "vllm.platforms": {
            "current_platform": SimpleNamespace(graph_pool_handle=lambda: next(pools))
        },
        "vllm.compilation": {},
        "vllm.compilation.counter": {"compilation_counter": counter},
        "vllm.compilation.cuda_graph": {"CUDAGraphWrapper": wrappers.usual},
        "vllm.compilation.breakable_cudagraph": {"BreakableCUDAGraphWrapper": wrappers.breakable},
        "torch": {
            "compiler": SimpleNamespace(config=SimpleNamespace(force_cudagraph_gc=False)),
            "cuda": SimpleNamespace(
                synchronize=lambda: calls.append("synchronize"),
                empty_cache=lambda: calls.append("empty cache"),
                mem_get_info=lambda: (7, 9),
            ),
            "_C": SimpleNamespace(_cuda_clearCublasWorkspaces=lambda: calls.append("workspaces")),
        },
    }
    for name, contents in modules.items():
        module = types.ModuleType(name)
        vars(module).update(contents)
        monkeypatch.setitem(sys.modules, name, module)
    for name in ("freeze", "unfreeze", "disable", "enable"):
        monkeypatch.setattr(gc, name, lambda name=name: calls.append(name))
    monkeypatch.setattr(gc, "collect", lambda generation=2: calls.append("collect"))
    monkeypatch.setattr(gc, "get_freeze_count", lambda: 3)
    Graph.used.clear()
    yield wrappers
    calls.clear()


def worker(runner: Any) -> Any:
    return SimpleNamespace(
        rank=1,
        device=SimpleNamespace(type="cuda"),
        model_runner=runner,
        vllm_config=SimpleNamespace(
            speculative_config=None,
            model_config=SimpleNamespace(is_multimodal_model=False),
            parallel_config=SimpleNamespace(
                use_ubatching=False, data_parallel_index=0, world_size=2
            ),
        ),
    )


@pytest.fixture(params=[V1Runner, V2Runner])
def started(request: pytest.FixtureRequest, stubs: SimpleNamespace) -> tuple[Any, Notes]:
    """A worker after its start-up capture under `gc-on`, and its recorder."""
    made, notes = worker(request.param(stubs.usual)), Notes()
    wrap_capture(made, policy.capture("gc-on"), notes)  # type: ignore[arg-type]
    made.model_runner.capture_model()
    calls.clear()
    return made, notes


def test_every_capture_takes_all_graphs_under_its_own_policy(started: tuple[Any, Notes]) -> None:
    made, notes = started
    asked = ["frozen", "gc-on", "collect-per-graph", "frozen-disabled", "gc-on"]
    found = [getattr(made, RECAPTURE_RPC)(name) for name in asked]
    assert [row["capture_policy"] for row in notes.rows] == ["gc-on", *asked]
    assert {row["graphs"] for row in notes.rows} == {FULL_AND_PIECES}
    assert {row["memory_bytes"] for row in notes.rows} == {5}
    assert found[0] == {
        "rank": 1,
        "capture_policy": "frozen",
        "freeze_count": 3,
        "free_bytes": 7,
    }


def test_all_is_given_back_before_the_clock_starts(started: tuple[Any, Notes]) -> None:
    made, _ = started
    getattr(made, RECAPTURE_RPC)("frozen")
    at = calls.index("census capture")
    back = ["synchronize", "unfreeze", "collect", "workspaces", "empty cache", "synchronize"]
    assert calls[:at] == back
    assert calls[at + 1 : at + 4] == ["collect", "freeze", "capture"]


def test_no_graph_of_before_is_left(started: tuple[Any, Notes]) -> None:
    made, _ = started
    before = [graph for pool in Graph.used.values() for graph in pool]
    assert len(before) == FULL_AND_PIECES
    left = weakref.WeakSet(before)
    del before
    discard_graphs.discard(made)
    assert not left


def test_buffers_of_full_graphs_are_made_anew(stubs: SimpleNamespace) -> None:
    """Else the first capture alone would pay for them."""
    made, notes = worker(V2Runner(stubs.usual)), Notes()
    wrap_capture(made, policy.capture("gc-on"), notes)  # type: ignore[arg-type]
    made.model_runner.capture_model()
    getattr(made, RECAPTURE_RPC)("gc-on")
    assert calls.count("allocate hidden states") == 2
    assert made.model_runner.cudagraph_manager._graphs_captured


def test_breakable_graphs_are_discarded_too(stubs: SimpleNamespace) -> None:
    made, notes = worker(V2Runner(stubs.breakable)), Notes()
    wrap_capture(made, policy.capture("gc-on"), notes)  # type: ignore[arg-type]
    made.model_runner.capture_model()
    getattr(made, RECAPTURE_RPC)("gc-on")
    assert {row["graphs"] for row in notes.rows} == {FULL_AND_PIECES}


def test_an_unknown_policy_leaves_the_graphs(started: tuple[Any, Notes]) -> None:
    made, _ = started
    with pytest.raises(policy.UnknownPolicy, match="gc-off"):
        getattr(made, RECAPTURE_RPC)("gc-off")
    assert calls == []


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (lambda w: setattr(w.vllm_config, "speculative_config", 1), "speculative decoding"),
        (lambda w: setattr(w.vllm_config.model_config, "is_multimodal_model", True), "multimodal"),
        (lambda w: setattr(w.vllm_config.parallel_config, "use_ubatching", True), "microbatching"),
        (lambda w: delattr(w.model_runner.cudagraph_manager, "graphs"), "Manager has no graphs"),
        (lambda w: delattr(w.model_runner, "cudagraph_manager"), "no cudagraph_dispatcher"),
        (lambda w: delattr(w.model_runner.pieces[0], "graph_pool"), "Wrapper has no graph_pool"),
    ],
)
def test_graphs_elsewhere_are_refused_naming_the_version(
    spoil: Callable[[Any], None], named: str, stubs: SimpleNamespace
) -> None:
    made = worker(V2Runner(stubs.usual))
    spoil(made)
    with pytest.raises(UnknownLayout, match=rf"vLLM 9\.9\.9.*{named}.*0\.22\.1 to 0\.32\.0"):
        discard_graphs.discard(made)
