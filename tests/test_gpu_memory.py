"""GPU memory still held after a run: it fails the run, unless the run was on the CPU."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import pytest

from repro.experiment import supervise
from repro.experiment.config import Experiment

DONE = """print('{"event": "done"}', flush=True)"""


@pytest.mark.parametrize(("device", "fails"), [("auto", True), ("cpu", False)])
def test_only_a_run_that_used_a_gpu_answers_for_its_memory(
    device: str, fails: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another program takes ever more of the only GPU meanwhile."""
    used = itertools.count(0, 10 * supervise.GPU_SLACK_MIB)
    monkeypatch.setattr(supervise.provenance, "gpu_memory_used", lambda: [next(used)])
    monkeypatch.setattr(supervise, "CHILD", (sys.executable, "-c", DONE))
    monkeypatch.setattr(supervise, "KILL_S", 0.1)
    try:
        supervise.run_child(Experiment(device=device), tmp_path, lambda phase, seconds: None)
        failed = False
    except supervise.RunFailed as error:
        failed = "GPU memory still held" in str(error)
    assert failed is fails
