"""Shared parts of notebooks: parameters checked, a campaign found or measured, tables shown.

papermill accepts a mistyped parameter and stores the overrides alone, so a notebook checks its
parameters and shows the resolved set. Nothing here imports vLLM.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
from IPython.display import Image, Markdown

from repro import dataset, fmt
from repro.dataset import Campaign
from repro.experiment.grid import PARAMETERS, grid
from repro.experiment.parameters import ConfigError, parameter, parameters, read_all
from repro.report import figures, style

MEASURE = "measure"
PARAMETERS_CELL = "source = "  # how every notebook's `parameters` cell begins
INJECTED = "# Parameters"  # first line of the cell that papermill puts after `parameters`
PROGRAM = "pyproject.toml"  # marks the project's folder

SCREEN_DPI = 110


class NothingMeasured(ValueError):
    """A campaign without a single run that is ok; the message gives the first reason."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """The parameters of a notebook that say nothing about a run."""

    source: str = parameter("", f"'{MEASURE}', a campaign's folder, or '' for what is in data/")
    factor: float = parameter(5.0, "a longer gap is tail", unit="times the median", at_least=1.1)


KNOWN = parameters(Reading) | PARAMETERS
"""Every parameter that a notebook may have; its `parameters` cell picks its own."""


def check(namespace: Mapping[str, Any]) -> SimpleNamespace:
    """The notebook's parameters, read and checked as on the command line.

    Parameters
    ----------
    namespace : mapping
        `globals()` of the notebook.

    Returns
    -------
    SimpleNamespace
        The resolved set, one attribute per parameter.

    Raises
    ------
    ConfigError
        One line with the name, the value and what is allowed.
    """
    own = assigned(namespace, PARAMETERS_CELL)
    if unknown := [name for name in assigned(namespace, INJECTED) if name not in own]:
        raise ConfigError(f"unknown parameter {unknown[0]!r}: this notebook has {', '.join(own)}")
    return SimpleNamespace(**read_all(KNOWN, {name: namespace[name] for name in own}))


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


# --- where the data come from -------------------------------------------------------------


def project() -> Path:
    """The project's folder, from wherever in it the notebook runs; else the working folder."""
    here = Path.cwd()
    return next((p for p in (here, *here.parents) if (p / PROGRAM).is_file()), here)


def campaigns(
    use: SimpleNamespace,
    *,
    suits: Callable[[Campaign], bool],
    root: Path | None = None,
) -> list[Campaign]:
    """The campaigns that `use.source` means: of GPUs first, of most runs, of equals the newest.

    Parameters
    ----------
    use : SimpleNamespace
        As `check` returns. `source` is `measure` (run on this machine what the other parameters
        say), a folder (that campaign, whatever the other parameters say), or empty (those in
        `root/data` that suit, or, if none does, as `measure`).
    suits : callable
        Whether a campaign of `root/data` holds what the notebook is about.
    root : Path, optional
        The project's folder (default: `project()`).

    Returns
    -------
    list of Campaign
        At least one; each with at least one run that is ok.

    Raises
    ------
    repro.dataset.DatasetError
        If the folder holds no campaign or a damaged one.
    NothingMeasured
        If no run of the campaign is ok.
    """
    root = root or project()
    if use.source == "":
        recorded = [found for found in _recorded(root / "data") if suits(found)]
        if recorded:
            return recorded
    path = _measure(use, root) if use.source in ("", MEASURE) else _absolute(use.source, root)
    campaign = dataset.load(path)
    if campaign.runs.empty:
        raise NothingMeasured(f"{path}: no run is ok; the first failed: {_first_reason(campaign)}")
    return [campaign]


def holds(campaign: Campaign, use: SimpleNamespace) -> bool:
    """Whether a campaign has runs of every policy asked for, under the settings asked for."""
    runs = campaign.runs
    for name in ("concurrency", "executor", "client", "model"):
        asked = getattr(use, name, "")
        runs = runs if asked == "" else runs[runs[name].isin(np.atleast_1d(asked))]
    return set(use.policies) <= set(runs["policy"])


def _measure(use: SimpleNamespace, root: Path) -> Path:
    # Only now: what measures is not needed to read what was recorded.
    from repro.experiment.campaign import run_campaign

    asked = {name: value for name, value in vars(use).items() if name in PARAMETERS}
    experiments = grid(**{name: value for name, value in asked.items() if value != ""})
    # The same parameters resume the same campaign; others begin one of their own.
    ids = " ".join(sorted(experiment.run_id for experiment in experiments))
    name = f"notebook-{hashlib.sha256(ids.encode()).hexdigest()[:8]}"
    return run_campaign(experiments, root / "runs" / name)


def _first_reason(campaign: Campaign) -> str:
    return str(campaign.failed["reason"].iloc[0]) if len(campaign.failed) else "none was finished"


def _absolute(source: str, root: Path) -> Path:
    """A relative folder is first looked for where the notebook runs, then in the project."""
    path = Path(source).expanduser()
    return path if path.exists() else root / path


def _recorded(data: Path) -> list[Campaign]:
    folders = sorted(data.iterdir()) if data.is_dir() else []
    found = [dataset.load(folder) for folder in folders if dataset.is_campaign(folder)]
    found = [campaign for campaign in found if len(campaign.runs)]
    return sorted(found, key=_weight, reverse=True)


def _weight(campaign: Campaign) -> tuple[bool, int, str]:
    runs = campaign.runs
    return bool(runs["gpu_name"].notna().any()), len(runs), str(max(runs["started_at"]))


# --- what a notebook shows ----------------------------------------------------------------


def resolved(use: SimpleNamespace) -> Markdown:
    """The resolved set of parameters, for the record: papermill stores the overrides alone."""
    rows = [(name, repr(value)) for name, value in vars(use).items()]
    return table(pd.DataFrame(rows, columns=["parameter", "value"]))


def table(rows: pd.DataFrame) -> Markdown:
    """A table of texts."""
    return Markdown(fmt.markdown_table(rows))


def figure(name: str, campaign: Campaign) -> Image | Markdown:
    """A figure by its name in `repro.report.figures.FIGURES`, or why this campaign has none."""
    try:
        drawn = figures.FIGURES[name](campaign)
    except figures.NotApplicable as missing:
        return Markdown(f"*Not drawn: {missing}.*")
    width = int(SCREEN_DPI * drawn.get_figwidth())
    return Image(data=style.png(drawn), width=width, alt=drawn.get_suptitle())
