"""The style of all figures, and their reproducible output as files."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path

import matplotlib
import seaborn as sns
from matplotlib.figure import Figure

from repro import policy

PAGE_STYLE = (Path(__file__).parent / "page.css").read_text(encoding="utf-8").strip()
"""The look of every HTML page of this package."""

COLUMN, PAGE = 3.4, 7.0
"""Widths in inches: one column of a paper, and two."""

INK = "#333333"
PALETTE = sns.color_palette("colorblind").as_hex()


class _Colours(dict[str, str]):
    def __missing__(self, name: str) -> str:
        return policy.NO_COLOUR  # a campaign may hold a policy of another version


POLICY_COLOUR = _Colours(
    {name: policy.SERVING[name].colour for name in ("no-freeze", *policy.SERVING)}
)
"""In the order of a legend."""
PROCESS_COLOUR = {"frontend": PALETTE[1], "engine": PALETTE[2], "worker": PALETTE[4]}

STYLE = {
    **sns.axes_style("ticks"),
    "font.family": ["DejaVu Sans"],  # the one font that ships with matplotlib
    "font.size": 7,
    "axes.titlesize": 8,
    "axes.titlelocation": "left",
    "axes.labelsize": 7,
    "axes.edgecolor": INK,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "0.92",
    "grid.linewidth": 0.6,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "xtick.major.size": 3,
    "ytick.major.size": 3,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.minor.size": 1.5,
    "ytick.minor.size": 1.5,
    "xtick.minor.width": 0.4,
    "ytick.minor.width": 0.4,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "lines.linewidth": 1.4,
    "hatch.linewidth": 0.5,
    "figure.dpi": 150,
    "savefig.dpi": 300,
    "svg.fonttype": "path",
    "svg.hashsalt": "repro",  # else the ids in an SVG are drawn at random
}

FORMATS = {"png": {"Software": None}, "svg": {"Date": None, "Creator": None}}
"""Format of a figure -> the metadata left out, which would change from day to day."""


@contextlib.contextmanager
def applied() -> Iterator[None]:
    """Draw in the style, whatever the user's own matplotlibrc says."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        yield


def encoded(drawn: Figure, kind: str = "png") -> bytes:
    """The figure as a file of one of `FORMATS`, with no date and no version in it."""
    file = io.BytesIO()
    with applied():
        drawn.savefig(file, format=kind, metadata=FORMATS[kind])
    return file.getvalue()


def save(drawn: Figure, stem: Path, kind: str = "png") -> Path:
    """Write the figure to `stem`.png, or in another of `FORMATS`.

    Raises
    ------
    OSError
        If the folder cannot be made or written.
    """
    stem.parent.mkdir(parents=True, exist_ok=True)
    path = stem.with_name(f"{stem.name}.{kind}")
    path.write_bytes(encoded(drawn, kind))
    return path
