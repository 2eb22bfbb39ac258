"""`Experiment`: the parameters of one run, validated, and nothing else."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from repro import policy

MODELS = Path(__file__).parent / "models"
"""Model configs shipped with the package; run with random weights, nothing is downloaded."""

WEIGHTS = ("safetensors", "bin", "pt", "pth", "gguf")

CLIENTS = ("engine", "async_engine", "serve", "capture")
LOADLESS = ("capture",)
"""Clients that put no load on the engine."""

DRIVERS = (
    "engine",
    "async_engine",
)
"""Clients that drive the load in the front end's own process: there full collections of a heap
that vLLM leaves unfrozen would swamp the worker's."""

TUPLES = ("output_tokens", "recapture_policies")
EXECUTORS = ("mp", "uni")
SPECULATIVE = ("none", "ngram")
RUNNERS = ("auto", "v1", "v2")
DEVICES = ("auto", "cuda", "cpu")


class ConfigError(ValueError):
    """A parameter outside what is allowed; the message names value, choices and remedy."""


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One run: one policy, one engine, one load.

    Attributes
    ----------
    policy, engine_policy, frontend_policy : str
        What worker, engine core and front end do with their collectors: names out of
        `repro.policy.SERVING`. Where the client is the front end itself (`DRIVERS`), `stock`
        there means frozen, as vLLM's API server freezes itself: see `policies`.
    capture_policy : str
        Name out of `repro.policy.CAPTURE`.
    client : str
        What drives the load: `engine` calls `LLMEngine.step` in the front end itself;
        `async_engine` feeds every data-parallel rank, and is the one for several ranks; `serve` is
        `vllm bench serve` against an OpenAI-compatible server. `capture` drives none: it measures
        CUDA graph captures, and the parameters of the load mean nothing.
    executor : str
        `mp`: the worker is a process of its own. `uni`: it lives inside the engine core.
    model : str
        A config shipped with the package (`tiny`, `small`, `dense-0.6b`, `deep`, `moe`, `tiny-moe`
        for many CPU ranks, `mla-moe` after DeepSeek), or the path or name of any model vLLM loads.
        `small` is for HTTP on a few CPU cores: its steps
        take so long that API server and client keep up with 1,024 in flight.
    device : str
        `auto` takes CUDA where there is a GPU, else vLLM's CPU backend.
    concurrency : int
        Requests kept in flight on each data-parallel rank, 1 … `max_num_seqs`; `in_flight` counts
        those of all ranks.
    backlog : int
        With client `async_engine`: requests that wait in each engine core beside those in flight,
        so that no step waits for the front end; takes `concurrency` equal to `max_num_seqs`.
    max_num_seqs : int
        vLLM's own limit of requests in one step; 1024 is its default on a large GPU.
    tensor_parallel_size, data_parallel_size : int
        Ranks that share each request, and ranks (or groups of the former) with requests of their
        own. Data-parallel ranks of a dense model never wait for each other, those of a mixture of
        experts do in every step.
    enable_expert_parallel : bool
        Whole experts on each rank, instead of a slice of every expert.
    identical_streams : bool
        Every data-parallel rank gets the same requests in the same order, not requests of its own.
    enforce_eager : bool
        Neither compile nor capture.
    max_cudagraph_capture_size : int or None
        Largest batch to capture graphs for, in tokens; None is vLLM's own choice, at most 512.
    prompt_tokens : int
        Length of every prompt.
    output_tokens : tuple of int
        Shortest and longest answer; lengths are drawn uniformly between them.
    logprobs : int
        Log probabilities to return with each token; 0: none.
    structured_output : bool
        Constrain every answer by a regular expression, one that never ends an answer early; takes
        client `engine`.
    speculative : str
        `ngram`: propose tokens by looking them up in prompt and answer.
    runner : str
        vLLM's model runner, `v1` or `v2`; `auto` leaves the choice to vLLM.
    output_chunk : int
        With client `serve`: outputs of one step that the API server's output handler processes
        before it lets its event loop go on; 0 is vLLM's own choice, 128.
    duration_s : float
        Length of the measured window, after the ramp.
    switch_s : float
        With policy `alternate`: length of each period, a whole part of `duration_s`; else 0.
    recaptures : int
        With client `capture`: how often to capture again under each of `recapture_policies`, in
        the process that captured under `capture_policy` at start-up.
    recapture_policies : tuple of str
        Names out of `repro.policy.CAPTURE`.
    seed, replicate : int
        Seed of lengths, prompts and order; which repetition this is (part of the seed).

    Raises
    ------
    ConfigError
        If a value is not allowed.
    """

    policy: str = "stock"
    engine_policy: str = "stock"
    frontend_policy: str = "stock"
    capture_policy: str = "stock"
    client: str = "engine"
    executor: str = "mp"
    model: str = "tiny"
    device: str = "auto"
    concurrency: int = 1024
    backlog: int = 0
    max_num_seqs: int = 1024
    tensor_parallel_size: int = 1
    data_parallel_size: int = 1
    enable_expert_parallel: bool = False
    identical_streams: bool = False
    enforce_eager: bool = False
    max_cudagraph_capture_size: int | None = None
    prompt_tokens: int = 16
    output_tokens: tuple[int, int] = (16, 64)
    logprobs: int = 0
    structured_output: bool = False
    speculative: str = "none"
    runner: str = "auto"
    output_chunk: int = 0
    duration_s: float = 60.0
    switch_s: float = 0.0
    recaptures: int = 0
    recapture_policies: tuple[str, ...] = ()
    seed: int = 0
    replicate: int = 0

    def __post_init__(self) -> None:
        for name in (self.policy, self.engine_policy, self.frontend_policy):
            policy.serving(name)
        policy.capture(self.capture_policy)
        _choice("client", self.client, CLIENTS)
        _choice("executor", self.executor, EXECUTORS)
        _choice("device", self.device, DEVICES)
        _choice("speculative", self.speculative, SPECULATIVE)
        _choice("runner", self.runner, RUNNERS)
        _within("logprobs", self.logprobs, 0, 20, "20 is what vLLM returns at most by default")
        if policy.ALTERNATE in (self.engine_policy, self.frontend_policy):
            raise ConfigError("policy 'alternate' is one of workers: name another for this process")
        for name in ("logprobs", "structured_output"):
            if getattr(self, name) and self.client != "engine":
                raise ConfigError(
                    f"{name} {getattr(self, name)} with client {self.client!r}: only client "
                    "'engine' asks for it"
                )
        if self.executor == "uni" and not policy.serving(self.policy).only_freezes:
            raise ConfigError(
                f"policy {self.policy!r} with executor 'uni': the worker lives in the engine core; "
                "set engine_policy instead"
            )
        sizes = ("tensor_parallel_size", "data_parallel_size")
        for name in ("max_num_seqs", "prompt_tokens", *sizes):
            _within(name, getattr(self, name), 1, None, "set a positive whole number")
        _within(
            "concurrency",
            self.concurrency,
            1,
            self.max_num_seqs,
            "keep fewer requests in flight or raise max_num_seqs",
        )
        _within("duration_s", self.duration_s, 1, None, "measure for at least a second")
        _within("replicate", self.replicate, 0, None, "count replicates from 0")
        most = None if self.client == "serve" else 0
        _within("output_chunk", self.output_chunk, 0, most, "only client 'serve' has the handler")
        self._check_switch()
        self._check_ranks()
        if self.max_cudagraph_capture_size is not None:
            largest = self.max_cudagraph_capture_size
            _within("max_cudagraph_capture_size", largest, 1, None, "or leave it out")
        _check_capturing(self)
        shortest, longest = self.output_tokens
        if not 2 <= shortest <= longest:
            raise ConfigError(
                f"output_tokens {self.output_tokens}: give (shortest, longest) with "
                "2 <= shortest <= longest, an ITL needs two tokens"
            )
        _ = self.model_path

    def _check_switch(self) -> None:
        """A cross-over has as many periods with the freeze as without, of one length."""
        if self.policy != policy.ALTERNATE:
            _within("switch_s", self.switch_s, 0, 0, "only policy 'alternate' switches")
            return
        if self.client != "engine":
            raise ConfigError(f"client {self.client!r}: policy 'alternate' needs client 'engine'")
        if not self.switch_s > 0 or self.duration_s % (2 * self.switch_s):
            raise ConfigError(
                f"switch_s {self.switch_s}: duration_s {self.duration_s} must be an even number of "
                "periods of that length; several full collections must fit into one"
            )

    def _check_ranks(self) -> None:
        """What only several ranks can do, and what several ranks cannot."""
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
        full = self.client == "async_engine" and self.concurrency == self.max_num_seqs
        remedy = "use client 'async_engine' with concurrency equal to max_num_seqs"
        _within("backlog", self.backlog, 0, None if full else 0, remedy)
        if self.identical_streams and self.data_parallel_size == 1:
            raise ConfigError("identical_streams with one rank: raise data_parallel_size")

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
        """What vLLM is given as its model: a shipped config's folder, a path, or a hub name."""
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
        """The policy of each process, by its role in the data."""
        frozen = self.client in DRIVERS and self.frontend_policy == "stock"
        return {
            "frontend": "freeze" if frozen else self.frontend_policy,
            "engine": self.engine_policy,
            "worker": self.policy,
        }

    @property
    def run_id(self) -> str:
        """Name of the run's folder: readable, and different for any different parameter.

        Of the parameters that are not at their default, so that one added later changes no name.
        """
        usual = {field.name: field.default for field in dataclasses.fields(self)}
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

    def to_dict(self) -> dict[str, Any]:
        """All parameters, as `run.json` holds them."""
        listed = {name: list(getattr(self, name)) for name in TUPLES}
        return {**dataclasses.asdict(self), **listed}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Experiment:
        """The experiment of `to_dict`.

        Raises
        ------
        ConfigError
            If a parameter is unknown or a value is not allowed.
        """
        names = [field.name for field in dataclasses.fields(cls)]
        if unknown := sorted(set(values) - set(names)):
            raise ConfigError(f"unknown parameter {unknown[0]!r}: known are {', '.join(names)}")
        return cls(**values | {name: tuple(values[name]) for name in TUPLES if name in values})


