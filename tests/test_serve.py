"""The HTTP client's bookkeeping: shares, prompts, the gate, and its result as tables."""

from __future__ import annotations

import asyncio
import io
import json
import random
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import MS, SECOND

from repro.experiment import verify
from repro.experiment.clients import bench, bench_process, prompts, serve
from repro.experiment.clients.closed_loop import first_lengths
from repro.experiment.clients.server import HOST, Server, free_port
from repro.experiment.config import Experiment
from repro.experiment.measured import requests_table
from repro.experiment.verify import NotAsRequested

NS = 1e9


def result(*requests: tuple[float, float, list[float], int]) -> dict[str, Any]:
    """A detailed result: start, TTFT, gaps (all in s) and tokens of each request."""
    names = ("start_times", "ttfts", "itls", "output_lens")
    return dict(zip(names, map(list, zip(*requests, strict=True)), strict=True))


def measured(*results: dict[str, Any]) -> Any:
    about = {"ramp_ns": 0, "client_busy": 0.5, "evidence": []}
    return bench.measured_by(results, start_ns=10 * SECOND, end_ns=20 * SECOND, **about)


def test_every_gap_of_every_client_is_there_at_its_time() -> None:
    first = result((10.0, 0.5, [0.1, 0.2], 3), (0.0, 0.0, [], 0))  # the second was never sent
    second = result((11.0, 0.25, [0.4], 2))
    itl = measured(first, second).itl
    order = np.argsort(itl["t_ns"])
    assert itl["t_ns"][order].tolist() == [10_600 * MS, 10_800 * MS, 11_650 * MS]
    assert itl["itl_ns"][order].tolist() == [100 * MS, 200 * MS, 400 * MS]
    assert itl["count"].tolist() == [1, 1, 1]


def test_a_request_cut_short_has_gaps_and_no_tpot() -> None:
    found = measured(result((10.0, 0.5, [0.1, 0.3], 3), (19.0, 0.5, [0.1], 0)))
    assert found.requests["t_ns"].tolist() == [10_900 * MS]
    assert found.requests["ttft_ns"].tolist() == [500 * MS]
    assert found.requests["tpot_ns"].tolist() == [200 * MS]
    assert found.itl["count"].sum() == 3


def test_tokens_are_counted_where_chunks_hold_several() -> None:
    """Two chunks of two tokens each: the server had fallen behind."""
    found = measured(result((10.0, 0.5, [0.1], 4), (5.0, 0.5, [0.1], 4)))
    assert found.output_tokens == 4, "of one request alone: the other came before the window"


@pytest.mark.parametrize(
    ("shortest", "longest", "most"), [(10, 20, MS), (70, 90, 0.05), (400, 2000, 0.05), (0, 1, MS)]
)
def test_pooling_moves_no_gap_by_more_than_it_says(
    shortest: int, longest: int, most: float
) -> None:
    rng = np.random.default_rng(0)
    t_ns = np.sort(rng.integers(0, SECOND, 5000))
    gap = rng.integers(shortest * MS, longest * MS, 5000)
    rows = bench.pooled(t_ns, gap)
    assert rows["count"].sum() == 5000
    assert len(rows["count"]) < 4000
    back = np.sort(np.repeat(rows["itl_ns"], rows["count"]))
    moved = np.abs(back - np.sort(gap))
    assert (moved / np.sort(gap) if most < 1 else moved).max() < most
    assert set(rows["t_ns"]) <= set(t_ns)


def test_shares_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    for cpus, number in ((2, 1), (16, 4), (64, 4)):
        monkeypatch.setattr(serve.os, "sched_getaffinity", lambda _, n=cpus: range(n))
        shares = serve.shares(Experiment(client="serve", concurrency=1023))
        assert len(shares) == number
        assert sum(share.concurrency for share in shares) == 1023
    assert len(serve.shares(Experiment(client="serve", concurrency=2))) == 2


