"""The command `repro`: measure, draw, judge, predict and advise; report on and watch a server."""

from __future__ import annotations

import argparse
import platform
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from repro import __version__, policy
from repro.experiment import provenance
from repro.experiment.fields import as_text, described
from repro.experiment.grid import PARAMETERS, grid, option
from repro.releases import FIRST_FROZEN

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

    def add(command: Callable[[argparse.Namespace], int], help: str) -> argparse.ArgumentParser:
        added = commands.add_parser(command.__name__, help=help)
        added.set_defaults(command=command)
        return added

    add(doctor, "what this machine can measure, and what is missing")
    command = add(run, "measure a campaign")
    command.formatter_class = argparse.ArgumentDefaultsHelpFormatter
    add_run_options(command)

    command = add(advise, "will full collections stall this server, and what to set")
    command.formatter_class = argparse.ArgumentDefaultsHelpFormatter
    add_setting(command)

    command = add(figures, "draw every figure of every campaign")
    command.add_argument("--data", type=Path, default=Path("data"), help="folder of campaigns")
    command.add_argument("--out", type=Path, default=Path("figures"), help="where figures go")
    command.add_argument("--format", choices=["png", "svg"], default="png", help="file format")

    command = add(claims, "the report's claims and their verdicts")
    command.add_argument("source", type=Path, nargs="*", help="campaigns (default: all in data/)")

    command = add(predict, "the ITL of many ranks in lock-step, from runs of one rank")
    command.add_argument("--ranks", type=int, required=True, help="data-parallel ranks")
    command.add_argument("--concurrency", type=int, default=1024, help="in flight on each")
    command.add_argument("--source", type=Path, help="a campaign (default: what fits in data/)")
    command.add_argument("--out", type=Path, help="also register the prediction in this JSON file")

    command = add(page, "run the notebooks on a campaign: one HTML page")
    command.add_argument("source", type=Path, help="a campaign's folder")
    command.add_argument("--out", type=Path, required=True, help="folder of notebooks and page")

    command = add(rendered, "run the notebooks on data/: Markdown to browse")
    command.add_argument("--out", type=Path, default=Path("rendered"), help="where they go")

    command = add(report, "your own vLLM: one HTML page on a recording")
    command.add_argument("folder", type=Path, help=RECORDED + ", or a log with VLLM_GC_DEBUG=1")
    command.add_argument("--out", type=Path, help="the page (default: report.html in the folder)")
    command.add_argument("--launch", type=int, help="one launch only: 1 is the newest")
    command.add_argument("--last", type=int, help="the newest so many launches only")
    command.add_argument("--bench", type=Path, help="result of vllm bench serve --save-detailed")

    command = add(watch, "your own vLLM: its pauses, live in the terminal")
    command.add_argument("folder", type=Path, help=RECORDED)
    command.add_argument("--every-s", type=float, default=1.0, help="seconds between two looks")
    command.add_argument("--once", action="store_true", help="look once and end")

    command = add(check, "your own vLLM: is each process's heap and collector as asked?")
    command.add_argument("source", metavar="DIR|URL", help=f"{RECORDED}; or the server's address")
    return top


def add_run_options(command: argparse.ArgumentParser) -> None:
    """The campaign's folder, its parameters, and how long it may take."""
    command.add_argument("root", type=Path, help="the campaign's folder; resumes if it exists")
    for name, field in PARAMETERS.items():
        # A list or a number stays text here: `grid` reads it.
        how: dict[str, Any] = {"help": described(field).replace("%", "%%")}
        how |= {"action": "store_true"} if field.type == "bool" else {"metavar": "VALUE"}
        command.add_argument(option(name), default=as_text(field.default), **how)
    command.add_argument(
        "--budget-s", type=float, help="start no run that would not end within so many seconds"
    )


def add_setting(command: argparse.ArgumentParser) -> None:
    """A server, by a recorded run or by a few numbers."""
    add = command.add_argument
    add("--run", type=Path, help="a recorded run, or a campaign: everything below is then read")
    add("--concurrency", type=int, default=1024, help="requests in flight on one rank")
    add("--ranks", type=int, default=1, help="workers that wait for one another each step")
    add("--heap-objects", type=int, default=800_000, help="len(gc.get_objects()) in a worker")
    add("--python", default=platform.python_version(), help="version of the workers' Python")
    add("--vllm", default=_running_vllm(), help="version of vLLM")
    add("--device", default="cuda", help="cuda, cpu")
    add("--policy", default="stock", help=", ".join(policy.SERVING))
    add("--output-tokens", type=float, default=256.0, help="length of an answer")
    add("--step-ms", type=float, help="length of a step, to say seconds instead of steps")


