"""The check of vLLM releases: what makes a part work, on invented runs and the recorded table."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from builders import END, START, run, steady

from benchmarks import compat

RECORD = Path(__file__).parent.parent / compat.RECORD


def campaign(root: Path, **spoilt: object) -> Path:
    """Two runs of a release as `make compat` leaves them."""
    points = sorted(compat.POINTS)
    for policy, frozen in (("no-freeze", 300), ("freeze", 800_000)):
        tables = steady()
        roles = sorted(compat.ROLES)
        tables["pauses"] = {"role": roles, "start_ns": [START] * 3}
        tables["census"] = {"point": points, "t_ns": [END] * len(points), "frozen": frozen}
        tables["captures"] = {"kind": ["compile"]}
        tables |= {name: columns for name, columns in spoilt.items() if name in tables}  # type: ignore[misc]
        run(root, policy, tables, experiment__policy=policy)
    return root


def test_a_release_works_if_all_its_parts_do(tmp_path: Path) -> None:
    assert all(compat.verdicts(compat.checked(campaign(tmp_path))).values())


@pytest.mark.parametrize(
    ("table", "columns", "part"),
    [
        ("pauses", {"role": ["worker"], "start_ns": [START]}, "recorder"),
        ("census", {"point": ["window-start"], "t_ns": [START], "frozen": 300}, "policy"),
        ("census", {"point": ["window-start"], "t_ns": [START], "frozen": 300}, "census"),
        ("captures", {"kind": []}, "capture span"),
    ],
)
def test_a_part_that_does_not_work_is_named(
    table: str, columns: dict[str, object], part: str, tmp_path: Path
) -> None:
    row = compat.checked(campaign(tmp_path, **{table: columns}))
    assert compat.verdicts(row)[part] is False


def test_a_release_that_did_not_start_works_in_no_part() -> None:
    assert not any(compat.verdicts({"date": "", "failed": "no such wheel"}).values())


def test_every_recorded_release_says_what_it_ran_on() -> None:
    for release, row in json.loads(RECORD.read_text()).items():
        assert row["vllm"] == release
        assert {"torch", "python", "machine", "date"} <= set(row)


STOPPED = """
from pathlib import Path
from benchmarks import compat
from repro.experiment.campaign import stopping_on_sigterm
with stopping_on_sigterm():
    compat.command(Path("{python}"), "run")
"""


def test_sigterm_ends_the_run_in_hand_first(tmp_path: Path) -> None:
    python, started, ended = (tmp_path / name for name in ("python", "started", "ended"))
    trap = f"trap 'sleep 0.5; echo bye; touch {ended}; exit' TERM"
    python.write_text(f"#!/bin/sh\n{trap}\ntouch {started}\nwhile :; do sleep 0.1; done\n")
    python.chmod(0o755)
    outer = subprocess.Popen(
        [sys.executable, "-c", STOPPED.format(python=python)], stderr=subprocess.DEVNULL
    )
    while not started.exists():
        assert outer.poll() is None
        time.sleep(0.05)
    outer.send_signal(signal.SIGTERM)
    assert outer.wait() != 0
    assert ended.exists()
