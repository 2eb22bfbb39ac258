"""What notebooks share: parameters checked, a campaign found or measured, tables shown.

papermill exits 0 on a mistyped parameter and stores the overrides only, so the notebooks check
every parameter themselves and show the resolved set. Nothing here imports vLLM: a notebook on
recorded data needs none.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
from IPython.display import Image, Markdown

from repro import dataset, fmt, policy
from repro.dataset import Campaign
from repro.experiment.config import CLIENTS, EXECUTORS
from repro.report import figures, style

MEASURE = "measure"
INJECTED = "# Parameters"  # first line of the cell that papermill puts after `parameters`
PROGRAM = "pyproject.toml"  # marks the project's folder


SCREEN_DPI = 110
NOT_MEASURED = ("source", "factor")
"""Parameters that say nothing about a run."""


class ParameterError(ValueError):
    """A parameter of a notebook that is unknown, missing or has a value it cannot have."""


class NothingMeasured(ValueError):
    """A campaign without a single run that is ok; the message gives the first reason."""


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """What one parameter may be.

    Attributes
    ----------
    allowed : str
        What it may be, in words; completes "it must be ...".
    read : callable
        The value as the notebook uses it; raises `ValueError` or `TypeError` if it is none.
    """

    allowed: str
    read: Callable[[Any], Any]


def check(namespace: Mapping[str, Any], allowed: Mapping[str, Parameter]) -> SimpleNamespace:
    """The notebook's parameters, every one validated.

    Parameters
    ----------
    namespace : mapping
        `globals()` of the notebook.
    allowed : mapping of str to Parameter
        Every parameter that the notebook has.

    Returns
    -------
    SimpleNamespace
        The resolved set, one attribute a parameter.

    Raises
    ------
    ParameterError
        One line with the name, the value and what is allowed.
    """
    for name in injected(namespace):
        if name not in allowed:
            raise ParameterError(
                f"unknown parameter {name!r}: this notebook has {', '.join(allowed)}"
            )
    return SimpleNamespace(
        **{name: _read(name, namespace, parameter) for name, parameter in allowed.items()}
    )


def injected(namespace: Mapping[str, Any]) -> list[str]:
    """Names that papermill assigned, from the source of its cell; none outside a notebook."""
    cells = [cell for cell in namespace.get("In", []) if cell.startswith(INJECTED)]
    return [
        target.id
        for cell in cells
        for statement in ast.parse(cell).body
        if isinstance(statement, ast.Assign)
        for target in statement.targets
        if isinstance(target, ast.Name)
    ]


def _read(name: str, namespace: Mapping[str, Any], parameter: Parameter) -> Any:
    if name not in namespace:
        raise ParameterError(f"parameter {name!r} is missing: run the parameters cell first")
    value = namespace[name]
    try:
        return parameter.read(value)
    except (TypeError, ValueError):
        raise ParameterError(
            f"parameter {name} = {value!r}: it must be {parameter.allowed}"
        ) from None


# --- kinds of parameters ------------------------------------------------------------------


def number(low: float, high: float, unit: str, *, whole: bool = False) -> Parameter:
    """A number of `low` to `high`, bounds included; a whole one if `whole`."""

    def read(value: Any) -> float | int:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise TypeError
        if not low <= value <= high or (whole and value != int(value)):
            raise ValueError
        return int(value) if whole else value

    kind = "a whole number" if whole else "a number"
    return Parameter(allowed=f"{kind} of {unit} from {low:,} to {high:,}", read=read)


def one_of(*options: str) -> Parameter:
    """One name of a closed set."""

    def read(value: Any) -> str:
        return options[options.index(value)]

    return Parameter(allowed=f"one of {', '.join(map(repr, options))}", read=read)


def some_of(*options: str) -> Parameter:
    """A list of different names of a closed set; `-p policies '[freeze]'` arrives as text."""

    def read(value: Any) -> list[str]:
        if isinstance(value, str):
            value = [name.strip(" '\"") for name in value.strip("[] ").split(",")]
        names = [options[options.index(name)] for name in value]
        if not names or len(set(names)) < len(names):
            raise ValueError
        return names

    return Parameter(
        allowed=f"a list of different names out of {', '.join(map(repr, options))}", read=read
    )


def span(low: int, high: int, unit: str) -> Parameter:
    """Two whole numbers, the smaller first; `-p output_tokens '[64, 192]'` arrives as text."""

    def read(value: Any) -> tuple[int, int]:
        if isinstance(value, str):
            value = [int(part) for part in value.strip("[()] ").split(",")]
        first, last = value
        if not (type(first) is type(last) is int and low <= first <= last <= high):
            raise ValueError
        return first, last

    return Parameter(
        allowed=f"[smallest, largest], whole numbers of {unit} from {low:,} to {high:,}", read=read
    )


def flag() -> Parameter:
    """True or False; `-p identical_streams true` arrives as either."""

    def read(value: Any) -> bool:
        if not isinstance(value, bool):
            raise TypeError
        return value

    return Parameter(allowed="True or False", read=read)


def text(allowed: str) -> Parameter:
    """Any text."""

    def read(value: Any) -> str:
        if not isinstance(value, str):
            raise TypeError
        return value.strip()

    return Parameter(allowed=allowed, read=read)


PARAMETERS: Mapping[str, Parameter] = {
    "source": text(f"'{MEASURE}', the folder of a campaign, or '' for what is in data/"),
    "policies": some_of(*policy.SERVING),
    "capture_policies": some_of(*policy.CAPTURE),
    "concurrency": number(1, 65_536, "requests in flight on a rank", whole=True),
    "duration_s": number(1, 86_400, "seconds"),
    "switch_s": number(0, 86_400, "seconds"),
    "output_tokens": span(2, 1_000_000, "tokens an answer"),
    "recaptures": number(0, 1_000, "captures a policy in one process", whole=True),
    "replicates": number(1, 1_000, "runs an arm", whole=True),
    "executor": one_of(*EXECUTORS),
    "tensor_parallel_size": number(1, 1_024, "ranks", whole=True),
    "data_parallel_size": number(1, 1_024, "ranks", whole=True),
    "enable_expert_parallel": flag(),
    "identical_streams": flag(),
    "client": one_of(*CLIENTS),
    "model": text("the name of a model config, a model's name or folder, or '' for the default"),
    "seed": number(0, 2**31 - 1, "the random order", whole=True),
    "factor": number(1.1, 1_000, "times the median gap"),
}
"""Every parameter that a notebook here may have; a notebook picks its own by name."""


def allowed(*names: str) -> dict[str, Parameter]:
    """Those of `PARAMETERS` that a notebook has."""
    return {name: PARAMETERS[name] for name in names}


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
        runs = runs if asked == "" else runs[runs[name] == asked]
    return set(use.policies) <= set(runs["policy"])


def _measure(use: SimpleNamespace, root: Path) -> Path:
    # Only now: what measures is not needed to read what was recorded.
    from repro.experiment.campaign import run_campaign
    from repro.experiment.config import grid

    asked = {k: v for k, v in vars(use).items() if k not in NOT_MEASURED and v != ""}
    experiments = grid(**asked)
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
