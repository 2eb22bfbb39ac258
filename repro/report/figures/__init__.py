"""The figures, one module and function each, drawn from a campaign's data alone.

To add one, add a module with a function from `Campaign` to `Figure`, decorated with `@figure`:
`FIGURES` and `draw_all` then include it, and a notebook shows it by its name.
"""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path

from repro import dataset
from repro.report.figures.registry import FIGURES, NotApplicable
from repro.report.style import save

__all__ = ["FIGURES", "NotApplicable", "draw_all"]

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")


def draw_all(data_root: Path, out_dir: Path, kind: str = "png") -> list[Path]:
    """Draw what applies to each campaign under a folder.

    Parameters
    ----------
    data_root : Path
        Its folders that are campaigns are drawn; others are passed over.
    out_dir : Path
        Where `<campaign>/<figure>.<kind>` goes.
    kind : str
        Name out of `repro.report.style.FORMATS`.

    Returns
    -------
    list of Path
        The files written.

    Raises
    ------
    repro.dataset.DatasetError
        If a campaign is damaged.
    """
    written = []
    for folder in sorted(path for path in data_root.iterdir() if dataset.is_campaign(path)):
        campaign = dataset.load(folder)
        for name, draw in FIGURES.items():
            try:
                drawn = draw(campaign)
            except NotApplicable:
                continue
            written.append(save(drawn, out_dir / folder.name / name, kind))
    return written
