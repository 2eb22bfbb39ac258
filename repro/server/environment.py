"""Obstacles in an environment to recordings or policies, and the line that mends each.

`repro doctor` names what it finds where it runs: run it where vLLM runs.
"""

from __future__ import annotations

import importlib.util
import os
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import entry_points
from pathlib import Path

from repro import plugin, policy

PREFIXES, NAMES = "VLLM_RAY_EXTRA_ENV_VAR_PREFIXES_TO_COPY", "VLLM_RAY_EXTRA_ENV_VARS_TO_COPY"
RUST = "VLLM_USE_RUST_FRONTEND"
TARGET = "pip install --no-deps --target ~/repro . and start vLLM with PYTHONPATH=~/repro"

Obstacle = tuple[str, str, str]
"""The thing looked at, the finding, and the remedy."""


def nothing_recorded(folder: Path, warnings: Sequence[str] = ()) -> str:
    """The one line for a folder without a recording, and why files in it were left out."""
    return (
        f"{folder}: holds no recording; start vLLM with REPRO_RECORD_DIR={folder}, this package "
        f"installed beside it (without rights to its environment: {TARGET}). If you did, vLLM's "
        "log lacks the line 'repro: … recording into': an allowlist VLLM_PLUGINS must name repro, "
        f"Ray needs {PREFIXES}=REPRO_, {RUST}=1 leaves no front end to record, and `repro doctor` "
        "in vLLM's own environment names other causes"
    ) + "".join(f" ({warning})" for warning in warnings)


def obstacles(environment: Mapping[str, str] = os.environ) -> list[Obstacle]:
    """Everything that is in the way in this environment."""
    return [*_plugin(environment), *_ray(environment), *_rust(environment), *_values(environment)]


def _plugin(environment: Mapping[str, str]) -> Iterator[Obstacle]:
    allowed = environment.get("VLLM_PLUGINS")
    if allowed is not None and "repro" not in allowed.split(","):  # vLLM strips no space either
        remedy = f"export VLLM_PLUGINS={','.join([*filter(None, allowed.split(',')), 'repro'])}"
        yield "VLLM_PLUGINS", f"{allowed!r} leaves this package's plugin out", remedy
    registered = any(e.name == "repro" for e in entry_points(group="vllm.general_plugins"))
    if not registered and not os.access(sysconfig.get_path("purelib"), os.W_OK):
        yield "rights", "vLLM's environment is not yours to install into", TARGET


def _ray(environment: Mapping[str, str]) -> Iterator[Obstacle]:
    if "RAY_ADDRESS" not in environment and importlib.util.find_spec("ray") is None:
        return
    prefixes = [p.strip() for p in environment.get(PREFIXES, "").split(",") if p.strip()]
    names = {name.strip() for name in environment.get(NAMES, "").split(",")}
    asked = {name for name in (*plugin.VARIABLES, plugin.STACKS) if environment.get(name)}
    covered = any("REPRO_".startswith(prefix) for prefix in prefixes)
    if not covered and not (asked and asked <= names):
        found = "copies no REPRO_ variable to its workers"
        yield "Ray", found, f"export {PREFIXES}=REPRO_ before vLLM starts"


def _rust(environment: Mapping[str, str]) -> Iterator[Obstacle]:
    if environment.get(RUST, "0") not in ("", "0"):
        found = f"{RUST} is set: the front end has no Python, no collector and no repro_ metrics"
        remedy = f"nothing to record there; unset {RUST} for REPRO_FRONTEND_POLICY or /metrics"
        yield "front end", found, remedy


def _values(environment: Mapping[str, str]) -> Iterator[Obstacle]:
    lookups = dict.fromkeys(plugin.BY_ROLE.values(), policy.serving)
    for name, look_up in {**lookups, plugin.CAPTURE_POLICY: policy.capture}.items():
        try:
            look_up(environment.get(name) or "stock")
        except policy.UnknownPolicy as error:
            found, _, remedy = str(error).partition(": ")
            yield name, found, f"{remedy}; until then the process is left as it is"
    if folder := environment.get(plugin.RECORD_DIR):
        place = next(p for p in (Path(folder), *Path(folder).absolute().parents) if p.exists())
        if not os.access(place, os.W_OK):
            yield plugin.RECORD_DIR, f"{place} cannot be written to", "name a folder that can"