def _running_vllm() -> str:
    """The version of the vLLM beside this package; without one, the first that freezes."""
    try:
        return provenance.vllm_version().partition("+")[0]
    except provenance.NoVllm:
        return FIRST_FROZEN


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

    given = {name: getattr(parsed, name) for name in PARAMETERS}
    asked = {name: value for name, value in given.items() if value is not None}
    print(run_campaign(grid(**asked), parsed.root, budget_s=parsed.budget_s))
    return 0


def advise(parsed: argparse.Namespace) -> int:
    """Print the advice for one setting, or for each run of a recording."""
    from repro import dataset
    from repro.analysis.recorded_setting import setting_of
    from repro.theory import advice

    if parsed.run is None:
        given = {k: v for k, v in vars(parsed).items() if k not in ("command", "run")}
        print("\n".join(advice.advise(advice.Setting(**given)).lines))
        if parsed.ranks > 1:
            from repro.report.tables.wide_ep import nearest_groups

            here = recorded() if Path("data").is_dir() else []
            loaded = [dataset.load(path) for path in here]
            groups = [each for each in loaded if (each.runs["data_parallel_size"] > 1).any()]
            print(nearest_groups(groups, parsed.ranks))
        return 0
    single = not dataset.is_campaign(parsed.run) and dataset.is_campaign(parsed.run.parent)
    campaign = dataset.load(parsed.run.parent if single else parsed.run)
    runs = list(campaign.runs["run"])
    if single:  # with every period of a cross-over
        runs = [run for run in runs if run.partition("/")[0] == parsed.run.name]
    if not runs:
        raise ValueError(f"{parsed.run}: {campaign.path} has no run of this name that is ok")
    for run in runs:
        try:
            found = advice.advise(setting_of(campaign, run))
        except ValueError as none:  # of a campaign, the other runs may still have some
            if single:
                raise
            print(none)
        else:
            print("\n  ".join((f"{run}:", *found.lines)))
    return 0


def figures(parsed: argparse.Namespace) -> int:
    """Draw every figure that applies to each campaign."""
    from repro.report.figures import draw_all

    for path in draw_all(parsed.data, parsed.out, parsed.format):
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
    from repro.report.tables import wide_ep

    campaigns = [dataset.load(path) for path in [parsed.source] if path] or [
        dataset.load(path) for path in recorded()
    ]
    basis = nearest(campaigns, parsed.concurrency)
    if basis is None:
        raise ValueError(wide_ep.without_basis(campaigns))
    if parsed.out:
        print(prediction.register(basis, parsed.ranks, parsed.out))
    print(wide_ep.origin(basis), end="\n\n")
    print(fmt.markdown_table(wide_ep.of_one_width(basis, parsed.ranks)), end="\n\n")
    print(f"{wide_ep.burst_sentence(basis, parsed.ranks)}.")
    print(f"{fmt.capitalised(prediction.sentence(basis))}.")
    for line in wide_ep.warnings(basis, parsed.ranks, parsed.concurrency, campaigns):
        print(f"warning: {line}")
    return 0


def recorded() -> list[Path]:
    """The campaigns in `data/`."""
    from repro import dataset

    return [path for path in sorted(Path("data").iterdir()) if dataset.is_campaign(path)]


def page(parsed: argparse.Namespace) -> int:
    """Execute the notebooks on a campaign and join them; prints what was found last."""
    from repro import dataset
    from repro.report.page import build

    print("\n".join(build(dataset.load(parsed.source), parsed.out)))
    return 0


def rendered(parsed: argparse.Namespace) -> int:
    """Write the notebooks as Markdown with their figures."""
    from repro.report.rendered import render

    for path in render(parsed.out):
        print(path)
    return 0


def report(parsed: argparse.Namespace) -> int:
    """Write the page about a recorded folder; prints its path."""
    from repro.server.report import write

    folder = parsed.folder.parent if parsed.folder.is_file() else parsed.folder
    out = parsed.out or folder / "report.html"
    options = {"which": parsed.launch, "last": parsed.last, "bench": parsed.bench}
    print(write(parsed.folder, out, **options))
    return 0


def watch(parsed: argparse.Namespace) -> int:
    """Show a recorded folder live."""
    from repro.server.watch import watch

    watch(parsed.folder, every_s=parsed.every_s, once=parsed.once)
    return 0


def check(parsed: argparse.Namespace) -> int:
    """Print one line per process; status 1 if any is not as asked."""
    from repro.server.check import check

    lines, as_asked = check(parsed.source)
    print("\n".join(lines))
    return int(not as_asked)
