"""Read a campaign back as data frames: its runs, and every table over all runs that are ok.

A cross-over is read as one run per period, see `repro.dataset.crossover`.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from repro.dataset import stored
from repro.dataset.crossover import Tables, expanded
from repro.dataset.run import DatasetError, pick
from repro.dataset.schema import TABLES
from repro.dataset.served_tokens import counted
from repro.dataset.stored import is_campaign
from repro.experiment.config import Experiment
from repro.experiment.fields import about, parameters

__all__ = ["Campaign", "DatasetError", "in_window", "is_campaign", "load", "subset"]
__all__ += ["under_load"]

OF_EXPERIMENT = {name: f"experiment.{name}" for name in parameters(Experiment)}
"""Parameter -> dotted key of `run.json`."""

RUN_COLUMNS = {
    "run": "run_id",
    "started_at": "started_at",
    **{name: key for name, key in OF_EXPERIMENT.items() if name != "recapture_policies"},
    "wall_s": "wall_s",
    "vllm": "versions.vllm",
    "torch": "versions.torch",
    "python": "versions.python",
    "gpu_name": "machine.gpu_name",
    "cpu_model": "machine.cpu_model",
    "window_start_ns": "window.start_ns",
    "window_end_ns": "window.end_ns",
    "answer_tokens": "experiment.output_tokens",
    "output_tokens": "summary.output_tokens",
    "tokens_per_s": "summary.tokens_per_s",
    "others_before": "other_load.before",
    "others_during": "other_load.during",
}
"""Column of `Campaign.runs` -> dotted key of `run.json`."""

COMPARABLE = {
    "versions.vllm": "{}",
    "machine.gpu_name": "{}",
    "machine.gpu_count": "{} GPUs",
    "machine.gpu_driver": "driver {}",
    "machine.cpu_model": "{}",
    "machine.cpu_count": "{} CPUs",
    "versions.torch": "torch {}",
    "versions.python": "Python {}",
}
"""Runs that differ in any of these are never pooled."""

_ABOUT = {OF_EXPERIMENT[name]: about(field) for name, field in parameters(Experiment).items()}
LOAD = {key: said.label for key, said in _ABOUT.items() if said.load}
"""Columns of a rank's load, whatever the number of ranks."""

OTHERS = "engine {}, front end {}:"
UNSAID = {OTHERS.format("stock", "stock")} | {
    about(field).label.format(field.default)
    for field in parameters(Experiment).values()
    if field.default in (False, 0, "none", "auto", "{}", "vllm")
}
"""Words left out of the label of an arm: switches that are off."""

ARM = {
    **COMPARABLE,
    **{key: said.label for key, said in _ABOUT.items() if said.label},
    "experiment.engine_policy, experiment.frontend_policy": OTHERS,
}
"""Switches that split arms besides the worker's policy: keys and words, in a label's order."""

HANDLER = {f"experiment.output_{name}" for name in ("chunk", "handler", "yield_ms")}
"""Switches of the API server's output handler: where one varies, a label has it."""


@dataclass(frozen=True, kw_only=True)
class Campaign:
    """The runs of one campaign, raw: ramp included, see `in_window`.

    Attributes
    ----------
    path : Path
        The campaign's directory.
    runs : pandas.DataFrame
        One row per run that is ok: `RUN_COLUMNS` (`wall_s` is NaN where older runs lack it,
        `answer_tokens` the mean of the lengths asked for, tokens through HTTP as
        `served_tokens.counted` has them, `others_before` and `others_during` the
        share of the cores that other programs used, NaN where older runs lack it), and
        `machine` (GPU or, without one, CPU),
        `runner` (the module of the worker's model runner, empty where not recorded),
        `setting` (what differs within the campaign besides the worker's policy),
        `arm` (the setting, then the policy: a label, not to be taken apart) and
        `comparable` (equal for runs that may be pooled), `load` (equal for the same work) and
        `unusual` (how requests or compilation differ from those of most runs).
    failed : pandas.DataFrame
        One row per failed run: `run_id`, `reason`.
    pauses, steps, holds, itl, requests, captures, census, periods : pandas.DataFrame
        The tables of `schema.TABLES` over all ok runs, preceded by `run` (categorical).
    """

    path: Path
    runs: pd.DataFrame
    failed: pd.DataFrame
    pauses: pd.DataFrame
    steps: pd.DataFrame
    holds: pd.DataFrame
    itl: pd.DataFrame
    requests: pd.DataFrame
    captures: pd.DataFrame
    census: pd.DataFrame
    periods: pd.DataFrame


