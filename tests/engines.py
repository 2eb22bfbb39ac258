"""A real vLLM engine, run once as a campaign of one experiment."""

from __future__ import annotations

from pathlib import Path

from repro.experiment.campaign import run_campaign
from repro.experiment.config import Experiment

SMALL = {"concurrency": 64, "duration_s": 8.0, "enforce_eager": True}


def measure(root: Path, **fields: object) -> Path:
    (experiment,) = [Experiment.from_dict({**SMALL, **fields})]
    run_campaign([experiment], root, progress=False)
    return next(p for p in root.iterdir() if p.is_dir() and f"-{experiment.run_id}" in p.name)
