"""The Snakemake workflow: its grid, its order, what it does with a failure, and one real run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from repro import dataset
from repro.dataset.run import read_document
from repro.experiment.campaign import interleaved
from repro.experiment.grid import grid

pytest.importorskip("snakemake", reason="Snakemake is not installed: make env installs it")

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
PROFILES = ROOT / "repro" / "experiment" / "workflow" / "profiles"

STUB = f"""
import sys
sys.path.append({str(ROOT / "tests")!r})
if sys.argv[1:2] == ["run"] or "run" in sys.orig_argv:
    import json, os, shutil, time
    from pathlib import Path
    import campaigns
    from repro.experiment import campaign, provenance
    from repro.experiment.supervise import RunFailed
    provenance.vllm_version = lambda: "0.32.0"
    place = Path({{place!r}})
    def run_child(experiment, folder, report):
        with (place / "order").open("a") as order:
            order.write(f"{{{{experiment.policy}}}} {{{{experiment.replicate}}}}\\n")
        if (place / "broken").exists() and experiment.policy == "freeze":
            raise RunFailed("worker died")
    def finish(folder, experiment, started_at, others):
        made = campaigns.story(folder / "made", policies=(experiment.policy,), replicates=1)
        (run,) = made.iterdir()
        document = json.loads((run / "run.json").read_text()) | {{{{"run_id": folder.name}}}}
        document["experiment"] |= {{{{"replicate": experiment.replicate}}}}
        for path in run.glob("*.parquet"):
            path.replace(folder / path.name)
        shutil.rmtree(folder / "made")
        (folder / "run.json").write_text(json.dumps(document))
    campaign.run_child, campaign.collect.finish = run_child, finish
"""


def snakemake(
    *arguments: str, stub: Path | None = None, **parameters: object
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "snakemake", "--profile", str(PROFILES / "local")]
    command += [*arguments, "--config", *(f"{name}={value}" for name, value in parameters.items())]
    variables = dict(os.environ)
    if stub is not None:
        (stub / "sitecustomize.py").write_text(STUB.format(place=str(stub)))
        paths = [str(stub), str(ROOT), os.environ.get("PYTHONPATH", "")]
        variables["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=variables)


def test_the_grid_is_every_combination(tmp_path: Path) -> None:
    parameters = {"models": "[tiny,moe]", "concurrency": "[256,2048]", "replicates": 3}
    planned = snakemake("-n", campaign=tmp_path / "c", **parameters)
    assert planned.returncode == 0, planned.stderr
    named = {line.split()[0] for line in planned.stdout.splitlines() if "measure_" in line[:8]}
    assert len(named) == 2 * 2 * 2 * 3
    assert not list(tmp_path.iterdir()), "nothing is begun"


@pytest.mark.parametrize(
    ("parameter", "said"),
    [
        ({"polcies": "freeze"}, "unknown parameter 'polcies': known are policies,"),
        ({"policies": "thaw"}, "policies 'thaw': choose one of"),
        ({"models": "nope"}, "model 'nope' has no config.json"),
        ({"concurrency": 0}, "concurrency 0: allowed is"),
    ],
)
def test_a_wrong_parameter_names_the_choices(
    tmp_path: Path, parameter: dict[str, object], said: str
) -> None:
    ended = snakemake("-n", campaign=tmp_path / "c", **parameter)
    assert ended.returncode == 1
    assert said in ended.stderr + ended.stdout


def test_a_failed_run_stops_no_other_and_the_next_call_goes_on(tmp_path: Path) -> None:
    """The engine is replaced; Snakemake, the campaigns, papermill and the page are not."""
    (tmp_path / "broken").touch()
    where = {"campaign": tmp_path / "c", "notebooks": "[claims]"}
    first = snakemake(stub=tmp_path, **where)
    assert first.returncode == 1
    parts = {
        path.parent.name: read_document(path.parent)
        for path in tmp_path.glob("c-parts/*/*/run.json")
    }
    assert sorted(part["status"] for part in parts.values()) == ["failed"] * 2 + ["ok"] * 2
    assert "worker died" in {part.get("reason") for part in parts.values()}
    order = [line.split() for line in (tmp_path / "order").read_text().splitlines()]
    expected = interleaved(grid(replicates=2))
    assert order == [[e.policy, str(e.replicate)] for e in expected]

    (tmp_path / "broken").unlink()
    second = snakemake(stub=tmp_path, **where)
    assert second.returncode == 0, second.stderr[-3000:]
    again = [line.split() for line in (tmp_path / "order").read_text().splitlines()][4:]
    assert sorted(again) == [["freeze", "0"], ["freeze", "1"]]
    campaign = dataset.load(tmp_path / "c")
    assert sorted(zip(campaign.runs["policy"], campaign.runs["replicate"], strict=True)) == [
        *[("freeze", 0), ("freeze", 1), ("no-freeze", 0), ("no-freeze", 1)]
    ]
    assert "<h1" in (tmp_path / "c-pages" / "index.html").read_text()

    third = snakemake(stub=tmp_path, **where)
    assert "Nothing to be done" in third.stderr + third.stdout


def test_profiles_name_the_workflow_and_one_engine_at_a_time() -> None:
    import yaml

    read = {p.parent.name: yaml.safe_load(p.read_text()) for p in PROFILES.glob("*/config.yaml")}
    assert set(read) == {"local", "slurm", "kubernetes"}
    assert all((ROOT / profile["snakefile"]).is_file() for profile in read.values())
    assert read["local"]["resources"] == ["engines=1"]
    assert all(profile["rerun-triggers"].startswith("mtime") for profile in read.values())


@pytest.mark.engine
def test_one_real_run_through_the_local_executor(tmp_path: Path) -> None:
    ended = snakemake(
        campaign=tmp_path / "c",
        policies="freeze",
        replicates=1,
        concurrency=64,
        duration_s=8,
        enforce_eager=True,
        notebooks="[itl_tails]",
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    (run,) = dataset.load(tmp_path / "c").runs.itertuples()
    assert (run.policy, run.concurrency) == ("freeze", 64)
    executed = json.loads((tmp_path / "c-pages" / "itl_tails.ipynb").read_text())
    assert any(cell.get("outputs") for cell in executed["cells"])
    assert '<section id="itl_tails">' in (tmp_path / "c-pages" / "index.html").read_text()
