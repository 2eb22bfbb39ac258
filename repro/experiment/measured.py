"""The results that a client brings back from a run, and the files they become."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from repro.dataset.recording import Columns
from repro.experiment.collect import MEASURED, RAW, write_table
from repro.experiment.config import Experiment

Integers = npt.NDArray[np.int64]

TTFT_TICK_NS, TPOT_TICK_NS = 1_000_000, 100_000
"""To which a request's times are kept: half the size, and nothing is read off the rest."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The client's side of one run; what vLLM's processes recorded lies beside it."""

    # This and `requests` are the tables of these names in `dataset.schema.TABLES`, ramp included;
    # empty without load.
    itl: Columns
    requests: Columns
    start_ns: int  # of the measured window
    end_ns: int
    ramp_ns: int  # from the first request to the window
    output_tokens: int  # that reached the client in the window
    client_busy: float  # CPU over wall time of the busiest client process, in the window
    evidence: list[dict[str, Any]]  # what each worker says, see `verify.policy_took_effect`
    periods: Columns | None = None  # the table of that name, of a cross-over

    def write(self, folder: Path, experiment: Experiment) -> None:
        """Write the client's tables and the window into the run's folder."""
        write_table(folder, "itl", self.itl)
        write_table(folder, "requests", self.requests)
        if self.periods is not None:
            write_table(folder, "periods", self.periods)
        ended = self.requests.get("t_ns", np.array([]))
        in_window = (ended >= self.start_ns) & (ended < self.end_ns)
        measured = {
            "window": {
                "start_ns": self.start_ns,
                "end_ns": self.end_ns,
                "ramp_s": self.ramp_ns / 1e9,
            },
            "summary": {
                "output_tokens": self.output_tokens,
                "tokens_per_s": self.output_tokens / ((self.end_ns - self.start_ns) / 1e9),
                "requests_finished": int(np.count_nonzero(in_window)),
                "client_busy": self.client_busy,
            },
            "policy": {
                "requested": experiment.policy,
                "verified": True,
                "evidence": self.evidence,
            },
        }
        (folder / RAW / MEASURED).write_text(json.dumps(measured))


def requests_table(
    *, t_ns: Integers, ttft_ns: Integers, decode_ns: Integers, tokens: Integers
) -> Columns:
    """The table `requests`; TPOT is NaN for an answer of one token.

    Parameters
    ----------
    t_ns, ttft_ns, decode_ns : (n,) arrays
        Arrival of each one's last token, time to its first, and from its first to its last.
    tokens : (n,) array
        Tokens of its answer.
    """
    tpot_ns = np.where(tokens > 1, decode_ns / np.maximum(tokens - 1, 1), np.nan)
    return {
        "t_ns": t_ns,
        "ttft_ns": np.rint(ttft_ns / TTFT_TICK_NS) * TTFT_TICK_NS,
        "tpot_ns": np.rint(tpot_ns / TPOT_TICK_NS) * TPOT_TICK_NS,
        "output_tokens": tokens,
    }
