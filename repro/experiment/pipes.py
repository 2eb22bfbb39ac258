"""Standard output for events alone, standard error for the log: shared by the child processes."""

from __future__ import annotations

import os
from typing import TextIO


def take_over_stdout() -> TextIO:
    """Keep standard output for events; what anything else prints goes to the log."""
    events = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    return events
