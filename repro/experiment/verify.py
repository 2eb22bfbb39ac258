"""Checks that a run did what was asked of it; a run that did not is not data.

Each check raises `NotAsRequested`, whose message says what is wrong and what to change.
"""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from repro import policy
from repro.dataset.recording import Columns, Recording
from repro.experiment.config import Experiment

FULL_LOAD = 0.9
"""Share of `concurrency` the engine must have had in its median step."""

CLIENT_BUSY = 0.9
"""Share of the window for which an HTTP client's thread may have had, or waited for, a CPU."""


class NotAsRequested(RuntimeError):
    """The run did not do what was asked of it; the message says what and what to change."""


def executor_is(asked: str, found: object) -> None:
    """Check that vLLM runs its workers as asked: its CPU backend turns `uni` into `mp`."""
    if found != asked:
        raise NotAsRequested(
            f"executor {asked!r} asked for, vLLM took {found!r}: its CPU backend has 'mp' alone; "
            "use executor 'mp', or a GPU"
        )


def experts_run_on_cpu(experiment: Experiment) -> None:
    """Refuse what vLLM's CPU backend cannot do with a mixture of experts on several ranks."""
    if experiment.enable_expert_parallel:
        raise NotAsRequested(
            "enable_expert_parallel True on the CPU backend: its kernel reads out of bounds and "
            "crashes; leave it out, every rank then has a slice of each expert"
        )
    if experiment.data_parallel_size > 1 and not experiment.enforce_eager:
        raise NotAsRequested(
            f"data_parallel_size {experiment.data_parallel_size} with a mixture of experts on the "
            "CPU backend: its ranks' collectives cannot be compiled; set enforce_eager"
        )


def policy_took_effect(experiment: Experiment, workers: Sequence[dict[str, Any]]) -> None:
    """Check the policy against what each worker says of its own heap.

    Parameters
    ----------
    workers : sequence of dict
        One per rank, in any order: `rank`, `policy`, `freeze_count_before` warm-up (CPython 3.12
        itself starts with a few hundred objects frozen), `freeze_count` after it, `frozen` and
        `tracked` now, and the collector's `enabled` and `threshold_*`.
    """
    answered = sorted(worker["rank"] for worker in workers)
    if answered != list(range(experiment.ranks)):
        raise NotAsRequested(
            f"{len(answered)} of {experiment.ranks} workers answered the census, as ranks "
            f"{answered}: run it again"
        )
    serving = policy.serving(experiment.policy)
    for worker in workers:
        if worker.get("policy") != serving.name:
            raise NotAsRequested(
                f"worker {worker.get('rank')}: policy {worker.get('policy')!r} instead of "
                f"{serving.name!r}; is the package installed where vLLM runs?"
            )
        _check_heap(serving, worker, own_process=experiment.executor == "mp")
        _check_collector(f"worker {worker['rank']}", serving, worker)


def switched(freeze: bool, heaps: Sequence[tuple[int, int]]) -> None:
    """Check that a switch of a cross-over reached every worker.

    `heaps` has for each, after it, objects frozen, and objects tracked and not frozen. CPython 3.12
    has a few hundred frozen on a thawed heap too.
    """
    if not heaps or any((frozen > tracked) != freeze for frozen, tracked in heaps):
        counts = ", ".join(f"{frozen} of {frozen + tracked}" for frozen, tracked in heaps)
        raise NotAsRequested(
            f"after {'a freeze' if freeze else 'a thaw'} the workers have {counts or 'no'} objects "
            "frozen; another plugin freezes or thaws the heap"
        )


def flipped(freeze: bool, heaps: Sequence[dict[str, Any]], evading: Sequence[int]) -> None:
    """Check a switch that says how many objects of each heap evaded it: the smaller part.

    `heaps` are the counts of the same workers at the window's start.
    """
    sizes = [heap["frozen"] + heap["tracked"] for heap in heaps]
    pairs = [
        (size - few, few) if freeze else (few, size - few)
        for size, few in zip(sizes, evading, strict=True)
    ]
    switched(freeze, pairs)


