"""Many runs: interleaved order, resume, progress. One engine at a time."""

from __future__ import annotations

import contextlib
import fcntl
import math
import random
import shutil
import signal
import sys
import textwrap
import threading
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import psutil
from tqdm import tqdm

from repro.experiment import collect, other_load, provenance
from repro.experiment.config import Experiment
from repro.experiment.supervise import RunFailed, run_child
from repro.experiment.verify import NotAsRequested

MEMORY_NEEDED = 6 << 30
"""Bytes of free memory one engine with its three processes needs, before any KV cache."""

MEMORY_A_RANK = 4 << 30
"""Bytes that each further rank needs."""

LOCK = ".lock"


class CampaignError(RuntimeError):
    """A campaign that cannot begin; the message says why and what to do."""


def run_campaign(
    experiments: Sequence[Experiment],
    root: Path,
    *,
    budget_s: float | None = None,
    progress: bool = True,
) -> Path:
    """Measure every experiment that has no run in `root` yet.

    Each run has a folder under `root`. One that holds `run.json` with status ok is kept; a
    failed or unfinished one is measured again. A run that fails is marked so, and the campaign
    goes on. SIGTERM and Ctrl-C end the run in hand and the campaign, and lose no finished run.

    Parameters
    ----------
    experiments : sequence of Experiment
        In any order: replicate by replicate they are shuffled, seeded.
    root : Path
        The campaign's folder; made if missing.
    budget_s : float, optional
        Begin no run that would not end within so many seconds from now; a later call goes on.
    progress : bool
        Show a bar with the time left.

    Returns
    -------
    Path
        `root`.

    Raises
    ------
    repro.experiment.provenance.NoVllm
        If vLLM is not installed.
    CampaignError
        If another campaign runs in `root`, its runs are packed, it holds other files, the plugin is
        not installed, graphs are to be captured without a GPU, or memory is short; at the end, if a
        run failed.
    """
    from repro.dataset.stored import is_campaign, is_packed

    if is_packed(root):
        raise CampaignError(f"{root}: holds packed runs; measure into another folder, as runs/mine")
    begun = is_campaign(root) or (root / LOCK).exists()
    if root.is_dir() and any(root.iterdir()) and not begun:
        raise CampaignError(f"{root}: holds other files; measure into a new folder, as runs/mine")
    version = provenance.vllm_version()
    check_plugin()
    check_gpu(experiments)
    root.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + (budget_s if budget_s is not None else math.inf)
    failures: list[str] = []
    with locked(root), stopping_on_sigterm(), bar(experiments, progress) as shown:
        for experiment in interleaved(experiments):
            folder = root / run_name(experiment, version)
            if finished(folder):
                shown.skip(experiment)
                continue
            if time.monotonic() + shown.longest_overhead_s + experiment.load_s > deadline:
                tqdm.write(f"{folder.name}: not enough time left, measure it later")
                continue
            check_memory(experiment.ranks)
            try:
                measure(experiment, folder, shown)
            except RunFailed as error:
                failures.append(str(error))
                tqdm.write(f"{folder.name} failed: {error}", file=sys.stderr)
    if failures:
        raise CampaignError(
            f"{len(failures)} of {len(experiments)} runs failed, the others are in {root}; "
            f"the first: {failures[0]}"
        )
    return root


def run_name(experiment: Experiment, version: str) -> str:
    """A run's folder: the vLLM version, then what the experiment calls itself."""
    return f"{version}-{experiment.run_id}"


def interleaved(experiments: Sequence[Experiment]) -> list[Experiment]:
    """Replicate by replicate, each in random order, seeded: drift then hits every arm alike."""
    order = random.Random(",".join(sorted(e.run_id for e in experiments)))
    blocks: dict[int, list[Experiment]] = {}
    for experiment in experiments:
        blocks.setdefault(experiment.replicate, []).append(experiment)
    return [e for _, block in sorted(blocks.items()) for e in order.sample(block, len(block))]


def finished(folder: Path) -> bool:
    """Whether this run is measured. What cannot be read is kept, never measured over.

    Raises
    ------
    repro.dataset.run.DatasetError
        If its `run.json` is not what this package writes.
    """
    from repro.dataset.run import read_document

    return (folder / "run.json").exists() and read_document(folder)["status"] == "ok"


def measure(experiment: Experiment, folder: Path, shown: Bar) -> None:
    """Measure one run into its folder, `run.json` last.

    Raises
    ------
    RunFailed
        Whatever went wrong, after the run has been marked failed.
    """
    if folder.exists():
        shutil.rmtree(folder)  # unfinished or failed: nothing measured is in it
    (folder / collect.RAW).mkdir(parents=True)
    started_at = datetime.now(UTC)
    others: dict[str, float] = {}
    shown.begin(experiment, folder.name)
    try:
        run_child(experiment, folder, other_load.watching(shown.report, others))
        collect.finish(folder, experiment, started_at, others)
    except Exception as error:
        expected = isinstance(error, RunFailed | NotAsRequested)
        reason = str(error) if expected else f"{type(error).__name__}: {error}"
        collect.fail(folder, experiment, started_at, others, textwrap.shorten(reason, width=400))
        raise RunFailed(reason) from error
    finally:
        shown.end()


