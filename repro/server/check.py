"""`repro check`: for each process of a server, whether its heap and collector are as asked."""

from __future__ import annotations

import re
import urllib.error
import urllib.request
from pathlib import Path

from repro import fmt
from repro.plugin.live_reader import Process, processes
from repro.plugin.metrics import facts
from repro.plugin.process_facts import SERVING_ROLES
from repro.server.environment import nothing_recorded
from repro.server.launches import NothingRecorded

Facts = dict[str, str]
"""As `repro.plugin.metrics.facts`, with `frozen`, the number of frozen objects."""

FROZEN = "repro_gc_frozen_objects"
TIMEOUT_S = 10.0

_NO_WORKER = "no worker has recorded: it is still starting, or Ray started it (see `repro doctor`)"


def check(source: str) -> tuple[list[str], bool]:
    """One line per process of a recorded folder or a server, and whether all are as asked."""
    found = from_url(source) if source.startswith(("http://", "https://")) else from_folder(source)
    found.sort(key=lambda f: (SERVING_ROLES.index(f["process"]), f["host"], int(f["rank"])))
    faults = [fault(each) for each in found]
    lines = [line(each, wrong) for each, wrong in zip(found, faults, strict=True)]
    works = any(f["process"] == "worker" or f["worker_inside"] for f in found)
    return lines + [_NO_WORKER] * (not works), works and not any(faults)


def from_folder(source: str) -> list[Facts]:
    """The processes of the newest launch on each host recorded in a folder."""
    newest: dict[str, list[Process]] = {}
    for process in processes(Path(source)):
        of_host = newest.setdefault(str(process.about.get("host", "")), [])
        if of_host and of_host[0].launch_ns < process.launch_ns:
            of_host.clear()
        if not of_host or of_host[0].launch_ns == process.launch_ns:
            of_host.append(process)
    if not newest:
        raise NothingRecorded(nothing_recorded(Path(source)))
    recorded = [process for of_host in newest.values() for process in of_host]
    return [facts(p) | {"frozen": str(p.about.get("frozen", ""))} for p in recorded]


def from_url(source: str) -> list[Facts]:
    """The processes that a running server's `/metrics` tells of."""
    address = source.rstrip("/").removesuffix("/metrics") + "/metrics"
    try:
        with urllib.request.urlopen(address, timeout=TIMEOUT_S) as answer:
            text = answer.read().decode()
    except (OSError, urllib.error.URLError) as error:
        raise NothingRecorded(f"{address}: no answer ({error}); is the server up?") from error
    found = [
        dict(re.findall(r'(\w+)="((?:[^"\\]|\\.)*)"', labels)) | {"frozen": value}
        for labels, value in re.findall(rf"^{FROZEN}{{(.*)}} (\S+)$", text, re.M)
    ]
    if not found:
        raise NothingRecorded(
            f"{address}: has no {FROZEN}; start vLLM with REPRO_RECORD_DIR=FOLDER, this package "
            "installed beside it"
        )
    return found


def fault(found: Facts) -> str:
    """In what a process is not as asked; empty if it is."""
    if not found["python"]:
        return "recorded by an older version of this package: state unknown"
    if found["asked"] != found["policy"]:
        return f"there is no policy {found['asked']!r}"
    if not found["heap_frozen"]:
        return "not warm yet"
    return found["not_in_force"]


def line(found: Facts, wrong: str) -> str:
    """Known facts of one process."""
    role = fmt.PROCESS[found["process"]]
    inside = ", worker inside" if found["worker_inside"] else ""
    heap = "heap unknown"
    if found["heap_frozen"]:
        state = "frozen" if found["heap_frozen"] == "True" else "not frozen"
        heap = f"{state}, {float(found['frozen']):,.0f} frozen objects"
    parts = [
        f"{role} {found['rank']} ({found['name']}{inside}) on host {found['host']}: {heap}",
        f"thresholds {found['thresholds']}",
        f"collector {({'True': 'on', 'False': 'off'}).get(found['collector'], 'unknown')}",
        f"policy {found['asked']} asked for, {found['policy']} set",
        f"vLLM {found['vllm']}, Python {found['python']}",
        f"NOT AS ASKED: {wrong}" if wrong else "as asked",
    ]
    return "; ".join(parts)