def _check_heap(
    serving: policy.ServingPolicy, worker: dict[str, Any], *, own_process: bool
) -> None:
    """After warm-up, and now too where no engine core shares (and freezes) the worker's process."""
    before = worker["freeze_count_before"]
    counts = [worker["freeze_count"]] + ([worker["frozen"]] if own_process else [])
    # Most of the heap, not just something: what lives on after warm-up is what was frozen.
    if serving.freeze is True and min(counts) <= worker["tracked"]:
        raise NotAsRequested(
            f"worker {worker['rank']}: policy {serving.name!r} left most of the heap unfrozen; "
            "another plugin thaws the heap, or the worker's hooks were bypassed"
        )
    if serving.freeze is False and max(counts) > before:
        raise NotAsRequested(
            f"worker {worker['rank']}: policy {serving.name!r}, yet {max(counts) - before} objects "
            "were frozen; another plugin does so, or vLLM freezes where the patch does not look"
        )


def processes_follow(experiment: Experiment, census: Columns) -> None:
    """Check the policies of all processes against the table `census` of their heaps."""
    for role in ("frontend", "engine"):
        serving = policy.serving(experiment.policies[role])
        inside = np.isin(census["point"], ("window-start", "window-end"))
        rows = np.flatnonzero(inside & (census["role"] == role))
        if not len(rows) and not serving.leaves_alone:
            raise NotAsRequested(f"{role}: policy {serving.name!r}, yet its heap was not counted")
        for row in rows:
            counted = {name: column[row] for name, column in census.items()}
            _check_collector(role, serving, counted)
            frozen, tracked = counted["frozen"], counted["tracked"]
            if serving.freeze not in (None, frozen > tracked):
                raise NotAsRequested(
                    f"{role}: policy {serving.name!r}, yet {frozen} objects are frozen and "
                    f"{tracked} are not; its hooks were bypassed, or another plugin freezes"
                )
    for role, name in experiment.policies.items():
        _check_between_census(role, policy.serving(name), census)


def _check_between_census(role: str, serving: policy.ServingPolicy, census: Columns) -> None:
    """Full collections and freezes of each process between the window's start and its end."""
    own = census["role"] == role
    for rank in np.unique(census["rank"][own]):
        at = own & (census["rank"] == rank)
        first, last = (
            {name: column[at & (census["point"] == point)] for name, column in census.items()}
            for point in ("window-start", "window-end")
        )
        if not len(first["t_ns"]) or not len(last["t_ns"]):
            continue
        full, ns = (int(last[name][0]) - int(first[name][0]) for name in ("collections_2", "t_ns"))
        by_hand = 1 + ns / 1e9 // serving.collect_every_s if serving.collect_every_s else 0
        if serving.rules_out_full and full > by_hand:
            raise NotAsRequested(
                f"{role} {rank}: policy {serving.name!r}, yet {full} full collections in the "
                "window; another plugin collects"
            )
        # A tenth more: a freeze or a collection waits for a moment between steps.
        lasted_s = ns / 1e9 / 1.1
        # By what it did: of what it froze before, much has died since, and the count may fall.
        due = serving.freeze_every_s and lasted_s > serving.freeze_every_s
        if due and first["acted"][0] == last["acted"][0]:
            raise NotAsRequested(
                f"{role} {rank}: policy {serving.name!r}, yet nothing was frozen in the window; "
                "its hooks were bypassed"
            )
        if serving.collect_every_s and lasted_s > serving.collect_every_s and not full:
            raise NotAsRequested(
                f"{role} {rank}: policy {serving.name!r}, yet no full collection in the window; "
                "its hooks were bypassed"
            )


