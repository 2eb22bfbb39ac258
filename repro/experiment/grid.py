"""The runs of a campaign: every policy with every load, replicated."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

from repro import policy
from repro.experiment.config import ConfigError, Experiment
from repro.experiment.fields import as_text, parameter, parameters, read_all

OF_PROCESS = ("policy", "engine_policy", "frontend_policy")
VARIED = (*OF_PROCESS, "capture_policy", "recapture_policies", "concurrency", "replicate")
"""Parameters of a run that follow from those of the grid."""


@dataclass(frozen=True, kw_only=True)
class Grid:
    """The parameters in which the runs of one campaign differ."""

    policies: tuple[str, ...] = parameter(
        (),
        "arms, each worker or worker/engine core/front end; None: no-freeze,freeze",
        choices=tuple(policy.SERVING),
    )
    capture_policies: tuple[str, ...] = parameter(
        ("stock",),
        "policies of the CUDA graph capture; with recaptures they take turns in one process",
        choices=tuple(policy.CAPTURE),
    )
    concurrency: tuple[int, ...] = parameter(
        (Experiment.concurrency,),
        "requests in flight per rank, one or several loads",
        unit="requests",
        at_least=1,
    )
    replicates: int = parameter(2, "independent runs per arm", at_least=1)
    first_replicate: int = parameter(
        0, "number of the first of them: a second sitting adds more", at_least=0
    )


PARAMETERS = parameters(Grid) | {
    name: field for name, field in parameters(Experiment).items() if name not in VARIED
}
"""The parameters of a campaign: of the command line, the notebooks and the workflow."""


def grid(**asked: Any) -> list[Experiment]:
    """Every policy with every capture policy and concurrency, `replicates` times.

    With `recaptures`, one process captures under all the capture policies, so many times each,
    instead of a process each; replicates take turns in which of them the process starts up under.

    Parameters
    ----------
    **asked
        Of `PARAMETERS`.

    Returns
    -------
    list of Experiment
        Replicate by replicate, so that a campaign can shuffle inside each.

    Raises
    ------
    ConfigError
        If a value is not allowed.
    """
    values = read_all(PARAMETERS, asked)
    own = {name: values.pop(name) for name in list(values) if name in parameters(Grid)}
    of = Grid(**own)
    policies = (
        of.policies or ("no-freeze", "freeze")[: 1 if values.get("client") == "capture" else 2]
    )
    if values.get("recaptures"):
        values |= {"recapture_policies": of.capture_policies}
    runs = []
    for replicate in range(of.first_replicate, of.first_replicate + of.replicates):
        captures = of.capture_policies
        if values.get("recaptures"):
            captures = (captures[replicate % len(captures)],)
        for arm, capture, load in itertools.product(policies, captures, of.concurrency):
            varied: dict[str, Any] = {
                "capture_policy": capture,
                "concurrency": load,
                "replicate": replicate,
            }
            runs.append(Experiment(**values | varied | by_process(arm)))
    return runs


def by_process(arm: str) -> dict[str, str]:
    """The policy fields of `freeze` or `freeze/stock/freeze-again`; `ConfigError` beyond three."""
    names = arm.split("/")
    if len(names) > len(OF_PROCESS):
        raise ConfigError(
            f"policies {arm!r}: give worker, or worker/engine core/front end, "
            "like freeze/stock/freeze-again"
        )
    return dict(zip(OF_PROCESS, names, strict=False))


def options(experiment: Experiment) -> list[str]:
    """The options of `repro run` that measure this one run."""
    arm = "/".join(getattr(experiment, name) for name in OF_PROCESS)
    capture = ",".join(experiment.recapture_policies) or experiment.capture_policy
    words = ["--policies", arm, "--capture-policies", capture]
    words += ["--concurrency", str(experiment.concurrency)]
    words += ["--replicates", "1", "--first-replicate", str(experiment.replicate)]
    for name, field in PARAMETERS.items():
        value = getattr(experiment, name, field.default)
        if name in parameters(Grid) or value == field.default:
            continue
        words += [option(name)] if value is True else [option(name), str(as_text(value))]
    return words


def option(name: str) -> str:
    """A parameter's option on the command line."""
    return f"--{name.replace('_', '-')}"
