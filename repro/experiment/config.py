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

MODELS = Path(__file__).parent.parent / "models"
"""Model configs shipped with the package; run with random weights, nothing is downloaded."""

WEIGHTS = ("safetensors", "bin", "pt", "pth", "gguf")

CLIENTS = ("engine", "serve")
EXECUTORS = ("mp", "uni")
DEVICES = ("auto", "cuda", "cpu")


class ConfigError(ValueError):
    """A parameter outside what is allowed; the message names value, choices and remedy."""


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One run: one policy, one engine, one load.

    Attributes
    ----------
    policy, capture_policy : str
        Names out of `repro.policy.SERVING` and `repro.policy.CAPTURE`.
    client : str
        What drives the load: `engine` calls `LLMEngine.step` in the front end itself; `serve` is
        `vllm bench serve` against an OpenAI-compatible server.
    executor : str
        `mp`: the worker is a process of its own. `uni`: it lives inside the engine core.
    model : str
        A config shipped with the package (`tiny`, `dense-0.6b`, `moe`), or the path or name of
        any model vLLM loads.
    device : str
        `auto` takes CUDA where there is a GPU, else vLLM's CPU backend.
    concurrency : int
        Requests kept in flight, 1 … `max_num_seqs`.
    max_num_seqs : int
        vLLM's own limit of requests in one step; 1024 is its default on a large GPU.
    tensor_parallel_size, data_parallel_size : int
        Ranks.
    enforce_eager : bool
        Neither compile nor capture.
    prompt_tokens : int
        Length of every prompt.
    output_tokens : tuple of int
        Shortest and longest answer; lengths are drawn uniformly between them.
    duration_s : float
        Length of the measured window, after the ramp.
    switch_s : float
        With policy `alternate`: length of each period, a whole part of `duration_s`; else 0.
    seed, replicate : int
        Seed of lengths and prompts; which repetition this is (part of the seed).

    Raises
    ------
    ConfigError
        If a value is not allowed.
    """

    policy: str = "stock"
    capture_policy: str = "stock"
    client: str = "engine"
    executor: str = "mp"
    model: str = "tiny"
    device: str = "auto"
    concurrency: int = 1024
    max_num_seqs: int = 1024
    tensor_parallel_size: int = 1
    data_parallel_size: int = 1
    enforce_eager: bool = False
    prompt_tokens: int = 16
    output_tokens: tuple[int, int] = (16, 64)
    duration_s: float = 60.0
    switch_s: float = 0.0
    seed: int = 0
    replicate: int = 0

    def __post_init__(self) -> None:
        policy.serving(self.policy)
        policy.capture(self.capture_policy)
        _choice("client", self.client, CLIENTS)
        _choice("executor", self.executor, EXECUTORS)
        _choice("device", self.device, DEVICES)
        for name in ("max_num_seqs", "prompt_tokens"):
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
        self._check_switch()
        if self.tensor_parallel_size != 1 or self.data_parallel_size != 1:
            raise ConfigError(
                "tensor_parallel_size and data_parallel_size must be 1: the engine client "
                "drives one rank"
            )
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
    def max_model_len(self) -> int:
        """Longest prompt and answer together, in tokens."""
        return self.prompt_tokens + self.output_tokens[1]

    @property
    def run_id(self) -> str:
        """Name of the run's folder: readable, and different for any different parameter.

        Of the parameters that are not at their default, so that one added later changes no name.
        """
        usual = {field.name: field.default for field in dataclasses.fields(self)}
        unusual = {k: v for k, v in dataclasses.asdict(self).items() if v != usual[k]}
        digest = hashlib.sha256(json.dumps(unusual, sort_keys=True).encode()).hexdigest()[:6]
        parts = [self.policy, f"c{self.concurrency}", f"r{self.replicate}", digest]
        if self.client != "engine":
            parts.insert(1, self.client)
        if self.executor != "mp":
            parts.insert(1, self.executor)
        if self.capture_policy != "stock":
            parts.insert(1, self.capture_policy)
        return "-".join(parts)

    def to_dict(self) -> dict[str, Any]:
        """All parameters, as `run.json` holds them."""
        return {**dataclasses.asdict(self), "output_tokens": list(self.output_tokens)}

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
        if "output_tokens" in values:
            values = {**values, "output_tokens": tuple(values["output_tokens"])}
        return cls(**values)


def grid(
    *,
    policies: Sequence[str] = ("no-freeze", "freeze"),
    capture_policies: Sequence[str] = ("stock",),
    replicates: int = 2,
    first_replicate: int = 0,
    **fields: Any,
) -> list[Experiment]:
    """Every policy with every capture policy, `replicates` times; other fields shared.

    Replicates are numbered from `first_replicate`, so that a second sitting can add more.

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
    numbers = range(first_replicate, first_replicate + replicates)
    arms = itertools.product(numbers, policies, capture_policies)
    return [
        Experiment.from_dict(
            {**fields, "policy": serving, "capture_policy": capture, "replicate": replicate}
        )
        for replicate, serving, capture in arms
    ]


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


def _choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ConfigError(f"{name} {value!r}: choose one of {', '.join(choices)}")


def _within(name: str, value: float, low: float, high: float | None, remedy: str) -> None:
    if not low <= value <= (math.inf if high is None else high):  # NaN is in no range
        allowed = f"{low} or more" if high is None else f"{low} to {high}"
        raise ConfigError(f"{name} {value}: allowed is {allowed}; {remedy}")
