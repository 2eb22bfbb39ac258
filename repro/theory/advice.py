"""Should anyone care? A few numbers of a server in; how often, how long, what to set, in words.

The rule is CPython's (`repro.theory.cpython_rule`); what it is fed with are the three rates below,
measured in `data/` and held against every campaign there by the tests.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from repro import fmt, policy
from repro.analysis.arms import freezes
from repro.analysis.tails import step_intervals
from repro.analysis.trigger import kept_a_request
from repro.dataset import Campaign, in_window, subset
from repro.releases import has_freeze
from repro.theory.cpython_rule import StepLoad, period_of_full_collections, rule_for
from repro.theory.lockstep import stalled_steps

HELD_A_REQUEST = 1.2
"""Containers that a decoding step holds for each request in flight: lists of sampled tokens and of
new blocks. They decide whether a step crosses the collector's first threshold."""

KEPT_A_REQUEST: Mapping[str, float] = MappingProxyType({"cuda": 0.0, "cpu": 12.0})
"""Containers that a worker keeps for as long as a request runs, by device: the CPU backend's
runner keeps Python objects where the GPU's V2 runner keeps rows of arrays."""

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
    "API server and engine core collect more often than workers: their thresholds are raised by "
    "REPRO_FRONTEND_POLICY and REPRO_ENGINE_POLICY=freeze-thresholds. Silences of seconds at an "
    "API server that is the bottleneck are its output handler's: with raised thresholds, "
    "VLLM_V1_OUTPUT_PROC_CHUNK_SIZE of max_num_seqs or more ends them, for gaps of several tokens."
)
"""Seen in `data/h100-http`, `cpu-http`, `cpu-http-busy` and `cpu-policies`; how often is not
predicted here."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A server as far as its workers' collectors are concerned.

    Attributes
    ----------
    concurrency : int
        Requests in flight on one data-parallel rank, as many as a step holds.
    ranks : int
        Workers that wait for one another each step.
    heap_objects : int
        Objects in one worker's heap.
    python, vllm : str
        Versions, as "3.12.3" and "0.23.0".
    device : str
        `cuda` or `cpu`.
    policy : str
        The workers' policy, out of `repro.policy.SERVING`.
    output_tokens : float
        Length of an answer: how long what a request keeps stays.
    kept : float or None
        Containers a worker keeps for each request; None: what its device usually keeps.
    step_ms : float or None
        Length of a step, to say times instead of steps.
    others_set : bool
        Whether API server and engine core have a policy beyond the freeze.

    Raises
    ------
    ValueError
        If a value is not allowed.
    """

    concurrency: int = 1024
    ranks: int = 1
    heap_objects: int = WORKER_HEAP
    python: str = "3.12.3"
    vllm: str = "0.23.0"
    device: str = "cuda"
    policy: str = "stock"
    output_tokens: float = 256.0
    kept: float | None = None
    step_ms: float | None = None
    others_set: bool = False

    def __post_init__(self) -> None:
        policy.serving(self.policy)
        rule_for(self.python)
        has_freeze(self.vllm)
        if self.device not in KEPT_A_REQUEST:
            raise ValueError(f"device {self.device!r}: choose one of {', '.join(KEPT_A_REQUEST)}")
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
    """What the rule says of a setting.

    Attributes
    ----------
    setting : Setting
    fires : bool
        Whether workers make full collections by themselves while they decode.
    period_steps : float
        Steps from one of a worker's full collections to its next; infinite: never.
    pause_ms : float
        How long one takes.
    stalled_share : float
        Share of steps that a full collection lengthens, if ranks collect in bursts.
    to_set : str
        What to set in the workers, in one sentence.
    lines : tuple of str
        All of it in words.
    """

    setting: Setting
    fires: bool
    period_steps: float
    pause_ms: float
    stalled_share: float
    to_set: str
    lines: tuple[str, ...]

    def reaches(self, quantile: float) -> bool:
        """Whether full collections are frequent enough to lie in this quantile of the gaps."""
        return self.stalled_share > 1 - quantile


