"""Real servers through vLLM's own launch functions: deployments that the CPU backend serves."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from recordings import only_launch
from servers import Server

from repro import cli, plugin
from repro.dataset import recording
from repro.experiment.config import MODELS
from repro.plugin.process_facts import LAUNCHER
from repro.server import numbers
from repro.server.remedies import advice

pytestmark = [pytest.mark.engine, pytest.mark.slow]

SERVING = ("frontend", "engine", "worker")
TOKENS = 50


def pauses_by_server(server: Server, port: int) -> dict[tuple[str, str, str], float]:
    """`/metrics` at a port: pauses by process, rank and the API server it belongs to."""
    found: dict[tuple[str, str, str], float] = {}
    labels = r'process="(\w+)",rank="(\d+)",server="(\w*)"'
    text = server.get("/metrics", port=port)[1]
    for *key, value in re.findall(rf"^repro_gc_pauses_total{{.*{labels}}} (\S+)$", text, re.M):
        who = (key[0], key[1], key[2])
        found[who] = found.get(who, 0) + float(value)
    return found


def recorded(folder: Path) -> dict[tuple[str, str, str], int]:
    """The same out of the recording."""
    return {
        (r.role, str(r.rank), r.about.get("server", "")): int((r.events["kind"] == 1).sum())
        for r in recording.read_all(folder)
        if r.role in SERVING
    }


def ask(server: Server, port: int) -> None:
    for _ in range(5):
        assert server.ask(TOKENS, port) == TOKENS


@pytest.fixture(scope="module")
def uni(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Path]]:
    """The worker inside the engine core: the CPU backend turns `uni` into `mp` unless told so."""
    folder = tmp_path_factory.mktemp("uni") / "recording"
    variables = {plugin.RECORD_DIR: str(folder), plugin.POLICY: "no-freeze"}
    made = Server(folder.parent / "log", VLLM_ENABLE_V1_MULTIPROCESSING="0", **variables)
    yield made, folder
    made.end()


def test_a_worker_inside_the_engine_core(
    uni: tuple[Server, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    server, folder = uni
    ask(server, server.port)
    launch = only_launch(folder)
    assert launch.of("worker") == []
    (core,) = launch.of("engine")
    assert core.inside
    assert core.frozen, "counted after vLLM's own freeze"
    assert numbers.measure(launch).steps >= 5 * (TOKENS - 1)
    said = " ".join(advice(launch, numbers.measure(launch)))
    assert "Engine core with the worker inside (executor uni)" in said
    assert "Worker:" not in said
    warned = [line for line in server.said().splitlines() if "cannot act" in line]
    assert len(warned) == 1
    assert "set REPRO_ENGINE_POLICY=no-freeze" in warned[0]
    assert cli.main(["check", str(folder)]) == 0
    assert "worker inside" in capsys.readouterr().out


@pytest.fixture(scope="module")
def multi_port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Path]]:
    """Two data-parallel ranks of a mixture of experts, an API server with its own port for each.

    An experiment's switch supplies the collectives that vLLM's CPU communicator lacks.
    """
    folder = tmp_path_factory.mktemp("ports") / "recording"
    options = {"model": str(MODELS / "tiny-moe"), "data-parallel-size": "2"}
    options |= {"data-parallel-size-local": "2"}
    words = [part for name, value in options.items() for part in (f"--{name}", value)]
    made = Server(
        folder.parent / "log",
        [*words, "--data-parallel-multi-port-external-lb"],
        ports=2,
        VLLM_CPU_OMP_THREADS_BIND="0|1",
        REPRO_FRONTEND_POLICY="freeze-thresholds",
        **{plugin.RECORD_DIR: str(folder), plugin.STRICT: "1"},
    )
    yield made, folder
    made.end()


def test_an_api_server_per_rank(
    multi_port: tuple[Server, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    server, folder = multi_port
    for rank in range(2):
        ask(server, server.port + rank)
    launch = only_launch(folder)
    assert [m.label for m in launch.members if m.role in SERVING] == [
        *("front end APIServer_DPRank_0", "front end APIServer_DPRank_1"),
        *("engine core 0", "engine core 1", "worker 0", "worker 1"),
    ]
    assert [m.rank for m in launch.of("frontend")] == [0, 1]
    assert len(launch.of(LAUNCHER)) >= 1, "the supervisor serves nobody"
    found = numbers.measure(launch)
    assert found.groups == [(0, 1)]
    shares = numbers.front_end_shares(launch, found)
    assert all(0.2 < share < 0.8 for share in shares.values()), "each was asked as much"
    for source in (str(folder), f"http://127.0.0.1:{server.port}"):
        assert cli.main(["check", source]) == 0
        assert "policy freeze-thresholds asked for" in capsys.readouterr().out


def test_each_port_counts_its_own_processes(multi_port: tuple[Server, Path]) -> None:
    server, folder = multi_port
    before = recorded(folder)
    scraped = [pauses_by_server(server, server.port + rank) for rank in range(2)]
    after = recorded(folder)
    for rank, counted in enumerate(scraped):
        name = f"APIServer_DPRank_{rank}"
        assert set(counted) == {(role, str(rank), name) for role in SERVING}
        for who, number in counted.items():
            assert before[who] <= number <= after[who]


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Path]]:
    """Two API servers on one port that share one engine."""
    folder = tmp_path_factory.mktemp("several") / "recording"
    made = Server(
        folder.parent / "log", ["--api-server-count", "2"], **{plugin.RECORD_DIR: str(folder)}
    )
    yield made, folder
    made.end()


def test_several_api_servers_on_one_port(several: tuple[Server, Path]) -> None:
    server, folder = several
    ask(server, server.port)
    launch = only_launch(folder)
    assert [m.label for m in launch.of("frontend")] == [
        *("front end ApiServer_0", "front end ApiServer_1")
    ]
    shares = numbers.front_end_shares(launch, numbers.measure(launch))
    assert sum(shares.values()) == pytest.approx(1)
    before, counted = recorded(folder), pauses_by_server(server, server.port)
    assert set(counted) == set(before), "whichever answers counts all, the launcher left out"
    assert all(number >= before[who] for who, number in counted.items())
