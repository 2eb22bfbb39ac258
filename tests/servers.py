"""A real vLLM API server on this machine, as its owner would start it, on 127.0.0.1 only."""

from __future__ import annotations

import http.client
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

from repro.experiment.clients.server import free_port
from repro.experiment.config import MODELS
from repro.experiment.supervise import alive
from repro.plugin.recorder import LAUNCH

START_S = 240.0
SERVE = """
from vllm.entrypoints.cli.serve import ServeSubcommand
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.utils.argparse_utils import FlexibleArgumentParser
ServeSubcommand.cmd(make_arg_parser(FlexibleArgumentParser()).parse_args())
"""
"""`vllm serve`, a command that vLLM's CPU distribution lacks: it launches several API servers."""

OPTIONS = {
    "model": str(MODELS / "tiny"),
    "load-format": "dummy",
    "host": "127.0.0.1",
    "max-model-len": "64",
    "max-num-seqs": "16",
    "served-model-name": "tiny",
}
# Those of vLLM's CPU backend, as in `repro.experiment.runner`.
CPU = {"dtype": "float32", "kv-cache-memory-bytes": str(1 << 27)}


class Server:
    """One API server, or with `more` options several; `variables` are the plugin's and vLLM's."""

    def __init__(
        self, log: Path, more: Sequence[str] = (), ports: int = 1, **variables: str
    ) -> None:
        from vllm.platforms import current_platform

        self.log = log
        self.port, self.ports = free_port(), ports
        options = OPTIONS | (CPU if current_platform.is_cpu() else {}) | {"port": str(self.port)}
        one = ("-m", "vllm.entrypoints.openai.api_server")
        command = [sys.executable, *(("-c", SERVE) if more else one)]
        command += ["--enforce-eager", "--skip-tokenizer-init"]
        command += [part for name, value in options.items() for part in (f"--{name}", value)]
        command += more
        inherited = {name: value for name, value in os.environ.items() if name != LAUNCH}
        quiet = {"VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                command, stdout=file, stderr=file, env={**inherited, **quiet, **variables}
            )
        self._wait()
        self.processes = [
            psutil.Process(self.process.pid),
            *psutil.Process(self.process.pid).children(recursive=True),
        ]

    def _wait(self) -> None:
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                ports = range(self.port, self.port + self.ports)
                if all(self.get("/health", port=port)[0] == 200 for port in ports):
                    return
            except OSError:
                time.sleep(0.5)
        self.end()
        raise AssertionError(f"no server: {self.said()[-3000:]}")

    def get(self, path: str, body: object = None, port: int = 0) -> tuple[int, str]:
        """Status and text of one request, to another port than the first if one is given."""
        connection = http.client.HTTPConnection("127.0.0.1", port or self.port, timeout=60)
        try:
            if body is None:
                connection.request("GET", path)
            else:
                headers = {"Content-Type": "application/json"}
                connection.request("POST", path, json.dumps(body), headers)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def ask(self, tokens: int = 30, port: int = 0) -> int:
        """Tokens that one request was answered with."""
        prompt = {"model": "tiny", "prompt": [1, 2, 3], "max_tokens": tokens, "ignore_eos": True}
        status, text = self.get("/v1/completions", prompt, port)
        assert status == 200, text
        return int(json.loads(text)["usage"]["completion_tokens"])

    def counters(self) -> dict[tuple[str, str, str], float]:
        """`/metrics`: value by name, process and generation."""
        status, text = self.get("/metrics")
        assert status == 200
        found = re.findall(
            r'^(repro_\w+)\{generation="(\d)",process="(\w+)",rank="0",server=""\} (\S+)$',
            text,
            re.M,
        )
        return {(name, role, generation): float(v) for name, generation, role, v in found}

    def named(self, part: str) -> psutil.Process:
        """The one process whose title holds this."""
        (found,) = [p for p in self.processes if part in " ".join(p.cmdline())]
        return found

    def said(self) -> str:
        """The server's log so far."""
        return self.log.read_text(errors="replace")

    def gone(self, within_s: float) -> bool:
        """Whether every process of the server ends by itself."""
        deadline = time.monotonic() + within_s
        while time.monotonic() < deadline:
            self.process.poll()  # else it stays as a zombie of ours
            if not any(alive(process) for process in self.processes):
                return True
            time.sleep(0.2)
        return False

    def end(self) -> None:
        """End whatever is left."""
        children = []
        if self.process.poll() is None:
            children = psutil.Process(self.process.pid).children(recursive=True)
            self.process.kill()
        for process in [*children, *getattr(self, "processes", [])]:
            if alive(process):
                process.kill()
        self.process.wait(timeout=30)
