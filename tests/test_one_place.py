"""A policy, a claim, a figure and a vLLM hook point: each added to a copy in one place alone."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import repro
from repro.policy import NO_COLOUR

TESTS = Path(__file__).parent

POLICY = """
    ServingPolicy(
        "added-policy", "of this test", freeze=False, thresholds=(12_345, None, None)
    ),"""

HOOK_POINT = """
    HookPoint("vllm.added_module", "AddedClass.method", "of this test"),"""

CLAIM = '''"""A claim of its own module."""

from repro.claims.registry import claim
from repro.claims.verdict import Outcome, Verdict


@claim("added-claim", "Of this test.", criterion="always", needs="a campaign")
def reproduced_anywhere(campaign):
    return [Outcome(verdict=Verdict.REPRODUCED, number="1", reason="found", runs=())]
'''

FIGURE = '''"""A figure of its own module."""

from matplotlib.figure import Figure

from repro.report.figures.registry import figure


@figure
def added_figure(campaign):
    return Figure()
'''

LOOK = """
import contextlib, gc, io, json, sys
from pathlib import Path

import repro
from repro.policy import NO_COLOUR
from repro import claims, cli, policy

def said(*arguments):
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        cli.main(arguments)
    return " ".join(out.getvalue().split())

found = {"package": repro.__file__}
found |= {command: said(command, "--help") for command in ("run", "advise")}
found["doctor"] = said("doctor")

from repro.experiment.grid import grid
from repro.report import notebook

asked = {"source": "", "policies": "no-freeze,added-policy"}
asked |= vars(notebook.check({"In": ["source = ''; policies = None"]} | asked))
found["arms"] = [run.policy for run in grid(policies=asked["policies"], replicates=1)]

from repro.plugin import apply_policy

apply_policy.apply(policy.serving("added-policy"))
found["threshold"] = gc.get_threshold()[0]

from campaigns import story
from repro.dataset import load
from repro.report import figures, style

found["colour"] = style.POLICY_COLOUR["added-policy"]
data = Path(sys.argv[1])
lengths = {"added-policy": 50.0}
campaign = load(story(data / "c", policies=("no-freeze", *lengths), full_ms=lengths, length_s=30))
shown = figures.FIGURES["policies_compared"](campaign)
found["rows"] = [label.get_text() for label in shown.axes[0].get_yticklabels()]

for name in set(figures.FIGURES) - {"added_figure"}:  # drawing them all takes seconds
    del figures.FIGURES[name]
found["figures"] = said("figures", "--data", str(data), "--out", str(data / "figures"))

found["claims"] = [claim.id for claim in claims.CLAIMS]
claims.CLAIMS = [claim for claim in claims.CLAIMS if claim.id == "added-claim"]  # seconds too
found["table"] = said("claims", str(data / "c"))
print(json.dumps(found))
"""


def add(path: Path, after: str, entry: str) -> None:
    """Insert one entry into a file."""
    before, sign, rest = path.read_text(encoding="utf-8").partition(after)
    assert sign, f"no {after!r} in {path.name}"
    path.write_text(before + sign + entry + rest, encoding="utf-8")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """All that the copy with the four additions says of itself, in one process."""
    root = tmp_path_factory.mktemp("copy")
    copy = root / "repro"
    shutil.copytree(Path(repro.__file__).parent, copy, ignore=shutil.ignore_patterns("*.pyc"))
    add(copy / "policy.py", "SERVING = _by_name(", POLICY)
    add(copy / "plugin" / "hook_points.py", "HOOK_POINTS = (", HOOK_POINT)
    (copy / "claims" / "added.py").write_text(CLAIM, encoding="utf-8")
    (copy / "report" / "figures" / "added.py").write_text(FIGURE, encoding="utf-8")
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(root), str(TESTS)]),
        "REPRO_POLICY": "added-policy",
        "REPRO_ENGINE_POLICY": "mistyped",
    }
    ran = subprocess.run(
        [sys.executable, "-c", LOOK, str(root / "data")],
        env=environment,
        cwd=root,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    looked: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    assert Path(looked["package"]).parent == copy
    return looked


def test_a_policy_is_one_entry(found: dict[str, Any]) -> None:
    assert all("added-policy" in found[command] for command in ("run", "advise"))
    assert found["arms"] == ["no-freeze", "added-policy"]
    assert "'mistyped' -> choose one of added-policy, stock" in found["doctor"]
    assert "REPRO_POLICY" not in found["doctor"], "a known name is no obstacle"
    assert found["threshold"] == 12_345


def test_a_policy_without_a_colour_is_drawn(found: dict[str, Any]) -> None:
    assert found["colour"] == NO_COLOUR
    assert found["rows"] == ["no-freeze", "added-policy"]


def test_a_claim_is_one_function(found: dict[str, Any]) -> None:
    assert found["claims"][0] == "p99-falls"
    assert found["claims"][-1] == "added-claim"
    assert "| Of this test. | **reproduced** | 1 | found | always |" in found["table"]


def test_a_figure_is_one_module(found: dict[str, Any]) -> None:
    assert found["figures"].endswith("figures/c/added_figure.png")


def test_a_hook_point_is_one_entry(found: dict[str, Any]) -> None:
    assert "missing vllm.added_module.AddedClass.method (of this test)" in found["doctor"]
