"""Clients that drive the load, one module each: `measure(experiment, folder, report) -> Measured`.

A client's name in `repro.experiment.config.CLIENTS` is its module's name here.
"""

from __future__ import annotations

import importlib
from pathlib import Path

from repro.experiment.config import Experiment
from repro.experiment.measured import Measured
from repro.experiment.other_load import Report

__all__ = ["Report", "measure"]


def measure(experiment: Experiment, folder: Path, report: Report) -> Measured:
    """Start vLLM, check the policy, have the client drive ramp and window, shut vLLM down.

    Raises `NotAsRequested` if the run did not do what was asked of it.
    """
    client = importlib.import_module(f"repro.experiment.clients.{experiment.client}")
    measured: Measured = client.measure(experiment, folder, report)
    return measured
