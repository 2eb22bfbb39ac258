"""The parameters of a run: what is allowed, and the one line for what is not."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from repro.dataset.stored import documents, is_campaign
from repro.experiment.config import MODELS, ConfigError, Experiment
from repro.experiment.fields import described, parameters
from repro.experiment.grid import PARAMETERS, grid, options

DATA = Path(__file__).parent.parent / "data"


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"concurrency": 0}, r"concurrency 0: allowed is a whole number from 1 \(requests\)"),
        ({"concurrency": 1025}, r"concurrency 1025: allowed is 1 to 1024; .*raise max_num_seqs"),
        (
            {"model": "no-such-model"},
            r"'no-such-model'.*deep, .*mla-moe, moe, small, tiny, tiny-moe",
        ),
        ({"backlog": 8}, r"backlog 8: allowed is 0; use client 'async_engine'"),
        ({"executor": "uni", "policy": "disable"}, r"'disable' with executor 'uni'.*engine_policy"),
        ({"logprobs": 21}, r"logprobs 21: allowed is a whole number from 0 to 20"),
        ({"logprobs": 1, "client": "serve"}, r"only client 'engine' has it"),
        (
            {"structured_output": True, "client": "async_engine"},
            r"structured_output True with client 'async_engine': only client 'engine' has it",
        ),
        ({"speculative": "medusa"}, r"speculative 'medusa': choose one of none, ngram"),
        ({"output_chunk": 64}, r"output_chunk 64 with client 'engine': only client 'serve' has"),
        (
            {"output_chunk": -1, "client": "serve"},
            r"output_chunk -1: allowed is .* from 0",
        ),
        (
            {"output_handler": "fair"},
            r"output_handler fair with client 'engine': only client 'serve'",
        ),
        ({"output_handler": "unfair", "client": "serve"}, r"choose one of vllm, fair"),
        ({"output_yield_ms": -1, "client": "serve"}, r"output_yield_ms -1: allowed is .* from 0"),
        (
            {"output_yield_ms": 5, "output_handler": "fair", "client": "serve"},
            r"output_yield_ms 5 with output_handler 'fair'.*leave one of them out",
        ),
        ({"runner": "v3"}, r"runner 'v3': choose one of auto, v1, v2"),
        (
            {"vllm_args": '{"max_num_seqs": 8}'},
            r"vllm_args 'max_num_seqs': set the parameter max_num",
        ),
        ({"vllm_args": '{"distributed_executor_backend": "mp"}'}, r"set the parameter executor"),
        (
            {"vllm_args": '{"speculative_config": {}}', "speculative": "ngram"},
            r"set the parameter speculative instead",
        ),
        ({"executor": "ray"}, r"executor 'ray': choose one of mp, uni"),
        ({"client": "curl"}, r"client 'curl'"),
        ({"device": "tpu"}, r"device 'tpu'"),
        ({"duration_s": 0}, r"duration_s 0"),
        ({"duration_s": float("nan")}, r"duration_s nan"),
        (
            {"output_tokens": (1, 5)},
            r"output_tokens 1: allowed is two whole .* from 2",
        ),
        ({"output_tokens": (9, 5)}, r"output_tokens 9,5: give the shorter"),
        ({"max_cudagraph_capture_size": 0}, r"max_cudagraph_capture_size 0: allowed is .* from 1"),
        ({"data_parallel_size": 2}, r"client 'engine' drives one rank; use client 'async_engine'"),
        ({"tensor_parallel_size": 2, "client": "serve"}, r"client 'serve' drives one rank"),
        ({"data_parallel_size": 0}, r"data_parallel_size 0: allowed is a whole number from 1"),
        (
            {"tensor_parallel_size": 2, "client": "async_engine", "executor": "uni"},
            r"executor 'uni' holds one rank",
        ),
        ({"enable_expert_parallel": True}, r"enable_expert_parallel with one rank: raise"),
    ],
)
def test_a_value_outside_is_one_line(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named) as raised:
        Experiment(**fields)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("process", ["policy", "engine_policy", "frontend_policy"])
def test_an_unknown_policy_is_refused(process: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{process} 'freez': choose one of stock, no-freeze"):
        Experiment(**{process: "freez"})


def test_a_front_end_of_our_own_is_frozen_unless_told_otherwise() -> None:
    assert Experiment(policy="disable").policies == {
        "frontend": "freeze",
        "engine": "stock",
        "worker": "disable",
    }
    assert Experiment(frontend_policy="no-freeze").policies["frontend"] == "no-freeze"


def test_runs_of_before_keep_their_names() -> None:
    """Of the data that exist: a parameter added later must not change them."""
    campaigns = map(documents, filter(is_campaign, DATA.iterdir()))
    for document in itertools.chain.from_iterable(campaigns):
        recorded = document["experiment"]
        assert recorded.pop("identical_streams", False) is False, "a parameter of before"
        made = Experiment.from_dict(recorded)
        assert document["run_id"] == f"{document['versions']['vllm']}-{made.run_id}"


def test_a_folder_without_a_config_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no config\.json"):
        Experiment(model=str(tmp_path))


def test_an_unknown_parameter_names_the_known() -> None:
    with pytest.raises(ConfigError, match=r"'concurency'.*concurrency"):
        Experiment.from_dict({"concurency": 5})


def test_shipped_models_run_with_dummy_weights() -> None:
    shipped = {folder.name for folder in MODELS.iterdir()}
    assert shipped == {"tiny", "small", "dense-0.6b", "deep", "moe", "tiny-moe", "mla-moe"}
    assert all(Experiment(model=folder.name).dummy_weights for folder in MODELS.iterdir())
    assert not Experiment(model="Qwen/Qwen3-0.6B").dummy_weights


def test_an_experiment_survives_json() -> None:
    made = Experiment(policy="freeze", output_tokens=(3, 9), concurrency=7)
    assert Experiment.from_dict(dataclasses.asdict(made)) == made


def test_any_other_parameter_gives_another_run() -> None:
    names = {Experiment(seed=seed, duration_s=s).run_id for seed in (0, 1) for s in (5.0, 6.0)}
    assert len(names) == 4


def test_an_arm_may_name_a_policy_for_each_process() -> None:
    arms = grid(policies=["freeze", "freeze/stock/freeze-again"], replicates=1)
    assert [(e.policy, e.engine_policy, e.frontend_policy) for e in arms] == [
        ("freeze", "stock", "stock"),
        ("freeze", "stock", "freeze-again"),
    ]
    assert "frontend-freeze-again" in arms[1].run_id
    with pytest.raises(ConfigError, match=r"worker/engine core/front end"):
        grid(policies=["freeze/stock/stock/stock"])


def test_a_grid_spans_several_loads() -> None:
    made = grid(policies=["stock"], concurrency=[128, 512], replicates=1)
    assert [e.concurrency for e in made] == [128, 512]


def test_a_grid_goes_on_numbering() -> None:
    first = grid(policies=["freeze", "stock"], replicates=2)
    second = grid(policies=["freeze", "stock"], replicates=1, first_replicate=2)
    assert [e.replicate for e in first + second] == [0, 0, 1, 1, 2, 2]
    assert len({e.run_id for e in first + second}) == 6


CAPTURE = {"client": "capture", "policy": "no-freeze"}
AGAIN = {**CAPTURE, "recaptures": 2, "recapture_policies": ("gc-on", "frozen")}


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({**AGAIN, "recaptures": -1}, r"recaptures -1: allowed is a whole number from 0"),
        ({**AGAIN, "recaptures": 0}, r"recaptures 0 under 2 recapture_policies: give both, or"),
        ({**CAPTURE, "recaptures": 2}, r"recaptures 2 under 0 recapture_policies: give both, or"),
        ({**AGAIN, "recapture_policies": ("frozen",) * 2}, r"frozen,frozen: name each once"),
        ({**AGAIN, "client": "engine"}, r"recaptures 2 with client 'engine': use client 'capture'"),
        ({**CAPTURE, "policy": "stock"}, r"policy 'stock' with client 'capture': use 'no-freeze'"),
        ({**CAPTURE, "policy": "freeze"}, r"policy 'freeze' with client 'capture': use 'no-fre"),
        ({**CAPTURE, "enforce_eager": True}, r"enforce_eager with client 'capture': no CUDA graph"),
        ({**CAPTURE, "device": "cpu"}, r"device 'cpu' with client 'capture': no CUDA graph"),
    ],
)
def test_a_capture_that_cannot_be_had_is_one_line(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named) as raised:
        Experiment(**fields)
    assert "\n" not in str(raised.value)


def test_an_unknown_policy_to_capture_under_is_refused() -> None:
    with pytest.raises(
        ConfigError, match="recapture_policies 'gc-off': choose one of stock, gc-on"
    ):
        Experiment(**{**AGAIN, "recapture_policies": ("gc-off",)})


def test_a_run_that_captures_survives_json_and_drives_no_load() -> None:
    made = Experiment(**AGAIN, capture_policy="gc-on")
    assert Experiment.from_dict(json.loads(json.dumps(dataclasses.asdict(made)))) == made
    assert (made.load_s, made.needs_graphs) == (0, True)
    assert made.run_id.startswith("no-freeze-gc-on-capture-r0-")
    assert (Experiment(duration_s=9).load_s, Experiment().needs_graphs) == (9, False)
    assert Experiment(capture_policy="gc-on").needs_graphs


def test_one_process_captures_under_all_policies_and_starts_up_by_turns() -> None:
    names = ["gc-on", "frozen", "collect-per-graph"]
    made = grid(client="capture", capture_policies=names, recaptures=5, replicates=4)
    assert [e.capture_policy for e in made] == [*names, "gc-on"]
    assert {e.recapture_policies for e in made} == {tuple(names)}
    assert {(e.recaptures, e.policy) for e in made} == {(5, "no-freeze")}
    assert len({e.run_id for e in made}) == 4


def test_without_recaptures_each_policy_has_a_process_of_its_own() -> None:
    made = grid(client="capture", capture_policies=["gc-on", "frozen"], replicates=2)
    assert [e.capture_policy for e in made] == ["gc-on", "frozen"] * 2
    assert {(e.recaptures, e.recapture_policies) for e in made} == {(0, ())}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("output_tokens", bad) for bad in ("16", "a,b", "1,2,3", "", [64], 64)],
        *[("concurrency", bad) for bad in (0, 1.5, True, "many", None)],
        *[("duration_s", bad) for bad in ("", "soon", True, None, 0)],
        *[("enforce_eager", bad) for bad in ("yes", 1)],
        *[("model", bad) for bad in (3, None)],
        *[("vllm_args", bad) for bad in ("{", "[1]", "enable_eplb", 3, None)],
        ("policies", ["freeze", "freeze"]),
    ],
)
def test_a_value_of_another_kind_is_one_line(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"^{name} .*(allowed is|name each once)") as raised:
        grid(**{name: value})
    assert "\n" not in str(raised.value)


def test_text_is_read_as_what_it_means() -> None:
    (made,) = grid(
        policies="[freeze]",
        concurrency="[64]",
        output_tokens=" 8, 9 ",
        duration_s="5",
        replicates="1",
    )
    assert made == Experiment(policy="freeze", concurrency=64, output_tokens=(8, 9), duration_s=5.0)
    assert type(made.duration_s) is float, "else equal parameters would name two runs"


def test_equal_engine_arguments_name_one_run() -> None:
    one, other = '{"b": {"c": 1}, "a": true}', {"a": True, "b": {"c": 1}}
    (of_text,), (of_object,) = (
        grid(policies="freeze", replicates=1, vllm_args=a) for a in (one, other)
    )
    assert of_text == of_object
    assert of_text.run_id != Experiment(policy="freeze").run_id


def test_every_parameter_is_described() -> None:
    fields = {**PARAMETERS, **parameters(Experiment)}
    assert all(described(field) for field in fields.values())


@pytest.mark.parametrize(
    "asked",
    [
        {"policies": "freeze/stock/freeze-again", "concurrency": 7, "enforce_eager": True},
        {
            "client": "serve",
            "output_chunk": 64,
            "output_yield_ms": 2.5,
            "first_replicate": 3,
            "output_tokens": (3, 9),
        },
        {"vllm_args": {"eplb_config": {"window_size": 200}, "enable_eplb": True}},
        {"client": "capture", "capture_policies": "gc-on", "max_cudagraph_capture_size": 8},
        {"client": "capture", "capture_policies": "gc-on,frozen", "recaptures": 3},
    ],
)
def test_a_runs_options_measure_that_run(asked: dict[str, Any]) -> None:
    from repro.cli import parser

    (made,) = grid(**{"policies": "no-freeze", **asked, "replicates": 1})
    parsed = vars(parser().parse_args(["run", "folder", *options(made)]))
    again = {name: parsed[name] for name in PARAMETERS if parsed[name] is not None}
    assert grid(**again) == [made]


def test_concurrency_is_a_ranks_own() -> None:
    made = Experiment(
        client="async_engine", tensor_parallel_size=2, data_parallel_size=4, concurrency=100
    )
    assert (made.ranks, made.in_flight) == (8, 400)
    assert "-tp2-dp4-c100-" in made.run_id


def test_a_parameter_added_later_renames_no_run() -> None:
    """As in `data/`: the hash is of what is not at its default."""
    assert Experiment(policy="no-freeze").run_id.startswith("no-freeze-c1024-r0-")
    explicit = Experiment(policy="no-freeze", data_parallel_size=1, runner="auto")
    assert explicit.run_id == Experiment(policy="no-freeze").run_id
