"""Shared parts of notebooks: parameters checked, a campaign found or measured, tables shown.

papermill accepts a mistyped parameter and stores the overrides alone, so a notebook checks its
parameters and shows the resolved set. Nothing here imports vLLM.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pandas as pd
from IPython import get_ipython
from IPython.display import Image, Markdown, display

from repro import fmt
from repro.dataset import Campaign
from repro.experiment.fields import ConfigError, as_text, parameter, parameters, read_all
from repro.experiment.grid import PARAMETERS
from repro.report import figures, style
from repro.report.explore import explore
from repro.report.kernels import leave_when_told
from repro.report.source import MEASURE, campaigns, in_force, project
from repro.report.tables import runs

__all__ = ["campaigns", "check", "explore", "figure", "finding", "first_with", "project"]
__all__ += ["resolved", "section", "table"]

PARAMETERS_CELL = "source = "  # how every notebook's `parameters` cell begins
INJECTED = "# Parameters"  # first line of the cell that papermill puts after `parameters`

SCREEN_DPI = 110


@dataclass(frozen=True, kw_only=True)
class Reading:
    """The parameters of a notebook that say nothing about a run."""

    source: str = parameter("", f"'{MEASURE}', a campaign's folder, or '' for what is in data/")
    factor: float = parameter(5.0, "a longer gap is tail", unit="times the median", at_least=1.1)


KNOWN = parameters(Reading) | PARAMETERS
"""Every parameter that a notebook may have; its `parameters` cell picks its own."""


def check(namespace: Mapping[str, Any]) -> SimpleNamespace:
    """The notebook's parameters, out of its `globals()`, read and checked as on the command line.

    One attribute per parameter; None: as recorded, or the default when measuring.

    Raises
    ------
    ConfigError
        One line with the name, the value and what is allowed.
    """
    if shell := get_ipython():
        leave_when_told(shell)
    own = assigned(namespace, PARAMETERS_CELL)
    if unknown := [name for name in assigned(namespace, INJECTED) if name not in own]:
        raise ConfigError(f"unknown parameter {unknown[0]!r}: this notebook has {', '.join(own)}")
    given = {name: namespace[name] for name in own if namespace[name] is not None}
    return SimpleNamespace(**dict.fromkeys(own) | read_all(KNOWN, given))


def assigned(namespace: Mapping[str, Any], beginning: str) -> list[str]:
    """Names assigned by the notebook's executed cells that begin so."""
    return [
        target.id
        for cell in namespace["In"]
        if cell.startswith(beginning)
        for statement in ast.parse(cell).body
        if isinstance(statement, ast.Assign)
        for target in statement.targets
        if isinstance(target, ast.Name)
    ]


# --- what a notebook shows ----------------------------------------------------------------


def resolved(use: SimpleNamespace, campaign: Campaign) -> Markdown:
    """The parameters of the runs shown, as recorded in them."""
    rows = [("source", f"{campaign.path.parent.name}/{campaign.path.name}")]
    rows += [
        (name, in_force(campaign, name) if name in PARAMETERS else str(as_text(value)))
        for name, value in vars(use).items()
        if name != "source"
    ]
    return table(pd.DataFrame(rows, columns=["parameter", "value"]))


def table(rows: pd.DataFrame, campaign: Campaign | None = None) -> Markdown:
    """A table of texts; with a campaign, its arms with noisy runs are marked."""
    if campaign is not None:
        rows = runs.marked(rows, campaign)
    text = fmt.markdown_table(rows)
    return Markdown(f"{text}\n\n{runs.NOTE}" if runs.MARK in text else text)


def figure(name: str, campaign: Campaign) -> Image | Markdown:
    """A figure by its name in `repro.report.figures.FIGURES`, or why this campaign has none."""
    try:
        drawn = figures.FIGURES[name](campaign)
    except figures.NotApplicable as missing:
        return Markdown(f"*No figure `{name}` of {campaign.path.name}: {missing}.*")
    width = int(SCREEN_DPI * drawn.get_figwidth())
    return Image(data=style.encoded(drawn), width=width, alt=drawn.get_suptitle())


def finding(name: str, campaign: Campaign) -> str:
    """The message of a figure as one line, with the campaign; empty if it has none."""
    try:
        said = figures.FIGURES[name](campaign).get_suptitle().replace("\n", " ")
    except figures.NotApplicable:
        return ""
    return f"- {said}. (`{campaign.path.name}`)"


def first_with(name: str, found: Sequence[Campaign]) -> Campaign:
    """The first campaign that a figure can be drawn of; else the first."""
    return next((campaign for campaign in found if finding(name, campaign)), found[0])


def section(heading: str, about: str, *parts: Any, of: Campaign) -> None:
    """A heading, what it is about, and tables, figures and text; nothing where all are empty."""
    shown = []
    for part in parts:
        if isinstance(part, pd.DataFrame):
            shown += [] if part.empty else [table(part, of)]
        elif part in figures.FIGURES:
            drawn = figure(part, of)
            shown += [drawn] if isinstance(drawn, Image) else []
        else:
            shown += [Markdown(part)] if part else []
    if shown:
        display(Markdown(f"## {heading}\n\n{about}"), *shown)
