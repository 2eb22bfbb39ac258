"""The load each client keeps up: its streams of requests, and the book of what came back."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import pytest

from repro.experiment.clients.bench import load_tokenizer
from repro.experiment.clients.closed_loop import STRUCTURE, Ledger, Requests
from repro.experiment.clients.prompts import write_word_tokenizer
from repro.experiment.config import Experiment
from repro.experiment.supervise import environment, shared_out
from repro.plugin import OUTPUT_YIELD

EXPERIMENT = Experiment(concurrency=50, output_tokens=(4, 20), prompt_tokens=3)


def drawn(name: str) -> list[object]:
    stream = Requests(EXPERIMENT, 100, name)
    return [stream.first_lengths(), stream.prompt(), stream.next_length(), stream.prompt()]


def test_streams_of_one_name_are_the_same_and_of_others_are_not() -> None:
    assert drawn("/1") == drawn("/1")
    assert drawn("/1") != drawn("/2")
    lengths, prompt, length, _ = drawn("")
    assert len(lengths) == 50
    assert all(1 <= n <= 20 for n in lengths)
    assert 4 <= length <= 20
    assert len(prompt["prompt_token_ids"]) == 3


def test_a_structured_answer_can_always_go_on(tmp_path: Path) -> None:
    """Of vLLM's own grammar engine: no word ends the answer, and not every word is allowed."""
    xgrammar = pytest.importorskip("xgrammar", reason="vLLM brings it")
    end, size = 2, 512  # the end of an answer by the model's config, where it is one more word
    tokenizer = load_tokenizer(str(write_word_tokenizer(tmp_path / "words", size)))
    about = xgrammar.TokenizerInfo.from_huggingface(tokenizer, vocab_size=size)
    grammar = xgrammar.GrammarCompiler(about).compile_regex(STRUCTURE)
    answer = xgrammar.GrammarMatcher(grammar, override_stop_tokens=[end])
    mask = xgrammar.allocate_token_bitmask(1, size)
    draw = random.Random(0)
    for _ in range(200):
        answer.fill_next_token_bitmask(mask, 0)
        allowed = [word for word in range(size) if mask[0, word // 32] >> (word % 32) & 1]
        assert 1 < len(allowed) < size - 1
        assert end not in allowed
        assert answer.accept_token(draw.choice(allowed))
    assert not answer.is_terminated()


def test_tokens_that_share_a_gap_are_one_row_and_lost_is_none() -> None:
    book = Ledger()
    for _ in range(3):
        book.enter()
    assert book.note([(0, 1, False), (1, 1, False)], 1000) == (2, [])
    assert book.note([(0, 1, False), (1, 1, True), (2, 1, False)], 1500) == (3, [1])
    assert book.note([(0, 1, True), (2, 0, False)], 1700) == (1, [0])
    assert list(zip(*book.itl.values(), strict=True)) == [(1500, 500, 2), (1700, 200, 1)]
    assert list(book.requests["tokens"]) == [2, 3]
    assert list(book.requests["decode_ns"]) == [500, 700]


@pytest.mark.parametrize(
    ("cores", "ranks", "expected"),
    [
        ({0, 1}, 2, "0|1"),
        ({0, 1, 2, 3, 4}, 2, "0|1"),  # two engine cores, one front end
        (set(range(8)), 2, "0,1|2,3"),
        ({4, 5, 6}, 1, "4"),
        ({3}, 2, "3|3"),
    ],
)
def test_cores_are_shared_out_among_ranks(
    cores: set[int], ranks: int, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: cores)
    assert shared_out(ranks) == expected


def test_the_output_chunk_is_the_experiments_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_V1_OUTPUT_PROC_CHUNK_SIZE", "7")
    asked = environment(Experiment(client="serve", output_chunk=4096), tmp_path)
    assert asked["VLLM_V1_OUTPUT_PROC_CHUNK_SIZE"] == "4096"
    left = environment(Experiment(client="serve"), tmp_path)
    assert "VLLM_V1_OUTPUT_PROC_CHUNK_SIZE" not in left, "vLLM's own"


@pytest.mark.parametrize(
    ("asked", "bound"),
    [({}, ""), ({"output_handler": "fair"}, "0"), ({"output_yield_ms": 2.5}, "2.5")],
)
def test_the_output_handlers_bound_is_never_inherited(
    asked: dict[str, Any], bound: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(OUTPUT_YIELD, "7")
    assert environment(Experiment(client="serve", **asked), tmp_path)[OUTPUT_YIELD] == bound


def test_one_rank_is_left_to_vllms_own_binding(tmp_path) -> None:
    several = Experiment(client="async_engine", data_parallel_size=2)
    assert "VLLM_CPU_OMP_THREADS_BIND" in environment(several, tmp_path)
    assert environment(EXPERIMENT, tmp_path).get("VLLM_CPU_OMP_THREADS_BIND") == os.environ.get(
        "VLLM_CPU_OMP_THREADS_BIND"
    )
