"""Client `async_engine`: every data-parallel rank kept busy through vLLM's async engine.

vLLM's offline `LLM` drives one data-parallel rank; its async engine starts and drives them all.
Here its engine-core client is called directly, below the output processor: that one does Python
work for each token, and several ranks at a thousand requests each would wait for it instead of
for each other. A token's arrival is that of the message which brings it to the front end.
"""

from __future__ import annotations

import asyncio
import copy
import os
import time
from array import array
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from repro import plugin
from repro.experiment import supervise, verify
from repro.experiment.clients import Report
from repro.experiment.clients.closed_loop import Ledger, Output, Requests, sampling
from repro.experiment.clients.engine import ABORT, engine_arguments
from repro.experiment.config import Experiment
from repro.experiment.measured import Measured
from repro.plugin import engine_frontend_hooks
from repro.plugin.rpc import CENSUS_RPC, END_RPC


def measure(experiment: Experiment, folder: Path, report: Report) -> Measured:
    """See `repro.experiment.clients.measure`; `folder` is not used."""
    # Outside the event loop: inside it, vLLM's own output handler would take messages away.
    engine = start_engine(experiment)
    report("ready", 0)
    parallel = engine.vllm_config.parallel_config
    verify.executor_is(experiment.executor, parallel.distributed_executor_backend)
    return asyncio.run(drive(engine, experiment, report))


async def drive(engine: Any, experiment: Experiment, report: Report) -> Measured:
    """Check the policy, drive ramp and window, check the policy again, shut vLLM down."""
    evidence = await heap_census(engine, experiment, "window-start")
    leave_cores_to(evidence)
    ledger = await SeveralRanks(engine, experiment, report).run()
    await heap_census(engine, experiment, "window-end")
    report("stop", 0)
    await engine.engine_core.call_utility_async(*ABORT)
    await ask_all(engine, END_RPC)
    assert plugin.own_recorder is not None
    engine_frontend_hooks.count_garbage_here(plugin.own_recorder)
    engine.shutdown()
    return ledger.measured(evidence)


def start_engine(experiment: Experiment) -> Any:
    """vLLM's async engine: an engine core for each data-parallel rank, each with its workers.

    Raises `NotAsRequested` if vLLM's CPU backend cannot run the experts of this model as asked.
    """
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.platforms import current_platform
    from vllm.v1.engine.async_llm import AsyncLLM

    arguments = engine_arguments(experiment) | {
        "tensor_parallel_size": experiment.tensor_parallel_size,
        "data_parallel_size": experiment.data_parallel_size,
        "enable_expert_parallel": experiment.enable_expert_parallel,
        "disable_log_stats": True,  # work for each token in the front end
    }
    config = AsyncEngineArgs(**arguments).create_engine_config()
    if current_platform.is_cpu() and config.model_config.is_moe:
        verify.experts_run_on_cpu(experiment)
    return AsyncLLM.from_vllm_config(config, disable_log_stats=True)


def leave_cores_to(workers: list[dict[str, Any]]) -> None:
    """Move front end and engine cores off the cores that the workers are bound to, if any are left.

    Workers on the CPU backend with ranks in lock-step say their `cpus`.
    """
    bound = {cpu for worker in workers for cpu in worker.get("cpus", ())}
    others = os.sched_getaffinity(0) - bound
    if not bound or not others:
        return
    pids = {worker["pid"] for worker in workers}
    for process in supervise.session_members(os.getsid(0)):
        if process.pid not in pids:
            for thread in process.threads():
                os.sched_setaffinity(thread.id, others)


async def heap_census(engine: Any, experiment: Experiment, point: str) -> list[dict[str, Any]]:
    """As that of client `engine`; the workers by rank."""
    if plugin.own_recorder is None:
        raise verify.NotAsRequested("vLLM did not load the plugin: pip install this package")
    plugin.own_recorder.census(point)
    workers = await ask_all(engine, CENSUS_RPC, point)
    verify.policy_took_effect(experiment, workers)
    return workers


