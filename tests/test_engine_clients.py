"""End to end, with real vLLM engines: every way to drive them but the usual one."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest
from engines import measure

from repro import dataset
from repro.dataset.run import read_document

pytestmark = pytest.mark.engine


def test_through_http_the_same_processes_on_the_same_clock(tmp_path: Path) -> None:
    """A real API server and `vllm bench serve`: the front end is now a process of vLLM's own."""
    answers = (128, 192)  # so long that nearly all in flight at the window's end are when counted
    asked = {"output_tokens": list(answers), "output_yield_ms": 50.0, "concurrency": 16}
    folder = measure(tmp_path, policy="freeze", client="serve", **asked)
    found = read_document(folder)
    assert found["status"] == "ok", found
    assert found["policy"]["output_handler"]["output_yield_ms"] == 50
    measured = dataset.load(tmp_path)
    assert {"frontend", "engine", "worker"} == set(measured.pauses["role"])
    assert {"frontend", "engine", "worker"} == set(measured.census["role"])
    worker = measured.census[measured.census["role"] == "worker"].set_index("point")
    assert worker.loc["thawed", "frozen"] == 0 < worker.loc["window-end", "frozen"]
    assert worker.loc[["shutdown", "thawed"], "garbage"].notna().all()
    ended = measured.census[measured.census["point"].isin(["ended", "ended-thawed"])]
    assert ended.groupby("role")["garbage"].count().to_dict() == {"engine": 2, "frontend": 2}
    under_load = worker.loc["window-end", ["tracked", "frozen"]].sum()
    assert under_load - worker.loc["shutdown", "tracked"] > 16 * 8, "no request is left by then"
    (run,) = measured.runs.itertuples()
    in_window = dataset.in_window(measured, measured.steps)
    decoded = in_window["tokens"].sum() - 16 * found["summary"]["requests_finished"]
    on_the_way = 16 * (16 + answers[1])  # decoded and not yet delivered, where the server is slow
    assert run.output_tokens == pytest.approx(decoded, abs=on_the_way)
    requests = dataset.in_window(measured, measured.requests)
    assert requests["output_tokens"].between(1, answers[1]).all()


@pytest.mark.slow
def test_ranks_of_a_tensor_parallel_group_are_recorded_each(tmp_path: Path) -> None:
    """Data-parallel ranks are those of `test_cpu_collectives`."""
    asked = {"client": "async_engine", "tensor_parallel_size": 2, "concurrency": 16}
    folder = measure(tmp_path, policy="freeze", duration_s=4.0, **asked)
    document = read_document(folder)
    assert document["status"] == "ok", (document.get("reason"), document.get("log_tail"))
    campaign = dataset.load(tmp_path)
    assert sorted(worker["rank"] for worker in document["policy"]["evidence"]) == [0, 1]
    census = campaign.census[campaign.census["point"] == "window-end"]
    roles = {"worker": 2, "engine": 1, "frontend": 1}
    assert census["role"].value_counts().to_dict() == roles
    steps = dataset.in_window(campaign, campaign.steps)
    assert steps["rank"].nunique() == 2
    assert steps.groupby("rank")["tokens"].median().ge(0.9 * 16).all()
    itl = dataset.in_window(campaign, campaign.itl)
    assert itl["itl_ns"].median() == pytest.approx(
        steps[steps["rank"] == 0]["start_ns"].diff().median(), rel=0.5
    )
    assert not psutil.Process().children(recursive=True), "a process outlived its engine"
