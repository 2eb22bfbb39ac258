"""Time and memory of `repro report` on a day of one rank at 10 ms per step.

Run as `python -m benchmarks.bench_long_recording FOLDER`: 1.4 GB are written there. Target: less
than 60 s of processor time and 1 GiB.
"""

from __future__ import annotations

import argparse
import resource
import time
from pathlib import Path

import numpy as np

from repro.dataset.recording import EVENT
from repro.plugin.recorder import HEADER, HEADER_BYTES, MAGIC, PAUSE, STEP
from repro.server.report import write

STEP_NS = 10_000_000


def record(folder: Path, role: str, pid: int, steps: int, rng: np.random.Generator) -> None:
    """A young collection per step, a full one per 10,000; of a worker, the steps too."""
    with (folder / f"events-{pid}-1.bin").open("wb") as file:
        header = HEADER.pack(MAGIC, pid, 0, 1, 0, role.encode(), 10**18)
        file.write(header.ljust(HEADER_BYTES, b"\0"))
        for first in range(0, steps, 100_000):
            number = np.arange(first, min(first + 100_000, steps))
            events = np.zeros((len(number), 2), dtype=EVENT)
            full = number % 10_000 == 7
            pauses, each = events[:, 0], events[:, 1]
            pauses["start_ns"] = 10**9 + number * STEP_NS + rng.integers(1, 10**6, len(number))
            pauses["duration_ns"] = np.where(full, 8_000_000, 200_000)
            pauses["b"], pauses["kind"] = np.where(full, 2, 0), PAUSE
            each["start_ns"], each["duration_ns"] = 10**9 + number * STEP_NS, STEP_NS - 1000
            each["a"], each["b"], each["kind"] = 256, number, STEP
            file.write((events if role == "worker" else pauses).tobytes())


def main() -> None:
    """Write the recording, report on it, say what that took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--hours", type=float, default=24.0)
    parsed = parser.parse_args()
    parsed.folder.mkdir(parents=True, exist_ok=True)
    steps, rng = int(parsed.hours * 360_000), np.random.default_rng(0)
    for pid, role in enumerate(("frontend", "engine", "worker"), start=1):
        record(parsed.folder, role, pid, steps, rng)
    wall, processor = time.perf_counter(), time.process_time()
    write(parsed.folder, parsed.folder / "report.html")
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{steps:,} steps: {processor:.1f} s CPU, {wall:.1f} s wall, peak RSS {peak:.2f} GiB")


if __name__ == "__main__":
    main()