def load(path: str | Path) -> Campaign:
    """Read and check a campaign: a directory of run directories, or a packed one.

    Raises
    ------
    DatasetError
        If the directory is no campaign, or any file in it is not what it should be.
    """
    directory = Path(path)
    if not is_campaign(directory):
        hint = f"give one whose subdirectories hold run.json, or with {stored.RUNS}, as in data/"
        raise DatasetError(f"{directory}: is no campaign; {hint}")
    found = stored.runs(directory)
    ok = [run for run in found if run.document["status"] == "ok"]
    measured, tables = expanded(
        [_machine_used(run.document) for run in ok],
        [{name: run.table(name) for name in TABLES} for run in ok],
    )
    measured = [counted(*run) for run in zip(measured, tables, strict=True)]
    failed = [run.document for run in found if run.document["status"] == "failed"]
    runs = _runs(measured)
    return Campaign(
        path=directory,
        runs=runs,
        failed=_frame(failed, {"run_id": "run_id", "reason": "reason"}),
        **{name: _frames(name, tables, runs["run"]) for name in TABLES},
    )


def in_window(campaign: Campaign, table: pd.DataFrame) -> pd.DataFrame:
    """The rows of a campaign's table, whole or filtered, in the measured window of their run.

    Their `t_ns` or, without it, `start_ns` decides.
    """
    time = table["t_ns" if "t_ns" in table else "start_ns"].to_numpy()
    row = pd.Index(campaign.runs["run"]).get_indexer(pd.Index(table["run"].cat.categories))
    row = row[table["run"].cat.codes.to_numpy()] if len(table) else np.zeros(0, dtype=np.intp)
    start = campaign.runs["window_start_ns"].to_numpy()[row]
    end = campaign.runs["window_end_ns"].to_numpy()[row]
    inside: pd.DataFrame = table[(time >= start) & (time < end)]
    return inside


def subset(campaign: Campaign, **equal: object) -> Campaign:
    """The runs with these values in columns of `runs`, or one of a tuple: `policy="freeze"`.

    Raises
    ------
    DatasetError
        If there is no such column, or no run has the value.
    """
    runs = campaign.runs
    for column, value in equal.items():
        if column not in runs:
            allowed = ", ".join(runs.columns)
            raise DatasetError(f"runs have no column {column!r}: choose among {allowed}")
        found = ", ".join(map(repr, runs[column].unique()))
        runs = runs[runs[column].isin(value if isinstance(value, tuple) else (value,))]
        if runs.empty:
            raise DatasetError(f"no run has {column} {value!r}: choose among {found}")
    return _only(campaign, runs)


def under_load(campaign: Campaign) -> Campaign:
    """The campaign without the runs that drove no load, such as those that only captured graphs."""
    return _only(campaign, campaign.runs[campaign.runs["output_tokens"] > 0])


def _only(campaign: Campaign, runs: pd.DataFrame) -> Campaign:
    runs = runs.reset_index(drop=True)
    tables: dict[str, Any] = {name: _keep(getattr(campaign, name), runs["run"]) for name in TABLES}
    return replace(campaign, runs=runs, **tables)


def _machine_used(document: dict[str, Any]) -> dict[str, Any]:
    """The document without what an engine found on its host and did not use.

    These are GPUs beside vLLM's CPU backend and, with data-parallel ranks on GPUs, further cores
    once each worker and each engine core has one.
    """
    machine, experiment = document["machine"], document["experiment"]
    idle: dict[str, None] = {}
    if experiment.get("device") == "cpu":
        idle = dict.fromkeys(("gpu_name", "gpu_count", "gpu_driver"))
    elif experiment.get("client") == "async_engine":
        ranks = experiment["tensor_parallel_size"] * experiment["data_parallel_size"]
        idle = {"cpu_count": None} if machine["cpu_count"] >= 2 * ranks else {}
    return document | {"machine": machine | idle}


