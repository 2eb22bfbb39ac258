"""Holds of an API server's event loop, on an output handler that yields only where it must wait."""

from __future__ import annotations

import asyncio
import sys
import time
import types
from pathlib import Path
from typing import Any

import pytest

from repro.dataset import recording
from repro.dataset.schema import TABLES
from repro.plugin import engine_frontend_hooks, fault_handling, hook_points, output_handler
from repro.plugin.hook_points import UnknownLayout
from repro.plugin.recorder import SERVED, Recorder

CALL_S = 0.012
MS = 1_000_000


class OutputProcessor:
    """Takes so long for each call, as vLLM's does for a chunk of outputs."""

    def process_outputs(self, outputs: list[int], timestamp: float = 0.0) -> str:
        time.sleep(CALL_S)
        return f"{len(outputs)} at {timestamp}"


@pytest.fixture
def processor(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A fresh processor class in the place where vLLM has its own."""
    fresh = type("OutputProcessor", (OutputProcessor,), {})
    module = types.ModuleType("vllm.v1.engine.output_processor")
    module.OutputProcessor = fresh  # type: ignore[attr-defined]
    monkeypatch.setattr(hook_points, "vllm_module", lambda name: {module.__name__: module}[name])
    return fresh()


def holds(folder: Path) -> recording.Columns:
    """The table, as an API server's recording gives it."""
    return recording.tables(folder, recording.read_all(folder))["holds"]


def recorder(folder: Path) -> Recorder:
    made = Recorder(folder)
    made.declare("frontend", 0)
    return made


async def handle(processor: Any, messages: int, *, yields: bool) -> None:
    for number in range(messages):
        assert processor.process_outputs([0] * 3, timestamp=number) == f"3 at {number}"
        if yields:
            await asyncio.sleep(0)


async def turns(processor: Any, messages: int, *, yields: bool) -> None:
    await handle(processor, messages, yields=yields)
    await asyncio.sleep(0)  # whatever was to follow the turn follows it


def test_a_backlog_taken_off_in_one_turn_is_one_hold(tmp_path: Path, processor: Any) -> None:
    output_handler.record_holds(recorder(tmp_path))
    began = time.monotonic_ns()
    asyncio.run(turns(processor, 5, yields=False))
    found = holds(tmp_path)
    assert found["outputs"].tolist() == [15]
    assert found["calls"].tolist() == [5]
    assert 5 * CALL_S * 1e9 <= found["duration_ns"][0] <= time.monotonic_ns() - began
    assert found["start_ns"][0] >= began


def test_a_handler_that_lets_others_run_holds_nothing(tmp_path: Path, processor: Any) -> None:
    output_handler.record_holds(recorder(tmp_path))
    asyncio.run(turns(processor, 5, yields=True))
    found = holds(tmp_path)
    # A busy machine may stretch one call to the length of a hold; several in one are a hold.
    assert found == {} or set(found["calls"].tolist()) <= {1}


def test_outputs_are_counted_once_per_second() -> None:
    written: list[tuple[int, ...]] = []
    hold = output_handler.Hold(lambda *event: written.append(event))
    for call in range(1, 8):
        hold.extend(call * 400 * MS, call * 400 * MS + 300 * MS, 3)
    assert written == [
        (SERVED, 400 * MS, 1100 * MS, 9, 0),
        (SERVED, 1500 * MS, 1200 * MS, 9, 0),
    ]


def test_without_an_event_loop_nobody_is_kept(tmp_path: Path, processor: Any) -> None:
    made = recorder(tmp_path)
    output_handler.record_holds(made)
    for _ in range(5):
        processor.process_outputs([1])
    asyncio.run(turns(processor, 2, yields=False))
    assert holds(tmp_path)["calls"].tolist() == [2], "those before the loop are not counted in"


def test_a_fault_of_ours_leaves_the_handler_alone(
    processor: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(fault_handling, "_said", set())
    monkeypatch.delenv(fault_handling.STRICT, raising=False)

    def broken(*event: int) -> None:
        raise RuntimeError("the disk is on fire")

    output_handler.record_holds(types.SimpleNamespace(write=broken))  # type: ignore[arg-type]
    asyncio.run(turns(processor, 3, yields=False))
    asyncio.run(turns(processor, 3, yields=False))
    assert [output_handler.WHAT in record.message for record in caplog.records] == [True]


def test_a_vllm_without_an_output_processor_is_named(
    processor: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(OutputProcessor, "process_outputs")
    vllm = types.ModuleType("vllm")
    vllm.__version__ = "9.9.9"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", vllm)
    with pytest.raises(UnknownLayout, match=r"OutputProcessor has no process_outputs"):
        output_handler.record_holds(types.SimpleNamespace(write=print))  # type: ignore[arg-type]


def test_holds_are_the_front_ends_alone(tmp_path: Path) -> None:
    for role in ("frontend", "engine"):
        made = Recorder(tmp_path)
        made.declare(role, 0)
        made.write(output_handler.HOLD, 1, 2, 3, 4)
    found = holds(tmp_path)
    assert {name: found[name].tolist() for name in TABLES["holds"].names} == {
        "start_ns": [1],
        "duration_ns": [2],
        "outputs": [3],
        "calls": [4],
    }


MESSAGE_MS = 10


@pytest.mark.parametrize(
    ("bound_ms", "seen"),
    [
        (None, [0, 6]),  # vLLM's handler: the others run when its queue is empty
        (0, [0, 1, 2, 3, 4, 5, 6]),
        (2.5 * MESSAGE_MS, [0, 3, 6]),
    ],
)
def test_others_run_between_messages_once_they_have_waited_long_enough(
    bound_ms: float | None, seen: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class AsyncMPClient:
        def __init__(self) -> None:
            self.queue: asyncio.Queue[str] = asyncio.Queue()

        async def get_output_async(self) -> str:
            return await self.queue.get()

    clients = types.ModuleType("vllm.v1.engine.core_client")
    clients.AsyncMPClient = AsyncMPClient  # type: ignore[attr-defined]
    monkeypatch.setattr(hook_points, "vllm_module", lambda name: {clients.__name__: clients}[name])
    done, found = 0, [0]
    clock = types.SimpleNamespace(monotonic_ns=lambda: done * MESSAGE_MS * 1_000_000)
    monkeypatch.setattr(engine_frontend_hooks, "time", clock)
    made = recorder(tmp_path)
    if bound_ms is not None:
        engine_frontend_hooks.bound_output_handler(bound_ms, made)

    async def handler(client: Any) -> None:
        nonlocal done
        while True:
            assert await client.get_output_async() == "message"
            done += 1

    async def serve() -> None:
        client = AsyncMPClient()
        for _ in range(6):
            client.queue.put_nowait("message")
        task = asyncio.create_task(handler(client))
        while found[-1] < 6:
            await asyncio.sleep(0)
            if done != found[-1]:
                found.append(done)
        task.cancel()

    asyncio.run(serve())
    assert found == seen
    noted = {0: 4, 25.0: 2}  # yields, to the power of two below
    assert made.about.get("output_yields") == noted.get(bound_ms)  # type: ignore[arg-type]
