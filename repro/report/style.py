"""The one style of all figures, and how a figure becomes files that are the same every time."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterator
from pathlib import Path

import matplotlib
import numpy as np
import seaborn as sns
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure

PAGE_STYLE = (Path(__file__).parent / "page.css").read_text(encoding="utf-8").strip()
"""What every HTML page of this package looks like."""

COLUMN, PAGE = 3.4, 7.0
"""Widths in inches: one column of a paper, and both."""

INK = "#333333"
PALETTE = sns.color_palette("colorblind").as_hex()
POLICY_COLOUR = {
    "no-freeze": PALETTE[3],
    "stock": PALETTE[7],
    "freeze": PALETTE[0],
    "freeze-again": PALETTE[2],
    "thresholds": PALETTE[5],
    "freeze-thresholds": PALETTE[9],
    "between-steps": PALETTE[4],
    "disable": INK,
}
"""In the order of a legend."""
PROCESS_COLOUR = {"frontend": PALETTE[1], "engine": PALETTE[2], "worker": PALETTE[4]}
RANK_COLOUR = (PALETTE[0], PALETTE[1])
SETTING_LINE = ("-", "--", ":", "-.")

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

_FINE = re.compile(rb"(?<!scale\()-?\b\d+\.\d{4,}")
"""A coordinate of an SVG with more than three decimals; what scales a glyph is left alone."""

_ID = re.compile(rb"(?<=[\"#])[a-z][0-9a-f]{10}(?=[\")])")


def lighter(colour: str, degree: int) -> str:
    """A colour mixed with white: degree 0 is the colour itself."""
    mixed = 1 - (1 - np.array(to_rgb(colour))) * 0.6**degree
    return str(to_hex(mixed.tolist()))


@contextlib.contextmanager
def applied() -> Iterator[None]:
    """Draw in the style, whatever the user's own matplotlibrc says."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        yield


def png(drawn: Figure) -> bytes:
    """The figure as a PNG file, with no version in it."""
    return _rendered(drawn, "png", {"Software": None})


def svg(drawn: Figure) -> bytes:
    """The figure as an SVG file, with no date and no version in it, to a thousandth of a point.

    Finer digits differ from one CPU to the next: NumPy's logarithms do, in their last bit. So do
    Matplotlib's ids, which are hashes of them; they are counted instead.
    """
    text = _rendered(drawn, "svg", {"Date": None, "Creator": None})
    text = _FINE.sub(lambda number: b"%.3f" % float(number[0]), text)
    counted = {name: b"i%d" % at for at, name in enumerate(dict.fromkeys(_ID.findall(text)))}
    return _ID.sub(lambda name: counted[name[0]], text)


def save(drawn: Figure, stem: Path) -> list[Path]:
    """Write `stem`.png and `stem`.svg.

    Raises
    ------
    OSError
        If the folder cannot be made or written.
    """
    stem.parent.mkdir(parents=True, exist_ok=True)
    files = {stem.with_name(f"{stem.name}.{render.__name__}"): render for render in (png, svg)}
    for path, render in files.items():
        path.write_bytes(render(drawn))
    return list(files)


def _rendered(drawn: Figure, kind: str, metadata: dict[str, None]) -> bytes:
    file = io.BytesIO()
    with applied():
        drawn.savefig(file, format=kind, metadata=metadata)
    return file.getvalue()