def _check_collector(
    process: str, serving: policy.ServingPolicy, counted: Mapping[str, Any]
) -> None:
    """Nothing but the policy may force or hold back the collector."""
    found = tuple(int(counted[f"threshold_{generation}"]) for generation in range(3))
    expected = serving.thresholds_over(gc.get_threshold())
    if bool(counted["enabled"]) != serving.automatic or found != expected:
        raise NotAsRequested(
            f"{process}: collector {_on(counted['enabled'])} with thresholds {found}, policy "
            f"{serving.name!r} wants it {_on(serving.automatic)} with {expected}; "
            "another plugin set them"
        )


def _on(enabled: object) -> str:
    return "on" if enabled else "off"


def engine_was_loaded(experiment: Experiment, steps: Columns, start_ns: int, end_ns: int) -> None:
    """Refuse a run whose client was the bottleneck: the engine then ran out of requests.

    A client that falls behind replaces finished requests late, so fewer than `concurrency`
    are in the engine's steps, whatever the client believes to be in flight.

    Parameters
    ----------
    steps : dict of arrays, each of shape (n_steps,)
        The table `steps` of all ranks, ramp included.
    start_ns, end_ns : int
        The measured window.
    """
    inside = (steps["start_ns"] >= start_ns) & (steps["start_ns"] < end_ns)
    for rank in range(experiment.ranks):
        tokens = steps["tokens"][inside & (steps["rank"] == rank)]
        median = float(np.median(tokens)) if len(tokens) else 0.0
        if median < FULL_LOAD * experiment.concurrency:
            raise NotAsRequested(
                f"rank {rank}: the median step held {median:.0f} tokens with "
                f"{experiment.concurrency} requests in flight: the client was the bottleneck; "
                "lower concurrency, take a larger model, or end other programs"
            )


def client_kept_up(busy: float) -> None:
    """Refuse an HTTP run whose client had no time to spare: its tail would be the client's own.

    Through HTTP the engine may well idle while the API server works, so that `engine_was_loaded`
    is no test there. `busy` is the CPU time that the busiest client's thread had or waited for,
    over the window's length.
    """
    if busy > CLIENT_BUSY:
        raise NotAsRequested(
            f"vllm bench serve wanted {busy:.0%} of a CPU, allowed is {CLIENT_BUSY:.0%}: the "
            "client was the bottleneck; lower concurrency, take a larger model or more CPUs"
        )


def load_lasted(start_times: Sequence[Sequence[float]]) -> None:
    """Refuse an HTTP run in which a client ran out of requests before it was told to stop.

    Each client says when it sent each request, 0 for those held back at the end.
    """
    if any(min(times) > 0 for times in start_times):
        raise NotAsRequested(
            "a client ran out of requests before the window's end: set a shorter duration_s or "
            "longer output_tokens"
        )


def output_handler_is(experiment: Experiment, recordings: Sequence[Recording]) -> dict[str, Any]:
    """Check the API server's output handler against what its process recorded of it.

    Returns
    -------
    dict
        For the run's record: `output_yield_ms`, and `output_yields`, how often it yielded, to
        the power of two below. Empty for vLLM's own handler.
    """
    asked, names = experiment.output_yield, ("output_yield_ms", "output_yields")
    notes = [r.about for r in recordings if r.role == "frontend" and names[0] in r.about]
    said = {name: notes[0][name] for name in names} if notes else {}
    found = f"{said['output_yield_ms']:g}" if said else ""
    if found != asked:
        raise NotAsRequested(
            f"output handler yields after {found or 'no'} ms, asked for {asked or 'no'} ms; "
            "is the package installed where vLLM runs?"
        )
    if experiment.output_handler == "fair" and not said["output_yields"]:
        raise NotAsRequested("output_handler 'fair', yet it never yielded: its hook was bypassed")
    return said


def recording_is_whole(experiment: Experiment, recordings: Sequence[Recording]) -> None:
    """Check that every process that matters was recorded to the end."""
    ranks = {"frontend": 1, "engine": experiment.data_parallel_size}
    if experiment.executor == "mp":
        ranks["worker"] = experiment.ranks
    wanted = {(role, rank) for role, number in ranks.items() for rank in range(number)}
    if missing := wanted - {(r.role, r.rank) for r in recordings if len(r.events)}:
        names = ", ".join(f"{role} {rank}" for role, rank in sorted(missing))
        raise NotAsRequested(f"no events of these processes: {names}; run it again")
    if any(not r.complete for r in recordings):
        raise NotAsRequested("the recorder stopped early: free disk space and run it again")


