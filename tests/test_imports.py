"""Imports between the rooms of `repro/` point one way, by the source of every module."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import repro

ROOT = Path(repro.__file__).parent
ANYWHERE = {"fmt", "policy", "releases", "__version__"}
"""What any room may import; `fmt` itself imports only `stats`."""

ALLOWED = {
    "stats": {"dataset"},
    "theory": {"stats"},
    "dataset": {"experiment", "plugin"},  # fields of `Experiment`, format of the recorder
    "analysis": {"dataset", "stats", "theory"},
    "claims": {"analysis", "dataset", "stats", "theory"},
    "report": {"claims", "analysis", "dataset", "stats", "theory", "experiment", "doctor"},
    "server": {"report", "claims", "analysis", "dataset", "stats", "theory", "plugin"},
    "experiment": {"dataset", "plugin"},
    "plugin": set(),
}


def rooms_imported(module: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name.split(".")[1] for name in names if name.startswith("repro.")}


@pytest.mark.parametrize("room", ALLOWED)
def test_imports_point_one_way(room: str) -> None:
    modules = sorted((ROOT / room).rglob("*.py"))
    assert modules
    for module in modules:
        wrong = rooms_imported(module) - ALLOWED[room] - ANYWHERE - {room}
        assert not wrong, f"{module.relative_to(ROOT)} imports {', '.join(sorted(wrong))}"


def test_formatting_knows_no_campaign() -> None:
    assert rooms_imported(ROOT / "fmt.py") <= {"stats"}