def grid(
    *,
    policies: Sequence[str] | None = None,
    capture_policies: Sequence[str] = ("stock",),
    concurrency: int | Sequence[int] = Experiment.concurrency,
    replicates: int = 2,
    first_replicate: int = 0,
    recaptures: int = 0,
    **fields: Any,
) -> list[Experiment]:
    """Every policy with every capture policy and concurrency, `replicates` times.

    Parameters
    ----------
    policies : sequence of str, optional
        Of the worker, or of worker, engine core and front end: `freeze/stock/freeze-again`.
        Default: `no-freeze` and `freeze`; `no-freeze` alone with client `capture`.
    capture_policies : sequence of str
    concurrency : int or sequence of int
    replicates, first_replicate : int
        Numbered from `first_replicate`, so that a second sitting can add more.
    recaptures : int
        Above 0, one process captures under all the capture policies, so many times each, instead
        of a process each; which of them it starts up under goes by turns with the replicates.
    **fields
        Of `Experiment`, shared by all.

    Returns
    -------
    list of Experiment
        Replicate by replicate, so that a campaign can shuffle inside each.

    Raises
    ------
    repro.policy.UnknownPolicy, ConfigError
        If a value is not allowed.
    """
    _within("replicates", replicates, 1, None, "measure each arm at least once")
    if policies is None:
        policies = ("no-freeze",) if fields.get("client") == "capture" else ("no-freeze", "freeze")
    numbers = range(first_replicate, first_replicate + replicates)
    if recaptures:
        fields |= {"recaptures": recaptures, "recapture_policies": capture_policies}
        by_turns = [(n, [capture_policies[n % len(capture_policies)]]) for n in numbers]
    else:
        by_turns = [(n, list(capture_policies)) for n in numbers]
    loads = [concurrency] if isinstance(concurrency, int) else concurrency
    return [
        Experiment.from_dict(
            {
                **fields,
                **by_process(serving),
                "capture_policy": capture,
                "concurrency": load,
                "replicate": replicate,
            }
        )
        for replicate, captures in by_turns
        for serving, capture, load in itertools.product(policies, captures, loads)
    ]


