"""`Experiment`: the parameters of one run, each described by its field, and their validation."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from repro import policy
from repro.experiment.fields import (
    ConfigError,
    JsonObject,
    as_text,
    check,
    parameter,
    parameters,
    read_all,
)

__all__ = ["ConfigError", "Experiment"]

MODELS = Path(__file__).parent / "models"
"""Model configs shipped with the package; run with random weights, nothing is downloaded."""

SHIPPED = sorted(folder.name for folder in MODELS.iterdir() if folder.is_dir())

WEIGHTS = ("safetensors", "bin", "pt", "pth", "gguf")

OUTPUT_HANDLERS = ("vllm", "fair")
CLIENTS = ("engine", "async_engine", "serve", "capture")
EXECUTORS = ("mp", "uni")
SERVING, CAPTURE = tuple(policy.SERVING), tuple(policy.CAPTURE)
LOADLESS = ("capture",)
"""Clients that put no load on the engine."""

DRIVERS = ("engine", "async_engine")
"""Clients that drive the load in the front end's own process: there full collections of a heap
that vLLM leaves unfrozen would swamp the worker's."""


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One run: one policy, one engine, one load; `ConfigError` if a value is not allowed.

    The fields' order is that of an arm's label.
    """

    policy: str = parameter("stock", "policy of the workers", choices=SERVING)
    engine_policy: str = parameter("stock", "policy of the engine core", choices=SERVING)
    frontend_policy: str = parameter("stock", "see `Experiment.policies`", choices=SERVING)
    model: str = parameter("tiny", f"{', '.join(SHIPPED)}, a folder or a hub name", label="{}")
    device: str = parameter("auto", "auto: a GPU if there is one", choices=("auto", "cuda", "cpu"))
    client: str = parameter("engine", "what drives the load", choices=CLIENTS, label="{}")
    executor: str = parameter(
        "mp", "worker in a process of its own or in the engine core", choices=EXECUTORS, label="{}"
    )
    tensor_parallel_size: int = parameter(
        1, "ranks that share each request", at_least=1, label="TP{}"
    )
    data_parallel_size: int = parameter(
        1, "ranks, or groups of them, with requests of their own", at_least=1, label="DP{}"
    )
    enable_expert_parallel: bool = parameter(
        False, "whole experts on each rank instead of a slice of each", label="EP={}"
    )
    enforce_eager: bool = parameter(False, "neither compile nor capture", label="eager={}")
    max_cudagraph_capture_size: int | None = parameter(
        None, "largest batch captured; None: vLLM's choice", unit="tokens", at_least=1
    )
    concurrency: int = parameter(
        1024, "in flight per rank", unit="requests", at_least=1, label="{}", load=True
    )
    prompt_tokens: int = parameter(
        16, "length of every prompt", unit="tokens", at_least=1, label="prompt {}", load=True
    )
    output_tokens: tuple[int, int] = parameter(  # an ITL needs two tokens
        (16, 64), "shortest,longest answer", unit="tokens", at_least=2, label="output {}", load=True
    )
    logprobs: int = parameter(
        0, "returned with each token", at_least=0, at_most=20, label="{} logprobs", load=True
    )
    structured_output: bool = parameter(
        False, "answers held to a regular expression", label="structured={}", load=True
    )
    speculative: str = parameter(
        "none", "tokens proposed", choices=("none", "ngram"), label="speculative {}", load=True
    )
    backlog: int = parameter(
        0, "waiting in each engine core", unit="requests", at_least=0, label="backlog {}", load=True
    )
    max_num_seqs: int = parameter(
        1024, "vLLM's limit per step", unit="requests", at_least=1, label="of {}"
    )
    runner: str = parameter(
        "auto", "vLLM's model runner", choices=("auto", "v1", "v2"), label="runner {}"
    )
    vllm_args: JsonObject = parameter(  # noqa: RUF009 (a text cannot be changed either)
        "{}", "further engine arguments of vLLM as one JSON object", label="{}"
    )
    capture_policy: str = parameter("stock", "at start-up", choices=CAPTURE, label="{}")
    recaptures: int = parameter(0, "per capture policy, in one process", at_least=0)
    recapture_policies: tuple[str, ...] = parameter((), "of the recaptures", choices=CAPTURE)
    switch_s: float = parameter(
        0.0,
        "period of policy alternate; none under 1 s begins with a collection",
        unit="s",
        at_least=0,
        label="every {:g} s",
    )
    output_chunk: int = parameter(
        0, "per turn of the API server; 0: vLLM's", unit="outputs", at_least=0, label="chunk {}"
    )
    output_handler: str = parameter(
        "vllm", "fair: yields after every message", choices=OUTPUT_HANDLERS, label="{} handler"
    )
    output_yield_ms: float = parameter(
        0.0, "the output handler yields after; 0: vLLM's", unit="ms", at_least=0, label="yield {:g}"
    )
    duration_s: float = parameter(60.0, "measured, after the ramp", unit="s", at_least=1)
    seed: int = parameter(0, "of lengths, prompts and order")
    replicate: int = parameter(0, "number of the repetition, part of the seed", at_least=0)

    def __post_init__(self) -> None:
        for name, field in parameters(self).items():
            check(field, getattr(self, name))
        self._check_policies()
        self._check_load()
        self._check_switch()
        self._check_ranks()
        self._check_capturing()
        self._check_vllm_args()
        _ = self.model_path

    def _check_policies(self) -> None:
        """Refuses policies that a process or an executor cannot have."""
        if policy.ALTERNATE in (self.engine_policy, self.frontend_policy):
            raise ConfigError("policy 'alternate' is for workers: name another for this process")
        if self.executor == "uni" and not policy.serving(self.policy).only_freezes:
            raise ConfigError(
                f"policy {self.policy!r} with executor 'uni': the worker lives in the engine core; "
                "set engine_policy instead"
            )

    def _check_load(self) -> None:
        """The load fits the engine, and the client can ask for it."""
        full = self.client == "async_engine" and self.concurrency == self.max_num_seqs
        if self.backlog and not full:
            raise ConfigError(
                f"backlog {self.backlog}: allowed is 0; use client 'async_engine' with concurrency "
                "equal to max_num_seqs"
            )
        if self.concurrency > self.max_num_seqs:
            raise ConfigError(
                f"concurrency {self.concurrency}: allowed is 1 to {self.max_num_seqs}; "
                "keep fewer requests in flight or raise max_num_seqs"
            )
        shortest, longest = self.output_tokens
        if shortest > longest:
            raise ConfigError(
                f"output_tokens {as_text(self.output_tokens)}: give the shorter length first"
            )
        only = {"logprobs": "engine", "structured_output": "engine", "output_chunk": "serve"}
        only |= {"output_handler": "serve", "output_yield_ms": "serve"}
        for name, client in only.items():
            usual = parameters(self)[name].default
            if getattr(self, name) != usual and self.client != client:
                raise ConfigError(
                    f"{name} {getattr(self, name)} with client {self.client!r}: only client "
                    f"{client!r} has it"
                )

        if self.output_yield_ms and self.output_handler == "fair":
            raise ConfigError(
                f"output_yield_ms {self.output_yield_ms:g} with output_handler 'fair', which "
                "yields after every message: leave one of them out"
            )

    def _check_switch(self) -> None:
        """A cross-over has as many periods with the freeze as without, of one length."""
        if self.policy != policy.ALTERNATE:
            if self.switch_s:
                raise ConfigError(f"switch_s {self.switch_s}: only policy 'alternate' switches")
            return
        if self.client != "engine":
            raise ConfigError(f"client {self.client!r}: policy 'alternate' needs client 'engine'")
        if not self.switch_s > 0 or self.duration_s % (2 * self.switch_s):
            raise ConfigError(
                f"switch_s {self.switch_s}: duration_s {self.duration_s} must be an even number of "
                "periods of that length; where full collections come, several must fit into one"
            )

    def _check_ranks(self) -> None:
        """Options that need several ranks, and those that need one."""
        if self.ranks > 1 and self.client != "async_engine":
            raise ConfigError(
                f"tensor_parallel_size {self.tensor_parallel_size}, data_parallel_size "
                f"{self.data_parallel_size}: client {self.client!r} drives one rank; "
                "use client 'async_engine'"
            )
        if self.ranks > 1 and self.executor == "uni":
            raise ConfigError("executor 'uni' holds one rank: use executor 'mp' for several")
        if self.enable_expert_parallel and self.ranks == 1:
            raise ConfigError(
                "enable_expert_parallel with one rank: raise data_parallel_size or "
                "tensor_parallel_size"
            )

    def _check_capturing(self) -> None:
        """Options of client `capture`, which no other client has, and what it needs."""
        again, times = self.recapture_policies, self.recaptures
        if bool(times) != bool(again):
            raise ConfigError(
                f"recaptures {times} under {len(again)} recapture_policies: give both, or neither"
            )
        if self.client != "capture":
            if times:
                raise ConfigError(
                    f"recaptures {times} with client {self.client!r}: use client 'capture', a "
                    "load runs on the graphs of start-up"
                )
            return
        if self.policy != "no-freeze":
            raise ConfigError(
                f"policy {self.policy!r} with client 'capture': use 'no-freeze', a capture ends "
                "before a worker freezes, and a frozen heap would change the next one"
            )
        if self.enforce_eager or self.device == "cpu":
            what = "enforce_eager" if self.enforce_eager else "device 'cpu'"
            raise ConfigError(
                f"{what} with client 'capture': no CUDA graph is captured; leave it out"
            )

    def _check_vllm_args(self) -> None:
        """Nothing is set twice, once as a parameter and once as an argument of vLLM."""
        own = {name: name for name in parameters(self)}
        own |= {"distributed_executor_backend": "executor"}
        if self.speculative != "none":
            own |= {"speculative_config": "speculative"}
        for name in json.loads(self.vllm_args):
            if name in own:
                raise ConfigError(
                    f"vllm_args {name!r}: set the parameter {own[name]} instead, or leave it out"
                )

    @property
    def ranks(self) -> int:
        """Workers: tensor-parallel times data-parallel ranks."""
        return self.tensor_parallel_size * self.data_parallel_size

    @property
    def in_flight(self) -> int:
        """Requests kept in flight on all ranks together."""
        return self.concurrency * self.data_parallel_size

    @property
    def model_path(self) -> str:
        """The model as vLLM is given it: a shipped config's folder, a path, or a hub name."""
        return find_model(self.model)

    @property
    def dummy_weights(self) -> bool:
        """Whether the model is a config alone, to be run with random weights."""
        folder = Path(self.model_path)
        return folder.is_dir() and not any(any(folder.glob(f"*.{kind}")) for kind in WEIGHTS)

    @property
    def load_s(self) -> float:
        """Seconds of load that follow the ramp; none with a client that drives none."""
        return 0.0 if self.client in LOADLESS else self.duration_s

    @property
    def needs_graphs(self) -> bool:
        """Whether the run is about CUDA graphs, which take a GPU."""
        return self.client == "capture" or self.capture_policy != "stock"

    @property
    def max_model_len(self) -> int:
        """Longest prompt and answer together, in tokens."""
        return self.prompt_tokens + self.output_tokens[1]

    @property
    def policies(self) -> dict[str, str]:
        """The policy of each process, by its role in the data.

        Where the client is the front end (`DRIVERS`), `stock` there is frozen, as vLLM's API
        server freezes itself.
        """
        frozen = self.client in DRIVERS and self.frontend_policy == "stock"
        return {
            "frontend": "freeze" if frozen else self.frontend_policy,
            "engine": self.engine_policy,
            "worker": self.policy,
        }

    @property
    def output_yield(self) -> str:
        """The bound of the output handler in ms, as its hook reads it; empty: vLLM's handler."""
        if self.output_handler == "fair":
            return "0"
        return f"{self.output_yield_ms:g}" if self.output_yield_ms else ""

    @property
    def run_id(self) -> str:
        """Name of the run's folder: readable, and different for any different parameter.

        Of the parameters that are not at their default, so that one added later changes no name.
        """
        usual = {name: field.default for name, field in parameters(self).items()}
        unusual = {k: v for k, v in dataclasses.asdict(self).items() if v != usual[k]}
        digest = hashlib.sha256(json.dumps(unusual, sort_keys=True).encode()).hexdigest()[:6]
        load = [] if self.client in LOADLESS else [f"c{self.concurrency}"]
        parts = [self.policy, *load, f"r{self.replicate}", digest]
        if self.client != "engine":
            parts.insert(1, self.client)
        if self.executor != "mp":
            parts.insert(1, self.executor)
        if self.capture_policy != "stock":
            parts.insert(1, self.capture_policy)
        for process, name in (("frontend", self.frontend_policy), ("engine", self.engine_policy)):
            if name != "stock":
                parts.insert(1, f"{process}-{name}")
        sizes = {"tp": self.tensor_parallel_size, "dp": self.data_parallel_size}
        parts[-3:-3] = [f"{name}{size}" for name, size in sizes.items() if size > 1]
        return "-".join(parts)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Experiment:
        """The experiment with these parameters, as `run.json` holds them, read by `read_all`."""
        return cls(**read_all(parameters(cls), values))


def find_model(model: str) -> str:
    """The path or hub name vLLM is given for `model`.

    Raises
    ------
    ConfigError
        If it names no shipped config and is a folder without `config.json`, or no hub name.
    """
    if model in SHIPPED:
        return str(MODELS / model)
    folder = Path(model)
    if (folder / "config.json").is_file() or (not folder.exists() and model.count("/") == 1):
        return model
    raise ConfigError(
        f"model {model!r} has no config.json: choose {', '.join(SHIPPED)}, "
        "a folder that holds a config.json, or a hub name like Qwen/Qwen3-0.6B"
    )
