"""The answer and the advice about a recorded launch."""

from __future__ import annotations

from pathlib import Path

import pytest
import recordings
from recordings import MS, measured, only_launch, serving, with_facts

from repro.plugin.recorder import LAUNCH, PAUSE, SERVED, STEP
from repro.server import numbers
from repro.server.remedies import advice, answer

STALLS = range(50, 2000, 50)


def advised(folder: Path) -> str:
    return " ".join(advice(only_launch(folder), measured(folder)))


def test_a_worker_inside_the_engine_core_is_said(tmp_path: Path) -> None:
    core = recordings.recorder(tmp_path, "engine")
    now = core._opened_ns
    for number in range(200):
        stall = 400 * MS if number == 100 else 0
        if stall:
            core.write(PAUSE, now + MS, stall, 0, 2)
        core.write(STEP, now, 20 * MS + stall, 8, number)
        now += 20 * MS + stall
    with_facts(next(iter(tmp_path.glob("events-*"))), worker_inside=True)
    said = advised(tmp_path)
    assert "worker inside" in said
    assert "Leave it as it is" not in said
    assert "REPRO_ENGINE_POLICY=freeze-thresholds" in said


def test_advice_that_is_in_force_is_not_given(tmp_path: Path) -> None:
    serving(tmp_path, stalls=STALLS)
    for path in tmp_path.glob("events-*"):
        with_facts(path, policy="freeze", heap_frozen=False, vllm="0.22.1")
    assert "Set REPRO_POLICY=freeze" not in advised(tmp_path)


def test_the_advice_follows_the_recording(tmp_path: Path) -> None:
    assert "Set REPRO_POLICY=freeze" in advised(serving(tmp_path / "a", stalls=STALLS))
    assert "Leave it as it is" in advised(serving(tmp_path / "b"))


def test_a_long_hold_of_the_event_loop_is_told(tmp_path: Path) -> None:
    assert "output handler" not in advised(serving(tmp_path / "a"))
    held = serving(tmp_path / "b", hold_ms=3200)
    assert "output handler worked off its backlog for up to 3.20 s" in advised(held)


def test_a_recording_that_stopped_says_so(tmp_path: Path) -> None:
    os_error = OSError(28, "No space left on device")
    made = recordings.recorder(tmp_path, "worker")
    for step in range(3):
        made.write(STEP, 20 * MS * step + 1, MS, 1, step)
    made._stop(os_error)
    assert "stopped early" in advised(tmp_path)


def two_front_ends(folder: Path, outputs: tuple[int, int]) -> Path:
    """Ten seconds of steps; the second API server collects for 2 s of them, the first never."""
    worker = recordings.recorder(folder, "worker")
    begun = worker._opened_ns + 1000 * MS
    for step in range(1000):
        worker.write(STEP, begun + 10 * MS * step, 9 * MS, 8, step)
    for rank, number in enumerate(outputs):
        made = recordings.recorder(folder, "frontend", rank)
        for second in range(9):
            made.write(SERVED, begun + 1000 * MS * second, 1000 * MS, number, 0)
        for second in range(4 * rank):
            made.write(PAUSE, begun + 1000 * MS * second, 500 * MS, 0, 2)
        with_facts(made.path_of("events-", ".bin"), server=f"ApiServer_{rank}")
    return folder


@pytest.mark.parametrize(
    ("outputs", "share", "said"), [((900, 100), 0.02, "10.0%"), ((100, 900), 0.18, "90.0%")]
)
def test_a_front_end_is_weighed_by_the_tokens_it_hands_out(
    tmp_path: Path,
    outputs: tuple[int, int],
    share: float,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(LAUNCH, "1")
    launch = only_launch(two_front_ends(tmp_path, outputs))
    found = numbers.measure(launch)
    assert [m.label for m in launch.members[:2]] == [
        "front end ApiServer_0",
        "front end ApiServer_1",
    ]
    assert numbers.time_collecting(launch, found)["frontend"] == pytest.approx(share, rel=0.01)
    stop = f"stopped front end ApiServer_1 (which hands out {said} of the tokens) for 500"
    assert any(stop in line for line in answer(launch, found))


def test_too_few_steps_for_a_quantile_are_said(tmp_path: Path) -> None:
    folder = serving(tmp_path, steps=1000)
    said = " ".join(answer(only_launch(folder), measured(folder)))
    assert "P99 26.0" in said
    assert "P99.9 needs 5,000 steps, there are 999" in said


@pytest.mark.parametrize(
    ("facts", "remedy"),
    [
        ({"vllm": "0.22.1", "device": "cuda"}, "or replace vLLM 0.22.1 by 0.23.0 or later"),
        ({"vllm": "0.32.0", "device": "cpu"}, "Set REPRO_POLICY=freeze; then record again"),
        ({"vllm": "0.32.0", "heap_frozen": True}, "Set REPRO_POLICY=freeze-thresholds"),
        ({"python": "3.14.2"}, "Python 3.14.2 collects incrementally: run 3.14.5 or later"),
        ({"policy": "freeze", "not_in_force": "its heap is not frozen"}, "see `repro check`"),
        ({"policy": "freeze", "heap_frozen": False}, "REPRO_POLICY=freeze is in force"),
        ({"heap_frozen": True, "thresholds": [20_000, 50, 50]}, "nothing more to set"),
        ({"collector": False}, "Its collector is off"),
    ],
)
def test_the_remedy_knows_what_the_process_is(
    tmp_path: Path, facts: dict[str, object], remedy: str
) -> None:
    serving(tmp_path, stalls=STALLS)
    for path in tmp_path.glob("events-*"):
        with_facts(path, **facts)
    said = advised(tmp_path)
    assert remedy in said
    assert ("Set REPRO_POLICY" in said) == ("Set REPRO_POLICY" in remedy or "replace" in remedy)


def test_workers_in_different_states_get_their_own_remedies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(LAUNCH, "1")
    for rank, frozen in enumerate((True, False)):
        worker = recordings.recorder(tmp_path, "worker", rank)
        for step in range(100):
            worker.write(STEP, worker._opened_ns + 10 * MS * step, 9 * MS, 8, step)
            worker.write(PAUSE, worker._opened_ns + 10 * MS * step + MS, MS, 0, 2)
        with_facts(worker.path_of("events-", ".bin"), heap_frozen=frozen)
    said = advised(tmp_path)
    assert "worker 0: Its heap is frozen" in said
    assert "worker 1: Its heap is not frozen. Set REPRO_POLICY=freeze," in said


def test_unknown_processes_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LAUNCH, "1780000000000000000")
    made = recordings.recorder(tmp_path, "other")
    made.write(PAUSE, made._opened_ns, MS, 0, 2)
    with_facts(next(iter(tmp_path.glob("events-*"))), name="VLLM_DP_Coordinator")
    serving(tmp_path, steps=100)
    assert "do: unknown process VLLM_DP_Coordinator (pid" in advised(tmp_path)
