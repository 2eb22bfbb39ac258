"""The figure of a bound in time on the output handler: its points, its message, and its needs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import MS, SECOND, run, steady
from matplotlib.collections import PathCollection
from test_figures import assert_laid_out

from repro import dataset
from repro.report.figures import FIGURES, NotApplicable
from repro.report.figures.output_bound import rank_correlations

RAISED = "freeze-thresholds"
ARMS = {
    "stock": ("stock", 0, 16, 2.0),
    "none": (RAISED, 0, 12, 4.0),
    "long": (RAISED, 50, 8, 5.0),
    "short": (RAISED, 5, 6, 8.0),
}
"""Run -> policy, bound (ms), every gap (ms), every TTFT (s)."""


def served(
    root: Path,
    names: tuple[str, ...] = tuple(ARMS),
    *,
    requests: bool = True,
    rates: dict[str, tuple[float, ...]] | None = None,
) -> Path:
    """A campaign through HTTP, in which all gaps and all TTFTs of a run are the same.

    One run per tokens/s of `rates`, of the names in it.
    """
    runs = [(name, of_run) for name in names for of_run in enumerate((rates or {}).get(name, (1,)))]
    for name, (replicate, rate) in runs:
        policy, bound, gap_ms, ttft_s = ARMS[name]
        tables = steady(gap_ms * MS)
        if requests:
            tables["requests"] = {
                "t_ns": np.asarray(tables["itl"]["t_ns"]),
                "ttft_ns": round(ttft_s * SECOND),
                "output_tokens": 1,
                "tpot_ns": 0,
            }
        roles: dict[str, Any] = {
            f"experiment__{role}policy": policy for role in ("", "engine_", "frontend_")
        }
        changes = {"experiment__client": "serve", "experiment__output_yield_ms": float(bound)}
        changes |= {"experiment__replicate": replicate, "summary__tokens_per_s": float(rate)}
        changes |= {"summary__counted": True}
        run(root, f"{name}{replicate}", tables, **roles, **changes)
    return root


def test_points_are_what_was_measured(tmp_path: Path) -> None:
    drawn = FIGURES["output_bound"](dataset.load(served(tmp_path / "c")))
    first_token = drawn.axes[1]
    points = [p.get_offsets() for p in first_token.collections if isinstance(p, PathCollection)]
    assert sorted(map(tuple, np.concatenate(points).round(6))) == [(2, 16), (4, 12), (5, 8), (8, 6)]
    said = {text.get_text() for text in drawn.legends[0].get_texts()}
    assert said == {"stock", RAISED, "vLLM's handler", "5 ms", "50 ms"}


def test_the_message_is_gain_and_cost_under_the_same_policies(tmp_path: Path) -> None:
    drawn = FIGURES["output_bound"](dataset.load(served(tmp_path / "c")))
    message = drawn.get_suptitle().replace("\n", " ")
    assert message.startswith(
        f"Output handler from vLLM's handler to 5 ms ({RAISED}): P99 ITL ×0.500 ("
    )
    assert "median TTFT ×2.00 (" in message
    assert_laid_out(drawn)


@pytest.mark.parametrize(
    ("rates", "named"),
    [
        ({"long": (121, 120, 119), "short": (130, 131, 132)}, f"50 ms with {RAISED}: P99 ITL"),
        ({"long": (111, 100, 119), "short": (130, 131, 132)}, f"5 ms with {RAISED}: P99 ITL"),
        ({"long": (109, 109, 109), "short": (109, 108, 109)}, "Output handler from"),
    ],
)
def test_an_arm_that_surely_halves_p99_and_adds_a_tenth_is_the_message(
    rates: dict[str, tuple[float, ...]], named: str, tmp_path: Path
) -> None:
    both = {"stock": (100, 100.5, 99.5)} | rates
    drawn = FIGURES["output_bound"](dataset.load(served(tmp_path / "c", rates=both)))
    assert drawn.get_suptitle().replace("\n", " ").startswith(named)


def test_ranks_go_with_the_costs_or_against_them(tmp_path: Path) -> None:
    found = rank_correlations(dataset.load(served(tmp_path / "c")))
    assert found["ttft"] == pytest.approx(-1), "the shorter P99, the longer TTFT"
    assert list(found.index) == ["tokens", "ttft", "end_to_end"]


@pytest.mark.parametrize("requests", [True, False])
def test_policies_through_http_show_the_first_token_beside_p99(
    requests: bool, tmp_path: Path
) -> None:
    campaign = dataset.load(served(tmp_path / "c", ("stock", "none"), requests=requests))
    drawn = FIGURES["policies_compared"](campaign)
    titles = [axes.get_xlabel() for axes in drawn.axes]
    assert ("median TTFT\n(s)" in titles) is requests
    if requests:
        (points,) = drawn.axes[titles.index("median TTFT\n(s)")].collections
        assert np.asarray(points.get_offsets())[:, 0].round(6).tolist() == [2.0, 4.0]


@pytest.mark.parametrize(
    ("names", "requests", "reason"),
    [
        (("stock", "none", "short"), True, "fewer than two bounds"),
        (tuple(ARMS), False, "requests of these runs were left out"),
    ],
)
def test_what_is_missing_is_said(
    names: tuple[str, ...], requests: bool, reason: str, tmp_path: Path
) -> None:
    campaign = dataset.load(served(tmp_path / "c", names, requests=requests))
    with pytest.raises(NotApplicable, match=reason):
        FIGURES["output_bound"](campaign)
