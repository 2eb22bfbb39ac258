"""Output tokens through HTTP: those of the engine, since a chunk may hold several."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from builders import END, SECOND, START, run

from repro.dataset import load

WINDOW_S = (END - START) / SECOND

STEPS = {"start_ns": [START - 1, START, END - 1, END], "tokens": [7000, 110, 220, 9000]}
"""Of answers of 40 tokens and prompts of 16, 55 tokens are scheduled for each 40 that come out."""

REQUESTS = {
    "t_ns": [START - 1, START, END - 1, END],
    "ttft_ns": 1,
    "output_tokens": [7000, 30, 60, 9000],
}
HTTP = {
    "experiment__client": "serve",
    "experiment__prompt_tokens": 16,
    "experiment__output_tokens": [16, 64],
}


@pytest.mark.parametrize(
    ("tables", "changes", "tokens"),
    [
        ({"steps": STEPS, "requests": REQUESTS}, {}, 240),
        ({"steps": STEPS}, {"experiment__tensor_parallel_size": 2}, 120),
        ({"requests": REQUESTS}, {}, 90),
        ({"steps": STEPS, "requests": REQUESTS}, {"experiment__speculative": "ngram"}, 90),
        ({}, {}, 512),
        ({"requests": REQUESTS}, {"summary__counted": True}, 512),
        ({"steps": STEPS, "requests": REQUESTS}, {"experiment__client": "engine"}, 512),
    ],
    ids=["steps", "each rank", "requests", "proposed", "recorded", "thinned", "no HTTP"],
)
def test_tokens_of_the_window(
    tables: dict[str, Any], changes: dict[str, Any], tokens: int, tmp_path: Path
) -> None:
    recorded = {"summary__output_tokens": 512, "summary__tokens_per_s": 512 / WINDOW_S}
    run(tmp_path, "a", tables, **HTTP | recorded | changes)
    (found,) = load(tmp_path).runs.itertuples()
    assert found.output_tokens == tokens
    assert found.tokens_per_s == pytest.approx(tokens / WINDOW_S)
