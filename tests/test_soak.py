"""A long run: what counts as drift, and a short one with a real engine."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from benchmarks import soak
from benchmarks.trend import HOUR_NS, trend


def times(number: int = 2000) -> np.ndarray:
    return np.linspace(0, HOUR_NS, number)


def test_a_slope_is_found_with_its_interval() -> None:
    rng = np.random.default_rng(0)
    found = trend(times(), 100 + 7 * times() / HOUR_NS + rng.normal(0, 1, 2000))
    assert found.low < 7 < found.high
    assert found.high - found.low < 1
    assert found.level == pytest.approx(103.5, abs=0.2)


def test_the_interval_holds_for_values_that_remember() -> None:
    """A slope of 0 lies inside in about 95 of 100 series whose neighbours resemble each other."""
    inside = 0
    for seed in range(100):
        noise = np.random.default_rng(seed).normal(0, 1, 2000)
        values = np.convolve(noise, np.ones(20), mode="same")
        found = trend(times(), values)
        inside += found.low < 0 < found.high
    assert inside >= 88


def test_medians_do_not_see_single_stalls() -> None:
    values = np.full(2000, 10.0)
    values[-50::10] = 500.0
    assert abs(trend(times(), values, median=True).per_hour) < 1e-9
    assert trend(times(), values).per_hour > 1


def test_too_little_is_said() -> None:
    with pytest.raises(ValueError, match="2 of 20 blocks hold a value: record for longer"):
        trend([0, 1], [1, 1])


@pytest.mark.parametrize(
    ("relative", "steady"),
    [((0.0, -0.01, 0.01), True), ((0.2, 0.1, 0.3), False), ((-0.2, -0.3, -0.1), False)],
)
def test_a_drift_beyond_doubt_is_not_steady(
    relative: tuple[float, float, float], steady: bool
) -> None:
    assert soak.drifts_little(relative) is steady


def test_a_folder_that_exists_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert soak.main([str(tmp_path)]) == 1
    assert "name a new folder" in capsys.readouterr().err


@pytest.mark.engine
@pytest.mark.slow
def test_a_short_soak_with_a_real_engine(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "soak"
    arguments = ["--duration-s", "30", "--concurrency", "64", "--enforce-eager"]
    soak.main([str(root), *arguments])  # too short to judge a slope an hour by
    said = capsys.readouterr().out
    found = json.loads((root / "soak.json").read_text())
    samples = pd.read_parquet(root / "soak.parquet")
    assert set(found["rss_mib"]) == {"frontend", "engine", "worker"} == set(samples["role"])
    halves = np.where(samples["t_ns"] < samples["t_ns"].median(), "first", "second")
    rss = samples.groupby(["role", halves])["rss"].median().unstack()
    assert rss.notna().all(axis=None), "every process is sampled early and late"
    growth = rss["second"] - rss["first"]
    assert growth["worker"] < 1 << 30, "it touches its KV cache of 1 GiB for the first time"
    others = growth.drop("worker") / rss["first"]
    assert others.max() < 0.1, "none of them grows by a tenth in half a minute"
    span_s = (samples["t_ns"].max() - samples["t_ns"].min()) / 1e9
    assert 15 < span_s <= 30, "from most of the window, and from nothing but it"
    assert all(200 < memory["level"] < 20_000 for memory in found["rss_mib"].values())
    assert found["hours"] == pytest.approx(30 / 3600, rel=0.05)
    assert found["recorder"]["events_mib_per_hour"] < 100
    assert "MiB/h" in said
    assert "median step" in said


@pytest.mark.engine
@pytest.mark.slow
def test_a_mistreated_server_goes_on_and_its_garbage_is_counted(tmp_path: Path) -> None:
    root = tmp_path / "soak"
    arguments = ["--client", "serve", "--policies", "freeze/freeze/freeze", "--duration-s", "20"]
    soak.main([str(root), *arguments, "--concurrency", "16", "--enforce-eager"])
    found = json.loads((root / "soak.json").read_text())
    assert set(found["rss_mib"]) == {"frontend", "engine", "worker"}
    assert {"cut after the first chunk"} <= set(found["abuse"]["stream given up"])
    assert "400" in found["abuse"]["not JSON"]
    assert "400" in found["abuse"]["refused value"]
    assert {"frontend ended", "frontend ended-thawed", "worker thawed"} <= set(found["garbage"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--policies", "stock,freeze"], "2 runs asked for: a soak is one"),
        (["--budget-s", "60"], "set duration_s instead"),
        (["--policies", "frozen"], "frozen"),
    ],
)
def test_what_is_no_soak_is_refused_in_one_line(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert soak.main([str(tmp_path / "soak"), *arguments]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
