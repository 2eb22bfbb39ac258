"""The dictionary for people covers the schema, and the one for programs follows from it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from builders import document, run, steady

from repro.dataset import DatasetError
from repro.dataset.datapackage import PACKAGE, describe, write
from repro.dataset.pack import pack
from repro.dataset.run import FAILED_KEYS, OK_KEYS
from repro.dataset.schema import CENSUS_POINTS, REQUIRED, ROLES, TABLES

DATA = Path(__file__).parent.parent / "data"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A data directory with the real dictionary and one invented campaign."""
    shutil.copy(DATA / "README.md", tmp_path)
    for name in "ba":
        run(tmp_path / "measured", name, steady())
    pack([tmp_path / "measured"], tmp_path / "c")
    shutil.rmtree(tmp_path / "measured")
    return tmp_path


def test_committed_package_is_current() -> None:
    committed = json.loads((DATA / PACKAGE).read_text(encoding="utf-8"))
    assert committed == describe(DATA), "run python -m repro.dataset.datapackage"


def test_every_column_is_described_in_order(root: Path) -> None:
    resources = {resource["name"]: resource for resource in describe(root)["resources"]}
    for name in ("steps", "itl"):
        fields = resources[name]["schema"]["fields"]
        assert [field["name"] for field in fields] == ["run", *TABLES[name].names]
        assert all(field["description"] for field in fields)
        assert all(field["unit"] == "ns" for field in fields if field["name"].endswith("_ns"))
    assert {field["type"] for field in resources["itl"]["schema"]["fields"][1:]} == {"integer"}


def test_only_files_that_exist_are_listed(root: Path) -> None:
    resources = {resource["name"]: resource for resource in describe(root)["resources"]}
    assert set(resources) == {"runs", "steps", "itl"}
    assert resources["itl"]["path"] == ["c/itl.parquet"]
    assert resources["runs"]["path"] == ["c/runs.jsonl.gz"]


def test_writing_twice_gives_the_same_bytes(root: Path) -> None:
    first = write(root).read_bytes()
    assert write(root).read_bytes() == first
    assert str(root).encode() not in first


def test_dictionary_without_a_column_is_refused(root: Path) -> None:
    readme = root / "README.md"
    lines = readme.read_text(encoding="utf-8").splitlines(keepends=True)
    readme.write_text("".join(line for line in lines if "`itl_ns` | ns" not in line))
    with pytest.raises(DatasetError, match=r"must describe itl\.parquet"):
        describe(root)


def test_missing_dictionary_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="must describe pauses"):
        describe(tmp_path)


def test_dictionary_names_every_key_and_word() -> None:
    text = (DATA / "README.md").read_text(encoding="utf-8")
    keys = {*REQUIRED, *FAILED_KEYS, *(key.rpartition(".")[2] for key in OK_KEYS)}
    keys |= {*document("a")["machine"], *document("a")["versions"], *document("a")["summary"]}
    missing = [word for word in sorted({*keys, *ROLES, *CENSUS_POINTS}) if f"`{word}`" not in text]
    assert not missing
