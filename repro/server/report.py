"""`repro report`: one self-contained HTML page about a recorded folder."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from html import escape
from pathlib import Path
from string import Template

import pandas as pd
from matplotlib.figure import Figure

from repro import fmt
from repro.analysis.attribution import FACTOR
from repro.dataset.schema import NS_PER_MS
from repro.report import style
from repro.report.tables import itl_tails
from repro.server import figures, launches, numbers
from repro.server.launches import Launch
from repro.server.remedies import advice

_PAGE = Template((Path(__file__).parent / "page.html").read_text(encoding="utf-8"))


def write(folder: Path, out: Path) -> Path:
    """Write the page about everything recorded in a folder.

    Parameters
    ----------
    folder : Path
        What `REPRO_RECORD_DIR` named.
    out : Path
        The page; its folder is made.

    Returns
    -------
    Path
        `out`, absolute.

    Raises
    ------
    repro.server.launches.NothingRecorded, repro.dataset.recording.RecordingError
        If the folder holds no recording, or a file that is none.
    """
    found = launches.read(folder)
    page = _PAGE.substitute(
        style=style.PAGE_STYLE,
        folder=escape(folder.name),
        launches=f"{len(found)} launch{'es' * (len(found) > 1)} of vLLM",
        sections="\n".join("\n".join(section(launch)) for launch in found),
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(page, encoding="utf-8")
    return out.resolve()


def section(launch: Launch) -> Iterator[str]:
    """The HTML of one launch, piece by piece."""
    yield f"<h2>Launch of {launch.began:%Y-%m-%d %H:%M:%S} UTC</h2>"
    hit = numbers.hits(launch) if launch.served else pd.DataFrame()
    shares = numbers.hit_shares(launch, hit) if launch.served else pd.DataFrame()
    yield from _advised(launch, shares)
    yield "<h3>What was recorded</h3>"
    yield table(processes(launch))
    yield "<h3>Pauses</h3>"
    yield figure(
        figures.pauses_over_time(launch),
        "Each dot is one collection. A full one (generation 2) visits every tracked object that is "
        "not frozen.",
    )
    if not launch.served:
        return
    yield table(collections(launch))
    yield paragraph(
        "From the first step to the last. A pause hits a step if it overlaps the step's interval "
        f"and lasts at least {numbers.HIT_SHARE:.0%} of the median one. Pauses of the "
        "front end delay tokens without lengthening a step."
    )
    yield table(steps_hit(shares))
    yield from _tail(launch, hit)


def _advised(launch: Launch, shares: pd.DataFrame) -> Iterator[str]:
    yield '<div class="advice">'
    if launch.served:
        yield from map(paragraph, advice(launch, shares))
    else:
        yield paragraph("No step was recorded: send this server some load, then look again.")
    yield "</div>"


def _tail(launch: Launch, hit: pd.DataFrame) -> Iterator[str]:
    yield "<h3>The tail</h3>"
    yield figure(
        figures.step_tail(launch, hit),
        "The interval from one step to the next, idle time left out. Faint: fewer steps than a "
        "quantile needs.",
    )
    yield table(quantiles(launch, hit))
    yield paragraph(
        itl_tails.explanation(launch.campaign, FACTOR)
        .replace(f"**{launches.ARM}**: ", "")
        .capitalize()
    )
    yield "<h3>More ranks</h3>"
    yield figure(
        figures.more_ranks(numbers.more_ranks(launch, hit)),
        "Predicted from these steps for ranks that wait for each other in every step, as "
        "data-parallel ranks with expert parallelism do: each rank's worker pauses by itself, the "
        "rest of a step is common to all. Ranks that pause together have the step times of one. "
        "Faint: beyond what was measured.",
    )


def processes(launch: Launch) -> pd.DataFrame:
    """What each process recorded, in words."""
    found = launch.processes
    return pd.DataFrame(
        {
            "process": found["role"].map(fmt.PROCESS),
            "rank": found["rank"],
            "pid": found["pid"],
            "seconds": found["seconds"].map("{:,.0f}".format),
            "collections": found["pauses"].map("{:,}".format),
            "steps": found["steps"].map("{:,}".format),
            "recording": found["complete"].map({True: "whole", False: "stopped early"}),
        }
    )


def collections(launch: Launch) -> pd.DataFrame:
    """What the collector took of each process while it served, in words."""
    found = itl_tails.collector(launch.campaign).drop(columns="arm")
    way = {process: place for place, process in enumerate(fmt.PROCESS.values())}
    return found.sort_values("process", key=lambda names: names.map(way), kind="stable")


def steps_hit(shares: pd.DataFrame) -> pd.DataFrame:
    """Steps and tokens hit, in words."""
    return pd.DataFrame(
        {
            "process": shares["role"].map(fmt.PROCESS),
            "generation": shares["generation"],
            "steps hit": shares["steps"].map("{:,}".format),
            "of all": shares["step_share"].map(fmt.percent),
            "tokens hit": shares["tokens"].map("{:,}".format),
            "of all tokens": shares["token_share"].map(fmt.percent),
        }
    )


def quantiles(launch: Launch, hit: pd.DataFrame) -> pd.DataFrame:
    """The tail with and without the steps that pauses hit, in words."""
    rows = []
    for name, estimates in numbers.tails(launch, hit).items():
        cells = {"interval (ms)": name, "steps": f"{estimates[0].steps:,}"}
        for quantile, found in zip(numbers.QUANTILES, estimates, strict=True):
            value, low, high = (x / NS_PER_MS for x in (found.value, found.low, found.high))
            cells[fmt.quantile(quantile)] = (
                f"{fmt.figures(value)} ({fmt.bounds(low, high)})"
                if found.supported
                else f"needs {found.needs:,} steps"
            )
        rows.append(cells)
    return pd.DataFrame(rows)


def table(content: pd.DataFrame) -> str:
    """A data frame as an HTML table; a remark, if it is empty."""
    if content.empty:
        return paragraph("None.")
    made: str = content.to_html(index=False, border=0, justify="left")
    return made


def paragraph(text: str) -> str:
    """Text as a paragraph."""
    return f"<p>{escape(text)}</p>"


def figure(drawn: Figure, caption: str) -> str:
    """A figure inside the page itself, with its caption."""
    data = base64.b64encode(style.png(drawn)).decode()
    said = escape(caption)
    image = f'<img alt="{said}" src="data:image/png;base64,{data}">'
    return f"<figure>{image}<figcaption>{said}</figcaption></figure>"
