"""The answer on top of the page and of `watch`: one total, then a remedy per kind of process."""

from __future__ import annotations

from repro import fmt
from repro.dataset.schema import NS_PER_MS
from repro.plugin import BY_ROLE
from repro.policy import RAISED
from repro.releases import has_freeze, has_incremental_collector
from repro.server.launches import Launch, Member
from repro.server.numbers import QUANTILES, Numbers, Own, front_end_shares, time_collecting
from repro.server.tail import quantiles
from repro.theory.cpython_rule import FULL

CARE_SHARE, CARE_NS = 0.01, 100_000_000
"""A process whose collections take this share of its time, or one of which lasts this long, gets
advice: it moves P99, or a person sees it."""

LONG_HOLD_NS = 1_000_000_000
"""From this length on a client takes a hold of the event loop for a server that has hung."""


def answer(launch: Launch, found: Numbers) -> list[str]:
    """The total in one line per part: time collecting, the tail, the worst stop."""
    if not found.served:
        return ["No step was recorded: send this server some load, then look again."]
    shares = time_collecting(launch, found)
    named = [f"{fmt.PROCESS[role]} {fmt.percent(share)}" for role, share in shares.items()]
    said = [f"Time spent collecting while it served: {fmt.listed(named)}.", _tail(found)]
    known = [place for place, member in enumerate(launch.members) if member.role in BY_ROLE]
    worst = max(known, key=lambda place: found.own[place].longest[0])
    length, generation = found.own[worst].longest
    if length:
        said.append(
            f"The longest collection stopped {_who(launch, found, worst)} for "
            f"{fmt.ms(length / NS_PER_MS)} (generation {generation})."
        )
    for stall in found.stalls[:1]:
        took = fmt.ms(stall.length_ns / NS_PER_MS)
        said.append(f"{stall.whose}: a collection of {took}, {stall.what}.")
    return said


def _who(launch: Launch, found: Numbers, place: int) -> str:
    """A process; of several front ends one with the share of the tokens that it hands out."""
    member, shares = launch.members[place], front_end_shares(launch, found)
    if len(shares) < 2 or place not in shares:
        return member.label
    return f"{member.label} (which hands out {fmt.percent(shares[place])} of the tokens)"


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
    said = []
    for role, share in time_collecting(launch, found).items() if found.served else ():
        members = [(m, found.own[n]) for n, m in enumerate(launch.members) if m.role == role]
        said += _about(members, share, found.seconds)
    held = max((own.held_ns for own in found.own.values()), default=0)
    if held >= LONG_HOLD_NS:
        said.append(
            f"The API server's output handler worked off its backlog for up to "
            f"{fmt.figures(held / 1e9)} s without letting a token out. This is no collection: the "
            "API server is the bottleneck. Set VLLM_V1_OUTPUT_PROC_CHUNK_SIZE to max_num_seqs or "
            "more, or start more API servers; then record again."
        )
    if any(not m.source.process.complete for m in launch.members):
        said.append("The recording stopped early: free disk space and record again.")
    if launch.unknown:
        names = fmt.listed(m.label for m in launch.unknown)
        said.append(f"Not counted, since this package does not know what they do: {names}.")
    return said


def _about(members: list[tuple[Member, Own]], share: float, seconds: float) -> list[str]:
    """Remedies for the processes of one kind: one, unless their states differ."""
    first = members[0][0]
    who = fmt.PROCESS[first.role].capitalize()
    if first.inside:
        who = "Engine core with the worker inside (executor uni)"
    longest = max(own.longest[0] for _, own in members)
    full = sum(own.taken[FULL].number for _, own in members)
    lost = (
        f"{who}: {fmt.percent(share)} of the time, {fmt.plural(full, 'full collection')}, "
        f"the longest collection {fmt.ms(longest / NS_PER_MS)}."
    )
    remedies: dict[str, list[str]] = {}
    for member, own in members:
        if own.total_ns / 1e9 / seconds >= CARE_SHARE or own.longest[0] >= CARE_NS:
            remedies.setdefault(_remedy(member), []).append(member.label)
    if not remedies:
        few = first.role == "worker" and not first.frozen and not full
        more = " Few requests in flight cause few full collections: record under peak load."
        return [f"{lost} Leave it as it is.{more * few}"]
    if len(remedies) == 1:
        return [f"{lost} {next(iter(remedies))}"]
    return [lost, *(f"{fmt.listed(whose)}: {text}" for text, whose in remedies.items())]


def _remedy(member: Member) -> str:
    """Settings for a process that collects too long, given those in force."""
    variable, about = BY_ROLE[member.role], member.about
    policy, python = str(about.get("policy", "stock")), str(about.get("python", ""))
    if missing := about.get("not_in_force"):
        return f"{variable}={policy} was asked for, but {missing}: see `repro check`."
    if about.get("collector") is False:
        return "Its collector is off: what collects there was called by code."
    if python and has_incremental_collector(python):
        return f"Python {python} collects incrementally: run 3.14.5 or later; then record again."
    raised = list(about.get("thresholds", (0, 0, 0))) >= list(RAISED)
    wanted = "freeze-thresholds" if member.frozen or member.role != "worker" else "freeze"
    if member.frozen and raised:
        return "Its heap is frozen and its thresholds are raised: nothing more to set."
    if policy == wanted:
        return f"{variable}={policy} is in force: nothing more to set."
    heap = f" of {fmt.count(about['objects'])} objects" if about.get("objects") else ""
    state = {
        True: f"Its heap{heap} is frozen: it collects the objects of requests. ",
        False: f"Its heap{heap} is not frozen. ",
        None: "",
    }[member.frozen]
    return f"{state}Set {variable}={wanted}{_or_newer(member, wanted)}; then record again."


def _or_newer(member: Member, wanted: str) -> str:
    """For a GPU worker of an older vLLM, the release that freezes by itself."""
    version = str(member.about.get("vllm", ""))
    if member.role != "worker" or wanted != "freeze" or member.about.get("device") == "cpu":
        return ""
    if not version:
        return ", or run vLLM 0.23.0 or later on a GPU, where the worker freezes by itself"
    if not has_freeze(version):
        return f", or replace vLLM {version} by 0.23.0 or later, where a GPU worker freezes itself"
    return ""
