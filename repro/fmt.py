"""Formats numbers, ratios and names for figures, tables and notebooks."""

from __future__ import annotations

import math
from collections.abc import Iterable

import pandas as pd

from repro.stats.estimate import Estimate

PROCESS = {"frontend": "front end", "engine": "engine core", "worker": "worker"}
"""Role in the data -> name shown, from the client to the worker."""

RUNNER = {
    "vllm.v1.worker.gpu_model_runner": "V1 runner",
    "vllm.v1.worker.gpu.model_runner": "V2 runner",
}
"""Module of a model runner -> its name; others have none."""


def figures(value: float) -> str:
    """Three significant digits, no exponent, thousands separated; a dash for NaN."""
    if not math.isfinite(value):
        return "–"
    if value == 0:
        return "0"
    rounded = float(f"{abs(value):.3g}")  # 9.996 becomes 10.0, with one decimal
    decimals = max(0, 2 - math.floor(math.log10(rounded)))
    return f"{value:,.{decimals}f}"


def amount(value: float) -> str:
    """A number that is often whole: 74 or 74.3."""
    return f"{value:,.0f}" if value % 1 == 0 else figures(value)


def count(value: float) -> str:
    """A large count, to three significant digits: 823,000."""
    return f"{float(f'{value:.3g}'):,.0f}"


def ms(value: float) -> str:
    """A time in milliseconds with its unit."""
    return f"{figures(value)}\N{NO-BREAK SPACE}ms"


def bounds(low: float, high: float) -> str:
    """An interval's bounds."""
    return f"{figures(low)} to {figures(high)}"


def interval(value: float, low: float, high: float) -> str:
    """A number with its interval, as `0.12 (0.08 to 0.15)`."""
    return f"{figures(value)} ({bounds(low, high)})"


def ratio(estimate: Estimate) -> str:
    """A ratio with its 95% interval, as `×0.12 (0.08 to 0.15)`."""
    return f"×{interval(estimate.value, estimate.low, estimate.high)}"


def percent(share: float) -> str:
    """A share in percent."""
    return f"{figures(100 * share)}%"


def share(value: float, low: float, high: float) -> str:
    """A share with its 95% interval, as `3.3% (2.7 to 4.1)`."""
    return f"{percent(value)} ({bounds(100 * low, 100 * high)})"


def quantile(q: float) -> str:
    """A quantile's name: `P99.9`, and `max` for 1."""
    return "max" if q == 1 else f"P{100 * q:.10g}"


def setting(model: str, vllm: str, runner: str) -> str:
    """A model, a vLLM version and, where known, the model runner."""
    return ", ".join(filter(None, (model, f"vLLM {vllm}", RUNNER.get(runner))))


def listed(items: Iterable[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    *most, last = list(items) or ["nothing"]
    return f"{', '.join(most)} and {last}" if most else last


def plural(number: int, noun: str) -> str:
    """`1 run`, `2 runs`."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def capitalised(sentence: str) -> str:
    """The sentence with a capital first letter, all else as it is."""
    return sentence[:1].upper() + sentence[1:]


def markdown_table(table: pd.DataFrame) -> str:
    """A data frame of texts as a Markdown table without its index; a remark if it is empty."""
    if table.empty:
        return "*These data have no rows for this table.*"
    rows = [list(table.columns), ["---"] * len(table.columns), *table.to_numpy().tolist()]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in row) + " |" for row in rows)


def _cell(value: object) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")
