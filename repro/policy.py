"""The GC policies: a closed set, as data. One added here is known to every other part.

Standard library only: vLLM's own processes load this module.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from types import MappingProxyType
from typing import TypeVar

NO_COLOUR = "#333333"
NEVER = 1_000_000_000
"""A threshold that no count reaches."""


class UnknownPolicy(ValueError):
    """A policy name outside the closed set; the message names the choices."""


@dataclass(frozen=True)
class ServingPolicy:
    """Settings of heap and collector of a process once it is warm."""

    name: str
    summary: str  # for people, in one line
    _: KW_ONLY
    # True: collect 0, 1, 2, then `gc.freeze()`; a worker thaws first thing at shutdown. False:
    # never freeze, whatever the installed vLLM does. None: leave vLLM as it is.
    freeze: bool | None
    # None keeps Python's own.
    thresholds: tuple[int | None, int | None, int | None] = (None, None, None)
    automatic: bool = True  # False: `gc.disable()`
    freeze_again: bool = False  # what each later full collection leaves alive
    # Collect at chosen moments instead of inside whatever allocates: young generations, when they
    # are due, as soon as others compute the step; all of them when no request waits. A loop that is
    # never idle never has that second moment.
    between_steps: bool = False
    # At the first such moment after so many seconds: freeze what is alive, or make a full
    # collection; 0: never.
    freeze_every_s: float = 0.0
    collect_every_s: float = 0.0
    colour: str = NO_COLOUR

    @property
    def leaves_alone(self) -> bool:
        """Whether the installed vLLM is left as it is."""
        return self.only_freezes and self.freeze is None

    @property
    def only_freezes(self) -> bool:
        """Whether it sets nothing but the freeze, as the pull request does."""
        return self == ServingPolicy(
            self.name, self.summary, freeze=self.freeze, colour=self.colour
        )

    @property
    def chooses_moments(self) -> bool:
        """Whether the process has to say when it can wait for a collection or a freeze."""
        return bool(self.between_steps or self.freeze_every_s or self.collect_every_s)

    @property
    def rules_out_full(self) -> bool:
        """Whether no full collection comes but those every `collect_every_s`."""
        off = not self.automatic and not self.between_steps
        return off or self.thresholds[2] == NEVER

    def thresholds_over(self, own: tuple[int, int, int]) -> tuple[int, int, int]:
        """The collector's thresholds in a Python whose own are these."""
        first, second, third = (
            default if asked is None else asked
            for asked, default in zip(self.thresholds, own, strict=True)
        )
        return first, second, third


@dataclass(frozen=True)
class CapturePolicy:
    """Settings of a worker's collector while it captures CUDA graphs."""

    name: str
    summary: str
    _: KW_ONLY
    leave: bool = False  # the installed vLLM as it is; the other fields then mean nothing
    freeze: bool = False  # the heap, for the time of the capture
    disable: bool = False  # automatic collection, likewise
    collect_per_graph: bool = False  # a full one, by `torch.cuda.graph`


ALTERNATE = "alternate"
"""The cross-over: its runs are read back as one run per period, of `no-freeze` or of `freeze`."""

Policy = TypeVar("Policy", ServingPolicy, CapturePolicy)


def _by_name(*policies: Policy) -> Mapping[str, Policy]:
    return MappingProxyType({policy.name: policy for policy in policies})


RAISED = (20_000, 50, 50)
SERVING = _by_name(
    ServingPolicy("stock", "the installed vLLM, untouched", freeze=None, colour="#949494"),
    ServingPolicy(
        "no-freeze", "never freezes, as a worker before #44363", freeze=False, colour="#d55e00"
    ),
    ServingPolicy(
        "freeze",
        "collect, then freeze at the end of warm-up: #44363",
        freeze=True,
        colour="#0173b2",
    ),
    ServingPolicy(ALTERNATE, "no-freeze and freeze in turn inside one engine", freeze=False),
    ServingPolicy(
        "freeze-again",
        "freeze, and again what each full collection leaves alive",
        freeze=True,
        freeze_again=True,
        colour="#029e73",
    ),
    ServingPolicy(
        "thresholds",
        f"not frozen, collector thresholds {RAISED}",
        freeze=False,
        thresholds=RAISED,
        colour="#ca9161",
    ),
    ServingPolicy(
        "freeze-thresholds",
        f"freeze, collector thresholds {RAISED}",
        freeze=True,
        thresholds=RAISED,
        colour="#56b4e9",
    ),
    ServingPolicy(
        "threshold-20k",
        "not frozen, first threshold 20,000: TensorRT-LLM's",
        freeze=False,
        thresholds=(20_000, None, None),
        colour="#de8f05",
    ),
    ServingPolicy(
        "rare-full",
        "not frozen, third threshold 100,000: AWS Neuron's",
        freeze=False,
        thresholds=(None, None, 100_000),
        colour="#fbafe4",
    ),
    ServingPolicy(
        "periodic-freeze",
        "freeze, and again every 60 s; no full collection by itself: Dynamo's",
        freeze=True,
        thresholds=(None, None, NEVER),
        freeze_every_s=60.0,
        colour="#ece133",
    ),
    ServingPolicy(
        "periodic-collect",
        "not frozen, a full collection every 600 s, none by itself: SGLang's",
        freeze=False,
        automatic=False,
        collect_every_s=600.0,
        colour="#8c564b",
    ),
    ServingPolicy(
        "between-steps",
        "freeze, then collect only while others compute or nothing is left to do; the API server "
        "yields before, at every message",
        freeze=True,
        automatic=False,
        between_steps=True,
        colour="#cc78bc",
    ),
    ServingPolicy(
        "disable",
        "not frozen, no collection at all",
        freeze=False,
        automatic=False,
        colour="#5f4b9b",
    ),
)

CAPTURE = _by_name(
    CapturePolicy("stock", "the installed vLLM, untouched", leave=True),
    CapturePolicy("gc-on", "collect once, then capture with the collector on"),
    CapturePolicy("frozen", "frozen heap, the part #44363 withdrew", freeze=True),
    CapturePolicy(
        "frozen-disabled",
        "frozen heap and no automatic collection, as later vLLM does",
        freeze=True,
        disable=True,
    ),
    CapturePolicy(
        "collect-per-graph",
        "a full collection before each graph, PyTorch's former default",
        collect_per_graph=True,
    ),
)


def serving(name: str) -> ServingPolicy:
    """The serving policy of this name; raises `UnknownPolicy` if there is none."""
    return _look_up(SERVING, name, "policy")


def capture(name: str) -> CapturePolicy:
    """The capture policy of this name; raises `UnknownPolicy` if there is none."""
    return _look_up(CAPTURE, name, "capture policy")


def _look_up(policies: Mapping[str, Policy], name: str, what: str) -> Policy:
    if name not in policies:
        raise UnknownPolicy(f"unknown {what} {name!r}: choose one of {', '.join(policies)}")
    return policies[name]
