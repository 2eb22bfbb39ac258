"""Closed-loop load through `LLMEngine.step`, and when each token reached the client."""

from __future__ import annotations

import random
import time
from array import array
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from repro import policy
from repro.dataset.recording import Columns
from repro.experiment import verify
from repro.experiment.clients import Report
from repro.experiment.config import Experiment
from repro.experiment.measured import Measured, requests_table
from repro.plugin.rpc import CENSUS_RPC, FLIP_RPC, SWITCH_RPC

SETTLING_STEPS = 3
"""After a switch and a count: the step in flight, the one they delayed, and one to spare."""

SHORT_S = 1.0
"""Shorter periods than this are for loads without full collections. Between them the worker's heap
is frozen and thawed without a collection, and no heap is counted: both would take longer than a
period, and leave the caches empty."""

STRUCTURE = "(w[1-4][0-9]*)*\ue000"
"""Structured output: most of the words that `repro.experiment.clients.prompts` makes, not all. An
answer that reached the expression's end would be cut short, or go on free; hence an end in a
character that no such word has and no real model is likely to choose, one of private use."""

Output = tuple[int, int, bool]
"""Number of a request, tokens it has got just now, and whether it has ended."""


class Ledger:
    """The state of each request, by its number, and the arrivals of a whole run, ramp included.

    `itl` has one row for each gap that the tokens of one engine step share, `requests` one for each
    finished request: columns of int64 ns, flat arrays, so that the client keeps no object per token
    for its own collector to walk. A number grows by one each: no dictionary entry to free.
    """

    def __init__(self) -> None:
        self.itl = columns("t_ns", "itl_ns", "count")
        self.requests = columns("t_ns", "ttft_ns", "decode_ns", "tokens")
        self.periods: list[tuple[str, int, int]] = []  # policy, start, end
        self.submitted, self.first, self.last = array("q"), array("q"), array("q")
        self.received = array("q")
        self.window_start = self.window_end = self.ramp_ns = self.tokens = self._cpu_ns = 0
        self.client_busy = 0.0

    def begin(self, ramp_start: int) -> None:
        """The ramp is over, and the measured window begins."""
        self.window_start, self._cpu_ns = time.monotonic_ns(), time.process_time_ns()
        self.ramp_ns = self.window_start - ramp_start

    def end(self) -> None:
        """The measured window is over."""
        self.window_end = time.monotonic_ns()
        wall = self.window_end - self.window_start
        self.client_busy = (time.process_time_ns() - self._cpu_ns) / wall

    def measured(self, evidence: list[dict[str, Any]]) -> Measured:
        """The arrivals as the tables of a run, with what the workers said of their policy."""
        return Measured(
            itl={name: np.asarray(column) for name, column in self.itl.items()},
            requests=requests_table(
                **{name: np.asarray(column) for name, column in self.requests.items()}
            ),
            start_ns=self.window_start,
            end_ns=self.window_end,
            ramp_ns=self.ramp_ns,
            output_tokens=self.tokens,
            client_busy=self.client_busy,
            evidence=evidence,
            periods=self._periods(),
        )

    def _periods(self) -> Columns | None:
        if not self.periods:
            return None
        names = ("policy", "start_ns", "end_ns")
        values = zip(*self.periods, strict=True)
        return {name: np.array(column) for name, column in zip(names, values, strict=True)}

    def enter(self) -> int:
        """A new request, submitted now; returns its number."""
        for column in (self.first, self.last, self.received):
            column.append(0)
        self.submitted.append(time.monotonic_ns())
        return len(self.submitted) - 1

    def note(self, outputs: Iterable[Output], now: int) -> tuple[int, list[int]]:
        """Note the tokens of one step: one row for each distinct gap.

        Returns
        -------
        tokens : int
        finished : list of int
            Numbers of the requests that have ended.
        """
        first, last, received = self.first, self.last, self.received
        gaps: dict[int, int] = {}
        finished = []
        tokens = 0
        for number, new, ended in outputs:
            if new == 0:
                continue
            tokens += new
            if received[number]:
                gap = now - last[number]
                gaps[gap] = gaps.get(gap, 0) + new
            else:
                first[number] = now
            received[number] += new
            last[number] = now
            if ended:
                finished.append(number)
        for gap, count in gaps.items():
            append(self.itl, now, gap, count)
        for number in finished:
            waited, decoded = first[number] - self.submitted[number], now - first[number]
            append(self.requests, now, waited, decoded, received[number])
        return tokens, finished


def columns(*names: str) -> dict[str, array[int]]:
    """An empty table."""
    return {name: array("q") for name in names}


def append(table: dict[str, array[int]], *row: int) -> None:
    """Append a row, in the order of the columns."""
    for column, value in zip(table.values(), row, strict=True):
        column.append(value)


class Requests:
    """The endless stream of requests of one rank, seeded: streams of one name are the same."""

    def __init__(self, experiment: Experiment, vocabulary: int, name: str = "") -> None:
        self.experiment = experiment
        self.vocabulary = vocabulary
        self.random = random.Random(f"{experiment.seed}/{experiment.replicate}{name}")

    def first_lengths(self) -> list[int]:
        """Lengths of the answers to the simultaneous start, in tokens."""
        return first_lengths(
            self.random, self.experiment.concurrency, self.experiment.output_tokens
        )

    def next_length(self) -> int:
        """Length of the answer to the next request of the steady loop, in tokens."""
        return self.random.randint(*self.experiment.output_tokens)

    def prompt(self) -> dict[str, list[int]]:
        """The prompt of the next request."""
        tokens = range(self.experiment.prompt_tokens)
        return {"prompt_token_ids": [self.random.randrange(self.vocabulary) for _ in tokens]}


