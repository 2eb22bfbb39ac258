"""Finds the campaign that a notebook's parameters mean, or measures it when asked to.

A recorded campaign is narrowed to the runs that have the parameters given. A parameter that no
recorded run has is refused by name. Nothing here imports vLLM.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from repro import dataset, fmt
from repro.analysis.arms import pairs
from repro.dataset import Campaign
from repro.dataset.stored import documents
from repro.experiment.fields import ConfigError, as_text
from repro.experiment.grid import OF_PROCESS, PARAMETERS, grid

MEASURE = "measure"
PROGRAM = "pyproject.toml"  # marks the project's folder
REPEATED = 3  # engines per arm

Values = dict[str, Any]


def project() -> Path:
    """The project's folder, from wherever in it the notebook runs; else the working folder."""
    here = Path.cwd()
    return next((p for p in (here, *here.parents) if (p / PROGRAM).is_file()), here)


def campaigns(
    use: SimpleNamespace,
    *,
    suits: Callable[[Campaign], bool],
    measuring: Mapping[str, Any] | None = None,
    root: Path | None = None,
) -> list[Campaign]:
    """The campaigns that `use.source` means, best first.

    On a GPU before others; of these, with three engines or more per arm; then of most; then newest.

    Parameters
    ----------
    use : SimpleNamespace
        As `notebook.check` returns. `source` is `measure` (run on this machine what the other
        parameters say), a campaign's folder, or empty: those in `root/data` that suit.
    suits : callable
        Whether a campaign of `root/data` holds what the notebook is about.
    measuring : mapping, optional
        The notebook's own defaults when it measures; the others are those of `repro run`.
    root : Path, optional
        The project's folder (default: `project()`).

    Returns
    -------
    list of Campaign
        At least one, each with only the runs that have the parameters given.

    Raises
    ------
    repro.dataset.DatasetError
        If the folder holds no campaign or a damaged one.
    ConfigError
        One line: the parameter that was not recorded, what was, and what would measure it; or
        the first reason why no run of the campaign is ok.
    """
    root = root or project()
    given = {name: v for name, v in vars(use).items() if name in PARAMETERS and v not in (None, "")}
    runs = {**(measuring or {}), **given}
    if use.source == "":
        return _recorded(given, suits, root / "data", runs)
    if use.source == MEASURE:
        return [_of_runs(_measure(runs, root))]
    return [narrowed(_of_runs(_absolute(use.source, root)), given)]


def parameters_of(campaign: Campaign) -> dict[str, Values]:
    """The parameters of every run that is ok, named as in `PARAMETERS`, by `run_id`."""
    runs = {run.partition("/")[0] for run in campaign.runs["run"]}  # periods of a cross-over too
    return {
        document["run_id"]: _as_asked(document["experiment"])
        for document in documents(campaign.path)
        if document["run_id"] in runs
    }


def narrowed(campaign: Campaign, given: Mapping[str, Any]) -> Campaign:
    """The campaign with only the runs that have the parameters given.

    Raises
    ------
    ConfigError
        If no run has one of them.
    """
    runs = parameters_of(campaign)
    for name, asked in given.items():
        wanted, has = _wanted(name, asked), _distinct(name, runs)
        for value in wanted:
            if value not in has:
                raise ConfigError(
                    f"{name} {as_text(value)}: {campaign.path.name} was recorded with "
                    f"{_listed(has)}; leave {name} out, or measure with source={MEASURE}"
                )
        if name != "replicates":
            runs = {run: own for run, own in runs.items() if set(own[name]) & set(wanted)}
    if not given:
        return campaign
    kept = [run for run in campaign.runs["run"] if run.partition("/")[0] in runs]
    found = dataset.subset(campaign, run=tuple(kept))
    if policies := given.get("capture_policies"):  # of which one process may have several
        captures = found.captures[found.captures["capture_policy"].isin(policies)]
        found = replace(found, captures=captures.reset_index(drop=True))
    return found


def in_force(campaign: Campaign, name: str) -> str:
    """Values of a parameter in a campaign's runs, as text."""
    return _listed(_distinct(name, parameters_of(campaign)))


def _recorded(
    given: Mapping[str, Any],
    suits: Callable[[Campaign], bool],
    data: Path,
    to_measure: Mapping[str, Any],
) -> list[Campaign]:
    folders = sorted(data.iterdir()) if data.is_dir() else []
    loaded = [dataset.load(folder) for folder in folders if dataset.is_campaign(folder)]
    found = sorted((c for c in loaded if len(c.runs) and suits(c)), key=_weight, reverse=True)
    fitting = []
    for campaign in found:
        try:
            narrow = narrowed(campaign, given)
        except ConfigError:
            continue
        if suits(narrow):
            fitting.append(narrow)
    if not fitting:
        raise ConfigError(f"{_why_none(given, found)}; {_cost(to_measure)}")
    return fitting


