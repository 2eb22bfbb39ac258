"""Client `serve`: a real OpenAI-compatible server on 127.0.0.1, `vllm bench serve` against it."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Sequence
from pathlib import Path

from repro.experiment import verify
from repro.experiment.clients import Report
from repro.experiment.clients.bench import Bench, Share, measured_by
from repro.experiment.clients.prompts import tokenizer_for
from repro.experiment.clients.server import Server
from repro.experiment.collect import RAW
from repro.experiment.config import Experiment
from repro.experiment.measured import Measured

MAX_CLIENTS = 4
CPUS_A_CLIENT = 4
"""One client is one Python thread, good for some 10,000 tokens a second: a large machine gets
several, so that they are not what the tail shows."""


def measure(experiment: Experiment, folder: Path, report: Report) -> Measured:
    """See `repro.experiment.clients.measure`."""
    work = folder / RAW
    tokenizer = tokenizer_for(experiment, work)
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(Server(experiment, tokenizer))
        clients = [
            stack.enter_context(Bench(share, experiment, tokenizer, server.url, work))
            for share in shares(experiment)
        ]
        server.wait_until_ready(lambda seconds: report("start", seconds))
        evidence = server.census("window-start")
        verify.executor_is(experiment.executor, executor_of(evidence))
        verify.policy_took_effect(experiment, evidence)
        began = time.monotonic_ns()
        for client in clients:
            client.go()
        wait_for_ramp(clients, report)
        start_ns, demand = time.monotonic_ns(), [client.demand_ns() for client in clients]
        wait_for_window(clients, experiment.duration_s, report)
        end_ns = time.monotonic_ns()
        demand = [client.demand_ns() - d for client, d in zip(clients, demand, strict=True)]
        report("stop", 0)
        verify.policy_took_effect(experiment, server.census("window-end"))  # still under load
        for client in clients:
            client.send_no_more()
        server.end()  # and with it all that is still in flight: the window is over
        server.stop()
        results = [client.result() for client in clients]
    busy = max(demand) / (end_ns - start_ns)
    verify.client_kept_up(busy)
    verify.load_lasted([result["start_times"] for result in results])
    return measured_by(
        results,
        start_ns=start_ns,
        end_ns=end_ns,
        ramp_ns=start_ns - began,
        client_busy=busy,
        evidence=evidence,
    )


def shares(experiment: Experiment) -> list[Share]:
    """The load split over as many client processes as the machine has room for."""
    room = len(os.sched_getaffinity(0)) // CPUS_A_CLIENT
    number = max(1, min(MAX_CLIENTS, room, experiment.concurrency))
    each, more = divmod(experiment.concurrency, number)
    return [Share(number=i, concurrency=each + (i < more)) for i in range(number)]


def executor_of(workers: Sequence[dict[str, object]]) -> str:
    """The executor vLLM took, by where its workers say they live."""
    return "mp" if all(worker["role"] == "worker" for worker in workers) else "uni"


def wait_for_ramp(clients: Sequence[Bench], report: Report) -> None:
    """Waits until every client has the answers to all requests of its simultaneous start."""
    began = time.monotonic()
    while sum(client.ramp_is_over() for client in clients) < len(clients):
        report("ramp", time.monotonic() - began)
        time.sleep(0.5)


def wait_for_window(clients: Sequence[Bench], duration_s: float, report: Report) -> None:
    """Waits for the measured time; raises if a client ends."""
    began = time.monotonic()
    while (passed := time.monotonic() - began) < duration_s:
        for client in clients:
            client.check_alive()
        report("measure", passed)
        time.sleep(min(0.5, duration_s - passed))
