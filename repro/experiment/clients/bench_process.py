"""`vllm bench serve` as a child process that is told when to send, and when to send no more.

Arguments are those of `vllm bench serve`. Standard input: the first line lets the requests go, its
end holds back all that were not sent by then. Standard output: one line once every request of the
simultaneous start has its answer.
"""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
from typing import Any

from repro.experiment.pipes import take_over_stdout

BACKEND = "vllm"  # the completions API


def main() -> None:
    """Run the benchmark with a gate before its request function."""
    events = take_over_stdout()
    gc.disable()  # 10,000s of waiting tasks: this client's own collector is not what is measured
    from vllm.benchmarks import serve
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = FlexibleArgumentParser()
    serve.add_cli_args(parser)
    arguments = parser.parse_args()
    functions = serve.ASYNC_REQUEST_FUNCS
    functions[BACKEND] = Gate(functions[BACKEND], arguments.max_concurrency, events)
    serve.main(arguments)


class Gate:
    """Hold every request until told to go; let none pass once told to stop.

    `send` is vLLM's own request function. Once the `first` requests have their answers, `events`
    gets a line.
    """

    def __init__(self, send: Any, first: int, events: Any) -> None:
        self.send, self.first, self.events = send, first, events
        self.told_to_go, self.stopped = threading.Event(), False
        self.go: asyncio.Future[bool] | None = None
        self.sent, self.left = 0, first
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        if sys.stdin.readline():
            self.told_to_go.set()
        sys.stdin.read()
        self.stopped = True
        self.told_to_go.set()

    async def __call__(self, request_func_input: Any, session: Any, pbar: Any = None) -> Any:
        """Send one request, or return an empty answer if it is too late for that."""
        if self.go is None:
            wait = asyncio.get_running_loop().run_in_executor(None, self.told_to_go.wait)
            self.go = asyncio.ensure_future(wait)
        await self.go
        if self.stopped:
            return never_sent()
        number, self.sent = self.sent, self.sent + 1
        answer = await self.send(request_func_input, session, pbar)
        if number < self.first:
            self.left -= 1
            if self.left == 0:
                self.events.write("ramp over\n")
        return answer


def never_sent() -> Any:
    """vLLM's record of a request that came to nothing; its start time stays 0."""
    from vllm.benchmarks.lib.endpoint_request_func import RequestFuncOutput

    return RequestFuncOutput()
