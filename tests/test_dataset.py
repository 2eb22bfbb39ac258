"""A campaign is read back as it was written, and whatever is wrong with it is said in one line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from builders import END, MS, SECOND, START, document, run, steady, table
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from repro.dataset import DatasetError, in_window, is_campaign, load, subset
from repro.dataset.run import FAILED_KEYS, OK_KEYS, read_document
from repro.dataset.schema import REQUIRED, SCHEMA_VERSION, TABLES

slow_fixture = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture
def campaign(tmp_path: Path) -> Path:
    return tmp_path / "campaign"


def one_line(error: pytest.ExceptionInfo[DatasetError], *words: str) -> None:
    message = str(error.value)
    assert "\n" not in message
    for word in words:
        assert word in message


# --- what is read ---------------------------------------------------------------------------


def test_tables_come_back_as_written(campaign: Path) -> None:
    run(campaign, "a", steady())
    run(campaign, "b", {**steady(20 * MS), "pauses": {"start_ns": [START], "duration_ns": 5}})
    loaded = load(campaign)
    assert list(loaded.runs["run"]) == ["a", "b"]
    for name, schema in TABLES.items():
        frame = getattr(loaded, name)
        assert list(frame.columns) == ["run", *schema.names]
        assert isinstance(frame["run"].dtype, pd.CategoricalDtype)
    written = steady(20 * MS)["itl"]
    of_b = loaded.itl[loaded.itl["run"] == "b"]
    np.testing.assert_array_equal(of_b["t_ns"], written["t_ns"])
    assert (of_b["itl_ns"] == 20 * MS).all()
    assert loaded.itl["t_ns"].dtype == "int64"
    assert loaded.pauses["run"].tolist() == ["b"]
    assert loaded.captures.empty  # its file is in neither run


def test_runs_table(campaign: Path) -> None:
    run(campaign, "cpu")
    run(campaign, "gpu", machine__gpu_name="H100", machine__gpu_count=1)
    runs = load(campaign).runs.set_index("run")
    assert runs.loc["cpu", "gpu_name"] is None
    assert runs["machine"].to_dict() == {"cpu": "Abacus 2", "gpu": "H100"}
    assert runs.loc["cpu", "window_start_ns"] == START
    assert runs.loc["cpu", "tokens_per_s"] == 100.0


def test_requests_unlike_those_of_most_runs_are_told_apart(campaign: Path) -> None:
    """As a run of before, which has no such parameters, is like one with their defaults."""
    run(campaign, "before")
    run(campaign, "usual", experiment__concurrency=512, experiment__structured_output=False)
    run(campaign, "structured", experiment__structured_output=True)
    run(campaign, "both", experiment__logprobs=5, experiment__prompt_tokens=512)
    runs = load(campaign).runs.set_index("run")
    assert runs["unusual"].to_dict() == {
        "before": "",
        "usual": "",
        "structured": "structured=True",
        "both": "prompt 512 5 logprobs",
    }
    assert runs["load"].nunique() == runs["arm"].nunique() == 4


def test_failed_and_unfinished_runs_give_no_rows(campaign: Path) -> None:
    run(campaign, "good", steady())
    failed = {"status": "failed", "reason": "worker died", "log_tail": ["Killed"]}
    run(campaign, "bad", steady(), **failed)
    (run(campaign, "cut", steady()) / "run.json").unlink()
    loaded = load(campaign)
    assert list(loaded.runs["run"]) == ["good"]
    assert set(loaded.itl["run"]) == {"good"}
    assert loaded.failed.to_dict("records") == [{"run_id": "bad", "reason": "worker died"}]


def test_a_failed_run_needs_no_measured_keys(campaign: Path) -> None:
    directory = run(campaign)
    made = {key: value for key, value in document("a").items() if key in REQUIRED}
    made |= {"status": "failed", "reason": "no memory", "log_tail": [], "experiment": {}}
    (directory / "run.json").write_text(json.dumps(made))
    loaded = load(campaign)
    assert loaded.runs.empty
    assert loaded.itl.empty
    assert in_window(loaded, loaded.itl).empty


@pytest.mark.parametrize(
    ("changes", "arms"),
    [
        ([{}, {"experiment__policy": "no-freeze"}], ["freeze", "no-freeze"]),
        ([{}, {"versions__vllm": "0.22.1"}], ["0.32.0 freeze", "0.22.1 freeze"]),
        ([{}, {"experiment__executor": "uni"}], ["mp freeze", "uni freeze"]),
        ([{}, {"experiment__concurrency": 1024}], ["256 freeze", "1024 freeze"]),
        ([{}, {"experiment__seed": 1, "experiment__replicate": 1}], ["freeze", "freeze"]),
        (
            [{}, {"experiment__vllm_args": '{"enable_eplb": true}'}],
            ["freeze", '{"enable_eplb": true} freeze'],
        ),
        # torch goes with vLLM here, and need not be said
        (
            [{}, {"versions__vllm": "0.23.0", "versions__torch": "2.11.0"}],
            ["0.32.0 freeze", "0.23.0 freeze"],
        ),
        # an output handler is said whole
        (
            [{}, {"experiment__output_chunk": 4096, "experiment__output_yield_ms": 20.0}],
            ["freeze", "chunk 4096 yield 20 freeze"],
        ),
        # a policy never stands in for the version that went with it
        (
            [{}, {"versions__vllm": "0.22.1", "experiment__policy": "no-freeze"}],
            ["0.32.0 freeze", "0.22.1 no-freeze"],
        ),
    ],
)
def test_arms_say_what_differs(
    campaign: Path, changes: list[dict[str, object]], arms: list[str]
) -> None:
    for number, change in enumerate(changes):
        run(campaign, str(number), **change)
    assert list(load(campaign).runs["arm"]) == arms


@pytest.mark.parametrize(
    "change",
    [
        {"versions__python": "3.12.4"},
        {"versions__torch": "2.13.1"},
        {"versions__vllm": "0.32.1"},
        {"machine__cpu_model": "Abacus 3"},
        {"machine__cpu_count": 4},
        {"machine__gpu_name": "H100"},
        {"machine__gpu_driver": "550"},
    ],
)
def test_incomparable_runs_share_no_arm(campaign: Path, change: dict[str, object]) -> None:
    run(campaign, "a")
    run(campaign, "b", **change)
    runs = load(campaign).runs
    assert runs["comparable"].nunique() == 2
    assert runs["arm"].nunique() == 2


def test_window_keeps_start_and_drops_end(campaign: Path) -> None:
    times = [START - 1, START, END - 1, END]
    run(campaign, "a", {"itl": {"t_ns": times}, "pauses": {"start_ns": times}})
    later = {"start_ns": START + SECOND, "end_ns": END, "ramp_s": 2.0}
    run(campaign, "b", {"itl": {"t_ns": times}}, window=later)
    loaded = load(campaign)
    inside = in_window(loaded, loaded.itl)
    assert inside[["run", "t_ns"]].values.tolist() == [["a", START], ["a", END - 1], ["b", END - 1]]
    assert in_window(loaded, loaded.pauses)["start_ns"].tolist() == [START, END - 1]
    of_b = subset(loaded, run="b")  # the window goes with the run, not with its position
    assert in_window(of_b, of_b.itl)["t_ns"].tolist() == [END - 1]


def test_subset_filters_runs_and_tables(campaign: Path) -> None:
    run(campaign, "a", steady())
    run(campaign, "b", steady(), experiment__policy="no-freeze")
    chosen = subset(load(campaign), policy="no-freeze")
    assert list(chosen.runs["run"]) == ["b"]
    assert set(chosen.steps["run"]) == {"b"}
    assert list(chosen.steps["run"].cat.categories) == ["b"]


def test_subset_names_the_choices(campaign: Path) -> None:
    run(campaign, "a")
    loaded = load(campaign)
    with pytest.raises(DatasetError) as error:
        subset(loaded, policy="frozen")
    one_line(error, "'frozen'", "'freeze'")
    with pytest.raises(DatasetError) as error:
        subset(loaded, polcy="freeze")
    one_line(error, "'polcy'", "policy")


# --- what is refused ------------------------------------------------------------------------


def test_not_a_campaign(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    run(tmp_path / "c", "a")
    for path in ("empty", "file", "missing", "c/a"):
        assert not is_campaign(tmp_path / path)
        with pytest.raises(DatasetError) as error:
            load(tmp_path / path)
        one_line(error, path, "is no campaign")
    assert is_campaign(tmp_path / "c")


def test_two_runs_of_one_name(campaign: Path) -> None:
    shutil.copytree(run(campaign, "a"), campaign / "a (copy)")
    with pytest.raises(DatasetError) as error:
        load(campaign)
    one_line(error, "'a'", "delete the copy")


@slow_fixture
@given(st.data())
def test_truncated_parquet(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    campaign = tmp_path_factory.mktemp("truncated")
    path = run(campaign, "a", steady(SECOND)) / "itl.parquet"
    whole = path.read_bytes()
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    with pytest.raises(DatasetError) as error:
        load(campaign)
    one_line(error, str(path), "no whole parquet file", "measure it again")


@slow_fixture
@given(st.data())
def test_truncated_run_json(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    campaign = tmp_path_factory.mktemp("truncated")
    path = run(campaign, "a") / "run.json"
    whole = path.read_bytes()
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    with pytest.raises(DatasetError) as error:
        load(campaign)
    one_line(error, str(path), "cannot be read")


@pytest.mark.parametrize("content", [b"\xff\xfe", b"[]", b"7", b"null"])
def test_run_json_of_something_else(campaign: Path, content: bytes) -> None:
    path = run(campaign) / "run.json"
    path.write_bytes(content)
    with pytest.raises(DatasetError) as error:
        load(campaign)
    one_line(error, str(path))


def foreign_tables() -> Iterator[tuple[str, pa.Table]]:
    good = table("itl", {"t_ns": [START]})
    yield "another table", pa.table({"passenger": [1], "fare": [7.25]})
    yield "a missing column", good.drop_columns(["count"])
    yield "one more column", good.append_column("note", pa.array(["x"]))
    yield "a wrong type", good.set_column(1, "itl_ns", pa.array([0.5]))
    yield "a renamed column", good.rename_columns(["t_ns", "itl_ms", "count"])


@pytest.mark.parametrize("foreign", [pytest.param(t, id=name) for name, t in foreign_tables()])
def test_foreign_parquet(campaign: Path, foreign: pa.Table) -> None:
    path = run(campaign) / "itl.parquet"
    pq.write_table(foreign, path)
    with pytest.raises(DatasetError) as error:
        load(campaign)
    one_line(error, str(path), "must have t_ns int64, itl_ns int64, count int64")


def test_empty_cells(campaign: Path) -> None:
    run(campaign, "a", {"requests": {"t_ns": [START], "tpot_ns": [None]}})
    assert load(campaign).requests["tpot_ns"].isna().all()
    run(campaign, "b", {"requests": {"t_ns": [START], "ttft_ns": [None]}})
    with pytest.raises(DatasetError) as error:
        load(campaign)
    one_line(error, "requests.parquet", "'ttft_ns'", "empty cells")


def test_newer_schema(campaign: Path) -> None:
    newer = SCHEMA_VERSION + 1
    path = run(campaign, schema_version=newer, status={"a newer": "shape"}) / "run.json"
    with pytest.raises(DatasetError) as error:
        load(campaign)
    one_line(error, str(path), f"schema_version {newer}", "update the package")


def test_older_schema(campaign: Path) -> None:
    older = SCHEMA_VERSION - 1
    path = run(campaign, schema_version=older, status={"an older": "shape"}) / "run.json"
    with pytest.raises(DatasetError) as error:
        load(campaign)
    one_line(error, str(path), f"schema_version {older}", "measure the run again")


def test_policy_that_was_not_verified_is_no_data(campaign: Path) -> None:
    run(campaign, policy__verified=False)
    with pytest.raises(DatasetError) as error:
        load(campaign)
    one_line(error, "not verified")


@pytest.mark.parametrize("window", [(5, 5), (6, 5), (-1, 5), (0, 2**63)])
def test_impossible_window(campaign: Path, window: tuple[int, int]) -> None:
    run(campaign, window__start_ns=window[0], window__end_ns=window[1])
    with pytest.raises(DatasetError) as error:
        load(campaign)
    one_line(error, f"window is {window[0]} to {window[1]}")


@pytest.mark.parametrize("started_at", ["yesterday", "", "2026-06-04T23:39:00"])
def test_start_without_time_or_zone(campaign: Path, started_at: str) -> None:
    run(campaign, started_at=started_at)
    with pytest.raises(DatasetError) as error:
        load(campaign)
    one_line(error, "started_at", "ISO 8601")


KEYS_OF_OK = {**{key: (kind,) for key, kind in REQUIRED.items()}, **OK_KEYS}
KEYS_OF_FAILED = {**{key: (kind,) for key, kind in REQUIRED.items()}, **FAILED_KEYS}
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(), inner, max_size=2),
    max_leaves=4,
)


def failed_document() -> dict[str, Any]:
    return document("a", status="failed", reason="worker died", log_tail=[])


@pytest.mark.parametrize(
    ("made", "key"),
    [
        *((document("a"), key) for key in KEYS_OF_OK),
        *((failed_document(), key) for key in KEYS_OF_FAILED),
        (document("a"), "window"),
        (document("a"), "summary"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_missing_key(tmp_path: Path, made: dict[str, Any], key: str) -> None:
    *parents, leaf = key.split(".")
    spoilt = holder = json.loads(json.dumps(made))
    for parent in parents:
        holder = holder[parent]
    del holder[leaf]
    refuse(tmp_path, spoilt, key)


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(sorted(KEYS_OF_OK)), JSON_VALUES)
def test_ill_typed_key(tmp_path: Path, key: str, value: object) -> None:
    kinds = KEYS_OF_OK[key]
    if type(value) in kinds:
        return
    *parents, leaf = key.split(".")
    spoilt = document("a")
    holder = spoilt
    for parent in parents:
        holder = holder[parent]
    holder[leaf] = value
    refuse(tmp_path, spoilt, key)


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(JSON_VALUES)
def test_any_json_is_read_or_refused(tmp_path: Path, value: object) -> None:
    """Nothing but `DatasetError` ever leaves the reader."""
    (tmp_path / "run.json").write_text(json.dumps(value))
    with pytest.raises(DatasetError):
        read_document(tmp_path)


def refuse(directory: Path, spoilt: object, key: str) -> None:
    (directory / "run.json").write_text(json.dumps(spoilt))
    with pytest.raises(DatasetError) as error:
        read_document(directory)
    one_line(error, "run.json", key)