def check_plugin() -> None:
    """Refuse to start engines that would not find the plugin."""
    if not provenance.plugin_registered():
        raise CampaignError(
            "vLLM does not see this package's plugin: pip install the package (a checkout on the "
            "path is not enough)"
        )


def check_gpu(experiments: Sequence[Experiment]) -> None:
    """Refuse to start engines for captures that no GPU can make."""
    about_graphs = [e for e in experiments if e.needs_graphs]
    if about_graphs and not provenance.gpu_query("name"):
        first = about_graphs[0]
        raise CampaignError(
            f"client {first.client!r} with capture policy {first.capture_policy!r} captures CUDA "
            "graphs and there is no GPU here: use client 'engine' with capture policy 'stock', "
            "which times the compilation instead"
        )


def check_memory(ranks: int) -> None:
    """Refuse to start an engine of so many ranks that memory cannot hold."""
    available = psutil.virtual_memory().available
    needed = MEMORY_NEEDED + (ranks - 1) * MEMORY_A_RANK
    if available < needed:
        raise CampaignError(
            f"{available / 2**30:.1f} GiB of memory available, an engine of this many ranks "
            f"({ranks}) needs {needed / 2**30:.0f} GiB: close other programs or take a larger "
            "machine"
        )


@contextlib.contextmanager
def locked(root: Path) -> Iterator[None]:
    """Hold `root` for this process; the lock goes with the process, however it ends."""
    with (root / LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CampaignError(
                f"{root}: another campaign is running there; wait for it or name another folder"
            ) from None
        yield


@contextlib.contextmanager
def stopping_on_sigterm() -> Iterator[None]:
    """Turn SIGTERM into KeyboardInterrupt, so that the run in hand is ended in order."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers; the kernel's own then stands
        return

    def interrupt(signum: int, frame: object) -> None:
        raise KeyboardInterrupt("SIGTERM")

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous or signal.SIG_DFL)


# --- progress -----------------------------------------------------------------------------

START_S = 60.0
"""A guess at an engine's start, ramp and end; the first run corrects it."""

REDRAWN_S = 30.0
"""Seconds between two drawings of the bar within a phase where it goes to a log."""


class Bar:
    """A tqdm bar in seconds of engine time: what is measured, what is left."""

    def __init__(self, experiments: Sequence[Experiment], shown: bool) -> None:
        self.runs, self.done = len(experiments), 0
        self.longest_overhead_s = START_S
        self.redrawn_s = 0.0 if sys.stderr.isatty() else REDRAWN_S
        self.drawn = ("", 0.0)  # phase and time
        self.total = sum(START_S + e.load_s for e in experiments)
        self.tqdm = tqdm(
            total=round(self.total),
            disable=not shown,
            bar_format="{desc} {percentage:3.0f}%|{bar}| {elapsed}<{remaining}",
        )

    def skip(self, experiment: Experiment) -> None:
        """Count a run that is measured already."""
        self.done += 1
        self.total -= START_S + experiment.load_s
        self.tqdm.total = round(self.total)
        self.tqdm.refresh()

    def begin(self, experiment: Experiment, name: str) -> None:
        """Show the run now in hand."""
        self.name, self.at, self.began = name, self.tqdm.n, time.monotonic()
        self.load_s = experiment.load_s
        self.until = self.at + START_S + experiment.load_s
        self.report("start", 0)

    def report(self, phase: str, seconds: float) -> None:
        """Show the phase of the run in hand and the seconds it has taken."""
        self.tqdm.set_description(f"run {self.done + 1}/{self.runs} {self.name}: {phase}", False)
        if phase == "measure":
            self.tqdm.n = min(self.at + START_S + seconds, self.until)
        before, at = self.drawn
        if phase != before or time.monotonic() - at >= self.redrawn_s:
            self.drawn = phase, time.monotonic()
            self.tqdm.refresh()

    def end(self) -> None:
        """Count the run in hand as over."""
        self.done += 1
        overhead = time.monotonic() - self.began - self.load_s
        self.longest_overhead_s = max(self.longest_overhead_s, overhead)
        self.tqdm.n = self.until
        self.tqdm.refresh()


@contextlib.contextmanager
def bar(experiments: Sequence[Experiment], shown: bool) -> Iterator[Bar]:
    """A progress bar that is closed however the campaign ends."""
    made = Bar(experiments, shown)
    try:
        yield made
    finally:
        made.tqdm.close()
