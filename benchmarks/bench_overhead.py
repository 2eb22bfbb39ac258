"""Cost of recording to a server: tokens/s and P99 ITL with it over without it, in pairs.

    taskset -c 0,1 python -m benchmarks.bench_overhead --out overhead.json    # 15 minutes

Each server is a fresh one, as `vllm serve` starts it; `vllm bench serve` measures it. Which of a
pair comes first alternates, so that a drift of the machine takes no side. Run it on a quiet one.
The file has every pair as soon as it is measured, then both ratios with their intervals (95%).
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
    """Measure the pairs; print and write each, then both ratios with their intervals."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=5, help="servers with and without recording")
    parser.add_argument(
        "--duration-s", type=float, default=30.0, help="measured seconds per server"
    )
    parser.add_argument("--concurrency", type=int, default=64, help="requests in flight")
    parser.add_argument("--out", type=Path, default=Path("overhead.json"), help="the result")
    parsed = parser.parse_args()
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    experiment = Experiment(
        client="serve", concurrency=parsed.concurrency, duration_s=parsed.duration_s
    )
    setting = {"cores": sorted(os.sched_getaffinity(0)), "duration_s": parsed.duration_s}
    setting |= {"concurrency": parsed.concurrency, "load_before": os.getloadavg()[0]}
    pairs: list[dict[str, dict[str, float]]] = []
    with tempfile.TemporaryDirectory() as work:
        for number in range(parsed.pairs):
            order = ("bare", "recorded") if number % 2 == 0 else ("recorded", "bare")
            pair = {}
            for kind in order:
                folder = Path(work) / f"{number}-{kind}"
                pair[kind] = measure(experiment, folder, recorded=kind == "recorded")
                print(f"pair {number}, {kind}: {pair[kind]}", flush=True)
            pairs.append(pair)
            found = {**setting, "pairs": pairs, "ratios": ratios(pairs)}
            parsed.out.write_text(json.dumps(found, indent=1) + "\n")
    for name, (value, low, high) in ratios(pairs).items():
        ratio = f"×{fmt.figures(value)} ({fmt.bounds(low, high)})"
        print(f"{METRICS[name]} with recording: {ratio} of without, {len(pairs)} pairs")


def ratios(pairs: list[dict[str, dict[str, float]]]) -> dict[str, tuple[float, float, float]]:
    """With recording over without, by metric: the ratio and its interval; none of one pair."""
    found = {}
    for name in METRICS if len(pairs) > 1 else ():
        bare, recorded = ([pair[kind][name] for pair in pairs] for kind in ("bare", "recorded"))
        ratio = ratio_of_pairs(bare, recorded)
        found[name] = (ratio.value, ratio.low, ratio.high)
    return found


if __name__ == "__main__":
    main()
