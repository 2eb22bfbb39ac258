"""What this package expects to find in the installed vLLM, and the one line where it does not."""

from __future__ import annotations

import importlib
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