def _why_none(given: Mapping[str, Any], found: list[Campaign]) -> str:
    """The given parameters that are not recorded, and the recorded values."""
    runs = {
        (campaign.path.name, run): own
        for campaign in found
        for run, own in parameters_of(campaign).items()
    }
    for name, asked in given.items():
        has = _distinct(name, runs)
        for value in _wanted(name, asked):
            if value not in has:
                return f"{name} {as_text(value)}: no campaign fits, recorded is {_listed(has)}"
    both = fmt.listed(f"{name} {as_text(value)}" for name, value in given.items())
    return f"no campaign in data/ fits {both}"


def _cost(given: Mapping[str, Any]) -> str:
    """The command that would measure it."""
    from repro.experiment.campaign import START_S

    runs = grid(**given)
    minutes = sum(START_S + run.load_s for run in runs) / 60
    took = f"{fmt.plural(len(runs), 'run')}, about {minutes:.0f} minutes"
    return f"source={MEASURE} measures it on this machine ({took})"


def _measure(given: Mapping[str, Any], root: Path) -> Path:
    # Only now: what measures is not needed to read what was recorded.
    from repro.doctor import processor
    from repro.experiment.campaign import run_campaign

    print(processor())
    experiments = grid(**given)
    # The same parameters resume the same campaign; others begin one of their own.
    ids = " ".join(sorted(experiment.run_id for experiment in experiments))
    name = f"notebook-{hashlib.sha256(ids.encode()).hexdigest()[:8]}"
    return run_campaign(experiments, root / "runs" / name)


def _of_runs(path: Path) -> Campaign:
    """A campaign with at least one run that is ok."""
    campaign = dataset.load(path)
    if campaign.runs.empty:
        failed = campaign.failed["reason"]
        first = str(failed.iloc[0]) if len(failed) else "none was finished"
        raise ConfigError(f"{path}: no run is ok; the first failed: {first}")
    return campaign


def _absolute(source: str, root: Path) -> Path:
    """A relative folder is first looked for where the notebook runs, then in the project."""
    path = Path(source).expanduser()
    return path if path.exists() else root / path


def _weight(campaign: Campaign) -> tuple[bool, bool, bool, int, str]:
    runs = campaign.runs
    engines = runs["run"].astype(str).str.split("/").str[0]  # periods of a cross-over share one
    repeated = bool(engines.groupby(runs["arm"]).nunique().min() >= REPEATED)
    on_gpu = bool(runs["gpu_name"].notna().any())
    freeze_alone = bool(pairs(campaign))  # the package's own question
    return on_gpu, repeated, freeze_alone, engines.nunique(), str(max(runs["started_at"]))


def _as_asked(experiment: Mapping[str, Any]) -> Values:
    """Arguments of `grid` for this one run: a tuple of values per parameter."""
    arm = _short("/".join(experiment[name] for name in OF_PROCESS))
    captures = experiment["recapture_policies"] or [experiment["capture_policy"]]
    one = {
        name: (tuple(value) if isinstance(value, list) else value,)
        for name, value in experiment.items()
    }
    return one | {
        "policies": (arm,),
        "capture_policies": tuple(captures),
        "replicates": one["replicate"],
        "first_replicate": one["replicate"],
    }


def _distinct(name: str, runs: Mapping[Any, Values]) -> list[Any]:
    found = list(dict.fromkeys(value for own in runs.values() for value in own[name]))
    if name == "replicates":
        return [len(found)]
    if name == "first_replicate":
        return [min(found)]
    return sorted(found) if found and not isinstance(found[0], str | None) else found


def _listed(values: list[Any]) -> str:
    return fmt.listed(
        f"{value:g}" if isinstance(value, float) else str(as_text(value)).replace(",", " to ")
        for value in values
    )


def _wanted(name: str, asked: Any) -> tuple[Any, ...]:
    """The values asked for, as the runs have them."""
    if name == "policies":
        return tuple(map(_short, asked))
    return tuple(asked) if str(PARAMETERS[name].type).endswith("...]") else (asked,)


def _short(arm: str) -> str:
    """`freeze/stock/stock` is `freeze`."""
    return re.sub("(/stock)+$", "", arm)
