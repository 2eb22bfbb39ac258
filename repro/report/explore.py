"""The cell of a notebook to play with: what a setting does, predicted from recorded runs.

In JupyterLab dropdowns choose campaign and arm, and sliders ranks, requests in flight and heap.
Without a front end, as under papermill, or without ipywidgets, a table takes their place.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pandas as pd
from IPython.display import Markdown, display

from repro import fmt
from repro.analysis.prediction_basis import bases
from repro.analysis.recorded_setting import settings
from repro.dataset import Campaign
from repro.report.tables.wide_ep import of_one_width
from repro.theory.advice import QUANTILES, Setting, advise

FRONT_END = "JPY_SESSION_NAME"
"""Set in the kernel by Jupyter's server, and not by papermill."""

LOADS = (128, 256, 512, 768, 1024, 2048)
WIDTHS = (1, 8, 32)
MOST = {"ranks": 64, "concurrency": 4096, "heap_objects": 6_000_000}
STEP = {"ranks": 1, "concurrency": 16, "heap_objects": 50_000}
TITLES = {"ranks": "ranks", "concurrency": "in flight", "heap_objects": "heap objects"}


def explore(found: Sequence[Campaign]) -> Any:
    """Widgets over `advise` and `predict` for the campaigns, or a table for the first of them."""
    if FRONT_END in os.environ and importlib.util.find_spec("ipywidgets"):
        return _widgets([campaign for campaign in found if settings(campaign)])
    for campaign in found:
        for arm, setting in settings(campaign).items():
            origin = f"Predicted for `{campaign.path.name}`, arm **{arm}**, by CPython's rule:"
            return Markdown(f"{origin}\n\n{fmt.markdown_table(over_loads(setting))}")
    return Markdown("No run here counted a worker's heap under load: nothing can be predicted.")


def over_loads(setting: Setting) -> pd.DataFrame:
    """Full collections of a worker by requests in flight, and the steps they lengthen by ranks."""
    rows = []
    for load in LOADS:
        told = [advise(replace(setting, concurrency=load, ranks=ranks)) for ranks in WIDTHS]
        one = told[0]
        rows.append(
            {
                "in flight": f"{load:,}",
                "a full collection every (steps)": (
                    fmt.count(one.period_steps) if one.fires else "never"
                ),
                "takes (ms)": fmt.figures(one.pause_ms) if one.fires else "–",
                **{
                    f"steps lengthened, {fmt.plural(ranks, 'rank')}": fmt.percent(
                        each.stalled_share
                    )
                    for ranks, each in zip(WIDTHS, told, strict=True)
                },
                f"reached with {WIDTHS[-1]} ranks": fmt.listed(
                    fmt.quantile(q) for q in QUANTILES if told[-1].reaches(q)
                ),
            }
        )
    return pd.DataFrame(rows)


def _widgets(found: Sequence[Campaign]) -> Any:
    """Dropdowns and sliders, and what the values that they have amount to."""
    import ipywidgets

    by_name = {campaign.path.name: campaign for campaign in found}
    known = {name: settings(campaign) for name, campaign in by_name.items()}
    campaign = ipywidgets.Dropdown(options=list(by_name), description="campaign")
    arm = ipywidgets.Dropdown(description="arm")
    sliders = {
        name: ipywidgets.IntSlider(
            min=STEP[name],
            max=most,
            step=STEP[name],
            description=TITLES[name],
            continuous_update=False,
        )
        for name, most in MOST.items()
    }

    def choose_campaign(_: object) -> None:
        arm.options = list(known[campaign.value])
        arm.index = 0
        choose_arm(None)  # the two campaigns may have arms of one name

    def choose_arm(_: object) -> None:
        if arm.value not in known[campaign.value]:
            return  # between two lists of arms
        for name, slider in sliders.items():
            slider.value = getattr(known[campaign.value][arm.value], name)

    def show(chosen: str, label: str, **asked: int) -> None:
        if label in known[chosen]:
            for part in amounts_to(by_name[chosen], known[chosen][label], asked):
                display(part)

    choose_campaign(None)
    campaign.observe(choose_campaign, "value")
    arm.observe(choose_arm, "value")
    output = ipywidgets.interactive_output(show, {"chosen": campaign, "label": arm, **sliders})
    return ipywidgets.VBox([campaign, arm, *sliders.values(), output])


def amounts_to(campaign: Campaign, setting: Setting, asked: dict[str, int]) -> list[Markdown]:
    """The advice for a setting changed as asked, and the ITL predicted for so many ranks."""
    lines = advise(replace(setting, **asked)).lines  # type: ignore[arg-type]
    parts = [Markdown("\n".join(f"- {line}" for line in lines))]
    basis = next(iter(bases(campaign)), None)
    if basis is not None:
        told = fmt.markdown_table(of_one_width(basis, asked["ranks"]))
        measured = f"{basis.concurrency:,} in flight and the heap recorded"
        parts.append(Markdown(f"ITL predicted from one rank, with {measured}:\n\n{told}"))
    return parts
