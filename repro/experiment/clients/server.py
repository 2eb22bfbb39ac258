"""A real OpenAI-compatible vLLM server on a free port of 127.0.0.1, and its heap census."""

from __future__ import annotations

import http.client
import json
import logging
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

import psutil

from repro.experiment.clients.engine import engine_arguments
from repro.experiment.config import Experiment
from repro.experiment.verify import NotAsRequested
from repro.plugin.rpc import CENSUS_RPC, END_RPC

logger = logging.getLogger(__name__)

HOST = "127.0.0.1"
START = (sys.executable, "-m", "vllm.entrypoints.openai.api_server")
"""The same server as `vllm serve`: a command that vLLM's CPU distribution lacks."""

STOP_S = 20.0
CENSUS_S = 120.0

_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # no proxy knows this host


class Server:
    """A context: the server's process, started at once, gone at its end."""

    def __init__(self, experiment: Experiment, tokenizer: str) -> None:
        self.port = free_port()
        self.url = f"http://{HOST}:{self.port}"
        command = [*START, *server_arguments(experiment, tokenizer, self.port)]
        # `/collective_rpc` and `/pause` are routes of the development mode.
        environment = {**os.environ, "VLLM_SERVER_DEV_MODE": "1"}
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, env=environment)

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def wait_until_ready(self, report: Callable[[float], None]) -> None:
        """Wait until `/health` answers, reporting seconds; RuntimeError if the server ends."""
        began = time.monotonic()
        while not self._healthy():
            if (status := self.process.poll()) is not None:
                taken = "" if is_free(self.port) else f": port {self.port} is taken, run again"
                raise RuntimeError(f"the API server ended at its start, status {status}{taken}")
            report(time.monotonic() - began)
            time.sleep(0.5)

    def _healthy(self) -> bool:
        if not self._listens():  # else the answer might be that of another's server
            return False
        try:
            with _direct.open(f"{self.url}/health", timeout=5) as answer:
                return int(answer.status) == 200
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return False

    def _listens(self) -> bool:
        try:
            sockets = psutil.Process(self.process.pid).net_connections("tcp")
        except psutil.Error:
            return False  # it ended
        return any(s.status == psutil.CONN_LISTEN and s.laddr.port == self.port for s in sockets)

    def census(self, point: str) -> list[dict[str, Any]]:
        """Count every process's heap; what each worker says of itself. Raises `NotAsRequested`."""
        try:
            workers: list[dict[str, Any]] = self._ask(CENSUS_RPC, point)["results"]
        except urllib.error.HTTPError as error:
            raise NotAsRequested(
                f"the server refused a census ({error.code}): pip install this package beside vLLM"
            ) from error
        return workers

    def end(self) -> None:
        """Abort what is in flight, and have each worker count its garbage as in a shutdown.

        The server kills its workers, which then count nothing. By now all is measured: where this
        fails, the garbage goes uncounted and nothing else is lost.
        """
        try:
            self._post("pause?mode=abort")
            self._ask(END_RPC)
        except (OSError, http.client.HTTPException) as error:
            logger.warning("what the workers never reclaimed was not counted: %s", error)

    def _ask(self, method: str, *args: str) -> Any:
        """Call a method of every worker."""
        return self._post("collective_rpc", {"method": method, "args": args})

    def _post(self, path: str, content: object = None) -> Any:
        body, headers = json.dumps(content).encode(), {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{self.url}/{path}", body, headers)
        with _direct.open(request, timeout=CENSUS_S) as answer:
            return json.load(answer)

    def stop(self) -> None:
        """End the server in order; by force if it takes its time."""
        if self.process.poll() is None:
            self.process.terminate()
        try:
            self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def server_arguments(experiment: Experiment, tokenizer: str, port: int) -> list[str]:
    """The command line: the engine's arguments as the client `engine` has them, and a tokenizer."""
    engine = engine_arguments(experiment) | {"tokenizer": tokenizer, "host": HOST, "port": port}
    del engine["skip_tokenizer_init"]
    # A tokenizer may need a token more for a text than the text was made of.
    engine["max_model_len"] = 2 * experiment.prompt_tokens + experiment.output_tokens[1]
    words: list[str] = []
    for name, value in engine.items():
        option = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{option}" if value else f"--no-{option}")
        else:
            text = json.dumps(value) if isinstance(value, dict | list) else str(value)
            words += [f"--{option}", text]
    return words


def free_port() -> int:
    """A TCP port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def is_free(port: int) -> bool:
    """Whether a server could listen on this port now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True
