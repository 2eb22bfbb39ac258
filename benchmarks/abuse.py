"""Mistreats an API server as bad clients do: streams given up, lost links, bad requests.

A thread that finds the API server below this process and mistreats it until told to stop. Every
kind takes its turn; `done` counts what came of each.
"""

from __future__ import annotations

import collections
import contextlib
import http.client
import itertools
import json
import socket
import threading
from collections.abc import Sequence
from typing import Any

import psutil

from repro.experiment.clients.server import HOST

PAUSE_S = 0.1
PROBE_S = 5.0
"""A server on a busy machine may take seconds."""

TIMEOUT_S = 30.0
PROMPT = [1] * 16
KINDS = ("stream given up", "connection lost", "half a request", "not JSON", "refused value")


class Abuser(threading.Thread):
    """Mistreats the API server; `done` counts outcomes by kind."""

    def __init__(self, kinds: Sequence[str] = KINDS) -> None:
        super().__init__(daemon=True)
        self.stopped = threading.Event()
        self.done: dict[str, collections.Counter[str]] = {
            kind: collections.Counter() for kind in kinds
        }

    def run(self) -> None:
        """One act after the other, from the server's first answer to its end or until stopped."""
        port = None
        while port is None and not self.stopped.wait(PAUSE_S):
            port = server_port()
        for kind in itertools.cycle(self.done):
            if port is None or self.stopped.wait(PAUSE_S):
                return
            try:
                self.done[kind][act(kind, port)] += 1
            except ConnectionRefusedError:
                return  # the server has ended
            except (OSError, http.client.HTTPException) as error:
                self.done[kind][type(error).__name__] += 1


def server_port() -> int | None:
    """The port of the API server below this process, once it is ready; None before."""
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            command = process.cmdline()
            if "--port" in command:
                port = int(command[command.index("--port") + 1])
                return port if answers(port) else None
    return None


def answers(port: int) -> bool:
    """Whether an API server behind this port is ready."""
    link = http.client.HTTPConnection(HOST, port, timeout=PROBE_S)
    with contextlib.suppress(OSError, http.client.HTTPException), contextlib.closing(link):
        link.request("GET", "/health")
        return link.getresponse().status == http.client.OK
    return False


def act(kind: str, port: int) -> str:
    """Do one act, and say what came of it: the status of an answer, or how the connection ended."""
    wish: dict[str, Any] = {"prompt": PROMPT, "stream": True, "max_tokens": 16, "ignore_eos": True}
    body = json.dumps(wish).encode()
    match kind:
        case "not JSON":
            return asked(port, body[:-1])
        case "refused value":
            return asked(port, json.dumps(wish | {"max_tokens": -1}).encode())
    with socket.create_connection((HOST, port), timeout=TIMEOUT_S) as link:
        head = (
            f"POST /v1/completions HTTP/1.1\r\nHost: {HOST}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        sent = head.encode() + body
        link.sendall(sent[: -len(body) // 2] if kind == "half a request" else sent)
        if kind == "stream given up":
            while data := link.recv(1 << 16):
                if b"data:" in data:
                    return "cut after the first chunk"
            return "closed by the server"
    return "cut"


def asked(port: int, body: bytes) -> str:
    """The status of the answer to this body."""
    link = http.client.HTTPConnection(HOST, port, timeout=TIMEOUT_S)
    with contextlib.closing(link):
        link.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
        return str(link.getresponse().status)
