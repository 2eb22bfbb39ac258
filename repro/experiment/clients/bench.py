"""One `vllm bench serve` process from the outside, and its detailed result as tables."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil

from repro.dataset.recording import Columns
from repro.experiment.clients.bench_process import BACKEND
from repro.experiment.clients.prompts import write_prompts
from repro.experiment.config import Experiment
from repro.experiment.measured import Integers, Measured, requests_table

COMMAND = (sys.executable, "-c", "from repro.experiment.clients.bench_process import main; main()")

TOKENS_PER_S = 20_000
"""More than one client process can take in: it sets how many prompts are prepared."""

START_S = 60.0
"""Ramp and slack that prompts are prepared for, besides the measured window."""

POOL_T_NS = 10_000_000
POOL_ITL_NS = 1_000_000
POOL_SHARE = 0.05
"""Every token has a gap of its own through HTTP. Those that end within one 10 ms (see
`repro.analysis.tails.SCATTER_NS`) and are the same to 1 ms, above 20 ms to 5%, become one row,
with the latest time and the mean gap: few rows, and no gap moved by more than that."""


@dataclass(frozen=True, kw_only=True)
class Share:
    """One client process's part of the load: which it is, and its requests in flight."""

    number: int
    concurrency: int


class Bench:
    """A context: one client process, which waits for `go`; `work` gets its prompts and result."""

    def __init__(
        self, share: Share, experiment: Experiment, tokenizer: str, url: str, work: Path
    ) -> None:
        prompts = work / f"prompts-{share.number}.jsonl"
        self.path = work / f"bench-{share.number}.json"
        number = prompts_needed(share, experiment)
        write_prompts(
            prompts,
            experiment,
            load_tokenizer(tokenizer),
            stream=share.number,
            first=share.concurrency,
            number=number,
        )
        options = {
            "backend": BACKEND,
            "base-url": url,
            "model": experiment.model_path,
            "tokenizer": tokenizer,
            "dataset-name": "custom",
            "dataset-path": str(prompts),
            "custom-output-len": "-1",
            "num-prompts": str(number),
            "max-concurrency": str(share.concurrency),
            "temperature": "0",
            "ready-check-timeout-sec": "0",
            "result-dir": str(work),
            "result-filename": self.path.name,
        }
        flags = ["disable-shuffle", "disable-tqdm", "ignore-eos", "save-result", "save-detailed"]
        self.process = subprocess.Popen(
            [
                *COMMAND,
                *(word for name, value in options.items() for word in (f"--{name}", value)),
                *(f"--{flag}" for flag in [*flags, "skip-chat-template"]),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=client_environment(),
        )
        assert self.process.stdout is not None
        os.set_blocking(self.process.stdout.fileno(), False)
        self._ramp_over = False

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()

    def go(self) -> None:
        """Let the requests go."""
        assert self.process.stdin is not None
        self.process.stdin.write(b"go\n")
        self.process.stdin.flush()

    def ramp_is_over(self) -> bool:
        """Whether each request of the simultaneous start has its answer, as long as it runs."""
        self.check_alive()
        assert self.process.stdout is not None
        self._ramp_over = self._ramp_over or bool(self.process.stdout.read())
        return self._ramp_over

    def check_alive(self) -> None:
        """Raise RuntimeError if the process has ended; the run's log says why."""
        if (status := self.process.poll()) is not None:
            raise RuntimeError(f"vllm bench serve ended before it was told to, status {status}")

    def demand_ns(self) -> int:
        """CPU time that the client's one busy thread has had or waited for, so far."""
        schedule = Path(f"/proc/{self.process.pid}/schedstat")
        if schedule.exists():
            had, waited, _ = schedule.read_text().split()
            return int(had) + int(waited)
        return int(sum(psutil.Process(self.process.pid).cpu_times()[:2]) * 1e9)

    def send_no_more(self) -> None:
        """Hold back every request that has not been sent."""
        assert self.process.stdin is not None
        self.process.stdin.close()

    def result(self) -> dict[str, Any]:
        """The detailed result, once the process has ended; RuntimeError if it wrote none."""
        status = self.process.wait()
        if not self.path.exists():
            raise RuntimeError(f"vllm bench serve wrote no result, status {status}")
        found: dict[str, Any] = json.loads(self.path.read_text())
        return found


def client_environment() -> dict[str, str]:
    """The client is no process of the server's: it records nothing and has no policy."""
    return {name: value for name, value in os.environ.items() if not name.startswith("REPRO_")} | {
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
    }


def prompts_needed(share: Share, experiment: Experiment) -> int:
    """Prompts for one client: more than it can send in the time."""
    mean = sum(experiment.output_tokens) / 2
    seconds = START_S + experiment.duration_s
    return share.concurrency + int(seconds * TOKENS_PER_S / mean)


def load_tokenizer(name: str) -> Any:
    """The tokenizer as vLLM loads it."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(name)


def measured_by(
    results: Sequence[dict[str, Any]], *, start_ns: int, end_ns: int, **about: Any
) -> Measured:
    """Joins the detailed results of several clients.

    Times in these are seconds of `time.perf_counter`, which on Linux is the monotonic clock that
    the recorder uses. An answer that the end of the run cut short has its gaps, but is no request.

    Parameters
    ----------
    results : sequence of dict
        Each with `start_times`, `ttfts`, `itls` and `output_lens`, one entry per request.
    start_ns, end_ns : int
        The measured window.
    **about
        The other attributes of `Measured`.
    """
    names = ("start_times", "ttfts", "itls", "output_lens")
    rows = [row for found in results for row in zip(*(found[name] for name in names), strict=True)]
    rows = [row for row in rows if row[1] > 0]  # at least a first token
    arrivals = [_ns(start + ttft + np.cumsum([0.0, *gaps])) for start, ttft, gaps, _ in rows]
    tokens = np.array([tokens for *_, tokens in rows])
    chunks = np.array([len(t_ns) for t_ns in arrivals])
    whole = tokens > 0
    all_arrivals = np.concatenate(arrivals)
    inside = np.count_nonzero((all_arrivals >= start_ns) & (all_arrivals < end_ns))
    return Measured(
        itl=pooled(
            np.concatenate([t_ns[1:] for t_ns in arrivals]),
            _ns(np.concatenate([gaps for _, _, gaps, _ in rows])),
        ),
        requests=requests_table(
            t_ns=np.array([t_ns[-1] for t_ns in arrivals])[whole],
            ttft_ns=_ns([ttft for _, ttft, _, _ in rows])[whole],
            decode_ns=np.array([t_ns[-1] - t_ns[0] for t_ns in arrivals])[whole],
            tokens=tokens[whole],
        ),
        start_ns=start_ns,
        end_ns=end_ns,
        # An estimate where the server fell behind and a chunk holds several: see `served_tokens`.
        output_tokens=round(inside * tokens[whole].sum() / chunks[whole].sum()),
        **about,
    )


def pooled(t_ns: Integers, itl_ns: Integers) -> Columns:
    """The table `itl`, from one entry per token; see `POOL_T_NS`."""
    turn = POOL_ITL_NS / POOL_SHARE  # from here on the share is the wider of the two
    longer = np.log(np.maximum(itl_ns, turn) / turn) / np.log1p(POOL_SHARE)
    alike = np.where(itl_ns < turn, itl_ns // POOL_ITL_NS, turn // POOL_ITL_NS + longer)
    keys = np.stack([t_ns // POOL_T_NS, alike.astype(np.int64)])
    _, group, count = np.unique(keys, axis=1, return_inverse=True, return_counts=True)
    group = group.reshape(-1)
    latest = np.zeros(len(count), dtype=np.int64)
    np.maximum.at(latest, group, t_ns)
    mean = np.bincount(group, itl_ns) / count
    return {"t_ns": latest, "itl_ns": np.rint(mean).astype(np.int64), "count": count}


def _ns(seconds: npt.ArrayLike) -> Integers:
    return np.rint(np.asarray(seconds) * 1e9).astype(np.int64)
