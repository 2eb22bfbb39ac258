"""Numbers of a recorded launch: the tail with and without collections, ranks, hosts, lengths."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import recordings
from recordings import MS, STALL_MS, measured, only_launch, serving, with_facts

from repro.dataset import recording
from repro.plugin.recorder import LAUNCH, PAUSE, SEGMENT_EVENTS, STEP
from repro.server import launches, numbers
from repro.server.numbers import Numbers
from repro.server.tail import quantiles

STALLS = range(50, 2000, 50)


def p99(found: Numbers, kind: str) -> float:
    (estimate,) = quantiles(found.tails[kind], (0.99,))
    assert estimate.supported
    return estimate.value / MS


def test_an_idle_server_makes_no_long_step(tmp_path: Path) -> None:
    found = measured(serving(tmp_path, steps=300, idle_after=[100, 200]))
    assert found.steps_longest[0].length_ns < 30 * MS
    assert found.steps == 301 - 2  # the two empty steps begin none, but end one


def test_the_tail_with_and_without_what_pauses_added(tmp_path: Path) -> None:
    found = measured(serving(tmp_path, stalls=STALLS))
    assert found.effects["worker", 2].hit == len(STALLS)
    assert p99(found, "all") == pytest.approx(STALL_MS + 23, rel=1e-3)
    assert p99(found, "without") == pytest.approx(26, rel=1e-3)
    assert found.booked_ns <= len(STALLS) * STALL_MS * MS
    assert not quantiles(found.tails["all"], (0.999,))[0].supported


def test_tensor_parallel_ranks_are_one_observation(tmp_path: Path) -> None:
    assert measured(serving(tmp_path, steps=100, ranks=4)).steps == 99


def scattered(folder: Path, pauses: list[tuple[str, int, int, int]], long_ms: int = 99) -> Path:
    """Steps of 2 ms, every 50th of `long_ms`; pauses (role, ms since start, µs, generation)."""
    rng = np.random.default_rng(0)
    engine, worker = recordings.recorder(folder, "engine"), recordings.recorder(folder, "worker")
    now = origin = worker._opened_ns + 1000 * MS
    for number in range(10_000):
        length = int((long_ms if number % 50 == 49 else 2) * MS + rng.integers(0, MS // 2))
        worker.write(STEP, now, length, 8, number)
        now += length
    made = {"engine": engine, "worker": worker}
    for role, at_ms, us, generation in sorted(pauses, key=lambda each: each[1]):
        made[role].write(PAUSE, origin + at_ms * MS, us * 1000, 0, generation)
    return folder


def test_pauses_without_effect_leave_the_tail_alone(tmp_path: Path) -> None:
    at = np.random.default_rng(1).integers(0, 39_000, size=3000).tolist()
    found = measured(scattered(tmp_path, [("engine", ms, 1000, 0) for ms in at]))
    assert p99(found, "all") == pytest.approx(99.25, abs=0.2)
    assert p99(found, "without") == p99(found, "all")
    effect = found.effects["engine", 0]
    assert effect.hit == pytest.approx(effect.chance_hit, rel=0.1)


def test_one_short_pause_books_no_more_than_itself(tmp_path: Path) -> None:
    found = measured(scattered(tmp_path, [("worker", 60, 600, 0)], long_ms=42))
    assert found.booked_ns <= 600_000
    predicted, _ = numbers.more_ranks(found)
    tables = [table.set_index(["ranks", "quantile"])["value_ms"] for table in predicted.values()]
    assert tables[0][128, 0.99] - tables[1][128, 0.99] <= 0.6
    firm = predicted["all steps"]
    assert not firm[firm["ranks"] > 1]["supported"].any()


def lock_step(
    folder: Path, first: int, ranks: int, *, alone: bool = False, **facts: object
) -> Path:
    """Ranks from `first` on; the second collects for 480 ms in step 50, and the others wait."""
    engines = [recordings.recorder(folder, "engine", first + n) for n in range(ranks)]
    workers = [recordings.recorder(folder, "worker", first + n) for n in range(ranks)]
    for core in engines:
        core.write(PAUSE, core._opened_ns + MS, MS, 0, 2)
    for rank, worker in enumerate(workers):
        now = workers[0]._opened_ns + 1000 * MS
        for number in range(1000):
            stalled = number == 50 and (rank == 1 or not alone)
            if number == 50 and rank == 1:
                worker.write(PAUSE, now + MS, 480 * MS, 0, 2)
            length = 20 * MS + 480 * MS * stalled
            worker.write(STEP, now, length, 8, number)
            now += length
    for made in (*engines, *workers):
        with_facts(made.path_of("events-", ".bin"), moe=not alone, dp_size=ranks, **facts)
    return folder


def test_ranks_that_start_at_eight_wait_for_one_another(tmp_path: Path) -> None:
    found = measured(lock_step(tmp_path, 8, 8))
    assert found.groups == [tuple(range(8, 16))]
    assert found.steps == 999
    assert found.stalls[0].whose == "worker 9"
    assert found.stalls[0].what == "generation 2 stalled ranks 8 to 15"
    assert found.effects["worker", 2].hit == 1
    assert found.booked_ns == 480 * MS
    assert [found.own[place].collections for place in range(16)] == [1] * 8 + [0, 1] + [0] * 6


def test_ranks_that_do_not_wait_stay_apart(tmp_path: Path) -> None:
    found = measured(lock_step(tmp_path, 0, 2, alone=True))
    assert found.groups == [(0,), (1,)]
    assert found.steps == 2 * 999
    assert found.stalls == []


def test_two_hosts_are_one_launch_on_one_clock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for host in range(2):
        monkeypatch.setenv(LAUNCH, str(10**18 + host))
        clocks = {"monotonic_ns": 0, "wall_ns": 10**18 + host * 7 * MS}
        lock_step(tmp_path, 4 * host, 4, host=str(host), **clocks)
    (launch,), warnings = launches.read(tmp_path)
    assert warnings == []
    assert launch.hosts == 2
    assert {m.shift_ns for m in launch.members} == {0, 7 * MS}
    assert list(launches.engines(launch)) == list(range(8))


def test_a_front_end_stops_tokens_not_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serving(tmp_path, steps=600, stalls=[300])
    (worker,) = [r for r in recording.read_all(tmp_path) if r.role == "worker"]
    monkeypatch.setenv(LAUNCH, str(worker.launch_ns))
    made = recordings.recorder(tmp_path, "frontend", 1)
    for number in range(100, 200):
        made.write(PAUSE, int(worker.of_kind(STEP)["start_ns"][number]), 15 * MS, 0, 2)
    found = measured(tmp_path)
    assert "frontend" not in {role for role, _ in found.effects}
    assert found.booked_ns == pytest.approx(STALL_MS * MS, rel=0.02)
    assert found.stops[0].what == "collection of generation 2"


def test_one_stop_of_half_a_second_between_short_ones(tmp_path: Path) -> None:
    """A full collection is booked from the first one on; nothing is predicted firmly from it."""
    found = measured(serving(tmp_path, steps=2000, stalls=[1000]))
    assert found.booked_ns == pytest.approx(STALL_MS * MS, rel=0.02)
    assert found.steps_longest[0].what == f"worker 0: generation 2, {STALL_MS}.0 ms"
    assert found.steps_longest[1].what == "no pause, no hold"
    firm = numbers.more_ranks(found)[0]["all steps"]
    assert not firm[firm["ranks"] > 1]["supported"].any()


# --- long recordings ------------------------------------------------------------------------------


def facts_of(found: Numbers) -> dict[str, object]:
    effect = found.effects["worker", 2]
    return {
        "steps": found.steps,
        "hit": effect.hit,
        "booked": found.booked_ns,
        "window": found.window,
        "collections": [found.own[place].taken[2].number for place in found.own],
        "tail": found.tails["without"].counts.tolist(),
        "longest": [each.start_ns for each in found.steps_longest[:5]],
    }


def test_all_of_a_recording_counts_however_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serving(tmp_path, steps=20_000, stalls=range(100, 20_000, 1000))
    whole = facts_of(measured(tmp_path))
    assert (whole["steps"], whole["hit"]) == (19_999, 20)
    monkeypatch.setattr("repro.server.timeline.MOST_EVENTS", 3000)
    pieces = facts_of(measured(tmp_path))
    typical = {"booked", "tail"}  # of the steps around, of which pieces have fewer
    assert {k: v for k, v in pieces.items() if k not in typical} == {
        k: v for k, v in whole.items() if k not in typical
    }
    assert pieces["booked"] == pytest.approx(whole["booked"], rel=0.01)


def test_a_long_recording_is_read_from_any_moment_on(tmp_path: Path) -> None:
    made = recordings.recorder(tmp_path, "worker")
    begun = made._opened_ns
    number = 2 * SEGMENT_EVENTS + 5000
    for step in range(number):
        made.write(STEP, begun + 10 * MS * step, 9 * MS, 8, step)
    (path,) = tmp_path.glob("events-*")
    source = recording.source(path)
    assert source.ended_ns() == begun + 10 * MS * (number - 1) + 9 * MS
    since = begun + 10 * MS * (number - 1000)
    chunks = list(source.chunks(since))
    steps = list(itertools.chain(*(chunk["b"].tolist() for chunk in chunks)))
    assert steps == list(range(steps[0], number))
    assert number - 1000 - recording.CHUNK_EVENTS <= steps[0] <= number - 1000
    found = numbers.measure(only_launch(tmp_path), since)
    assert found.steps == 999
    assert found.seconds == pytest.approx(9.99)