def heap_is_thawed(workers: Sequence[dict[str, Any]], captures: Sequence[dict[str, Any]]) -> None:
    """Check that every capture found the heap as little frozen as the start-up capture did.

    `workers` are their answers to a census (see `policy_took_effect`), `captures` those to each
    order to capture again: `rank`, `capture_policy`, `freeze_count`.
    """
    initial = {worker["rank"]: worker["freeze_count_before"] for worker in workers}
    for found in captures:
        if found["freeze_count"] > initial[found["rank"]]:
            raise NotAsRequested(
                f"worker {found['rank']}: {found['freeze_count']} objects were frozen before a "
                f"capture under {found['capture_policy']!r}, {initial[found['rank']]} at start-up; "
                "another plugin freezes the heap"
            )


def captures_are_as_planned(experiment: Experiment, captures: Columns) -> None:
    """Check that the run captured as often as asked, and as many graphs each time."""
    if not experiment.needs_graphs:
        return
    found = captures.get("kind", np.array([])) == "capture"
    if not np.any(found):
        raise NotAsRequested(
            f"capture policy {experiment.capture_policy!r} with client {experiment.client!r}, yet "
            "no CUDA graph was captured; it needs a GPU, and enforce_eager off"
        )
    again = [name for name in experiment.recapture_policies for _ in range(experiment.recaptures)]
    for rank in np.unique(captures["rank"][found]):
        of_rank = found & (captures["rank"] == rank)
        names = captures["capture_policy"][of_rank][np.argsort(captures["number"][of_rank])]
        if names[0] != experiment.capture_policy or sorted(names[1:]) != sorted(again):
            raise NotAsRequested(
                f"worker {rank}: captured under {', '.join(names)}, which is not "
                f"{experiment.capture_policy} and then {experiment.recaptures} times each of "
                f"{', '.join(experiment.recapture_policies) or 'none'}; run it again"
            )
        if len(counts := np.unique(captures["graphs"][of_rank])) > 1:
            raise NotAsRequested(
                f"worker {rank}: captured {counts[0]} graphs once and {counts[-1]} another time; "
                "graphs of before were left, measure with recaptures 0"
            )


def capture_policies_took_effect(
    experiment: Experiment, captures: Columns, pauses: Columns, workers: Sequence[dict[str, Any]]
) -> None:
    """Check each capture's policy against the collections recorded inside it.

    vLLM lets `torch.cuda.graph` collect for the first piece of a batch size alone, so
    `collect-per-graph` is one collection per size, or two where full graphs are captured beside.
    Workers say the number of their `capture_sizes`.
    """
    sizes = max((worker.get("capture_sizes", 0) for worker in workers), default=0)
    role = "engine" if experiment.executor == "uni" else "worker"  # whose collector it is
    for row in range(len(captures.get("kind", ()))):
        asked = policy.capture(str(captures["capture_policy"][row]))
        start, duration = captures["start_ns"][row], captures["duration_ns"][row]
        inside = (pauses["start_ns"] >= start) & (pauses["start_ns"] < start + duration)
        inside &= (pauses["role"] == role) & (pauses["rank"] == captures["rank"][row])
        full = pauses["start_ns"][inside & (pauses["generation"] == 2)]
        if asked.collect_per_graph and len(full) < sizes:
            raise NotAsRequested(
                f"collect-per-graph: {len(full)} full collections, {sizes} batch sizes; this "
                "PyTorch has no such option, or another plugin undoes it"
            )
        young = pauses["start_ns"][inside & (pauses["generation"] < 2)]
        if asked.disable and np.any((young > min(full)) & (young < max(full))):
            raise NotAsRequested("frozen-disabled: the collector ran by itself during the capture")
