"""Clients that drive the load, one module each: `measure(experiment, folder, report) -> Measured`.

A client's name in `repro.experiment.config.CLIENTS` is its module's name here.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Protocol, cast

from repro.experiment.config import Experiment
from repro.experiment.measured import Measured
from repro.experiment.other_load import Report

__all__ = ["Client", "Report", "named"]


class Client(Protocol):
    """One way to put load on a vLLM engine."""

    def measure(self, experiment: Experiment, folder: Path, report: Report) -> Measured:
        """Start vLLM, check the policy, drive ramp and window, shut vLLM down.

        Raises
        ------
        repro.experiment.verify.NotAsRequested
            If the run did not do what was asked of it.
        """


def named(client: str) -> Client:
    """The client of this name; its module is imported only now."""
    return cast(Client, importlib.import_module(f"repro.experiment.clients.{client}"))
