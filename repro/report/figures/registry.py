"""How a figure is entered under its name, and what it says where the data have nothing for it."""

from __future__ import annotations

import functools
from collections.abc import Callable

from matplotlib.figure import Figure

from repro.dataset import Campaign
from repro.report import style

Draw = Callable[[Campaign], Figure]
FIGURES: dict[str, Draw] = {}


class NotApplicable(ValueError):
    """A figure that this campaign has no data for; the message says what is missing."""


def figure(draw: Draw) -> Draw:
    """Enter a function into `FIGURES` under its name, and draw it in the one style."""

    @functools.wraps(draw)
    def drawn(campaign: Campaign) -> Figure:
        with style.applied():
            return draw(campaign)

    FIGURES[draw.__name__] = drawn
    return drawn
