"""The command `repro`: measure, draw, judge, predict and advise; report on and watch a server."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from repro import __version__, policy
from repro.experiment.config import CLIENTS

RECORDED = "what REPRO_RECORD_DIR named when vLLM was started"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; a fault of the user's or the data's is one line and exit status 1."""
    parsed = parser().parse_args(arguments)
    try:
        return int(parsed.command(parsed))
    except (ValueError, RuntimeError, OSError) as error:
        print(f"repro: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print("repro: interrupted; finished runs are kept, run again to go on", file=sys.stderr)
        return 130
    return 1


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(prog="repro", description=__doc__)
    top.add_argument("--version", action="version", version=__version__)
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    command = commands.add_parser(
        "doctor", help="what this machine can measure, and what is missing"
    )
    command.set_defaults(command=doctor)

    command = commands.add_parser(
        "run",
        help="measure a campaign",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    command.set_defaults(command=run)
    add_run_options(command)

    command = commands.add_parser(
        "advise",
        help="will full collections stall this server, and what to set",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    command.set_defaults(command=advise)
    add_setting(command)

    command = commands.add_parser("figures", help="draw every figure of every campaign")
    command.set_defaults(command=figures)
    command.add_argument("--data", type=Path, default=Path("data"), help="folder of campaigns")
    command.add_argument("--out", type=Path, default=Path("figures"), help="where figures go")

    command = commands.add_parser("claims", help="the report's claims and their verdicts")
    command.set_defaults(command=claims)
    command.add_argument("source", type=Path, nargs="*", help="campaigns (default: all in data/)")

    command = commands.add_parser(
        "predict", help="the ITL of many ranks in lock-step, from runs of one rank"
    )
    command.set_defaults(command=predict)
    command.add_argument("--ranks", type=int, required=True, help="data-parallel ranks")
    command.add_argument("--concurrency", type=int, default=1024, help="in flight on each")
    command.add_argument("--source", type=Path, help="a campaign (default: what fits in data/)")

    command = commands.add_parser("page", help="run the notebooks on a campaign: one HTML page")
    command.set_defaults(command=page)
    command.add_argument("source", type=Path, help="a campaign's folder")
    command.add_argument("--out", type=Path, required=True, help="folder of notebooks and page")

    command = commands.add_parser("report", help="your own vLLM: one HTML page on a recording")
    command.set_defaults(command=report)
    command.add_argument("folder", type=Path, help=RECORDED)
    command.add_argument("--out", type=Path, help="the page (default: report.html in the folder)")

    command = commands.add_parser("watch", help="your own vLLM: its pauses, live in the terminal")
    command.set_defaults(command=watch)
    command.add_argument("folder", type=Path, help=RECORDED)
    command.add_argument("--every-s", type=float, default=1.0, help="seconds between two looks")
    command.add_argument("--once", action="store_true", help="look once and end")
    return top


def add_run_options(command: argparse.ArgumentParser) -> None:
    """What a campaign's runs have in common, and what differs between them."""
    add = command.add_argument
    add("root", type=Path, help="the campaign's folder; one that exists is gone on with")
    add(
        "--policies",
        help="arms, each worker or worker/engine core/front end: "
        f"{', '.join(policy.SERVING)} (None: those to compare)",
    )
    add("--capture-policies", default="stock", help=", ".join(policy.CAPTURE))
    add("--replicates", type=int, default=2, help="independent runs an arm")
    add("--first-replicate", type=int, default=0, help="number of the first of them")
    add("--concurrency", default="1024", help="requests in flight a rank, one or several: 512,1024")
    add("--backlog", type=int, default=0, help="requests a rank that wait in the engine's queue")
    add("--max-num-seqs", type=int, default=1024, help="vLLM's limit of requests in one step")
    add("--enforce-eager", action="store_true", help="neither compile nor capture")
    add("--max-cudagraph-capture-size", type=int, help="largest batch captured, in tokens")
    add("--duration-s", type=float, default=60.0, help="measured seconds a run, after the ramp")
    add("--switch-s", type=float, default=0.0, help="seconds a period of policy alternate")
    add("--prompt-tokens", type=int, default=16, help="tokens a prompt")
    add("--output-tokens", default="16,64", help="shortest,longest answer in tokens")
    add("--recaptures", type=int, default=0, help="times each capture policy in one process")
    add("--logprobs", type=int, default=0, help="log probabilities with each token")
    add("--structured-output", action="store_true", help="answers held to a regular expression")
    add("--speculative", default="none", help="none or ngram: tokens proposed by look-up")
    add("--runner", default="auto", help="vLLM's model runner: auto, v1, v2")
    add("--output-chunk", type=int, default=0, help="outputs a turn of the API server (0: vLLM's)")
    add("--executor", default="mp", help="mp: worker in its own process; uni: in the engine core")
    add("--client", default="engine", help="what drives the load: " + ", ".join(CLIENTS))
    add("--tensor-parallel-size", type=int, default=1, help="ranks that share each request")
    add("--data-parallel-size", type=int, default=1, help="ranks with requests of their own")
    add("--enable-expert-parallel", action="store_true", help="whole experts on each rank")
    add("--identical-streams", action="store_true", help="the same requests for every rank")
    add("--model", default="tiny", help="a shipped config, a folder, or a hub name")
    add("--device", default="auto", help="auto, cuda, cpu")
    add("--budget-s", type=float, help="begin no run that would not end within so many seconds")
    add("--seed", type=int, default=0, help="of lengths and prompts")


def add_setting(command: argparse.ArgumentParser) -> None:
    """A server, by a recorded run or by a few numbers."""
    add = command.add_argument
    add("--run", type=Path, help="a recorded run, or a campaign: everything below is then read")
    add("--concurrency", type=int, default=1024, help="requests in flight on one rank")
    add("--ranks", type=int, default=1, help="workers that wait for one another each step")
    add("--heap-objects", type=int, default=800_000, help="len(gc.get_objects()) in a worker")
    add("--python", default="3.12.3", help="version of the workers' Python")
    add("--vllm", default="0.23.0", help="version of vLLM")
    add("--device", default="cuda", help="cuda, cpu")
    add("--policy", default="stock", help=", ".join(policy.SERVING))
    add("--output-tokens", type=float, default=256.0, help="length of an answer")
    add("--step-ms", type=float, help="length of a step, to say seconds instead of steps")


def doctor(_: argparse.Namespace) -> int:
    """Print what this machine can measure; status 1 if it cannot measure at all."""
    from repro.doctor import examine

    findings = examine()
    for finding in findings:
        print(finding)
    return int(any(finding.blocks for finding in findings))


def run(parsed: argparse.Namespace) -> int:
    """Measure a campaign."""
    from repro.experiment.campaign import run_campaign
    from repro.experiment.config import grid, token_range

    shared = ["replicates", "first_replicate", "duration_s", "switch_s", "prompt_tokens"]
    shared += ["logprobs", "speculative", "runner", "recaptures", "max_cudagraph_capture_size"]
    shared += ["tensor_parallel_size", "data_parallel_size", "enable_expert_parallel"]
    shared += ["identical_streams", "structured_output", "output_chunk", "backlog"]
    shared += ["max_num_seqs", "enforce_eager", "executor", "client", "model", "device", "seed"]
    experiments = grid(
        policies=names(parsed.policies) if parsed.policies else None,
        capture_policies=names(parsed.capture_policies),
        output_tokens=token_range(parsed.output_tokens),
        concurrency=numbers(parsed.concurrency),
        **{name: getattr(parsed, name) for name in shared},
    )
    print(run_campaign(experiments, parsed.root, budget_s=parsed.budget_s))
    return 0


def advise(parsed: argparse.Namespace) -> int:
    """Print the advice for one setting, or for each run of a recording."""
    from repro import dataset
    from repro.theory import advice

    if parsed.run is None:
        given = {k: v for k, v in vars(parsed).items() if k not in ("command", "run")}
        print("\n".join(advice.advise(advice.Setting(**given)).lines))
        return 0
    single = (parsed.run / "run.json").exists()
    campaign = dataset.load(parsed.run.parent if single else parsed.run)
    for run in campaign.runs["run"]:
        if single and run.partition("/")[0] != parsed.run.name:
            continue
        try:
            found = advice.advise(advice.setting_of(campaign, run))
        except ValueError as none:  # of a campaign, the other runs may still have some
            if single:
                raise
            print(none)
        else:
            print("\n  ".join((f"{run}:", *found.lines)))
    return 0


def names(text: str) -> list[str]:
    """Names out of text like `stock, freeze`."""
    return [name.strip() for name in text.split(",")]


def numbers(text: str) -> list[int]:
    """Whole numbers out of text like `512, 1024`.

    Raises
    ------
    ValueError
        If one is none.
    """
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"concurrency {text!r}: give whole numbers, like 512,1024") from None


def figures(parsed: argparse.Namespace) -> int:
    """Draw every figure that applies to each campaign."""
    from repro.report.figures import draw_all

    for path in draw_all(parsed.data, parsed.out):
        print(path)
    return 0


def claims(parsed: argparse.Namespace) -> int:
    """Print the claims table."""
    from repro import dataset
    from repro.claims import evaluate, to_markdown

    print(to_markdown(evaluate([dataset.load(path) for path in parsed.source or recorded()])))
    return 0


def predict(parsed: argparse.Namespace) -> int:
    """Print what so many ranks would see, what that rests on, and where it goes beyond."""
    from repro import dataset, fmt
    from repro.analysis import prediction
    from repro.analysis.prediction_basis import nearest

    campaigns = [dataset.load(path) for path in [parsed.source] if path] or [
        dataset.load(path) for path in recorded()
    ]
    basis = nearest(campaigns, parsed.concurrency)
    if basis is None:
        raise ValueError(prediction.without_basis(campaigns))
    print(prediction.origin(basis), end="\n\n")
    print(fmt.markdown_table(prediction.of_one_width(basis, parsed.ranks)), end="\n\n")
    print(f"{prediction.sentence(basis)}.")
    for line in prediction.warnings(basis, parsed.ranks, parsed.concurrency, campaigns):
        print(f"warning: {line}")
    return 0


def recorded() -> list[Path]:
    """The campaigns in `data/`."""
    from repro import dataset

    return [path for path in sorted(Path("data").iterdir()) if dataset.is_campaign(path)]


def page(parsed: argparse.Namespace) -> int:
    """Execute the notebooks on a campaign and join them; prints the page's path last."""
    from repro import dataset
    from repro.report.page import execute, html_page

    dataset.load(parsed.source)  # what is no campaign is said before a notebook runs
    executed = execute(parsed.source, parsed.out)
    print(html_page(executed, parsed.out / "index.html"))
    return 0


def report(parsed: argparse.Namespace) -> int:
    """Write the page about a recorded folder; prints its path."""
    from repro.server.report import write

    print(write(parsed.folder, parsed.out or parsed.folder / "report.html"))
    return 0


def watch(parsed: argparse.Namespace) -> int:
    """Show a recorded folder live."""
    from repro.server.watch import watch

    watch(parsed.folder, every_s=parsed.every_s, once=parsed.once)
    return 0
