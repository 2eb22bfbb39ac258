"""Fixtures of several files: one browser, which CI must have; a restored collector; a clock."""

from __future__ import annotations

import gc
import os
from collections.abc import Generator, Iterator
from types import SimpleNamespace

import pytest
from browser import BROWSER, Browser

from repro.plugin import apply_policy

LONGEST = ("engine_clients", "cpu_collectives", "notebooks", "engine", "crossover")
"""Files that start first, longest first: two with engines at a time, the rest fills the gaps."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order the files for `make test`, which hands them out in the order collected."""
    first = {f"test_{name}": place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: first.get(item.path.stem, len(first)))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Fail a skipped browser test under CI, where `.ci/run` installs the browser."""
    report = yield
    if report.skipped and item.get_closest_marker("browser") and os.environ.get("CI"):
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid}: skipped, and CI must run it; install chromium"
    return report


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A headless Chromium."""
    if BROWSER is None:
        pytest.skip("no Chromium is installed here")
    made = Browser(tmp_path_factory.mktemp("profile"))
    yield made
    made.close()


@pytest.fixture
def collector_left_as_found() -> Iterator[None]:
    thresholds = gc.get_threshold()
    yield
    gc.callbacks[:] = [call for call in gc.callbacks if call is not apply_policy.freeze_survivors]
    gc.set_threshold(*thresholds)
    gc.enable()
    gc.unfreeze()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    made = SimpleNamespace(s=1.0)
    monkeypatch.setattr(apply_policy.time, "monotonic_ns", lambda: int(made.s * 1e9))
    return made
