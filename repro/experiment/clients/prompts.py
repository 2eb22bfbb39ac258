"""Prompts and answer lengths for the HTTP client, and a tokenizer for models that have none."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from repro.experiment.clients.closed_loop import first_lengths
from repro.experiment.config import Experiment


def tokenizer_for(experiment: Experiment, work: Path) -> str:
    """The tokenizer's folder or name: the model's own; for a config alone, one made in `work`."""
    if not experiment.dummy_weights:
        return experiment.model_path
    config = json.loads((Path(experiment.model_path) / "config.json").read_text())
    return str(write_word_tokenizer(work / "tokenizer", config["vocab_size"]))


def write_word_tokenizer(folder: Path, vocabulary: int) -> Path:
    """One word a token, `w0`, `w1`, …: whatever a random model says can be decoded."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {f"w{token}": token for token in range(vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    about = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "w0"}
    (folder / "tokenizer_config.json").write_text(json.dumps(about))
    return folder


def write_prompts(
    path: Path, experiment: Experiment, tokenizer: Any, *, stream: int, first: int, number: int
) -> None:
    """Write a dataset for `vllm bench serve --dataset-name custom`: seeded prompts and lengths.

    Each of several clients has a `stream` of its own. The `first` prompts are sent at once; their
    lengths are those of a loop long under way.
    """
    rng = random.Random(f"{experiment.seed}/{experiment.replicate}/{stream}")
    lengths = first_lengths(rng, first, experiment.output_tokens)
    lengths += [rng.randint(*experiment.output_tokens) for _ in range(number - first)]
    tokens = [
        [rng.randrange(len(tokenizer)) for _ in range(experiment.prompt_tokens)] for _ in lengths
    ]
    with path.open("w") as file:
        for text, length in zip(tokenizer.batch_decode(tokens), lengths, strict=True):
            file.write(json.dumps({"prompt": text, "output_tokens": length}) + "\n")
