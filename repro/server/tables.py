"""The tables of a server's page and of `watch`, in words."""

from __future__ import annotations

import pandas as pd

from repro import fmt
from repro.dataset.schema import NS_PER_MS
from repro.server import numbers
from repro.server.launches import Launch
from repro.server.longest import Long, meanwhile
from repro.server.numbers import Numbers
from repro.server.tail import quantiles


def processes(launch: Launch, found: Numbers) -> pd.DataFrame:
    """One row per process: its recording, in words."""
    rows = []
    shares = numbers.front_end_shares(launch, found)
    for place, member in enumerate(launch.members):
        own, about = found.own[place], member.about
        heap = {True: "frozen", False: "not frozen", None: "not counted"}[member.frozen]
        rows.append(
            {
                "process": member.label,
                "host": str(about.get("host", ""))[:6] if launch.hosts > 1 else "",
                "recorded (s)": f"{max(own.last_ns - own.first_ns, 0) / 1e9:,.0f}",
                "collections": f"{own.collections:,}",
                "steps": f"{own.steps:,}" if own.steps else "",
                "of the tokens": fmt.percent(shares[place]) if place in shares else "",
                "heap": heap,
                "thresholds": "/".join(map(str, about.get("thresholds", ()))),
                "policy": about.get("policy", ""),
                "recording": "" if member.source.process.complete else "stopped early",
            }
        )
    made = pd.DataFrame(rows)
    return made.loc[:, (made != "").any()]


def collections(launch: Launch, found: Numbers) -> pd.DataFrame:
    """Collections and rates of each process while it served, in words."""
    return pd.DataFrame(
        {
            "process": member.label,
            "gen 0": f"{own.taken[0].number:,}",
            "gen 1": f"{own.taken[1].number:,}",
            "gen 2": f"{own.taken[2].number:,}",
            "in GC": fmt.percent(own.total_ns / 1e9 / found.seconds),
            "longest (ms)": fmt.figures(own.longest[0] / NS_PER_MS),
            "steps/s": fmt.figures(own.steps / found.seconds) if own.steps else "",
            "tokens/s": fmt.count(own.served / found.seconds) if own.served else "",
        }
        for own, member in ((found.own[n], m) for n, m in enumerate(launch.members))
        if member.role in fmt.PROCESS and found.served
    )


def effects(found: Numbers) -> pd.DataFrame:
    """Causes and the steps that they lengthen, in words."""
    return pd.DataFrame(
        {
            "process": fmt.PROCESS[role],
            "generation": generation,
            "steps overlapped": f"{effect.hit:,}",
            "of all": fmt.percent(effect.hit / found.steps),
            "by chance": fmt.percent(effect.chance_hit / found.steps),
            "longer": fmt.percent(effect.shown),
            "longer by chance": fmt.percent(effect.chance),
            "booked": "yes" if effect.shows else "no",
        }
        for (role, generation), effect in sorted(found.effects.items())
        if effect.hit
    )


def tail_table(found: Numbers) -> pd.DataFrame:
    """The tail with and without the collector, in words."""
    rows = []
    for kind, name in (("all", "as recorded"), ("without", "without the collector")):
        estimates = quantiles(found.tails[kind], numbers.QUANTILES)
        cells = {"interval (ms)": name, "steps": f"{estimates[0].steps:,}"}
        for quantile, each in zip(numbers.QUANTILES, estimates, strict=True):
            value, low, high = (x / NS_PER_MS for x in (each.value, each.low, each.high))
            cells[fmt.quantile(quantile)] = (
                fmt.interval(value, low, high) if each.supported else f"needs {each.needs:,} steps"
            )
        rows.append(cells)
    return pd.DataFrame(rows)


def longest(rows: list[Long], found: Numbers, name: str) -> pd.DataFrame:
    """Long steps, stops or pauses, in words."""
    return pd.DataFrame(
        {
            name: fmt.figures(each.length_ns / NS_PER_MS),
            "at (s)": f"{(each.start_ns - found.span[0]) / 1e9:,.1f}",
            "whose": each.whose,
            "meanwhile": each.what or meanwhile(each, [*found.stops, *found.steps_longest]),
        }
        for each in rows
    )
