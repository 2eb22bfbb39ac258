"""Predicts GC stalls for a server and recommends settings, from a few numbers of it.

The rule is CPython's (`repro.theory.cpython_rule`); what it is fed with are the three rates below,
measured in `data/` and held against every campaign there by the tests.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from repro import fmt, policy
from repro.releases import has_freeze
from repro.theory.cpython_rule import period_of_full_collections, rule_for
from repro.theory.lockstep import stalled_steps

HELD_A_REQUEST = 1.2
"""Containers that a decoding step holds for each request in flight: lists of sampled tokens and of
new blocks. They decide whether a step crosses the collector's first threshold."""

KEPT_A_REQUEST = 12.0
"""Containers that vLLM's V1 runner keeps for as long as a request runs. The V2 runner keeps rows of
arrays, and no container."""

DEVICES = ("cuda", "cpu")

NS_AN_OBJECT = 550.0
"""Time of a full collection for each object it sees; a third either way by machine and heap."""

LEAST_MS = 0.3
"""A full collection that sees nothing."""

WORKER_HEAP = 800_000
"""Objects of a started worker, most of them imports and compiled code."""

QUANTILES = (0.99, 0.999)

TRIED = ("0.22.1", "0.23.0", "0.32.0")
"""vLLM releases with recorded runs in `data/`."""

OTHERS = (
    "API server and engine core collect more often than workers: set REPRO_POLICY, "
    "REPRO_ENGINE_POLICY and REPRO_FRONTEND_POLICY to threshold-20k. vLLM does not freeze the "
    "front end of an offline LLM: set REPRO_FRONTEND_POLICY=freeze there. An API server that is "
    "the bottleneck falls silent for seconds in its output handler. With raised thresholds, "
    "VLLM_V1_OUTPUT_PROC_CHUNK_SIZE of max_num_seqs or more ends these silences; gaps then hold "
    "several tokens."
)
"""Seen in `data/h200-http-every-policy`, `h200-offline` and `cpu-policies`; how often is not
predicted here."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A server as far as its workers' collectors are concerned; ValueError for one not allowed."""

    concurrency: int = 1024  # requests in flight on one data-parallel rank, as many as a step holds
    ranks: int = 1  # workers that wait for one another each step
    heap_objects: int = WORKER_HEAP  # in one worker's heap
    python: str = "3.12.3"
    vllm: str = "0.23.0"
    device: str = "cuda"  # `cuda` or `cpu`
    policy: str = "stock"  # the workers', out of `repro.policy.SERVING`
    output_tokens: float = 256.0  # length of an answer: how long what a request keeps stays
    kept: float | None = None  # containers a worker keeps for each request; None: as usual
    step_ms: float | None = None  # length of a step, to say times instead of steps
    others_set: bool = False  # whether API server and engine core have a policy beyond the freeze

    def __post_init__(self) -> None:
        policy.serving(self.policy)
        rule_for(self.python)
        has_freeze(self.vllm)
        if self.device not in DEVICES:
            raise ValueError(f"device {self.device!r}: choose one of {', '.join(DEVICES)}")
        for name in ("concurrency", "ranks", "heap_objects", "output_tokens"):
            if not getattr(self, name) >= 1:
                raise ValueError(f"{name} {getattr(self, name)}: allowed is 1 or more")
        if self.step_ms is not None and not self.step_ms > 0:
            raise ValueError(f"step_ms {self.step_ms}: allowed is more than 0")

    @property
    def frozen(self) -> bool:
        """Whether the workers decode with a frozen heap."""
        asked = policy.serving(self.policy).freeze
        return self.device == "cuda" and has_freeze(self.vllm) if asked is None else asked


@dataclass(frozen=True, kw_only=True)
class Advice:
    """The rule's answer for a setting."""

    setting: Setting
    period_steps: float  # from one of a worker's full collections to its next; infinite: never
    pause_ms: float  # how long one takes

    @property
    def fires(self) -> bool:
        """Whether workers make full collections by themselves while they decode."""
        return math.isfinite(self.period_steps)

    @property
    def stalled_share(self) -> float:
        """Share of steps that a full collection lengthens, if ranks collect in bursts."""
        return min(1.0, stalled_steps(self.setting.ranks) / self.period_steps)

    @property
    def to_set(self) -> str:
        """Settings to change in the workers, in one sentence."""
        return _what_to_set(self)

    @property
    def lines(self) -> tuple[str, ...]:
        """All of it in words."""
        others = "" if self.setting.others_set else OTHERS
        said = (_whether(self), _how_long(self), _tail(self), self.to_set, others)
        return tuple(line for line in (*said, _outside(self.setting)) if line)

    def reaches(self, quantile: float) -> bool:
        """Whether full collections are frequent enough to lie in this quantile of the gaps."""
        return self.stalled_share > 1 - quantile


