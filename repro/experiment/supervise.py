"""The parent's side of one run: start the child, follow its events, leave no process behind."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import selectors
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil

from repro import plugin
from repro.experiment import provenance
from repro.experiment.collect import LOG, RAW, first_error, log_lines
from repro.experiment.config import Experiment
from repro.experiment.other_load import Report

# By name, not as a script: vLLM's spawned processes would import a main module again, and the
# worker's heap would hold what only this client needs.
CHILD = (sys.executable, "-c", "from repro.experiment.runner import main; main()")

SILENCE_S = 900.0
"""An engine that says nothing for so long has hung (compiling a large model takes minutes)."""

LOADED = ("ramp", "measure")
"""Phases in which the engine's processes live and the child says something every second or so."""

DEATH_S = 15.0
"""Silence in such a phase after which the engine's processes are looked for: vLLM's front end can
wait for ever for an engine core that was killed. Till then it may say itself what it knows."""

GOODBYE_S = 60.0
"""Seconds for a run's processes to go by themselves after it went well: on a busy machine an
interpreter that has loaded torch and vLLM takes many of them to end."""

KILL_S = 30.0
"""Seconds to keep killing, and then to wait for GPU memory: a process deep in the kernel or a
driver may take a while to die."""

GPU_SLACK_MIB = 200
"""GPU memory that may differ after a run: other users of the host, the driver's own."""

POINTERS = ("root cause", "EngineDead", "ended at its start", "without a result")
"""Words of a reason whose cause stands in the log alone."""

MEDDLING = (
    "VLLM_GC_DEBUG",
    "VLLM_ENABLE_CUDAGRAPH_GC",
    "VLLM_PLUGINS",
    "VLLM_V1_OUTPUT_PROC_CHUNK_SIZE",
)
"""Variables that change the collector, its cost, whether the plugin is loaded, or what a parameter
of the experiment sets: not passed on."""


class RunFailed(RuntimeError):
    """The child did not finish its measurement; the message says why, in one line."""


def run_child(experiment: Experiment, folder: Path, report: Report) -> None:
    """Run one experiment in a child process of its own and wait for it.

    The run directory gets the child's log, its tables and the raw recording.

    Raises
    ------
    RunFailed
        If the child or its engine failed, hung, or left a process or GPU memory behind.
    """
    # A run on the CPU holds no GPU memory: what it would see is another program's.
    used_before = [] if experiment.device == "cpu" else provenance.gpu_memory_used()
    with (folder / LOG).open("wb") as log:
        child = subprocess.Popen(
            CHILD,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env=environment(experiment, folder),
            start_new_session=True,
        )
    patience_s = 0.0  # for a run that failed or was interrupted
    try:
        assert child.stdin is not None
        request = {"experiment": dataclasses.asdict(experiment), "folder": str(folder)}
        with contextlib.suppress(BrokenPipeError):  # died already: its log says why
            child.stdin.write(json.dumps(request).encode() + b"\n")
            child.stdin.flush()
        reason = follow(child, report)
        patience_s = 0.0 if reason else GOODBYE_S
    finally:
        left = end_session(child, patience_s)
    if reason:
        raise RunFailed(explain(reason, folder))
    if left:
        raise RunFailed(f"processes outlived the engine and were ended: {', '.join(left)}")
    check_gpu_memory(used_before)


def environment(experiment: Experiment, folder: Path) -> dict[str, str]:
    """The child's environment: the policy, the recorder, and vLLM as `vllm serve` starts it."""
    variables = {
        plugin.RECORD_DIR: str(folder.resolve() / RAW),
        plugin.POLICY: experiment.policies["worker"],
        plugin.ENGINE_POLICY: experiment.policies["engine"],
        plugin.FRONTEND_POLICY: experiment.policies["frontend"],
        plugin.CAPTURE_POLICY: experiment.capture_policy,
        plugin.OUTPUT_YIELD: experiment.output_yield,
        plugin.STRICT: "1",
        "VLLM_WORKER_MULTIPROCESSING_METHOD": "spawn",
        "VLLM_NO_USAGE_STATS": "1",
        # One core of the CPU backend stays with the front end and the engine core.
        "VLLM_CPU_NUM_OF_RESERVED_CPU": "1",
    }
    if experiment.dummy_weights:
        variables |= {"HF_HUB_OFFLINE": "1"}
    if experiment.runner != "auto":
        variables |= {"VLLM_USE_V2_MODEL_RUNNER": str(int(experiment.runner == "v2"))}
    if experiment.output_chunk:
        variables |= {"VLLM_V1_OUTPUT_PROC_CHUNK_SIZE": str(experiment.output_chunk)}
    if experiment.client == "async_engine":
        variables |= {"VLLM_CPU_OMP_THREADS_BIND": shared_out(experiment.ranks)}
    if experiment.device == "cpu":
        variables |= {"CUDA_VISIBLE_DEVICES": ""}
    inherited = {name: value for name, value in os.environ.items() if name not in MEDDLING}
    return {**inherited, **variables}


