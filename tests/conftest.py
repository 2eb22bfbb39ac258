"""One browser for all tests of pages; a skip where CI must run everything is a failure."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator

import pytest
from browser import BROWSER, Browser


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
