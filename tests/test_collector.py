"""The model of CPython's collector does what the running interpreter does, step for step."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace

import collector_probe
import pytest
from simulated_collector import Collector, StepLoad, full_collection_steps, running_rule

from repro.theory.cpython_rule import (
    UnknownCollector,
    period_of_full_collections,
    rule_for,
)


def modelled(pattern, rule, *, tracked, counts):
    """What `collector_probe.observe` returns, by the model instead of the interpreter."""
    collector, full_steps, step = Collector(rule, old=tracked), [], 0
    collector.counts = list(counts)
    collector_probe.KEPT.clear()
    steps = pattern(collector)
    while True:
        before = collector.passes[2]
        done = next(steps, "done") == "done"
        full_steps += [step] * (collector.passes[2] - before)
        if done:
            return collector.passes, full_steps
        step += 1


@pytest.mark.parametrize("name", collector_probe.PATTERNS)
def test_model_agrees_with_this_interpreter(name):
    child = subprocess.run(
        [sys.executable, "-I", "-S", collector_probe.__file__, name],
        check=True,
        capture_output=True,
        text=True,
    )
    observed = json.loads(child.stdout)
    passes, full_steps = modelled(
        collector_probe.PATTERNS[name],
        running_rule(),
        tracked=observed["tracked"],
        counts=observed["counts"],
    )
    assert full_steps == observed["full_steps"]
    assert passes == observed["passes"]
    assert bool(full_steps) == (name not in {"below_threshold", "frozen_in_a_step"})


def test_freeze_keeps_the_quarter_rule_waiting_once_then_no_more():
    """The pull request's effect in one line: the first full pass as late as ever, then often."""
    load, rule = StepLoad(allocations=1024), rule_for("3.12.3")
    plain, frozen = Collector(rule, old=10**6), Collector(rule, old=10**6)
    frozen.freeze()
    plain_steps = list(full_collection_steps(plain, load, 20_000))
    frozen_steps = list(full_collection_steps(frozen, load, 20_000))
    assert frozen_steps[0] == plain_steps[0] == 357 * 12  # ceil(250000 / 701) generation-1 passes
    assert frozen_steps[1] - frozen_steps[0] == 11 * 12 + 1
    assert plain_steps[1] - plain_steps[0] == 357 * 12 + 1
    assert (plain.tracked(2), plain.frozen()) == (10**6, 0)
    assert (frozen.tracked(2), frozen.frozen()) == (0, 10**6)


def test_unfreeze_leaves_total_alone_until_a_full_collection():
    collector = Collector(rule_for("3.12.3"), old=1000)
    collector.freeze()
    collector.collect()
    assert collector.long_lived_total == 0
    collector.unfreeze()
    assert (collector.tracked(2), collector.long_lived_total) == (1000, 0)
    collector.collect()
    assert collector.long_lived_total == 1000


@pytest.mark.parametrize("switch_off", ["disable", "threshold 0", "high thresholds"])
def test_no_automatic_pass_when_switched_off(switch_off):
    thresholds = {"threshold 0": (0, 10, 10), "high thresholds": (20_000, 50, 50)}.get(switch_off)
    collector = Collector(rule_for("3.13.0"), thresholds=thresholds)
    collector.enabled = switch_off != "disable"
    assert list(full_collection_steps(collector, StepLoad(allocations=5000), 500)) == []
    assert collector.passes == [0, 0, 0]
    collector.collect(1)
    assert collector.passes == [0, 1, 0]


def test_a_c_call_delays_the_pass_from_3_12_on():
    passes = {}
    for version in ("3.11.7", "3.12.3"):
        collector = Collector(rule_for(version))
        collector.allocate(7010, in_one_call=True)
        passes[version] = sum(collector.passes)
    assert passes == {"3.11.7": 10, "3.12.3": 1}


CLOSED_FORM_LOADS = [
    StepLoad(allocations=1024),
    StepLoad(allocations=3000),
    StepLoad(allocations=1300, survivors=40, lifetime_steps=300),
    StepLoad(allocations=1300, survivors=40, lifetime_steps=5),
    StepLoad(allocations=900, survivors=200, lifetime_steps=100),
    StepLoad(allocations=500, survivors=20, lifetime_steps=50),
    StepLoad(allocations=5000, survivors=300, lifetime_steps=50),
]


def closed_form(load, collector, total):
    return period_of_full_collections(
        load.allocations,
        survivors=load.survivors,
        lifetime_steps=load.lifetime_steps or 1,
        long_lived_total=total,
        rule=collector.rule,
        thresholds=collector.thresholds,
    )


@pytest.mark.parametrize("version", ["3.11.7", "3.12.3", "3.13.0", "3.14.5"])
@pytest.mark.parametrize("load", CLOSED_FORM_LOADS, ids=str)
def test_closed_form_agrees_with_the_simulation(load, version):
    """Over the first full passes, each with the `long_lived_total` that the one before left."""
    load = replace(load, in_one_call=True)
    collector = Collector(rule_for(version), old=300_000)
    predicted, observed, last, total = [], [], 0, collector.long_lived_total
    for step in full_collection_steps(collector, load, 40_000):
        predicted.append(closed_form(load, collector, total))
        observed.append(step - last)
        last, total = step, collector.long_lived_total
        if len(observed) == 12:
            break
    if not observed:
        assert math.isinf(closed_form(load, collector, total))
    else:
        assert sum(observed) == pytest.approx(sum(predicted), rel=0.1)


@pytest.mark.parametrize(
    ("version", "message"),
    [
        ("3.14.0", "incremental collector of 3.14.0 to 3.14.4"),
        ("3.14.4", "use 3.11 to 3.13, or 3.14.5 and up"),
        ("3.10.13", "no model of the collector of Python 3.10.13; there is one for 3.11"),
        ("3.16.0", "no model of the collector of Python 3.16.0"),
        ("newest", "'newest' is not of the form 3.12.3"),
    ],
)
def test_unknown_collectors_are_refused(version, message):
    with pytest.raises(UnknownCollector, match=message) as refusal:
        rule_for(version)
    assert "\n" not in str(refusal.value)
