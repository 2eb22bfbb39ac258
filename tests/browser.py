"""A headless Chromium for tests of pages: what it logs, requests, draws and cuts off."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import urllib.request
from pathlib import Path
from typing import Any

BROWSER = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chrome")

CLIPPED = """[...document.body.querySelectorAll('*')].filter(e => {
  const box = e.getBoundingClientRect(), style = getComputedStyle(e);
  if (!box.width) return false;
  const hides = ['hidden', 'clip'].includes(style.overflowX);
  if (hides && e.scrollWidth > e.clientWidth + 1) return true;
  for (let p = e.parentElement; p; p = p.parentElement)
    if (['auto', 'scroll'].includes(getComputedStyle(p).overflowX)) return false;
  return box.right > innerWidth + 1 || box.left < -1;
}).map(e => e.outerHTML.slice(0, 200))"""
"""Elements that are cut off, or reach out of the window without a parent that scrolls."""


class Browser:
    """A headless Chromium, spoken to by its DevTools protocol."""

    def __init__(self, profile: Path) -> None:
        from websocket import create_connection

        assert BROWSER is not None
        options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0"]
        options += [
            "--disable-background-networking",
            "--no-first-run",
            f"--user-data-dir={profile}",
        ]
        self.process = subprocess.Popen(
            [BROWSER, *options, "about:blank"], stderr=subprocess.PIPE, text=True
        )
        assert self.process.stderr is not None
        while not (line := self.process.stderr.readline()).startswith("DevTools listening on"):
            assert self.process.poll() is None, "the browser ended"
        port = re.search(r"127\.0\.0\.1:(\d+)/", line)
        assert port is not None
        with urllib.request.urlopen(f"http://127.0.0.1:{port[1]}/json/list") as answer:
            (tab,) = [tab for tab in json.load(answer) if tab["type"] == "page"]
        self.tab = create_connection(tab["webSocketDebuggerUrl"], timeout=30, suppress_origin=True)
        self.events: list[dict[str, Any]] = []
        self.number = 0
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable")

    def ask(self, method: str, **params: Any) -> dict[str, Any]:
        self.number += 1
        self.tab.send(json.dumps({"id": self.number, "method": method, "params": params}))
        while (message := json.loads(self.tab.recv())).get("id") != self.number:
            self.events.append(message)
        assert "error" not in message, message
        result: dict[str, Any] = message["result"]
        return result

    def open(self, path: Path, width: int) -> None:
        self.events.clear()
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 800}
        self.ask("Emulation.setDeviceMetricsOverride", **size)
        self.ask("Page.navigate", url=path.as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(json.loads(self.tab.recv()))

    def evaluate(self, expression: str) -> Any:
        return self.ask("Runtime.evaluate", expression=expression, returnByValue=True)["result"][
            "value"
        ]

    def of_kind(self, *methods: str) -> list[dict[str, Any]]:
        return [event["params"] for event in self.events if event.get("method") in methods]

    def close(self) -> None:
        self.tab.close()
        self.process.terminate()
        self.process.wait(timeout=30)

    def faults(self) -> list[Any]:
        """What the open page logged, requested of another host, or cut off."""
        logged = ("Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled")
        sent = [event["request"]["url"] for event in self.of_kind("Network.requestWillBeSent")]
        away = [url for url in sent if not url.startswith(("file:", "data:"))]
        return [*self.of_kind(*logged), *away, *self.evaluate(CLIPPED)]
