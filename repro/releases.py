"""What each vLLM release does by itself."""

from __future__ import annotations

FIRST_FROZEN = (0, 23)
"""The first release that freezes the heap of GPU workers (#44363)."""


def major_minor(version: str) -> tuple[int, ...]:
    """Major and minor number of a version such as 0.22.1 or 0.23.0rc1.

    Raises
    ------
    ValueError
        If the text is no version.
    """
    numbers = version.split(".")[:2]
    if len(numbers) != 2 or not all(number.isdigit() for number in numbers):
        raise ValueError(f"vllm {version!r}: give a version like 0.23.0")
    return tuple(map(int, numbers))
