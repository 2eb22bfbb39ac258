"""`repro report`: one self-contained HTML page about a recorded folder, or a log of vLLM."""

from __future__ import annotations

import base64
import sys
from collections.abc import Iterator
from html import escape
from pathlib import Path
from string import Template

import pandas as pd
from matplotlib.figure import Figure

from repro import fmt
from repro.dataset.schema import NS_PER_MS
from repro.report import style
from repro.server import figures, launches, numbers, outside, tables
from repro.server.launches import Launch
from repro.server.longest import Long
from repro.server.numbers import Numbers
from repro.server.remedies import advice, answer
from repro.stats.bootstrap import BLOCK_STEPS

_PAGE = Template((Path(__file__).parent / "page.html").read_text(encoding="utf-8"))


def write(
    source: Path,
    out: Path,
    *,
    which: int | None = None,
    last: int | None = None,
    bench: Path | None = None,
) -> Path:
    """Write the page about a recorded folder, or about a server's log, to `out`.

    The options are those of `repro report`: `--launch` (`which`), `--last` and `--bench`.

    Raises
    ------
    ValueError
        If a file or a number is none of those, or the page cannot be written.
    """
    if source.is_file():
        title, sections = "a server's log", [*_log(source)]
    else:
        found, warnings = launches.read(source)
        for warning in warnings:
            print(f"repro: warning: {warning}", file=sys.stderr)
        chosen = choose(found, which, last)
        title = "1 launch of vLLM" if len(chosen) == 1 else f"{len(chosen)} launches of vLLM"
        sections = [*map(paragraph, warnings)]
        client = outside.bench(bench) if bench else ([], [])
        for launch in chosen:
            sections += section(launch, client)
    page = _PAGE.substitute(
        style=style.PAGE_STYLE,
        folder=escape(source.name),
        launches=title,
        sections="\n".join(sections),
    )
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(page, encoding="utf-8")
    except OSError as error:
        raise ValueError(
            f"{out}: cannot be written ({error.strerror}); name another file with --out"
        ) from error
    return out.resolve()


def choose(found: list[Launch], which: int | None, last: int | None) -> list[Launch]:
    """The launches asked for, of those found, the newest first."""
    for name, number in (("--launch", which), ("--last", last)):
        if number is not None and not number >= 1:
            raise ValueError(f"{name} {number}: give 1 for the newest, 2 for the one before")
    if which is not None:
        if which > len(found):
            raise ValueError(f"--launch {which}: there are {len(found)}, 1 is the newest")
        return [found[which - 1]]
    return found[:last]


def _log(path: Path) -> Iterator[str]:
    yield "<h2>Collections in the log</h2>"
    rows, limits = outside.gc_log(path)
    yield table(rows)
    yield from map(paragraph, limits)


def section(launch: Launch, client: tuple[list[str], list[Long]]) -> Iterator[str]:
    """The HTML of one launch, piece by piece."""
    yield f"<h2>Launch of {launch.began:%Y-%m-%d %H:%M:%S} UTC</h2>"
    found = numbers.measure(launch)
    yield '<div class="advice">'
    yield from map(paragraph, answer(launch, found))
    yield "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in advice(launch, found)) + "</ul>"
    yield "</div>"
    yield from _client_part(found, client)
    yield "<h3>What was recorded</h3>"
    yield table(tables.processes(launch, found))
    if launch.hosts > 1:
        yield paragraph(
            f"{launch.hosts} hosts, put on one time line by their wall clocks. Within a host the "
            f"headers differ by {fmt.ms(launch.clock_ns / NS_PER_MS)}; between hosts the recording "
            "cannot tell: a pause of one host beside a step of another is as exact as their NTP."
        )
    yield "<h3>Pauses</h3>"
    yield figure(
        figures.pauses_over_time(launch, found),
        "Each dot is the longest collection of a process in 1/600 of the time. A full one "
        "(generation 2) visits every tracked object that is not frozen.",
    )
    if found.served:
        yield from _served(launch, found)


def _client_part(found: Numbers, client: tuple[list[str], list[Long]]) -> Iterator[str]:
    said, silences = client
    if not said:
        return
    yield "<h3>At the client</h3>"
    yield from map(paragraph, [*said, outside.BENCH_LIMITS])
    first, last = found.window
    inside = [s for s in silences if first <= s.start_ns < last]
    if not inside:
        yield paragraph(
            "Its times do not fall into this recording (another host, or another boot): silences "
            "cannot be laid over pauses."
        )
        return
    yield table(tables.longest(inside, found, "silence (ms)"))


def _served(launch: Launch, found: Numbers) -> Iterator[str]:
    yield table(tables.collections(launch, found))
    yield paragraph(
        "From the first step to the last. A front end's collection delays the tokens of its own "
        "requests only: the total above weighs each by its share of the tokens."
    )
    yield "<h3>Steps that pauses lengthen</h3>"
    yield table(tables.effects(found))
    yield paragraph(
        "A long step overlaps more pauses, whatever made it long: 'by chance' has the same pauses "
        "at random times. 'Longer': the share of the overlap by which steps exceed a typical one. "
        "A cause is booked where it shows clearly more than chance. Front ends stop tokens, not "
        "steps, and are not in this table."
    )
    yield "<h3>The tail</h3>"
    yield figure(
        figures.step_tail(found),
        "The interval from one step to the next, idle time left out. Faint: fewer steps than a "
        "quantile needs.",
    )
    yield table(tables.tail_table(found))
    yield paragraph(
        "Without the collector: each step less what booked pauses overlap, at most down to a "
        "typical step. Every step counts; for the intervals, steps are resampled in blocks of "
        f"about {max(BLOCK_STEPS, found.tails['all'].block_steps):,}."
    )
    yield "<h3>The longest</h3>"
    yield table(tables.longest(found.steps_longest, found, "step (ms)"))
    if stacks := [m.stacks.name for m in launch.members if m.stacks.exists()]:
        yield paragraph(f"Python stacks of steps above the bound: {fmt.listed(stacks)}.")
    if found.stops:
        yield table(tables.longest(found.stops, found, "stop of a front end (ms)"))
    if found.stalls:
        yield table(tables.longest(found.stalls, found, "pause (ms)"))
    predicted, thinned = numbers.more_ranks(found) if found.booked_ns else ({}, False)
    if predicted:
        yield "<h3>More ranks</h3>"
        yield figure(
            figures.more_ranks(predicted),
            "Predicted from these steps for ranks that wait for each other in every step: each "
            "rank's worker pauses by itself, the rest of a step is common to all. Faint: too few "
            "steps or pauses." + " Only the newest steps were used." * thinned,
        )


def table(content: pd.DataFrame) -> str:
    """A data frame as an HTML table; a remark, if it is empty."""
    if content.empty:
        return paragraph("None.")
    # Focusable: where it is wider than the screen, the keyboard can scroll it.
    made = content.to_html(index=False, border=0, justify="left")
    return f'<div class="wide" tabindex="0">{made}</div>'


def paragraph(text: str) -> str:
    """Text as a paragraph."""
    return f"<p>{escape(text)}</p>"


def figure(drawn: Figure, caption: str) -> str:
    """A figure inside the page itself, with its caption."""
    data = base64.b64encode(style.encoded(drawn)).decode()
    said = escape(caption)
    image = f'<img alt="{said}" src="data:image/png;base64,{data}">'
    return f"<figure>{image}<figcaption>{said}</figcaption></figure>"