def test_prompts_are_of_the_asked_length_and_seeded(tmp_path: Path) -> None:
    experiment = Experiment(client="serve", prompt_tokens=5, output_tokens=(3, 9))
    tokenizer = bench.load_tokenizer(prompts.tokenizer_for(experiment, tmp_path))
    lines = []
    for stream in (0, 0, 1):
        path = tmp_path / "p.jsonl"
        prompts.write_prompts(path, experiment, tokenizer, stream=stream, first=4, number=20)
        lines.append(path.read_text())
    rows = [json.loads(line) for line in lines[0].splitlines()]
    assert {len(tokenizer(row["prompt"]).input_ids) for row in rows} == {5}
    assert all(1 <= row["output_tokens"] <= 9 for row in rows[:4])
    assert all(3 <= row["output_tokens"] <= 9 for row in rows[4:])
    assert len(rows) == 20
    assert lines[0] == lines[1] != lines[2]


def test_first_lengths_are_those_of_a_loop_under_way() -> None:
    """What is left of a request met at random is half of a length drawn by its size."""
    lengths = first_lengths(random.Random(0), 20_000, (16, 64))
    sizes = np.arange(16, 65)
    expected = np.average((sizes + 1) / 2, weights=sizes)
    assert np.mean(lengths) == pytest.approx(expected, rel=0.02)


class Parent:
    """Standard input of a client whose parent says go, and keeps the pipe open till told."""

    def __init__(self, words: str) -> None:
        self.words, self.gone = words, threading.Event()

    def readline(self) -> str:
        return self.words

    def read(self) -> str:
        self.gone.wait()
        return ""


@pytest.mark.parametrize("go", [True, False])
def test_the_gate_opens_at_a_word_and_holds_back_without(
    go: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[int] = []

    async def send(number: int, session: Any, pbar: Any) -> str:
        sent.append(number)
        return "answer"

    async def ask(gate: Any) -> list[Any]:
        return await asyncio.gather(*(gate(number, None) for number in range(3)))

    parent, said = Parent("go\n" if go else ""), io.StringIO()
    if not go:
        parent.gone.set()  # the parent died before it said anything
    monkeypatch.setattr(bench_process.sys, "stdin", parent)
    monkeypatch.setattr(bench_process, "never_sent", lambda: "never sent")
    gate = bench_process.Gate(send, first=2, events=said)
    assert asyncio.run(ask(gate)) == ["answer" if go else "never sent"] * 3
    assert sent == ([0, 1, 2] if go else [])
    assert said.getvalue() == ("ramp over\n" if go else "")
    parent.gone.set()


def test_a_busy_client_and_a_load_that_ended_are_no_data() -> None:
    verify.client_kept_up(0.5)
    with pytest.raises(NotAsRequested, match="client was the bottleneck"):
        verify.client_kept_up(0.97)
    verify.load_lasted([[1.0, 0.0], [2.0, 0.0]])
    with pytest.raises(NotAsRequested, match="ran out of requests"):
        verify.load_lasted([[1.0, 0.0], [2.0, 3.0]])


def test_garbage_that_cannot_be_counted_loses_no_run(caplog: pytest.LogCaptureFixture) -> None:
    ended = Server.__new__(Server)
    ended.url = f"http://{HOST}:{free_port()}"
    ended.end()
    assert "never reclaimed was not counted" in caplog.text


def test_the_executor_is_read_off_where_the_workers_live() -> None:
    assert serve.executor_of([{"role": "worker"}]) == "mp"
    assert serve.executor_of([{"role": "engine"}]) == "uni"


def test_a_request_keeps_its_times_to_their_resolution() -> None:
    asked = {"t_ns": [7, 8], "ttft_ns": [1_499_999, 0], "decode_ns": [699_998, 0], "tokens": [3, 1]}
    kept = requests_table(**{name: np.array(values) for name, values in asked.items()})
    assert kept["t_ns"].tolist() == [7, 8]
    assert kept["ttft_ns"].tolist() == [1_000_000, 0]
    assert kept["tpot_ns"][0] == 300_000
    assert np.isnan(kept["tpot_ns"][1]), "of one token"
