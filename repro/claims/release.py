"""Claims about what the patch and the executor stand for: other releases, `uni`."""

from __future__ import annotations

from repro import fmt
from repro.analysis.arms import pairs
from repro.analysis.release_comparison import release_pairs, release_ratios
from repro.claims.registry import claim
from repro.claims.tail import runs_of, tail_ratio
from repro.claims.verdict import SAME_TAIL, Outcome, Verdict, sameness, sample_of, too_few
from repro.dataset import Campaign

AS_LONG = (0.5, 2.0)
"""Collections whose ratio lies in here count as equally long: the freeze changes them by more than
twenty times."""


@claim(
    "patch-is-release",
    "The policy `freeze` on vLLM 0.22.1 is what 0.23.0 does, `no-freeze` undoes it.",
    criterion="reproduced: full collections of the two are as long within "
    f"×{AS_LONG[0]} to ×{AS_LONG[1]:g}, frozen and unfrozen; contradicted: outside",
    needs="runs of vLLM before 0.23 and of 0.23 or later, frozen in both or in neither",
    source="compares the patch of this package with the release",
)
def patch_is_the_release(campaign: Campaign) -> list[Outcome]:
    """The ratio of the worker's full collections after and before the pull request."""
    found = []
    for pair in release_pairs(campaign):
        ratios = release_ratios(campaign, pair)
        runs = runs_of(campaign, pair)
        ratio = ratios.pop("full collection")
        if not ratio.supported:
            what = "the length of full collections"
            found.append(too_few(ratio, what, runs, "runs per arm with a full collection"))
            continue
        name = f"full collection, {pair.treated} over {pair.baseline}"
        rest = ", ".join(f"{k} {fmt.ratio(r)}" for k, r in ratios.items() if r.supported)
        sample = sample_of(campaign, runs)
        found.append(sameness(ratio, AS_LONG, sample, name=name, runs=runs, further=f"; {rest}"))
    return found


@claim(
    "uni-unchanged",
    "Where the worker lives in the engine core (`uni`), nothing changes.",
    criterion=f"reproduced: P99 ITL's ratio lies within {SAME_TAIL[0]} to {SAME_TAIL[1]}; "
    "contradicted: outside",
    needs="runs with and without the freeze and executor `uni`",
    source="follows from the heaps above: there the engine core's freeze covers the worker",
)
def nothing_changes_with_uni(campaign: Campaign) -> list[Outcome]:
    """The ratio of P99 ITL with and without the freeze, the worker in the engine core."""
    found = []
    uni = set(campaign.runs.loc[campaign.runs["executor"] == "uni", "arm"])
    for pair in pairs(campaign):
        if pair.treated not in uni:
            continue
        ratio, name = tail_ratio(campaign, pair)
        runs = runs_of(campaign, pair)
        workers = campaign.pauses[campaign.pauses["run"].isin(runs)]["role"].eq("worker").any()
        if workers:
            found.append(
                Outcome(
                    verdict=Verdict.CONTRADICTED,
                    number="a worker process",
                    reason="with `uni` the worker was a process of its own",
                    runs=runs,
                )
            )
        elif not ratio.supported:
            found.append(too_few(ratio, name, runs, "steps per arm"))
        else:
            sample = sample_of(campaign, runs)
            found.append(sameness(ratio, SAME_TAIL, sample, name=name, runs=runs))
    return found
