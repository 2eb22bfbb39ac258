"""Silences through HTTP: found, put down to who was in the way, drawn and judged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import END, MS, SECOND, START, run
from campaigns import decided

from repro import dataset
from repro.analysis.silences import silences
from repro.report.figures import FIGURES, NotApplicable
from repro.stats.spans import of_rows, overlap

QUIET = START + 4 * SECOND
LENGTH = 3 * SECOND


def served(
    root: Path,
    name: str = "a",
    *,
    quiet_ns: int = LENGTH,
    held_ns: int = 2 * SECOND,
    collecting_ns: int = 0,
    rate: float = 0.0,
    **changes: Any,
) -> Path:
    """A run through HTTP with a token every 10 ms, but for one silence.

    The engine decodes on for the first second of it. The event loop is held from its start, and
    from there the front end collects. With a `rate` its steps have tokens in proportion to it.
    """
    before, after = np.arange(START, QUIET + 1, 10 * MS), np.arange(QUIET + quiet_ns, END, 10 * MS)
    t_ns = np.concatenate([before, after])
    busy = np.arange(START, QUIET + SECOND, 10 * MS)
    steps = np.concatenate([busy, after])
    made: dict[str, Any] = {
        "itl": {"t_ns": t_ns, "itl_ns": np.diff(t_ns, prepend=START - 10 * MS), "count": 4},
        "steps": {
            "start_ns": steps,
            "duration_ns": 10 * MS,
            "step": np.arange(len(steps)),
            "tokens": round(1e6 * rate / len(steps)) or 8,
        },
        "holds": {
            "start_ns": [START, QUIET],
            "duration_ns": [25 * MS, held_ns],
            "outputs": [300, 90_000],
            "calls": [3, 1500],
        },
    }
    if collecting_ns:
        made["pauses"] = {
            "start_ns": [QUIET, QUIET],
            "duration_ns": [collecting_ns, LENGTH],
            "role": ["frontend", "worker"],
            "generation": [2, 2],
        }
    settings = {"experiment__client": "serve", "experiment__concurrency": 1024}
    run(root, name, made, **{**settings, **changes})
    return root


def verdict(claim: str, folder: Path) -> Any:
    return decided(claim, dataset.load(folder))


def test_a_silence_is_put_down_to_those_in_the_way(tmp_path: Path) -> None:
    campaign = dataset.load(served(tmp_path / "c", collecting_ns=SECOND // 2))
    (found,) = silences(campaign).to_dict("records")
    assert (found["start_ns"], found["end_ns"]) == (QUIET, QUIET + LENGTH)
    assert found["held"] == pytest.approx(2 / 3)
    assert found["collecting"] == pytest.approx(1 / 6)


@pytest.mark.parametrize(
    "changes",
    [
        {"quiet_ns": 900 * MS},
        {"experiment__client": "engine"},
        {"window__end_ns": QUIET + SECOND},
    ],
)
def test_what_is_no_silence(changes: dict[str, Any], tmp_path: Path) -> None:
    """Too short, not through HTTP, or not over within the window."""
    assert silences(dataset.load(served(tmp_path / "c", **changes))).empty


def test_arrivals_stored_coarsely_are_no_silence(tmp_path: Path) -> None:
    campaign = dataset.load(served(tmp_path / "c"))
    campaign.itl["itl_ns"] = 10 * MS
    assert silences(campaign).empty, "every gap that ends there is short"


def test_runs_that_did_not_look_say_nothing(tmp_path: Path) -> None:
    folder = served(tmp_path / "c")
    (folder / "a" / "holds.parquet").unlink()
    campaign = dataset.load(folder)
    assert silences(campaign).empty
    assert verdict("handler-holds", folder)["verdict"] == "not measured"
    with pytest.raises(NotApplicable, match="no run recorded holds"):
        FIGURES["silence"](campaign)


def test_an_overlap_is_cut_at_both_ends(tmp_path: Path) -> None:
    holds = dataset.load(served(tmp_path / "c")).holds
    start, end = np.array([QUIET - 1, QUIET + SECOND]), np.array([QUIET + 1, QUIET + 9 * SECOND])
    assert overlap(of_rows(holds), start, end).tolist() == [1, SECOND]


@pytest.mark.parametrize(
    ("held_ns", "collecting_ns", "expected"),
    [
        (2 * SECOND, 0, "reproduced"),
        (2 * SECOND, 2 * SECOND, "contradicted"),
        (SECOND, 0, "contradicted"),
    ],
)
def test_who_makes_the_silences(
    held_ns: int, collecting_ns: int, expected: str, tmp_path: Path
) -> None:
    folder = served(tmp_path / "c", held_ns=held_ns, collecting_ns=collecting_ns)
    assert verdict("handler-holds", folder)["verdict"] == expected


@pytest.mark.parametrize(
    ("quiet_ns", "tokens_per_s", "expected"),
    [
        (10 * MS, 150.0, "reproduced"),
        (10 * MS, 100.5, "undecided"),
        (LENGTH, 150.0, "contradicted"),
        (10 * MS, 50.0, "contradicted"),
    ],
)
def test_whole_steps_against_chunks(
    quiet_ns: int, tokens_per_s: float, expected: str, tmp_path: Path
) -> None:
    for replicate, rate in enumerate((100.0, 101.0)):
        served(tmp_path / "c", f"a{replicate}", rate=rate)
        served(
            tmp_path / "c",
            f"b{replicate}",
            quiet_ns=quiet_ns,
            rate=tokens_per_s + replicate,
            experiment__output_chunk=4096,
        )
    row = verdict("whole-steps", tmp_path / "c")
    assert row["verdict"] == expected
    assert row["number"].endswith(f"silences 2 before, {2 * (quiet_ns == LENGTH)} after")
    assert "chunk 4096" in row["reason"]


def test_a_handler_that_yields_is_neither_whole_steps_nor_their_base(tmp_path: Path) -> None:
    yields = {"experiment__output_yield_ms": 20.0, "rate": 900.0}
    for replicate in range(2):
        served(tmp_path / "c", f"a{replicate}", rate=100.0 + replicate)
        served(tmp_path / "c", f"b{replicate}", **yields)
        whole = {"quiet_ns": 10 * MS, "experiment__output_chunk": 4096}
        served(tmp_path / "c", f"c{replicate}", rate=150.0 + replicate, **whole)
        served(tmp_path / "c", f"d{replicate}", **whole | yields)
    number = verdict("whole-steps", tmp_path / "c")["number"]
    assert number.startswith("tokens/s ×1.50")
    assert number.endswith("silences 2 before, 0 after")


def test_the_figure_says_what_held_the_loop(tmp_path: Path) -> None:
    drawn = FIGURES["silence"](dataset.load(served(tmp_path / "c", collecting_ns=SECOND // 2)))
    said = drawn.get_suptitle().replace("\n", " ")
    assert "for 3.00 s no token leaves the API server" in said
    assert "holds the event loop for 66.7% of that time (collecting: 16.7%)" in said
    engine, clients = (patch.get_data() for patch in drawn.axes[0].patches[:2])
    quiet = (clients.edges[:-1] > 0.1) & (clients.edges[1:] < 2.9)
    assert not clients.values[quiet].any()
    assert engine.values[quiet][:8].min() > 0
