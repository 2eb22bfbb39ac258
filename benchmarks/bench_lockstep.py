"""Time and memory of lock-step simulation at the width of the largest deployments.

Run as `python benchmarks/bench_lockstep.py`; prints one line a case. Target: 1,024 ranks x 10^6
steps in at most 10 s and 2 GiB on two cores.
"""

from __future__ import annotations

import argparse
import resource
import time

import numpy as np

from repro.theory.lockstep import simulate


def trace(steps: int, rng: np.random.Generator) -> np.ndarray:
    """Steps of 20 ms, give or take, with a stall of half a second in every thousand."""
    ordinary = rng.gamma(400, 20e6 / 400, size=steps)
    return (ordinary + 500e6 * (rng.random(steps) < 1e-3)).astype(np.int64)


def main() -> None:
    """Simulate one group from traces of several lengths, with and without shared stalls."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=1_000_000)
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    for length in (5_000, 50_000, 1_000_000):
        for alignment in (0.0, 0.5):
            runs = [trace(length, rng) for _ in range(3)]
            start = time.perf_counter()
            group = simulate(
                runs, ranks=arguments.ranks, steps=arguments.steps, alignment=alignment
            )
            seconds = time.perf_counter() - start
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
            print(
                f"{arguments.ranks} ranks x {arguments.steps} steps, 3 runs of {length} steps, "
                f"alignment {alignment}: {seconds:.2f} s, peak RSS {peak:.2f} GiB, "
                f"P99 {np.quantile(group, 0.99) / 1e6:.1f} ms"
            )


if __name__ == "__main__":
    main()