def advise(setting: Setting) -> Advice:
    """What full collections of its workers do to a server, and what to set."""
    load = _load(setting)
    rule = rule_for(setting.python)
    asked = policy.serving(setting.policy)
    seen = load.survivors * setting.output_tokens if setting.frozen else setting.heap_objects
    period = math.inf
    if asked.automatic:
        period = period_of_full_collections(
            load,
            long_lived_total=round(seen),
            rule=rule,
            thresholds=asked.thresholds_over(rule.thresholds),
        )
    advice = Advice(
        setting=setting,
        fires=math.isfinite(period),
        period_steps=period,
        pause_ms=LEAST_MS + seen * NS_AN_OBJECT / 1e6,
        stalled_share=min(1.0, stalled_steps(setting.ranks) / period),
        to_set="",
        lines=(),
    )
    to_set = _what_to_set(advice)
    said = (
        *(_whether(advice), _how_long(advice), _tail(advice), to_set),
        *("" if setting.others_set else OTHERS, _outside(setting)),
    )
    lines = tuple(line for line in said if line)
    return Advice(**{**vars(advice), "to_set": to_set, "lines": lines})


def setting_of(campaign: Campaign, run: str) -> Setting:
    """The setting of a recorded run, with what it measured of its worker.

    Raises
    ------
    repro.dataset.DatasetError, repro.theory.cpython_rule.UnknownCollector
        If there is no such run, or its Python has no rule.
    ValueError
        If the run drove no load, was a period of a cross-over, or none of its workers was
        counted, as with executor `uni`.
    """
    one = subset(campaign, run=run)
    (row,) = one.runs.to_dict("records")
    if not row["output_tokens"]:
        raise ValueError(f"run {run}: drove no load; take a run with a client that does")
    if row["switch_s"]:
        raise ValueError(f"run {run}: a cross-over's heap has two policies; take a run of one")
    census = one.census[(one.census["role"] == "worker") & (one.census["point"] == "window-start")]
    if census.empty:
        raise ValueError(f"run {run}: no worker's heap was counted; take a run with executor 'mp'")
    heap = census[["tracked", "frozen"]].sum(axis=1).max()
    window = in_window(one, one.steps)
    steps = step_intervals(window)
    return Setting(
        # An API server that has more than it can do keeps requests back from the engine.
        concurrency=max(1, min(row["concurrency"], round(window["tokens"].median()))),
        ranks=row["tensor_parallel_size"] * row["data_parallel_size"],
        heap_objects=int(heap),
        python=row["python"],
        vllm=row["vllm"],
        device="cpu" if row["gpu_name"] is None else "cuda",
        policy=row["policy"] if row["policy"] != "stock" else _in_effect(one, row["arm"]),
        output_tokens=row["answer_tokens"],  # no answer ends before its length asked for
        kept=kept_a_request(one),
        step_ms=float(steps["interval_ns"].median()) / 1e6,
        others_set=not any(
            policy.serving(row[f"{process}_policy"]).only_freezes
            for process in ("engine", "frontend")
        ),
    )


def _in_effect(campaign: Campaign, arm: str) -> str:
    """What an untouched vLLM did, as the census saw it."""
    return "freeze" if freezes(campaign, arm) == "yes" else "no-freeze"


def _load(setting: Setting) -> StepLoad:
    """What a worker's step allocates: by one C call, as vLLM unpickles and unpacks."""
    kept = KEPT_A_REQUEST[setting.device] if setting.kept is None else setting.kept
    survivors = round(kept * setting.concurrency / setting.output_tokens)
    return StepLoad(
        allocations=max(round(HELD_A_REQUEST * setting.concurrency), survivors),
        survivors=survivors,
        lifetime_steps=max(1, round(setting.output_tokens)),
        in_one_call=True,
    )


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
            f"{first:,}, which takes about {first / HELD_A_REQUEST:,.0f} requests. Assumed: "
            "requests without log probabilities or structured output; record the server to be sure."
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
        f"vLLM {setting.vllm} was not measured here, {fmt.listed(TRIED)} were: record the server "
        "to be sure."
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
        return "Neither P99 nor P99.9 of the inter-token latency is the workers' collectors' doing."
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
        longest = "the longest gaps do" if shows else "and no gap: a step takes longer"
        said.append(f"{fmt.listed(missed)} cannot show it, {longest}")
    return "; ".join(said) + "."


def _what_to_set(advice: Advice) -> str:
    setting = advice.setting
    if not advice.fires:
        return "Nothing need be set for the workers."
    if setting.frozen:
        return "The workers are frozen already: nothing need be set for them."
    if setting.device == "cuda" and not has_freeze(setting.vllm):
        way = "take vLLM 0.23.0 or later, or set REPRO_POLICY=freeze beside this package's plugin"
    else:
        way = "set REPRO_POLICY=freeze beside this package's plugin"
    limit = policy.RAISED[0] / HELD_A_REQUEST
    also = ""
    if setting.concurrency < limit:
        also = f"; gc.set_threshold{policy.RAISED} in the worker would end collections altogether"
    return f"To be rid of it: {way}{also}."
