"""What a committee checks: commands, checksums, hashes, licences and the container file."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from benchmarks.artifact import (
    DECIDED_BY,
    PAGE,
    campaign_commands,
    commands,
    experiment,
    gpu_hours,
    machine,
    with_generated,
)
from repro import __version__
from repro.cli import parser
from repro.dataset.datapackage import SUMS, checksums
from repro.dataset.stored import documents, is_campaign
from repro.experiment.grid import PARAMETERS, grid

ROOT = Path(__file__).parent.parent
DATA = ROOT / "data"
CAMPAIGNS = sorted(filter(is_campaign, DATA.iterdir()))


def test_the_page_is_current() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page == with_generated(page, ROOT), "run python -m benchmarks.artifact"


def test_claims_rest_on_campaigns_that_exist() -> None:
    named = {name for chosen, _ in DECIDED_BY.values() for name in chosen.split()}
    assert named <= {campaign.name for campaign in CAMPAIGNS}


def test_links_of_the_page_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", PAGE.read_text(encoding="utf-8")):
        assert (ROOT / target).exists(), target


@pytest.mark.parametrize("campaign", CAMPAIGNS, ids=lambda path: path.name)
def test_the_commands_measure_the_recorded_runs(campaign: Path) -> None:
    runs = documents(campaign)
    asked = []
    for line in campaign_commands(runs):
        words = shlex.split(line, comments=True)
        parsed = vars(parser().parse_args(words[1:]))
        given = {name: parsed[name] for name in PARAMETERS if parsed[name] is not None}
        asked += [(each, line.rpartition(" ")[2]) for each in grid(**given)]
    assert len(asked) == len(set(asked))
    assert set(asked) == {(experiment(run), run["versions"]["vllm"]) for run in runs}


def test_one_command_for_what_one_command_measured() -> None:
    asked = grid(policies="no-freeze,freeze/stock/disable", concurrency="8,16", replicates=3)
    (line,) = commands(asked)
    assert line == (
        "repro run DIR --policies freeze/stock/disable,no-freeze --concurrency 8,16 --replicates 3"
    )


def test_checksums_of_the_data_are_current() -> None:
    assert (DATA / SUMS).read_text() == checksums(DATA), "run python -m repro.dataset.datapackage"


@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_every_pinned_package_has_a_hash(device: str) -> None:
    pinned = re.findall(r"^[\w.-]+==\S+", (ROOT / f"requirements/{device}.txt").read_text(), re.M)
    text = (ROOT / f"requirements/{device}.hashes.txt").read_text()
    hashed = re.findall(r"^([\w.-]+==\S+)((?: \\\n    --hash=sha256:[0-9a-f]{64})+)$", text, re.M)
    assert pinned
    assert sorted(name for name, _ in hashed) == sorted(pinned)


def test_versions_and_licences_agree() -> None:
    zenodo = json.loads((ROOT / ".zenodo.json").read_text())
    citation = (ROOT / "CITATION.cff").read_text()
    assert f"version: {__version__}\n" in citation
    assert zenodo["version"] == __version__
    assert f'date-released: "{zenodo["publication_date"]}"' in citation
    assert zenodo["license"] in citation
    assert "SPDX: CC-BY-4.0" in (DATA / "LICENSE").read_text()


def test_the_container_installs_and_reproduces_without_root() -> None:
    text = (ROOT / "Containerfile").read_text().replace("\\\n", " ")
    steps = [line.split(None, 1) for line in text.splitlines() if line and line[0] != "#"]
    names = [name for name, _ in steps]
    assert names[0] == "FROM"
    assert re.fullmatch(r"\S+/python:3\.\d+\S*", steps[0][1]), "a tag with its version"
    assert json.loads(dict(steps)["CMD"]) == ["make", "reproduce"]
    assert names.index("USER") < names.index("COPY") < len(names) - 2
    assert dict(steps)["RUN"] == "make env"


def test_gpus_beside_cpu_ranks_are_not_theirs() -> None:
    run = next(run for run in documents(DATA / "cpu-wide-ep") if run["machine"]["gpu_name"])
    assert machine(run).endswith(" cores")
    assert gpu_hours(run) == 0
    ranks = documents(DATA / "h200-wide-ep")[0]
    assert "× NVIDIA H200" in machine(ranks)
    assert gpu_hours(ranks) > 0
