"""Mistreatment of a server: each act sends what it says, and what came of it is counted."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from benchmarks import abuse


class Handler(BaseHTTPRequestHandler):
    """Refuses what is not JSON or asks for fewer than one token, as vLLM does; else streams."""

    seen: list[tuple[int, int]]  # bytes promised and bytes that came

    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/health" else 404)
        self.end_headers()

    def do_POST(self) -> None:
        length = int(self.headers["Content-Length"])
        body = self.rfile.read(length)
        self.seen.append((length, len(body)))
        try:
            fine = json.loads(body)["max_tokens"] > 0
        except ValueError:
            fine = False
        self.send_response(200 if fine else 400)
        self.end_headers()
        if fine:
            self.wfile.write(b"data: a token\n\n")

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def port() -> Iterator[int]:
    Handler.seen = []
    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        server.handle_error = lambda *_: None  # type: ignore[method-assign]  # cut on purpose
        threading.Thread(target=server.serve_forever).start()
        yield server.server_address[1]
        server.shutdown()


@pytest.mark.parametrize(
    ("kind", "outcome"),
    [
        ("stream given up", "cut after the first chunk"),
        ("connection lost", "cut"),
        ("half a request", "cut"),
        ("not JSON", "400"),
        ("refused value", "400"),
    ],
)
def test_each_act_says_what_came_of_it(kind: str, outcome: str, port: int) -> None:
    assert abuse.act(kind, port) == outcome


def test_only_the_kinds_asked_for_are_done(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(abuse, "server_port", lambda: port)
    monkeypatch.setattr(abuse, "PAUSE_S", 0.001)
    abuser = abuse.Abuser(["not JSON", "connection lost"])
    abuser.start()
    while len(Handler.seen) < 10:
        abuser.join(0.01)
    abuser.stopped.set()
    abuser.join()
    assert {kind: set(outcomes) for kind, outcomes in abuser.done.items()} == {
        "not JSON": {"400"},
        "connection lost": {"cut"},
    }


def test_half_a_request_keeps_back_the_other_half(port: int) -> None:
    abuse.act("half a request", port)
    abuse.act("not JSON", port)  # one after the other
    promised, came = next(s for s in Handler.seen if s[0] != s[1])
    assert 0 < came < promised


def test_a_server_is_found_by_the_port_in_its_command(port: int) -> None:
    assert abuse.server_port() is None
    idle = [sys.executable, "-c", "input()", "--port", str(port)]
    with subprocess.Popen(idle, stdin=subprocess.PIPE) as server:
        try:
            assert abuse.server_port() == port
        finally:
            server.kill()


def test_only_a_server_that_is_ready_answers(port: int) -> None:
    assert abuse.answers(port)
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        assert not abuse.answers(mute.getsockname()[1])
