"""The closed set of policies."""

from __future__ import annotations

import pkgutil
import subprocess
import sys

import pytest

import repro.plugin
from repro import policy


@pytest.mark.parametrize("look_up", [policy.serving, policy.capture])
def test_an_unknown_name_names_the_choices(look_up: object) -> None:
    with pytest.raises(policy.UnknownPolicy, match=r"'thaw'.*choose one of stock"):
        look_up("thaw")  # type: ignore[operator]


def test_the_policies_of_the_report_are_there() -> None:
    assert {"stock", "no-freeze", "freeze"} <= set(policy.SERVING)
    assert {"gc-on", "frozen", "frozen-disabled", "collect-per-graph"} <= set(policy.CAPTURE)


def test_every_policy_carries_its_own_name() -> None:
    for policies in (policy.SERVING, policy.CAPTURE):
        assert all(name == each.name and each.summary for name, each in policies.items())


def test_no_two_policies_are_drawn_in_one_colour() -> None:
    colours = [each.colour for each in policy.SERVING.values()]
    assert len(set(colours)) == len(colours)


def test_the_plugin_imports_only_the_standard_library() -> None:
    """Inside vLLM's processes nothing of ours may bring pandas, numpy or the rest of `repro`."""
    plugin = sorted(module.name for module in pkgutil.iter_modules(repro.plugin.__path__))
    wanted = ", ".join(["repro.plugin", *(f"repro.plugin.{name}" for name in plugin)])
    code = (
        f"import sys; before = set(sys.modules); import {wanted}\n"
        "new = {m.partition('.')[0] for m in set(sys.modules) - before}\n"
        "print(' '.join(sorted(m for m in new - set(sys.stdlib_module_names) if m[0] != '_')))\n"
        "print(' '.join(sorted(m for m in sys.modules if m.startswith('repro'))))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    packages, modules = ran.stdout.splitlines()
    assert packages == "repro"
    beside = {name for name in modules.split() if not name.startswith("repro.plugin")}
    assert beside == {"repro", "repro.policy", "repro.releases"}
