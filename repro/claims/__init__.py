"""The report's claims one by one, as data: the sentence, the test that decides it, the verdict."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pandas as pd

from repro import fmt
from repro.claims import capture, heap, mechanism, ranks, tail
from repro.claims.verdict import Finding, Verdict
from repro.dataset import Campaign

__all__ = ["CLAIMS", "Claim", "Finding", "Verdict", "evaluate", "to_markdown"]

REPORT = "the report on vLLM #44363"

Test = Callable[[Campaign], list[Finding]]
"""The findings of one campaign, one a comparison it allows; empty where it cannot tell."""


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One sentence of the report, and what decides it.

    Attributes
    ----------
    id, sentence, source : str
        A short name, what is claimed, and where.
    criterion : str
        When it counts as reproduced and when as contradicted, by the whole 95% interval.
    needs : str
        What must be measured for the test to say anything.
    test : callable
        See `Test`.
    some : bool
        The claim says "in some cases": one case is enough. Otherwise it must hold in all.
    """

    id: str
    sentence: str
    criterion: str
    needs: str
    test: Test
    source: str = REPORT
    some: bool = False


CLAIMS = (
    Claim(
        id="p99-falls",
        sentence="The freeze drastically reduces P99 ITL in some cases.",
        criterion="reproduced: the ratio lies below 0.8; contradicted: above 1",
        needs="runs with and without the freeze, the worker in a process of its own (`mp`)",
        test=tail.p99_falls,
        some=True,
    ),
    Claim(
        id="wide-ep",
        sentence="The ITL tail falls especially with WideEP.",
        criterion=(
            "reproduced: the ratio at P99, P99.5 or P99.9 lies below 0.8; contradicted: one lies "
            "above 1; a prediction does not count as a measurement"
        ),
        needs="runs with and without the freeze, several data-parallel ranks in expert parallel",
        test=ranks.tail_falls_wide_ep,
        some=True,
    ),
    Claim(
        id="wide-ep-width",
        sentence="As ranks are added, pauses that each has by itself become the P99 of all.",
        criterion=(
            "predicted from one rank; reproduced: the stalled share and the tail of every wider "
            "group measured agree with the prediction within their intervals; contradicted: one "
            "does not"
        ),
        needs="runs of one rank with and without the freeze (`mp`), and of several to decide it",
        test=ranks.p99_rises_with_width,
        source="follows from lock-step: a group waits for whichever rank is paused",
        some=True,
    ),
    Claim(
        id="ranks-wait",
        sentence="With shared experts every rank waits for the one that is paused.",
        criterion=(
            "reproduced: over 90% of a pause is in the other rank's step too; contradicted: under "
            "half of it"
        ),
        needs="several data-parallel ranks in expert parallel, two full collections of a worker "
        "that the other rank does not share",
        test=ranks.a_rank_waits,
        source="why a pause of one rank is all ranks'",
        some=True,
    ),
    Claim(
        id="ranks-pause-apart",
        sentence="Unfrozen data-parallel ranks pause in different steps: their pauses add up.",
        criterion=(
            "reproduced: of the steps with a full collection under half have one of two ranks; "
            "contradicted: over half"
        ),
        needs="several data-parallel ranks in expert parallel, full collections of their workers",
        test=ranks.unfrozen_ranks_pause_apart,
        source="why more data-parallel ranks make more pauses",
    ),
    Claim(
        id="frozen-ranks-pause-apart",
        sentence="Frozen data-parallel ranks pause in different steps too.",
        criterion="as above, of frozen workers, whose pauses cost next to nothing",
        needs="several frozen data-parallel ranks of a MoE, full collections of their workers",
        test=ranks.frozen_ranks_pause_apart,
        source="whether the freeze changes when ranks collect",
    ),
    Claim(
        id="ranks-pause-together",
        sentence="Tensor-parallel ranks pause in the same step: their pauses do not add up.",
        criterion=(
            "reproduced: of the steps with a full collection over half have one of two ranks; "
            "contradicted: under half"
        ),
        needs="tensor-parallel ranks, full collections of their workers",
        test=ranks.tensor_ranks_pause_together,
        source="why more tensor-parallel ranks do not",
    ),
    Claim(
        id="capture-time",
        sentence="Freezing during the CUDA graph capture changes nothing: 56 s against 57 s.",
        criterion="reproduced: the ratio lies within 0.95 to 1.05; contradicted: outside",
        needs="captures on a GPU with capture policies `gc-on` and `frozen`, two of each",
        test=capture.capture_takes_as_long,
    ),
    Claim(
        id="capture-memory",
        sentence="The capture takes the same memory either way: 6.25 GiB.",
        criterion="reproduced: the ratio lies within 0.99 to 1.01; contradicted: outside",
        needs="first captures of GPU workers with `gc-on` and with `frozen`, two processes of each",
        test=capture.capture_takes_as_much_memory,
    ),
    Claim(
        id="no-collection-per-graph",
        sentence="PyTorch no longer collects before each CUDA graph.",
        criterion=(
            "contradicted: at least half as many full collections in a capture with PyTorch's "
            "default as where it is told to collect before each graph"
        ),
        needs="captures on a GPU with capture policies `gc-on` and `collect-per-graph`",
        test=capture.no_collection_per_graph,
    ),
    Claim(
        id="engine-frozen",
        sentence="The engine core's heap was frozen already.",
        criterion="contradicted: an engine core mostly unfrozen beside an unfrozen worker",
        needs="a census of the engine core in runs without the freeze",
        test=heap.engine_already_frozen,
    ),
    Claim(
        id="frontend-frozen",
        sentence="The front end's heap was frozen already.",
        criterion="contradicted: an API server mostly unfrozen beside an unfrozen worker",
        needs="client `serve`: with client `engine` the load driver freezes the front end itself",
        test=heap.frontend_already_frozen,
    ),
    Claim(
        id="worker-not-frozen",
        sentence="The worker's heap was not frozen.",
        criterion="contradicted: a worker mostly frozen in a vLLM without the pull request",
        needs="a census of workers of vLLM before 0.23, or of its CPU backend",
        test=heap.worker_not_frozen,
    ),
    Claim(
        id="not-scanned",
        sentence="Frozen objects are not scanned.",
        criterion=(
            "reproduced: full collections of the worker at least 20 times shorter, and at most 10% "
            "of its objects in sight; contradicted: as long as before, or over half in sight"
        ),
        needs="full collections of the worker in runs with and without the freeze",
        test=heap.frozen_objects_not_scanned,
    ),
    Claim(
        id="no-collection",
        sentence="After the freeze, inference triggers no collection any more.",
        criterion="contradicted: a collection of a frozen worker in the measured window",
        needs="runs with the freeze, the worker in a process of its own (`mp`)",
        test=heap.no_collection_after_freeze,
    ),
    Claim(
        id="unfreeze-restores",
        sentence="`gc.unfreeze()` at shutdown restores normal collection.",
        criterion=(
            "reproduced: no object stays frozen and at least 90% are tracked again; "
            "contradicted: an object stays frozen, or the collector stays off"
        ),
        needs="a census of frozen workers before and in shutdown",
        test=heap.unfreeze_restores,
    ),
    Claim(
        id="memory-minimal",
        sentence="The impact on memory is minimal.",
        criterion="reproduced: the worker's resident memory grows under 5%; contradicted: more",
        needs="a census at the window's end in runs with and without the freeze, two each",
        test=heap.memory_impact_minimal,
    ),
    Claim(
        id="no-configuration",
        sentence="Nobody need configure anything: the worker freezes by itself.",
        criterion="contradicted: an unfrozen worker of vLLM 0.23 or later with policy `stock`",
        needs="runs with policy `stock` on a GPU and vLLM 0.23 or later",
        test=heap.no_configuration_needed,
    ),
    Claim(
        id="patch-is-release",
        sentence="The policy `freeze` on vLLM 0.22.1 is what 0.23.0 does, `no-freeze` undoes it.",
        criterion=(
            "reproduced: full collections of the two are as long within ×0.5 to ×2, frozen and "
            "unfrozen; contradicted: outside"
        ),
        needs="runs of vLLM before 0.23 and of 0.23 or later, frozen in both or in neither",
        test=tail.patch_is_the_release,
        source="holds the patch of this package against the release",
    ),
    Claim(
        id="uni-unchanged",
        sentence="Where the worker lives in the engine core (`uni`), nothing changes.",
        criterion="reproduced: P99 ITL's ratio lies within 0.9 to 1.1; contradicted: outside",
        needs="runs with and without the freeze and executor `uni`",
        test=tail.nothing_changes_with_uni,
        source="follows from the heaps above: there the engine core's freeze covers the worker",
    ),
    Claim(
        id="rule-predicts",
        sentence="CPython's rule says beforehand when a worker's full collections come.",
        criterion="reproduced: every prediction within 10%; contradicted: one is not",
        needs="a worker with two full collections, or one after a freeze",
        test=mechanism.rule_predicts,
        source="`repro.theory.cpython_rule`, fed with what a run recorded",
    ),
    Claim(
        id="little-is-left",
        sentence="What a frozen or uncollected worker never reclaims is little.",
        criterion="reproduced: under 1 MiB in abandoned cycles at its end; contradicted: more",
        needs="a census with `garbage`, as runs of this version take at a worker's shutdown",
        test=mechanism.little_is_left,
        source="the price of every policy here",
    ),
    Claim(
        id="beyond-freeze",
        sentence="Policies of every process lower P99 ITL further than the worker's freeze alone.",
        criterion="reproduced: the ratio lies below 1 for one of them; contradicted: above",
        needs="client `engine`, 1,024 in flight, `freeze` and another policy, two runs each",
        test=mechanism.a_policy_beats_the_freeze,
        source="what would be better still",
        some=True,
    ),
    Claim(
        id="better-policy",
        sentence="Some policy halves P99 ITL through HTTP and adds a tenth to the tokens/s.",
        criterion="reproduced: both intervals beyond these goals; contradicted: one surely missed",
        needs="client `serve`, 1,024 in flight, `stock` (or `freeze`, where the release itself "
        "freezes) and another policy, two runs each",
        test=mechanism.a_policy_beats_stock,
        source="the goal set for policies beyond #44363",
        some=True,
    ),
    Claim(
        id="handler-holds",
        sentence="Through HTTP the longest gaps are no collection: vLLM's output handler holds "
        "its event loop.",
        criterion="reproduced: over half of the silences' time lies under holds, over twice as "
        "much as under collections; contradicted: over half lies under collections",
        needs="client `serve`, 1,024 in flight, a silence of a second, and `holds` recorded",
        test=mechanism.the_handler_holds_the_loop,
        source="what is left of the tail through HTTP",
        some=True,
    ),
    Claim(
        id="whole-steps",
        sentence="An output handler that takes whole steps ends the silences and brings tokens/s.",
        criterion="reproduced: no silence is left and the ratio of tokens/s lies above 1; "
        "contradicted: more silences, or a ratio below 1",
        needs="client `serve` with `output_chunk` and without, two runs each",
        test=mechanism.whole_steps_end_silences,
        source="what upstream could change beside the freeze",
        some=True,
    ),
)
"""In the report's order: effect, capture, heaps, costs; then what goes beyond it."""


