"""What this package expects to find in the installed vLLM, and the one line where it does not."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from typing import Any

KNOWN_VLLM = ("0.22.1", "0.32.0")
"""First and last vLLM whose sources this was read against."""


class UnknownLayout(RuntimeError):
    """The installed vLLM is not laid out as any version this package was read against."""


def vllm_module(name: str) -> Any:
    """Import a module of vLLM; `UnknownLayout`, naming the version, if there is none."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise unknown(f"there is no module {error.name}") from error


def require(owner: Any, *names: str) -> None:
    """Raise `UnknownLayout`, naming the vLLM version, if `owner` lacks one of `names`."""
    if missing := [name for name in names if not hasattr(owner, name)]:
        where = getattr(owner, "__name__", type(owner).__qualname__)
        raise unknown(f"{where} has no {', '.join(missing)}")


def unknown(what: str) -> UnknownLayout:
    """The one line for a vLLM that this package was not read against."""
    import vllm

    return UnknownLayout(
        f"vLLM {vllm.__version__}: {what}; this patch knows {KNOWN_VLLM[0]} to {KNOWN_VLLM[1]}: "
        "install one of these, or unset the REPRO_ variables"
    )


def global_rank(worker: Any) -> int:
    """Rank over all data-parallel engines: each engine counts its own workers from 0."""
    parallel = worker.vllm_config.parallel_config
    # The index: vLLM resets the rank of a dense model's engines, which know nothing of each other.
    return int(parallel.data_parallel_index) * int(parallel.world_size) + int(worker.rank)


@contextlib.contextmanager
def replaced(place: dict[str, Any], name: str, replacement: Any) -> Iterator[None]:
    """Set a name in a module's or an object's dictionary, and put back what was there."""
    there, upstream = name in place, place.get(name)
    place[name] = replacement
    try:
        yield
    finally:
        if there:
            place[name] = upstream
        else:
            del place[name]
