"""What each observer adds to a worker's full collection and to a step, in turn inside one engine.

Run as `python -m benchmarks.bench_observers`; a real engine, some four minutes. Observers take
turns in random order, so that drift hits all alike; an effect is the median over the turns of the
difference to the turn with nothing in the same round.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.observers import OBSERVERS, Observed
from repro.experiment.clients.engine import start_engine
from repro.experiment.config import Experiment
from repro.experiment.supervise import environment

WARM_STEPS = 50
"""Steps at first that are not timed: prefill, and shapes met for the first time."""

EXTENSION = f"{Observed.__module__}.{Observed.__qualname__}"

Turn = dict[str, float]


def main() -> None:
    """Print one line an observer."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--concurrency", type=int, default=1024, help="requests in flight")
    parser.add_argument("--rounds", type=int, default=16, help="turns of each observer")
    parser.add_argument("--steps", type=int, default=20, help="steps a turn")
    parser.add_argument("--collections", type=int, default=5, help="full collections a turn")
    asked = parser.parse_args()
    steps = WARM_STEPS + asked.rounds * len(OBSERVERS) * asked.steps
    experiment = Experiment(
        policy="no-freeze", concurrency=asked.concurrency, output_tokens=(steps, steps + 1)
    )
    with tempfile.TemporaryDirectory() as folder:
        os.environ.update(environment(experiment, Path(folder)))
        engine = start_engine(experiment, worker_extension_cls=EXTENSION)
        with contextlib.ExitStack() as stack:
            stack.callback(engine.engine_core.shutdown)
            rounds = measure(engine, experiment, asked)
    for what in OBSERVERS:
        report(what, rounds)


def measure(
    engine: Any, experiment: Experiment, asked: argparse.Namespace
) -> list[dict[str, Turn]]:
    """Every observer once a round; ms of a full collection and of a step, each a median."""
    submit(engine, experiment)
    for _ in range(WARM_STEPS):
        engine.step()
    order = random.Random(0)
    rounds = []
    for _ in range(asked.rounds):
        turns = {}
        for what in order.sample(OBSERVERS, len(OBSERVERS)):
            (took,) = engine.collective_rpc("exchange_observer", args=(what, asked.collections))
            engine.step()  # the one that the collections held up
            turns[what] = {
                "full collection": statistics.median(took) / 1e6,
                "step": statistics.median(step_ms(engine) for _ in range(asked.steps - 1)),
            }
        rounds.append(turns)
    return rounds


def submit(engine: Any, experiment: Experiment) -> None:
    """As many requests as are to be in flight; none ends before the last turn."""
    from vllm import SamplingParams

    prompt = [1] * experiment.prompt_tokens
    for number in range(experiment.concurrency):
        params = SamplingParams(
            max_tokens=experiment.output_tokens[0], ignore_eos=True, detokenize=False
        )
        engine.add_request(str(number), {"prompt_token_ids": prompt}, params)


def step_ms(engine: Any) -> float:
    """How long the front end waits for one step."""
    began = time.monotonic_ns()
    engine.step()
    return (time.monotonic_ns() - began) / 1e6


def report(what: str, rounds: list[dict[str, Turn]]) -> None:
    """What an observer adds: the median over the rounds, and its interval (95%)."""
    said = []
    for of in ("full collection", "step"):
        own = statistics.median(turns[what][of] for turns in rounds)
        line = f"{of} {own:.3f} ms"
        if what != "nothing":
            added = [turns[what][of] - turns["nothing"][of] for turns in rounds]
            low, high = interval(added)
            line += f", {statistics.median(added):+.3f} ms (95%: {low:+.3f} to {high:+.3f})"
        said.append(line)
    print(f"{what}: {'; '.join(said)}")


def interval(values: list[float]) -> tuple[float, float]:
    """Of the median, from resampled rounds."""
    drawn = np.random.default_rng(0).choice(values, size=(10_000, len(values)))
    low, high = np.quantile(np.median(drawn, axis=1), (0.025, 0.975))
    return float(low), float(high)


if __name__ == "__main__":
    main()