def by_process(policies: str) -> dict[str, str]:
    """The policy fields of an experiment from text like `freeze` or `freeze/stock/freeze-again`.

    Raises
    ------
    ConfigError
        If it names more than three.
    """
    names = policies.split("/")
    fields = ("policy", "engine_policy", "frontend_policy")
    if len(names) > len(fields):
        raise ConfigError(
            f"policies {policies!r}: give worker, or worker/engine core/front end, "
            "like freeze/stock/freeze-again"
        )
    return dict(zip(fields, names, strict=False))


def token_range(text: str) -> tuple[int, int]:
    """Shortest and longest answer from text like `16,64`.

    Raises
    ------
    ConfigError
        If it is not two whole numbers.
    """
    parts = text.split(",")
    if len(parts) != 2 or not all(part.strip().isdigit() for part in parts):
        raise ConfigError(f"output_tokens {text!r}: give shortest,longest in tokens, like 16,64")
    return int(parts[0]), int(parts[1])


def find_model(model: str) -> str:
    """The path or hub name vLLM is given for `model`.

    Raises
    ------
    ConfigError
        If it names no shipped config and is a folder without `config.json`, or no hub name.
    """
    shipped = sorted(folder.name for folder in MODELS.iterdir() if folder.is_dir())
    if model in shipped:
        return str(MODELS / model)
    folder = Path(model)
    if (folder / "config.json").is_file() or (not folder.exists() and model.count("/") == 1):
        return model
    raise ConfigError(
        f"model {model!r} has no config.json: choose {', '.join(shipped)}, "
        "a folder that holds a config.json, or a hub name like Qwen/Qwen3-0.6B"
    )