def shared_out(ranks: int) -> str:
    """Cores for each rank's worker, as vLLM's CPU backend reads it: `0,1|2,3`.

    By itself it wants a memory node for each rank. Where there are enough, one core for each rank's
    engine core and one for the front end are left out.
    """
    cores = sorted(os.sched_getaffinity(0))
    each = max(1, (len(cores) - ranks - 1) // ranks)
    parts = [cores[rank * each % len(cores) :][:each] for rank in range(ranks)]
    return "|".join(",".join(map(str, part)) for part in parts)


def follow(child: subprocess.Popen[bytes], report: Report) -> str | None:
    """Pass on the child's events until it ends; returns why it failed, None if it did not."""
    assert child.stdout is not None
    reason: str | None = "the measuring process ended without a result"
    engine: dict[str, psutil.Process] = {}
    heard, begun = time.monotonic(), b""
    with selectors.DefaultSelector() as selector:
        selector.register(child.stdout, selectors.EVENT_READ)
        while (silent := time.monotonic() - heard) < SILENCE_S:
            if not selector.select(timeout=1.0):
                ended = [name for name, process in engine.items() if not alive(process)]
                if ended and silent > DEATH_S:
                    return f"{', '.join(ended)} ended in the middle of the run"
                continue
            heard = time.monotonic()
            # Not by `readline`: of two events at once it would keep the second where `select`
            # does not see it.
            came = os.read(child.stdout.fileno(), 1 << 16)
            if not came:
                return reason
            *lines, begun = (begun + came).split(b"\n")
            for event in map(json.loads, lines):
                match event["event"]:
                    case "phase":
                        loaded = event["phase"] in LOADED
                        engine = (engine or engine_processes(child.pid)) if loaded else {}
                        report(event["phase"], event["seconds"])
                    case "failed":
                        reason = str(event["reason"])
                    case "done":
                        reason = None
    return f"no sign of life for {SILENCE_S:.0f} s"


def engine_processes(session: int) -> dict[str, psutil.Process]:
    """The engine cores and workers of a session, by the titles that vLLM gives them."""
    found = {}
    for process in session_members(session):
        with contextlib.suppress(psutil.Error):
            title = " ".join(process.cmdline()).strip()
            if title.startswith("VLLM::"):
                found[title] = process
    return found


def explain(reason: str, folder: Path) -> str:
    """One line: the child's reason, or the log's first error where the reason only points there."""
    points_there = any(hint in reason for hint in POINTERS)
    found = first_error(log_lines(folder)) if points_there else None
    return textwrap.shorten(found[1] if found else reason, width=400)


def end_session(child: subprocess.Popen[bytes], patience_s: float) -> list[str]:
    """End what of the child's session has not gone by itself in time; returns the commands."""
    deadline = time.monotonic() + patience_s
    while (left := session_members(child.pid)) and time.monotonic() < deadline:
        time.sleep(0.1)
        child.poll()
    commands = []
    for process in left:
        with contextlib.suppress(psutil.Error):
            commands.append(textwrap.shorten(" ".join(process.cmdline()), width=100))
    for pipe in (child.stdin, child.stdout):
        assert pipe is not None
        with contextlib.suppress(BrokenPipeError):
            pipe.close()  # the child ends its own group as soon as it sees this
    deadline = time.monotonic() + KILL_S
    while (members := session_members(child.pid)) and time.monotonic() < deadline:
        for process in members:
            with contextlib.suppress(psutil.Error):
                process.send_signal(signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(timeout=0.1)
    return commands


def session_members(session: int) -> list[psutil.Process]:
    """Live processes of a session: the child, and everything vLLM started from it."""
    members = []
    for process in psutil.process_iter():
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if alive(process) and os.getsid(process.pid) == session:
                members.append(process)
    return members


def alive(process: psutil.Process) -> bool:
    """Whether a process runs; one that only waits to be reaped does not."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def check_gpu_memory(used_before: list[int]) -> None:
    """Wait until the GPUs hold no more than before; raises `RunFailed` after `KILL_S` seconds."""
    deadline = time.monotonic() + KILL_S
    while True:
        used = provenance.gpu_memory_used()
        extra = [now - before for before, now in zip(used_before, used, strict=False)]
        if all(mib <= GPU_SLACK_MIB for mib in extra):
            return
        if time.monotonic() > deadline:
            raise RunFailed(
                f"GPU memory still held after the run: {max(extra)} MiB more than before, by a "
                "process left over or by another program: see nvidia-smi, then measure it again"
            )
        time.sleep(1)
