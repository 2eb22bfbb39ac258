"""Registration of figures, and the error of a campaign without the data for one.

To add a figure, put a function with the decorator `figure` into a module beside this one. To
publish it, link its PNG in `figures/README.md` at the top of the repository.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

from matplotlib.figure import Figure

from repro.dataset import Campaign
from repro.report import style

Draw = Callable[[Campaign], Figure]
FIGURES: dict[str, Draw] = {}


class NotApplicable(ValueError):
    """A figure without data or message in this campaign; the text states what is missing."""


def figure(draw: Draw) -> Draw:
    """Register a function in `FIGURES` under its name, drawn in the one style."""

    @functools.wraps(draw)
    def drawn(campaign: Campaign) -> Figure:
        with style.applied():
            return draw(campaign)

    FIGURES[draw.__name__] = drawn
    return drawn