def _check_capturing(experiment: Experiment) -> None:
    """Whether what is asked of client `capture` can be had, and is asked of no other client."""
    again, times = experiment.recapture_policies, experiment.recaptures
    _within("recaptures", times, 0, None, "count them from 0, none")
    for name in again:
        policy.capture(name)
    if len(set(again)) < len(again):
        raise ConfigError(f"recapture_policies {', '.join(again)}: name each once")
    if bool(times) != bool(again):
        raise ConfigError(
            f"recaptures {times} under {len(again)} recapture_policies: give both, or neither"
        )
    if experiment.client != "capture":
        if times:
            raise ConfigError(
                f"recaptures {times} with client {experiment.client!r}: use client 'capture', a "
                "load runs on the graphs of start-up"
            )
        return
    if experiment.policy != "no-freeze":
        raise ConfigError(
            f"policy {experiment.policy!r} with client 'capture': use 'no-freeze', a capture ends "
            "before a worker freezes, and a frozen heap would change the next one"
        )
    if experiment.enforce_eager or experiment.device == "cpu":
        what = "enforce_eager" if experiment.enforce_eager else "device 'cpu'"
        raise ConfigError(f"{what} with client 'capture': no CUDA graph is captured; leave it out")


def _choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ConfigError(f"{name} {value!r}: choose one of {', '.join(choices)}")


def _within(name: str, value: float, low: float, high: float | None, remedy: str) -> None:
    if not low <= value <= (math.inf if high is None else high):  # NaN is in no range
        allowed = f"{low} or more" if high is None else f"{low} to {high}"
        raise ConfigError(f"{name} {value}: allowed is {allowed}; {remedy}")
