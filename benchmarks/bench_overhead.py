"""Cost of recording to a server: tokens/s and P99 ITL with it over without it, in pairs.

    python -m benchmarks.bench_overhead --pairs 5 --duration-s 30     # 8 minutes on two cores

Each server is a fresh one, as `vllm serve` starts it; `vllm bench serve` measures it. Which of a
pair comes first alternates, so that a drift of the machine takes no side. Run it on a quiet one.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from repro import fmt
from repro.experiment.clients.bench import client_environment
from repro.experiment.clients.prompts import tokenizer_for
from repro.experiment.clients.server import Server
from repro.experiment.config import Experiment
from repro.plugin import RECORD_DIR
from repro.stats.ratios import ratio_of_pairs

METRICS = {"output_throughput": "tokens/s", "p99_itl_ms": "P99 ITL"}
CLIENT = """
from vllm.benchmarks import serve
from vllm.utils.argparse_utils import FlexibleArgumentParser
parser = FlexibleArgumentParser()
serve.add_cli_args(parser)
serve.main(parser.parse_args())
"""
WARM_UP_S = 5.0


def measure(experiment: Experiment, folder: Path, *, recorded: bool) -> dict[str, float]:
    """One fresh server under load: `METRICS` by name."""
    folder.mkdir()
    tokenizer = tokenizer_for(experiment, folder)
    os.environ[RECORD_DIR] = str(folder / "recording") if recorded else ""
    with Server(experiment, tokenizer) as server:
        server.wait_until_ready(lambda seconds: None)
        rate = load(experiment, server.url, tokenizer, folder, requests=experiment.concurrency)
        seconds = rate["duration"]  # of one request in each place
        for name, length in (("warm-up", WARM_UP_S), ("measured", experiment.duration_s)):
            rounds = max(1, round(length / seconds))
            number = rounds * experiment.concurrency
            found = load(experiment, server.url, tokenizer, folder, requests=number)
            seconds = found["duration"] / rounds
            print(f"{name}: {found['duration']:.0f} s, {number} requests", file=sys.stderr)
    if recorded:
        assert list((folder / "recording").glob("events-*.bin")), "nothing was recorded"
    return {name: float(found[name]) for name in METRICS}


def load(
    experiment: Experiment, url: str, tokenizer: str, folder: Path, *, requests: int
) -> dict[str, float]:
    """Result of one `vllm bench serve`."""
    options = {
        "base-url": url,
        "model": experiment.model_path,
        "tokenizer": tokenizer,
        "dataset-name": "random",
        "random-input-len": str(experiment.prompt_tokens),
        "random-output-len": str(experiment.output_tokens[1]),
        "num-prompts": str(requests),
        "max-concurrency": str(experiment.concurrency),
        "result-dir": str(folder),
        "result-filename": "result.json",
        "seed": str(experiment.seed),
    }
    words = [word for name, value in options.items() for word in (f"--{name}", value)]
    command = [sys.executable, "-c", CLIENT, *words, "--ignore-eos", "--save-result"]
    environment = client_environment()
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
    result: dict[str, float] = json.loads((folder / "result.json").read_text())
    return result


def main() -> None:
    """Print each pair, then both ratios with their intervals."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=5, help="servers with and without recording")
    parser.add_argument(
        "--duration-s", type=float, default=30.0, help="measured seconds per server"
    )
    parser.add_argument("--concurrency", type=int, default=64, help="requests in flight")
    parsed = parser.parse_args()
    experiment = Experiment(
        client="serve", concurrency=parsed.concurrency, duration_s=parsed.duration_s
    )
    found: dict[bool, list[dict[str, float]]] = {False: [], True: []}
    with tempfile.TemporaryDirectory() as work:
        for pair in range(parsed.pairs):
            for recorded in (False, True) if pair % 2 == 0 else (True, False):
                folder = Path(work) / f"{pair}-{recorded}"
                found[recorded].append(measure(experiment, folder, recorded=recorded))
                print(f"pair {pair}, recorded {recorded}: {found[recorded][-1]}", flush=True)
    for name, what in METRICS.items():
        bare, recorded_ = ([one[name] for one in found[kind]] for kind in (False, True))
        print(f"{what} with recording: {fmt.ratio(ratio_of_pairs(bare, recorded_))} of without")


if __name__ == "__main__":
    main()