def advise(setting: Setting) -> Advice:
    """Effects of the workers' full collections on a server, and the settings to change."""
    survivors = _survivors(setting)
    rule = rule_for(setting.python)
    asked = policy.serving(setting.policy)
    seen = survivors * setting.output_tokens if setting.frozen else setting.heap_objects
    period = math.inf
    if asked.automatic:
        period = period_of_full_collections(
            max(round(HELD_A_REQUEST * setting.concurrency), survivors),
            survivors=survivors,
            lifetime_steps=max(1, round(setting.output_tokens)),
            long_lived_total=round(seen),
            rule=rule,
            thresholds=asked.thresholds_over(rule.thresholds),
        )
    pause_ms = LEAST_MS + seen * NS_AN_OBJECT / 1e6
    return Advice(setting=setting, period_steps=period, pause_ms=pause_ms)


def _survivors(setting: Setting) -> int:
    """Containers that a step makes and its requests keep.

    The CPU backend has the V1 runner, and so had the mixtures of experts measured on GPUs: several
    ranks are taken to be one.
    """
    usual = KEPT_A_REQUEST if setting.device == "cpu" or setting.ranks > 1 else 0.0
    kept = usual if setting.kept is None else setting.kept
    return round(kept * setting.concurrency / setting.output_tokens)


# --- in words -----------------------------------------------------------------------------


def _whether(advice: Advice) -> str:
    setting = advice.setting
    asked = policy.serving(setting.policy)
    if not asked.automatic:
        return f"Workers make no automatic collection: policy {asked.name!r} switches it off."
    first = asked.thresholds_over(rule_for(setting.python).thresholds)[0]
    held = round(HELD_A_REQUEST * setting.concurrency)
    if not advice.fires:
        return (
            f"Full collections are not expected in the workers in plain decoding: a step "
            f"with {setting.concurrency:,} requests holds about {held:,} containers; Python "
            f"{setting.python} collects above "
            f"{first:,}, which takes about {first / HELD_A_REQUEST:,.0f} requests. This assumes "
            "requests without log probabilities or structured output, and a plain model on vLLM's "
            "CUDA or CPU workers. With DeepSeek's attention and experts, 512 requests were enough, "
            "with or without multi-token prediction and expert load balancing, and 256 were not. "
            "AWS Neuron reports full collections at 64 requests. Record to be sure."
        )
    every = f"every {fmt.count(advice.period_steps)} steps"
    if setting.step_ms is not None:
        every += f" (about {fmt.figures(advice.period_steps * setting.step_ms / 1e3)} s)"
    return (
        f"Full collections are expected, {every} in each worker: a step with "
        f"{setting.concurrency:,} requests holds about {held:,} containers, more than the "
        f"{first:,} at which Python {setting.python} collects."
    )


def _outside(setting: Setting) -> str:
    if setting.vllm in TRIED:
        return ""
    return (
        f"vLLM {setting.vllm} was not measured here, {fmt.listed(TRIED)} were: record to be sure."
    )


def _how_long(advice: Advice) -> str:
    if not advice.fires:
        return ""
    frozen = "frozen" if advice.setting.frozen else "not frozen"
    return (
        f"The heap of {advice.setting.heap_objects:,} objects is {frozen}: each takes about "
        f"{fmt.ms(advice.pause_ms)}."
    )


def _tail(advice: Advice) -> str:
    if not advice.fires:
        return "Collections of workers then move neither P99 nor P99.9 of the inter-token latency."
    ranks = advice.setting.ranks
    share = f"{fmt.percent(advice.stalled_share)} of the steps"
    if ranks > 1:
        share += (
            f" in bursts, if the {ranks} ranks collect in different steps (data parallel), "
            f"{fmt.percent(1 / advice.period_steps)} if together (tensor parallel)"
        )
    reached = [fmt.quantile(q) for q in QUANTILES if advice.reaches(q)]
    missed = [fmt.quantile(q) for q in QUANTILES if not advice.reaches(q)]
    said = [f"That lengthens {share}"]
    if reached:
        longer = fmt.ms(advice.pause_ms)
        said.append(f"{fmt.listed(reached)} of the inter-token latency can rise by {longer}")
    if missed:
        shows = advice.pause_ms > (advice.setting.step_ms or 0)
        longest = "but the longest gaps do" if shows else "and no gap does: a step takes longer"
        said.append(f"{fmt.listed(missed)} cannot show it, {longest}")
    return "; ".join(said) + "."


def _what_to_set(advice: Advice) -> str:
    setting = advice.setting
    if not advice.fires:
        return "Set nothing for the workers."
    if setting.frozen:
        return "The workers are frozen already: set nothing for them."
    if setting.device == "cuda" and not has_freeze(setting.vllm):
        way = "take vLLM 0.23.0 or later, or set REPRO_POLICY=freeze beside this package's plugin"
    else:
        way = "set REPRO_POLICY=freeze beside this package's plugin"
    limit = policy.RAISED[0] / HELD_A_REQUEST
    also = ""
    if setting.concurrency < limit:
        also = f"; gc.set_threshold{policy.RAISED} in the worker would end collections altogether"
    return f"To end these pauses: {way}{also}."
