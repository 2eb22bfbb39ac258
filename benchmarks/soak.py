"""An hour under load with recorder and freeze: does anything grow, does anything drift?

    python -m benchmarks.soak runs/soak                      # one hour
    python -m benchmarks.soak runs/soak-short --duration-s 120
    python -m benchmarks.soak runs/soak-http --client serve --policies stock/stock/stock

Through HTTP the server is mistreated meanwhile (`benchmarks.abuse`), as a public one is: does
garbage stay, and how much of it does a thaw give back? `--abuse "not JSON"` mistreats it in one
way alone: which of them leaves the garbage? Every other option is one of `repro run`.
Resident memory of every process is sampled from outside. Writes `soak.parquet` (the samples) and
`soak.json` (the verdict with its numbers) beside the run, which is a campaign like any other.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import psutil

from benchmarks.abuse import KINDS, Abuser
from benchmarks.trend import trend
from repro import dataset, fmt
from repro.analysis.tails import step_intervals
from repro.cli import add_run_options
from repro.dataset import Campaign, in_window
from repro.experiment.campaign import run_campaign
from repro.experiment.collect import RAW
from repro.experiment.config import Experiment
from repro.experiment.grid import PARAMETERS, grid
from repro.plugin.recorder import EVENT

SAMPLES = 400
"""A run, and at most one per second."""

MIB = 1 << 20

RSS_GROWTH = 0.05
"""Share of its memory that a process may grow by in an hour."""

STEP_DRIFT = 0.05
"""Share of itself that the median step may change by in an hour."""


class Sampler(threading.Thread):
    """Samples every process below this one, and the recorder's files, until told to stop."""

    def __init__(self, root: Path, every_s: float) -> None:
        super().__init__(daemon=True)
        self.root, self.every_s = root, every_s
        self.rows: list[tuple[int, int, int]] = []
        self.files: list[tuple[int, int]] = []
        self.stopped = threading.Event()

    def run(self) -> None:
        """Sample until stopped."""
        this = psutil.Process()
        while not self.stopped.wait(self.every_s):
            now = time.monotonic_ns()
            for process in this.children(recursive=True):
                try:
                    self.rows.append((now, process.pid, process.memory_info().rss))
                except psutil.Error:
                    continue  # it ended meanwhile
            sizes = [path.stat().st_size for path in self.root.glob(f"*/{RAW}/events-*.bin")]
            self.files.append((now, sum(sizes)))


def soak(root: Path, experiment: Experiment, kinds: Sequence[str] = KINDS) -> dict[str, Any]:
    """Run the experiment, sampled from outside, and judge it.

    Parameters
    ----------
    root : Path
        A folder that does not exist yet.
    experiment : Experiment
    kinds : sequence of str
        Of `abuse.KINDS`, how the server is mistreated through HTTP.

    Returns
    -------
    dict
        What `soak.json` holds.

    Raises
    ------
    ValueError
        If `root` exists: its samples would not be those of its run.
    repro.experiment.campaign.CampaignError
        If the run failed.
    """
    if root.exists():
        raise ValueError(f"{root} exists: name a new folder, its run cannot be sampled any more")
    sampler = Sampler(root, max(1.0, experiment.duration_s / SAMPLES))
    abuser = Abuser(kinds)
    watching = [sampler, abuser] if experiment.client == "serve" else [sampler]
    for thread in watching:
        thread.start()
    try:
        run_campaign([experiment], root)
    finally:
        for thread in watching:
            thread.stopped.set()
            thread.join()
    campaign = dataset.load(root)
    samples = named(campaign, sampler.rows)
    samples.to_parquet(root / "soak.parquet")
    found = judge(campaign, samples, sampler.files) | {"abuse": abuser.done}
    (root / "soak.json").write_text(json.dumps(found, indent=1) + "\n")
    return found


def named(campaign: Campaign, rows: list[tuple[int, int, int]]) -> pd.DataFrame:
    """The samples of the measured window, of processes that recorded: `t_ns`, `role`, `rss`."""
    sampled = pd.DataFrame(rows, columns=["t_ns", "pid", "rss"])
    roles = campaign.pauses[["pid", "role"]].drop_duplicates()
    sampled = sampled.merge(roles, on="pid")
    (run,) = campaign.runs.itertuples()
    inside = sampled["t_ns"].between(run.window_start_ns, run.window_end_ns)
    return sampled[inside].reset_index(drop=True)


