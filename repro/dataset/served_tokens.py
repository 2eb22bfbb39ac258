"""Output tokens of a run through HTTP, where the client cannot count them."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from repro.dataset.crossover import Document, Tables


def counted(document: Document, tables: Tables) -> Document:
    """The document of a run, through HTTP with the tokens that its engine made in the window.

    A chunk holds several tokens where the server is behind, so that the client's number is an
    estimate. The engine's is exact but for answers under way at the window's ends: of the tokens
    that steps were given, those of prompts are the share that the lengths asked for say. Where
    steps were left out or hold proposed tokens too, answers that ended in the window count. A
    `summary` that says `counted` has this number: its steps and most of its requests were left out.
    """
    experiment, window = document["experiment"], document["window"]
    if experiment["client"] != "serve" or document["summary"].get("counted"):
        return document
    given = _tokens(tables["steps"], "start_ns", "tokens", window)
    given /= experiment["tensor_parallel_size"]  # each of these ranks has the step
    ended = _tokens(tables["requests"], "t_ns", "output_tokens", window)
    if given and experiment["speculative"] == "none":
        answer = sum(experiment["output_tokens"]) / 2  # its first token comes with the prompt
        tokens = given * answer / (experiment["prompt_tokens"] + answer - 1)
    elif ended:
        tokens = ended
    else:
        return document
    seconds = (window["end_ns"] - window["start_ns"]) / 1e9
    made = {"output_tokens": round(tokens), "tokens_per_s": tokens / seconds}
    return {**document, "summary": {**document["summary"], **made}}


def _tokens(table: pa.Table, time: str, column: str, window: dict[str, Any]) -> float:
    """The sum of a column over the rows in the window."""
    begun = pc.greater_equal(table[time], window["start_ns"])
    inside = pc.and_(begun, pc.less(table[time], window["end_ns"]))
    return float(pc.sum(table[column].filter(inside)).as_py() or 0)