async def ask_all(engine: Any, method: str, *args: str) -> list[Any]:
    """Call a method of every worker, by rank.

    `AsyncLLM.collective_rpc` asks every engine core too, but returns what the first one answers.
    """
    core, question = engine.engine_core, ("collective_rpc", method, None, args, None)
    answers = await asyncio.gather(
        *(core._call_utility_async(*question, engine=each) for each in core.core_engines)
    )
    return [worker for workers in answers for worker in workers]


class SeveralRanks:
    """Keep `concurrency` requests in flight on each data-parallel rank, and note every arrival."""

    def __init__(self, engine: Any, experiment: Experiment, report: Report) -> None:
        self.engine = engine
        self.experiment = experiment
        self.report = report
        vocabulary = engine.model_config.get_vocab_size()
        names = [f"/{rank}" if rank else "" for rank in range(experiment.data_parallel_size)]
        self.streams = [Requests(experiment, vocabulary, name) for name in names]
        self.rank_of = array("q")  # by request number
        self.templates: dict[int, Any] = {}  # by length of the answer
        self.ledger = Ledger()

    async def run(self) -> Ledger:
        """Drive the ramp and the measured window; requests in flight at its end are left."""
        ledger, experiment = self.ledger, self.experiment
        self.tasks = await self.engine.get_supported_tasks()
        began = time.monotonic_ns()
        firsts = [stream.first_lengths() for stream in self.streams]
        for lengths in zip(*firsts, strict=True):  # one for each rank in turn
            for rank, length in enumerate(lengths):
                await self._submit(rank, length)
        for _ in range(experiment.backlog):
            for rank, stream in enumerate(self.streams):
                await self._submit(rank, stream.next_length())
        self._first_alive = experiment.in_flight
        async for _ in self._steps("ramp", lambda: self._first_alive > 0):
            pass
        ledger.begin(began)
        deadline = ledger.window_start + int(experiment.duration_s * 1e9)
        async for received in self._steps("measure", lambda: time.monotonic_ns() < deadline):
            ledger.tokens += received
        ledger.end()
        return ledger

    async def _steps(self, phase: str, go_on: Callable[[], bool]) -> AsyncIterator[int]:
        """Take in one rank's step after the other while `go_on`; yields the tokens of each."""
        began = next_report = time.monotonic_ns()
        while go_on():
            message = await self.engine.engine_core.get_output_async()
            now = time.monotonic_ns()
            tokens, finished = self.ledger.note(map(read, message.outputs), now)
            for number in finished:
                self._first_alive -= number < self.experiment.in_flight
                rank = self.rank_of[number]
                await self._submit(rank, self.streams[rank].next_length())
            yield tokens
            if now >= next_report:
                self.report(phase, (now - began) / 1e9)
                next_report = now + 1_000_000_000

    async def _submit(self, rank: int, length: int) -> None:
        number = self.ledger.enter()
        self.rank_of.append(rank)
        request = copy.copy(self._template(length))
        request.request_id = str(number)
        request.prompt_token_ids = self.streams[rank].prompt()["prompt_token_ids"]
        request.data_parallel_rank = rank
        request.arrival_time = time.time()
        await self.engine.engine_core.add_request_async(request)

    def _template(self, length: int) -> Any:
        """A request for an answer of this length, as vLLM's input processor makes it."""
        # Made once: at 16 ranks the processor alone takes half of the front end's time.
        if length not in self.templates:
            self.templates[length] = self.engine.input_processor.process_inputs(
                "", self.streams[0].prompt(), sampling(length), supported_tasks=self.tasks
            )
        return self.templates[length]


def read(output: Any) -> Output:
    """Number, new tokens and end of a request, from its `EngineCoreOutput`."""
    return int(output.request_id), len(output.new_token_ids), output.finished
