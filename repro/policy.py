"""The GC policies: a closed set, as data. Add one here and every other part knows it.

Standard library only: this module is loaded inside vLLM's own processes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TypeVar


class UnknownPolicy(ValueError):
    """A policy name outside the closed set; the message names the choices."""


@dataclass(frozen=True, kw_only=True)
class ServingPolicy:
    """What a process does with its heap and its collector once it is warm.

    Attributes
    ----------
    name, summary : str
        As used in files and tables, and in one line for people.
    freeze : bool or None
        True: collect 0, 1, 2, then `gc.freeze()`; a worker thaws first thing at shutdown.
        False: never freeze, whatever the installed vLLM does. None: leave vLLM as it is.
    thresholds : tuple of int, optional
        In place of Python's own, as by `gc.set_threshold()`.
    automatic : bool
        False: `gc.disable()`, no collection by itself.
    freeze_again : bool
        Freeze what each later full collection leaves alive, so that the next one sees little.
    between_steps : bool
        Collect at chosen moments instead of inside whatever allocates: young generations, when
        they are due, as soon as the step is with those who compute it; all of them, when no
        request is left to wait. A loop that is never idle never has that second moment.
    """

    name: str
    summary: str
    freeze: bool | None
    thresholds: tuple[int, int, int] | None = None
    automatic: bool = True
    freeze_again: bool = False
    between_steps: bool = False

    @property
    def leaves_alone(self) -> bool:
        """Whether the installed vLLM is left as it is."""
        return self.only_freezes and self.freeze is None

    @property
    def only_freezes(self) -> bool:
        """Whether it sets nothing but the freeze, as the pull request does."""
        return self == ServingPolicy(name=self.name, summary=self.summary, freeze=self.freeze)


@dataclass(frozen=True, kw_only=True)
class CapturePolicy:
    """What a worker does with its collector while it captures CUDA graphs.

    Attributes
    ----------
    name, summary : str
        As used in files and tables, and in one line for people.
    leave : bool
        Leave the installed vLLM as it is; the other fields then mean nothing.
    freeze, disable : bool
        Freeze the heap, switch automatic collection off, for the time of the capture.
    collect_per_graph : bool
        Have `torch.cuda.graph` run a full collection before each graph.
    """

    name: str
    summary: str
    leave: bool = False
    freeze: bool = False
    disable: bool = False
    collect_per_graph: bool = False


ALTERNATE = "alternate"
"""The cross-over: its runs are read back as one run a period, of `no-freeze` or of `freeze`."""

Policy = TypeVar("Policy", ServingPolicy, CapturePolicy)


def _by_name(*policies: Policy) -> Mapping[str, Policy]:
    return MappingProxyType({policy.name: policy for policy in policies})


RAISED = (20_000, 50, 50)

SERVING = _by_name(
    ServingPolicy(name="stock", summary="the installed vLLM, untouched", freeze=None),
    ServingPolicy(
        name="no-freeze", summary="never freezes, as a worker before #44363", freeze=False
    ),
    ServingPolicy(
        name="freeze", summary="collect, then freeze at the end of warm-up: #44363", freeze=True
    ),
    ServingPolicy(
        name=ALTERNATE, summary="no-freeze and freeze in turn inside one engine", freeze=False
    ),
    ServingPolicy(
        name="freeze-again",
        summary="freeze, and again what each full collection leaves alive",
        freeze=True,
        freeze_again=True,
    ),
    ServingPolicy(
        name="thresholds",
        summary=f"not frozen, collector thresholds {RAISED}",
        freeze=False,
        thresholds=RAISED,
    ),
    ServingPolicy(
        name="freeze-thresholds",
        summary=f"freeze, collector thresholds {RAISED}",
        freeze=True,
        thresholds=RAISED,
    ),
    ServingPolicy(
        name="between-steps",
        summary="freeze, then collect only while others compute or nothing is left to do",
        freeze=True,
        automatic=False,
        between_steps=True,
    ),
    ServingPolicy(
        name="disable", summary="not frozen, no collection at all", freeze=False, automatic=False
    ),
)

CAPTURE = _by_name(
    CapturePolicy(name="stock", summary="the installed vLLM, untouched", leave=True),
    CapturePolicy(name="gc-on", summary="collect once, then capture with the collector on"),
    CapturePolicy(name="frozen", summary="frozen heap, the part #44363 withdrew", freeze=True),
    CapturePolicy(
        name="frozen-disabled",
        summary="frozen heap and no automatic collection, as later vLLM does",
        freeze=True,
        disable=True,
    ),
    CapturePolicy(
        name="collect-per-graph",
        summary="a full collection before each graph, PyTorch's former default",
        collect_per_graph=True,
    ),
)


def serving(name: str) -> ServingPolicy:
    """The serving policy of this name.

    Raises
    ------
    UnknownPolicy
        If there is none.
    """
    return _look_up(SERVING, name, "policy")


def capture(name: str) -> CapturePolicy:
    """The capture policy of this name.

    Raises
    ------
    UnknownPolicy
        If there is none.
    """
    return _look_up(CAPTURE, name, "capture policy")


def _look_up(policies: Mapping[str, Policy], name: str, what: str) -> Policy:
    if name not in policies:
        raise UnknownPolicy(f"unknown {what} {name!r}: choose one of {', '.join(policies)}")
    return policies[name]
