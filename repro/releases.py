"""Behaviour of each vLLM release by itself, and the releases this package was read against.

Standard library only: vLLM's own processes load this module.
"""

from __future__ import annotations

import re

READ = ("0.22.1", "0.32.0")
"""First and last vLLM whose sources this package was read against."""

FIRST_FROZEN = "0.23.0"
"""The first release with the pull request in it: its GPU workers freeze their heaps, and the CPU
backend's workers do not to this day."""


def release(version: str) -> tuple[int, ...]:
    """Major, minor and patch of a version such as 0.22.1, 0.23.0rc1 or 0.32.0+cpu.

    Raises
    ------
    ValueError
        If the text is no version.
    """
    found = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?", version)
    if not found:
        raise ValueError(f"vllm {version!r}: give a version like 0.23.0")
    return tuple(int(number or 0) for number in found.groups())


def has_freeze(version: str) -> bool:
    """Whether a release has the pull request in it."""
    return release(version) >= release(FIRST_FROZEN)


def has_incremental_collector(python: str) -> bool:
    """Whether a Python collects incrementally: 3.14.0 to 3.14.4 alone."""
    return (3, 14, 0) <= release(python) < (3, 14, 5)
