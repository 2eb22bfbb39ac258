"""The answer on top of the page and of `watch`: one total, then a remedy per kind of process."""

from __future__ import annotations

from repro import fmt
from repro.dataset.schema import NS_PER_MS
from repro.policy import RAISED
from repro.releases import has_freeze
from repro.server.launches import Launch, Member
from repro.server.numbers import QUANTILES, Numbers, Own, time_collecting
from repro.server.tail import quantiles

VARIABLE = {
    "worker": "REPRO_POLICY",
    "engine": "REPRO_ENGINE_POLICY",
    "frontend": "REPRO_FRONTEND_POLICY",
}

CARE_SHARE, CARE_NS = 0.01, 100_000_000
"""A process whose collections take this share of its time, or one of which lasts this long, gets
advice: it moves P99, or a person sees it."""

LONG_HOLD_NS = 1_000_000_000
"""From this length on a client takes a hold of the event loop for a server that has hung."""

FULL = 2


def answer(launch: Launch, found: Numbers) -> list[str]:
    """The total in one line per part: time collecting, the tail, the worst stop."""
    if not found.served:
        return ["No step was recorded: send this server some load, then look again."]
    shares = time_collecting(launch, found)
    named = [f"{fmt.PROCESS[role]} {fmt.percent(share)}" for role, share in shares.items()]
    said = [f"Time spent collecting while it served: {fmt.listed(named)}.", _tail(found)]
    stalls = [each for each in found.stalls if each.others]
    worst = max(found.own, key=lambda place: found.own[place].longest[0])
    length, generation = found.own[worst].longest
    if length:
        who = launch.members[worst].label
        said.append(
            f"The longest collection stopped {who} for {fmt.ms(length / NS_PER_MS)} "
            f"(generation {generation})."
        )
    if stalls:
        said.append(
            f"{stalls[0].whose}: a collection of {fmt.ms(stalls[0].length_ns / NS_PER_MS)}, "
            f"{stalls[0].what}."
        )
    return said


def _tail(found: Numbers) -> str:
    kinds = [quantiles(found.tails[name], QUANTILES[1:]) for name in ("all", "without")]
    parts = []
    for quantile, with_, without in zip(QUANTILES[1:], *kinds, strict=True):
        name = fmt.quantile(quantile)
        if not with_.supported:
            parts.append(f"{name} needs {with_.needs:,} steps, there are {with_.steps:,}")
            continue
        values = [fmt.ms(each.value / NS_PER_MS) for each in (with_, without)]
        parts.append(f"{name} {values[0]}, without the collector {values[1]}")
    return f"Steps: {'; '.join(parts)}."


def advice(launch: Launch, found: Numbers) -> list[str]:
    """The remedy of each kind of process, then what else is wrong."""
    if not found.served:
        return []
    said = []
    for role in ("worker", "engine", "frontend"):
        members = [(m, found.own[n]) for n, m in enumerate(launch.members) if m.role == role]
        if members:
            said.append(_about(members, found))
    held = max((own.held_ns for own in found.own.values()), default=0)
    if held >= LONG_HOLD_NS:
        said.append(
            f"For up to {fmt.figures(held / 1e9)} s the API server's output handler worked off its "
            "backlog without letting a token out, which is no collection. It is the bottleneck: "
            "set VLLM_V1_OUTPUT_PROC_CHUNK_SIZE to max_num_seqs or more, or start more API "
            "servers; then record again."
        )
    if any(not m.source.process.complete for m in launch.members):
        said.append("The recording stopped early: free disk space and record again.")
    if launch.unknown:
        names = fmt.listed(m.label for m in launch.unknown)
        said.append(f"Not counted, since this package does not know what they do: {names}.")
    return said


def _about(members: list[tuple[Member, Own]], found: Numbers) -> str:
    """The remedy for the processes of one kind."""
    worst, own = max(members, key=lambda pair: pair[1].total_ns)
    longest = max(each.longest[0] for _, each in members)
    full = sum(each.taken[FULL].number for _, each in members)
    share = own.total_ns / 1e9 / found.seconds if found.seconds else 0.0
    who = fmt.PROCESS[worst.role].capitalize()
    if worst.inside:
        who = "Engine core with the worker inside (executor uni)"
    lost = f"{who}: {fmt.percent(share)} of the time, {full:,} full collections, " + (
        f"the longest {fmt.ms(longest / NS_PER_MS)}"
    )
    if share < CARE_SHARE and longest < CARE_NS:
        more = ""
        if worst.role == "worker" and not worst.frozen and not full:
            more = " Few requests in flight cause few full collections: record under peak load."
        return f"{lost}. Leave it as it is.{more}"
    return f"{lost}. {_remedy(worst)}"


def _remedy(member: Member) -> str:
    """Settings for a process that collects too long, given those in force."""
    variable = VARIABLE[member.role]
    policy = str(member.about.get("policy", "stock"))
    missing = member.about.get("not_in_force")
    if missing:
        return f"{variable}={policy} was asked for but {missing}: see `repro check`."
    raised = list(member.census.get("thresholds", (0, 0, 0))) >= list(RAISED)
    if member.census.get("collector") is False:
        return "Its collector is off already: what collects there was called by code."
    if member.frozen and raised:
        return "Its heap is frozen and its thresholds are raised: nothing more to set."
    wanted = "freeze-thresholds" if member.frozen or member.role != "worker" else "freeze"
    if policy == wanted:
        return f"{variable}={policy} is in force: nothing more to set."
    objects = member.census.get("objects")
    heap = f" of {fmt.count(objects)} objects" if objects else ""
    state = {True: f"Its heap{heap} is frozen, so what is collected is that of requests. "}.get(
        member.frozen is True, f"Its heap{heap} is not frozen. " if member.frozen is False else ""
    )
    return f"{state}Set {variable}={wanted}{_or_newer(member, wanted)}; then record again."


def _or_newer(member: Member, wanted: str) -> str:
    """For a GPU worker of an older vLLM, the release that freezes by itself."""
    version = str(member.about.get("vllm", ""))
    if member.role != "worker" or wanted != "freeze":
        return ""
    if not version:
        return ", or run vLLM 0.23.0 or later on a GPU, where the worker freezes by itself"
    if not has_freeze(version):
        return f", or replace vLLM {version} by 0.23.0 or later, where a GPU worker freezes itself"
    return ""