def evaluate(campaigns: Sequence[Campaign]) -> pd.DataFrame:
    """Every claim held against every campaign.

    Parameters
    ----------
    campaigns : sequence of Campaign

    Returns
    -------
    pandas.DataFrame
        One row a claim, in the order of `CLAIMS`: `id`, `claim`, `source`, `criterion`,
        `verdict`, `number`, `runs` (campaign/run, comma-separated), `reason`. All text.
    """
    return pd.DataFrame([_judge(claim, campaigns) for claim in CLAIMS])


def to_markdown(verdicts: pd.DataFrame) -> str:
    """The table of `evaluate` in Markdown; long lists of runs are counted, not spelt out."""
    short = verdicts[["claim", "verdict", "number", "reason", "criterion"]].assign(
        verdict="**" + verdicts["verdict"] + "**", runs=verdicts["runs"].map(_short_list)
    )
    return fmt.markdown_table(short)


def _judge(claim: Claim, campaigns: Sequence[Campaign]) -> dict[str, str]:
    order = _BEST_FIRST if claim.some else _WORST_FIRST
    found = [(campaign, finding) for campaign in campaigns for finding in claim.test(campaign)]
    row = {
        "id": claim.id,
        "claim": claim.sentence,
        "source": claim.source,
        "criterion": claim.criterion,
        "verdict": str(Verdict.NOT_MEASURED),
        "number": "–",
        "runs": "",
        "reason": f"needs {claim.needs}",
    }
    if not found:
        return row
    campaign, decisive = min(found, key=lambda pair: order.index(pair[1].verdict))
    others = [finding.verdict for _, finding in found if finding is not decisive]
    counted = [f"{others.count(verdict)} {verdict}" for verdict in order if verdict in others]
    return row | {
        "verdict": str(decisive.verdict),
        "number": decisive.number,
        "runs": ", ".join(f"{campaign.path.name}/{run}" for run in decisive.runs),
        "reason": decisive.reason + (f" (other cases: {', '.join(counted)})" if counted else ""),
    }


_WORST_FIRST = (
    Verdict.CONTRADICTED,
    Verdict.NOT_REPRODUCED,
    Verdict.REPRODUCED,
    Verdict.PREDICTED,
    Verdict.NOT_MEASURED,
)
_BEST_FIRST = (
    Verdict.REPRODUCED,
    Verdict.NOT_REPRODUCED,
    Verdict.CONTRADICTED,
    Verdict.PREDICTED,
    Verdict.NOT_MEASURED,
)
"""Which finding decides. A case that nothing could be said of decides only if all are such."""


def _short_list(runs: str) -> str:
    names = runs.split(", ") if runs else []
    return runs if len(names) <= 4 else f"{names[0]} … {names[-1]} ({len(names)})"
