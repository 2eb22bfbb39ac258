"""A fault of ours inside vLLM: it fails an experiment; in someone's server it is logged once."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator

STRICT = "REPRO_STRICT"

logger = logging.getLogger("vllm.repro")

_said: set[str] = set()


def strict() -> bool:
    """Whether this is an experiment, whose measurement a fault of ours would spoil."""
    return os.environ.get(STRICT) == "1"


def step_aside(what: str, error: Exception) -> None:
    """Say what failed, once in this process; vLLM goes on without it.

    Raises
    ------
    Exception
        The fault itself, with `REPRO_STRICT=1`.
    """
    if strict():
        raise error
    if what not in _said:
        _said.add(what)
        logger.error(
            "repro: %s failed, vLLM goes on without it: %s: %s", what, type(error).__name__, error
        )


@contextlib.contextmanager
def stepping_aside(what: str) -> Iterator[None]:
    """`step_aside` for whatever the block raises. Not for each step: it makes objects."""
    try:
        yield
    except Exception as error:
        step_aside(what, error)