def _frame(documents: list[dict[str, Any]], columns: dict[str, str]) -> pd.DataFrame:
    values = {name: [pick(doc, key) for doc in documents] for name, key in columns.items()}
    return pd.DataFrame(values)


def _runs(documents: list[dict[str, Any]]) -> pd.DataFrame:
    runs = _frame(documents, RUN_COLUMNS).astype(
        {"window_start_ns": "int64", "window_end_ns": "int64", "tokens_per_s": "float64"}
        | {"switch_s": "float64", "wall_s": "float64"}
        | {"others_before": "float64", "others_during": "float64"}
    )
    names = [document["machine"]["gpu_name"] for document in documents]
    runs["gpu_name"] = pd.Series(names, dtype=object)  # as text, None would become NaN
    runs["machine"] = [name or cpu for name, cpu in zip(names, runs["cpu_model"], strict=True)]
    runs["answer_tokens"] = [sum(asked) / 2 for asked in runs["answer_tokens"]]  # shortest, longest
    runs["runner"] = [_runner(document) for document in documents]
    settings = _settings(documents)
    runs["setting"] = [" ".join(parts) for parts in settings]
    runs["arm"] = [
        " ".join([*(_short(part, policy) for part in parts), policy])
        for parts, policy in zip(settings, runs["policy"], strict=True)
    ]
    for column, keys in (("comparable", COMPARABLE), ("load", LOAD)):
        runs[column] = [
            " | ".join(_say(document, key, form) for key, form in keys.items())
            for document in documents
        ]
    runs["unusual"] = _unusual(documents)
    return runs


def _unusual(documents: list[dict[str, Any]]) -> list[str]:
    """Demands on each run, besides requests in flight, but not of most; often empty."""
    kinds = {key: form for key, form in LOAD.items() if key != "experiment.concurrency"}
    kinds |= {"experiment.enforce_eager": ARM["experiment.enforce_eager"]}
    said = [[_say(document, key, form) for key, form in kinds.items()] for document in documents]
    usual = [Counter(of_all).most_common(1)[0][0] for of_all in zip(*said, strict=True)]
    return [
        " ".join(own for own, most in zip(of_run, usual, strict=True) if own != most)
        for of_run in said
    ]


def _runner(document: dict[str, Any]) -> str:
    """The model runner a worker named, as the name of its module; empty where none did."""
    evidence = document["policy"].get("evidence") or [{}]
    return str(evidence[0].get("runner", ""))


def _settings(documents: list[dict[str, Any]]) -> list[list[str]]:
    """Words, of each run, for all that splits runs into arms besides the worker's policy.

    Of an output handler also what varies without splitting them further.
    """
    labels: list[tuple[str, ...]] = [() for _ in documents]
    for key, form in ARM.items():
        longer = [
            (*label, _say(document, key, form))
            for label, document in zip(labels, documents, strict=True)
        ]
        varies = len({label[-1] for label in longer}) > 1
        if (varies and key in HANDLER) or len(set(longer)) > len(set(labels)):
            labels = longer
    return [[part for part in label if part not in UNSAID] for label in labels]


def _short(part: str, policy: str) -> str:
    """Shorter words where other processes have the worker's policy, or the engine core has none."""
    same = {
        OTHERS.format(policy, policy): "all",
        OTHERS.format(policy, "stock"): "worker and engine",
    }
    return same.get(part, part.removeprefix("engine stock, "))


def _say(document: dict[str, Any], keys: str, form: str) -> str:
    values = [pick(document, key) for key in keys.split(", ")]
    return "-" if None in values else form.format(*values)


def _frames(name: str, tables: list[Tables], runs: pd.Series) -> pd.DataFrame:
    parts = [of_run[name] for of_run in tables]
    frame: pd.DataFrame = pa.concat_tables([TABLES[name].empty_table(), *parts]).to_pandas()
    codes = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    run = pd.Categorical.from_codes(codes, categories=pd.Index(runs))
    frame.insert(0, "run", pd.Series(run))
    return frame


def _keep(table: pd.DataFrame, runs: pd.Series) -> pd.DataFrame:
    kept = table[table["run"].isin(runs)].reset_index(drop=True)
    return kept.assign(run=kept["run"].cat.set_categories(list(runs)))