def sampling(length: int, logprobs: int = 0, *, structured: bool = False) -> Any:
    """vLLM's sampling parameters for an answer of exactly so many tokens, streamed."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

    return SamplingParams(
        max_tokens=length,
        ignore_eos=True,
        temperature=0.0,
        detokenize=False,
        output_kind=RequestOutputKind.DELTA,
        logprobs=logprobs or None,
        structured_outputs=StructuredOutputsParams(regex=STRUCTURE) if structured else None,
    )


class ClosedLoop:
    """Keep `concurrency` requests in flight and note every arrival."""

    def __init__(self, engine: Any, experiment: Experiment, report: Report) -> None:
        self.engine = engine
        self.experiment = experiment
        self.report = report
        self.requests = Requests(experiment, engine.model_config.get_vocab_size())
        self.ledger = Ledger()
        self.heaps: list[dict[str, Any]] = []  # the workers', as last counted
        self._phases: dict[str, int] = {}  # when each began, in ns

    def run(self) -> Ledger:
        """Drive the ramp and the measured window; requests in flight at its end are left."""
        ledger, experiment = self.ledger, self.experiment
        began = time.monotonic_ns()
        for length in self.requests.first_lengths():
            self._submit(length)
        self._first_alive = experiment.concurrency  # of the simultaneous start, still in flight
        for _ in self._steps("ramp", lambda: self._first_alive > 0):
            pass
        ledger.begin(began)
        if experiment.policy == policy.ALTERNATE:
            self._alternate()
        else:
            self._measure_for(experiment.duration_s)
        ledger.end()
        return ledger

    def _measure_for(self, seconds: float) -> None:
        deadline = time.monotonic_ns() + int(seconds * 1e9)
        for received in self._steps("measure", lambda: time.monotonic_ns() < deadline):
            self.ledger.tokens += received

    def _alternate(self) -> None:
        """Both policies in turn, in mirrored pairs: a drift then hits both alike."""
        # The last period is frozen and left so: the shutdown is that of a frozen worker.
        short = self.experiment.switch_s < SHORT_S
        pairs = round(self.experiment.duration_s / (2 * self.experiment.switch_s))
        if short:
            self._switch(True)
        for left in range(pairs, 0, -1):
            for freeze in (False, True) if left % 2 else (True, False):
                (self._flip if short else self._switch)(freeze)
                self._period(freeze)
                if not short:
                    self._count("window-end", freeze)
        if short:
            self._count("window-end", True)

    def _switch(self, freeze: bool) -> None:
        """Before a long period, or before the first of many short ones: collect, then count."""
        verify.switched(freeze, self.engine.collective_rpc(SWITCH_RPC, args=(freeze,)))
        self._count("window-start", freeze)

    def _flip(self, freeze: bool) -> None:
        """Before a short period."""
        verify.flipped(freeze, self.heaps, self.engine.collective_rpc(FLIP_RPC, args=(freeze,)))

    def _period(self, freeze: bool) -> None:
        """Measure under one policy."""
        for _ in range(SETTLING_STEPS):
            self._note(self.engine.step(), time.monotonic_ns())
        began = time.monotonic_ns()
        self._measure_for(self.experiment.switch_s)
        name = "freeze" if freeze else "no-freeze"
        self.ledger.periods.append((name, began, time.monotonic_ns()))

    def _count(self, point: str, freeze: bool) -> None:
        """Count the heap of every process, and check that the switch still holds."""
        self.heaps = self.engine.collective_rpc(CENSUS_RPC, args=(point,))
        verify.switched(freeze, [(worker["frozen"], worker["tracked"]) for worker in self.heaps])

    def _steps(self, phase: str, go_on: Callable[[], bool]) -> Iterator[int]:
        """Step the engine while `go_on`; yields the tokens of each step."""
        next_report = time.monotonic_ns()
        began = self._phases.setdefault(phase, next_report)  # periods continue their phase
        while go_on():
            outputs = self.engine.step()
            now = time.monotonic_ns()
            yield self._note(outputs, now)
            if now >= next_report:
                self.report(phase, (now - began) / 1e9)
                next_report = now + 1_000_000_000

    def _note(self, outputs: list[Any], now: int) -> int:
        """Note the tokens of one step, and replace the requests that it ended."""
        tokens, finished = self.ledger.note(map(read, outputs), now)
        for number in finished:
            self._first_alive -= number < self.experiment.concurrency
            self._submit(self.requests.next_length())
        return tokens

    def _submit(self, length: int) -> None:
        number = self.ledger.enter()
        asked = self.experiment
        params = sampling(length, asked.logprobs, structured=asked.structured_output)
        self.engine.add_request(str(number), self.requests.prompt(), params)


def read(output: Any) -> Output:
    """Number, new tokens and end of a request, from its `RequestOutput`."""
    return int(output.request_id), len(output.outputs[0].token_ids), output.finished


def first_lengths(rng: random.Random, number: int, output_tokens: tuple[int, int]) -> list[int]:
    """Lengths for a simultaneous start that looks like a loop long under way.

    A request met at a random moment is a long one more often than not (its chance grows with its
    length), and any share of it may be left.
    """
    shortest, longest = output_tokens
    lengths: list[int] = []
    while len(lengths) < number:
        length = rng.randint(shortest, longest)
        if rng.random() < length / longest:
            lengths.append(rng.randint(1, length))
    return lengths
