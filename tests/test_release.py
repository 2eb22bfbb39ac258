"""The patch held against the release: arms of two versions with the same heap."""

from __future__ import annotations

from pathlib import Path

import pytest
from campaigns import story

from repro import dataset
from repro.analysis.release_comparison import release_pairs, release_ratios
from repro.claims import Verdict
from repro.claims.release import patch_is_the_release
from repro.dataset import Campaign

OLD, NEW = "0.22.1", "0.23.0"


def both_sides(root: Path, new_ms: dict[str, float] | None = None) -> Campaign:
    """Each release with its own behaviour, and with the policy that makes it the other."""
    gpu = {"machine__gpu_name": "H100"}
    for version, policies in ((OLD, ("no-freeze", "freeze")), (NEW, ("no-freeze", "freeze"))):
        part = root / version
        full_ms = new_ms if version == NEW else None
        story(part, policies=policies, full_ms=full_ms, versions__vllm=version, **gpu)
        for run in part.iterdir():
            document = (run / "run.json").read_text()
            (run / "run.json").write_text(document.replace('"run_id": "', f'"run_id": "{version}-'))
            run.rename(root / f"{version}-{run.name}")
        part.rmdir()
    return dataset.load(root)


def test_twins_have_one_heap_and_two_releases(tmp_path: Path) -> None:
    found = {(pair.baseline, pair.treated) for pair in release_pairs(both_sides(tmp_path))}
    assert found == {
        (f"{OLD} freeze", f"{NEW} freeze"),
        (f"{OLD} no-freeze", f"{NEW} no-freeze"),
    }


def test_alike_collections_are_found_alike(tmp_path: Path) -> None:
    campaign = both_sides(tmp_path)
    for pair in release_pairs(campaign):
        assert release_ratios(campaign, pair)["full collection"].value == pytest.approx(1, abs=0.05)
        assert release_ratios(campaign, pair)["steps between"].value == pytest.approx(1, abs=0.01)
    assert [f.verdict for f in patch_is_the_release(campaign)] == [Verdict.REPRODUCED] * 2


def test_a_patch_that_misses_the_release_is_seen(tmp_path: Path) -> None:
    campaign = both_sides(tmp_path, new_ms={"freeze": 100.0})
    verdicts = [outcome.verdict for outcome in patch_is_the_release(campaign)]
    assert sorted(verdicts) == [Verdict.CONTRADICTED, Verdict.REPRODUCED]


def test_one_release_alone_has_no_twins(tmp_path: Path) -> None:
    assert release_pairs(dataset.load(story(tmp_path))) == []
