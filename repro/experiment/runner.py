"""The child process that holds one vLLM engine, or its server, and the client that drives it.

Started by `repro.experiment.supervise`, which writes the experiment as one JSON line to this
process's standard input and keeps that pipe open: when it closes, for whatever reason, this
process ends its whole process group. Events go out as JSON lines on the original standard
output; everything vLLM prints goes to standard error, which is the run's log.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from repro.experiment import clients
from repro.experiment.config import Experiment
from repro.experiment.pipes import take_over_stdout


def main() -> None:
    """Run the experiment read from standard input; exit status 1 if it failed."""
    events = take_over_stdout()

    def send(**fields: Any) -> None:
        events.write(json.dumps(fields) + "\n")

    def report(phase: str, seconds: float) -> None:
        send(event="phase", phase=phase, seconds=seconds)

    request = json.loads(sys.stdin.readline())
    threading.Thread(target=die_with_parent, daemon=True).start()
    try:
        experiment = Experiment.from_dict(request["experiment"])
        folder = Path(request["folder"])
        report("start", 0)
        clients.measure(experiment, folder, report).write(folder, experiment)
        send(event="done")
    except Exception as error:
        import traceback

        traceback.print_exc()
        send(event="failed", reason=f"{type(error).__name__}: {error}")
        sys.exit(1)


def die_with_parent() -> None:
    """Block until the parent's end of standard input closes, then end the process group."""
    while os.read(0, 4096):
        pass
    os.killpg(0, signal.SIGKILL)
