"""All policies side by side: measures one sitting and prints its tables. For a quiet machine.

    python -m benchmarks.policies engine runs/policies --budget-s 3600
    python -m benchmarks.policies handler runs/handler --model dense-0.6b --replicates 3

Sittings: `engine` and `http` (every policy), `handler` (the API server's output handler, stock and
`disable`), `low` (few requests in flight), `memory` (20 minutes per policy). Arms are interleaved;
a later call goes on where a budget ended. Every other option is one of `repro run`. Of a packed
campaign, as in `data/`, it prints the tables alone.

Only `memory` is long enough for `periodic-collect`: its collections come every 600 s. In a shorter
window it is a policy without collections. `periodic-freeze` freezes once in 90 s.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from repro import dataset, fmt, policy
from repro.cli import add_run_options
from repro.dataset.stored import is_packed
from repro.experiment.campaign import CampaignError, run_campaign
from repro.experiment.config import Experiment
from repro.experiment.grid import PARAMETERS, grid
from repro.report.figures.output_bound import COSTS, rank_correlations
from repro.report.tables.policies import over_baseline, side_by_side

ALONE = ("stock", "no-freeze", "freeze", policy.ALTERNATE)
OTHERS = tuple(name for name in policy.SERVING if name not in ALONE)
IN_ENGINE = ("no-freeze", "freeze", *(f"{name}/{name}" for name in OTHERS))
"""Worker and engine core. The client is the front end here, and always frozen."""

EVERYWHERE = ("stock", *(f"{name}/{name}/{name}" for name in ("no-freeze", "freeze", *OTHERS)))
NO_COLLECTION = "disable/disable/disable"

HANDLERS: tuple[dict[str, Any], ...] = (
    {},
    {"output_handler": "fair"},
    *({"output_yield_ms": bound} for bound in (5, 20, 50)),
    *({"output_yield_ms": bound, "output_chunk": 4096} for bound in (10, 20, 50)),
    {"output_chunk": 4096},  # whole steps
)

FEW_IN_FLIGHT: dict[str, Any] = {"concurrency": (1, 8, 64), "output_tokens": (128, 384)}

SITTINGS: dict[str, list[dict[str, Any]]] = {
    "engine": [{"policies": IN_ENGINE, "duration_s": 90}],
    "http": [{"policies": EVERYWHERE, "client": "serve", "duration_s": 120}],
    "handler": [
        {"policies": ("stock", NO_COLLECTION), "client": "serve", "duration_s": 120, **handler}
        for handler in HANDLERS
    ],
    "low": [
        FEW_IN_FLIGHT | {"policies": (policy.ALTERNATE,), "switch_s": 0.25, "duration_s": 240},
        FEW_IN_FLIGHT | {"policies": ("no-freeze", "rare-full"), "duration_s": 60},
    ],
    "memory": [{"policies": IN_ENGINE, "duration_s": 1200, "replicates": 1}],
}


def experiments(sitting: str, **asked: Any) -> list[Experiment]:
    """The runs of a sitting; what is asked for besides goes before what the sitting sets."""
    return [run for of_grid in SITTINGS[sitting] for run in grid(**of_grid | asked)]


def main() -> int:
    """Measure what is left of the sitting within the budget, then print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sitting", choices=SITTINGS)
    add_run_options(parser)
    parser.set_defaults(**dict.fromkeys(PARAMETERS))
    given = vars(parser.parse_args())
    asked = {name: given[name] for name in PARAMETERS if given[name] is not None}
    root: Path = given["root"]
    try:
        run_campaign(experiments(given["sitting"], **asked), root, budget_s=given["budget_s"])
    except CampaignError as error:
        print(error)
    if not dataset.is_campaign(root):
        return 1
    campaign = dataset.load(root)
    tables = [fmt.markdown_table(of(campaign)) for of in (side_by_side, over_baseline)]
    if given["sitting"] == "handler":
        ranks = rank_correlations(campaign).round(2).rename(COSTS)
        tables.append(fmt.markdown_table(ranks.rename("rank correlation of P99 ITL").reset_index()))
    if not is_packed(root):
        (root / "policies.md").write_text("\n\n".join(tables) + "\n")
    print(*tables, sep="\n\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