def judge(
    campaign: Campaign, samples: pd.DataFrame, files: list[tuple[int, int]]
) -> dict[str, Any]:
    """Slopes with their intervals, and whether the limits hold.

    The front end drives the load and keeps what it measured in memory: its growth is given beside
    the size of those arrays, and judged without them.
    """
    (run,) = campaign.runs.itertuples()
    hours = (run.window_end_ns - run.window_start_ns) / 3.6e12
    steps = in_window(campaign, step_intervals(campaign.steps))
    drift = trend(steps["t_ns"], steps["interval_ns"] / 1e6, median=True)
    kept_mib = client_arrays(campaign) / MIB / hours
    memory = {}
    for role, rows in samples.groupby("role"):
        slope = trend(rows["t_ns"], rows["rss"] / MIB)
        own = kept_mib if role == "frontend" and run.client == "engine" else 0.0
        memory[str(role)] = {
            **dataclasses.asdict(slope),
            "explained_mib_per_hour": own,
            "steady": (slope.low - own) / slope.level < RSS_GROWTH,
        }
    pauses = in_window(campaign, campaign.pauses)
    events = len(pauses) + len(steps)
    half = (run.window_start_ns + run.window_end_ns) / 2
    return {
        "hours": hours,
        "steps": len(steps),
        "rss_mib": memory,
        "step_ms": {**dataclasses.asdict(drift), "steady": drifts_little(drift.relative())},
        "recorder": {
            "events_mib_per_hour": events * EVENT.size / MIB / hours,
            "files_mib": max((size for _, size in files), default=0) / MIB,
        },
        "pauses": {
            f"{role}-{generation}": {
                "first_half": int((rows["start_ns"] < half).sum()),
                "second_half": int((rows["start_ns"] >= half).sum()),
                "max_ms": float(rows["duration_ns"].max() / 1e6),
            }
            for (role, generation), rows in pauses.groupby(["role", "generation"])
        },
        "garbage": garbage(campaign),
        "steady": drifts_little(drift.relative()) and all(m["steady"] for m in memory.values()),
    }


def garbage(campaign: Campaign) -> dict[str, dict[str, int]]:
    """Objects and bytes in abandoned cycles at the end, by process: since the freeze, and of it."""
    counted = campaign.census[campaign.census["garbage"].notna()]
    return {
        f"{row.role} {row.point}": {"objects": int(row.garbage), "bytes": int(row.garbage_bytes)}
        for row in counted.itertuples()
    }


def drifts_little(relative: tuple[float, float, float]) -> bool:
    """Whether the interval reaches into the allowed range: else the drift is beyond doubt."""
    _, low, high = relative
    return low < STEP_DRIFT and high > -STEP_DRIFT


def client_arrays(campaign: Campaign) -> int:
    """Bytes of `repro.experiment.clients.closed_loop.Ledger` that the measured window added."""
    gaps = len(in_window(campaign, campaign.itl)) * 3
    requests = len(in_window(campaign, campaign.requests)) * 8
    return 8 * (gaps + requests)


def said(found: dict[str, Any]) -> str:
    """The verdict and its numbers, as lines."""
    lines = [f"{'steady' if found['steady'] else 'NOT STEADY'} over {found['hours']:.2f} h"]
    for role, memory in found["rss_mib"].items():
        of_client = memory["explained_mib_per_hour"]
        explained = f", of which the client's own arrays {fmt.figures(of_client)}"
        lines.append(
            f"{fmt.PROCESS[role]}: {fmt.figures(memory['level'])} MiB, "
            f"{memory['per_hour']:+.1f} MiB/h ({memory['low']:+.1f} to {memory['high']:+.1f})"
            + (explained if of_client else "")
        )
    step = found["step_ms"]
    change, low, high = (100 * step[k] / step["level"] for k in ("per_hour", "low", "high"))
    lines.append(
        f"median step: {fmt.ms(step['level'])}, {change:+.2f}%/h ({low:+.2f} to {high:+.2f})"
    )
    recorder = found["recorder"]
    lines.append(
        f"recorder: {fmt.figures(recorder['events_mib_per_hour'])} MiB/h of events, "
        f"{fmt.figures(recorder['files_mib'])} MiB on disk at the end"
    )
    for name, pauses in found["pauses"].items():
        lines.append(
            f"pauses {name}: {pauses['first_half']:,} in the first half, "
            f"{pauses['second_half']:,} in the second, longest {fmt.ms(pauses['max_ms'])}"
        )
    for where, left in found["garbage"].items():
        lines.append(f"garbage {where}: {left['objects']:,} objects, {left['bytes']:,} bytes")
    for kind, outcomes in found["abuse"].items():
        said = ", ".join(f"{number:,} {outcome}" for outcome, number in outcomes.items())
        lines.append(f"abuse, {kind}: {said or 'none'}")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Soak, print the verdict; exit status 1 if anything grew or drifted."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    about = "ways to mistreat the server through HTTP (default: all)"
    parser.add_argument("--abuse", nargs="+", choices=KINDS, default=KINDS, help=about)
    add_run_options(parser)
    parser.set_defaults(policies="freeze", replicates="1", duration_s="3600")
    given = vars(parser.parse_args(arguments))
    try:
        experiments = grid(**{name: given[name] for name in PARAMETERS})
        if len(experiments) > 1:
            raise ValueError(f"{len(experiments)} runs asked for: a soak is one, name one policy")
        if given["budget_s"] is not None:
            raise ValueError("budget_s: a soak is measured whole, set duration_s instead")
        found = soak(given["root"], experiments[0], given["abuse"])
    except (ValueError, RuntimeError) as error:
        print(f"soak: {error}", file=sys.stderr)
        return 1
    print(said(found))
    return int(not found["steady"])


if __name__ == "__main__":
    sys.exit(main())
