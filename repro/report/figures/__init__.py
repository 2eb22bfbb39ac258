"""The figures, one module and function each, drawn from a campaign's data alone.

To add one, add a module with a function from `Campaign` to `Figure`, decorated with `@figure`:
`FIGURES`, `draw_all` and the tests then include it, and a notebook shows it by its name.
`figures/README.md` names the figures that are published, one line each.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
from pathlib import Path

from repro import dataset
from repro.report.figures.registry import FIGURES, NotApplicable
from repro.report.style import save

__all__ = ["FIGURES", "NotApplicable", "draw_all"]

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")


def draw_all(data_root: Path, out_dir: Path, kind: str = "png") -> list[Path]:
    """Draw what applies to each campaign under a folder, as `<campaign>/<figure>.<kind>`.

    If `out_dir` has a README.md, only what that names. Returns the files written.

    Raises
    ------
    repro.dataset.DatasetError
        If a campaign is damaged.
    """
    written = []
    wanted = published(out_dir)
    for folder in sorted(path for path in data_root.iterdir() if dataset.is_campaign(path)):
        chosen = [name for name in FIGURES if wanted is None or (folder.name, name) in wanted]
        campaign = dataset.load(folder) if chosen else None
        for name in chosen:
            assert campaign
            try:
                drawn = FIGURES[name](campaign)
            except NotApplicable:
                continue
            written.append(save(drawn, out_dir / folder.name / name, kind))
    return written


def published(out_dir: Path) -> set[tuple[str, str]] | None:
    """Campaign and name of each figure that the folder's README.md links; None without one."""
    index = out_dir / "README.md"
    if not index.is_file():
        return None
    return set(re.findall(r"\]\(([\w-]+)/(\w+)\.png\)", index.read_text(encoding="utf-8")))
