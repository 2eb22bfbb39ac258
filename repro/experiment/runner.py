"""The child process that holds one vLLM engine, or its server, and the client that drives it.

Started by `repro.experiment.supervise`, which writes the experiment as one JSON line to this
process's standard input and keeps that pipe open: when it closes, for whatever reason, this
process ends its whole process group. Events go out as JSON lines on the original standard
output; everything vLLM prints goes to standard error, which is the run's log.
"""

from __future__ import annotations

import functools
import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

from repro.experiment import clients
from repro.experiment.config import Experiment
from repro.experiment.pipes import take_over_stdout


def main() -> None:
    """Run the experiment read from standard input; exit status 1 if it failed."""
    send = functools.partial(write_event, take_over_stdout())
    request = json.loads(sys.stdin.readline())
    threading.Thread(target=die_with_parent, daemon=True).start()
    try:
        measure(Experiment.from_dict(request["experiment"]), Path(request["folder"]), send)
    except Exception as error:
        import traceback

        traceback.print_exc()
        send(event="failed", reason=f"{type(error).__name__}: {error}")
        sys.exit(1)


def write_event(stream: TextIO, **fields: Any) -> None:
    """Write the keyword arguments as one JSON line."""
    stream.write(json.dumps(fields) + "\n")


def die_with_parent() -> None:
    """Block until the parent's end of standard input closes, then end the process group."""
    while os.read(0, 4096):
        pass
    os.killpg(0, signal.SIGKILL)


def measure(experiment: Experiment, folder: Path, send: Callable[..., None]) -> None:
    """Have the experiment's client measure, and write what it saw.

    Raises
    ------
    repro.experiment.verify.NotAsRequested
        If the policy did not take effect, or the run was not what was asked for.
    """

    def report(phase: str, seconds: float) -> None:
        send(event="phase", phase=phase, seconds=seconds)

    report("start", 0)
    clients.named(experiment.client).measure(experiment, folder, report).write(folder, experiment)
    send(event="done")
