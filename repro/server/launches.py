"""A recorded folder as launches of vLLM, each a campaign of one run an engine.

So everything in `repro.analysis` that a campaign can be asked, a server can be asked too. Its
`itl` holds the intervals between steps, since nobody noted when tokens reached a client.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

from repro.analysis.arms import is_frozen
from repro.dataset import Campaign, recording
from repro.dataset.recording import Columns, Recording
from repro.dataset.schema import ROLES, TABLES
from repro.plugin import recorder
from repro.server.environment import nothing_recorded

ARM = "this server"

MOST_STEPS = 200_000
"""Of an engine, the newest: resampling more would take gigabytes, and change no digit shown."""


class NothingRecorded(ValueError):
    """A folder without a recording; the message names it and the remedy."""


@dataclass(frozen=True, kw_only=True)
class Launch:
    """One start of vLLM and what its processes recorded.

    Attributes
    ----------
    began : datetime
        In UTC.
    origin_ns : int
        When its first process began to record, on the monotonic clock of all the tables.
    processes : pandas.DataFrame
        One row a process: `role`, `rank`, `pid`, `seconds` (from its first event to its last),
        `pauses`, `steps`, `complete`.
    longest_hold_ns : int
        For how long at most the API server's output handler held its event loop.
    campaign : Campaign
        One run an engine: `pauses` of all processes its tokens pass through, start-up included;
        `steps` that had tokens; `itl`: the intervals between them, `count` 1, with `tokens`;
        the measured window reaches from the first of these intervals to the last.
    """

    began: datetime
    origin_ns: int
    processes: pd.DataFrame
    longest_hold_ns: int
    campaign: Campaign

    @property
    def served(self) -> bool:
        """Whether there was any interval between two steps."""
        return not self.campaign.itl.empty

    @property
    def worker_frozen(self) -> bool | None:
        """Whether the workers' heaps were frozen once warm; None if none was counted."""
        census = self.campaign.census
        ready = census[census["point"] == "ready"]
        return None if ready.empty else bool(is_frozen(ready).all())


def read(folder: Path) -> list[Launch]:
    """Every launch recorded in a folder, the newest first.

    Raises
    ------
    NothingRecorded
        If there is none.
    repro.dataset.recording.RecordingError
        If a file is no recording.
    """
    found: dict[int, list[Recording]] = {}
    for one in recording.read_all(folder):
        if one.role in ROLES and len(one.events):
            found.setdefault(one.launch_ns, []).append(one)
    if not found:
        raise NothingRecorded(nothing_recorded(folder))
    return [launch(folder, found[began]) for began in sorted(found, reverse=True)]


def launch(folder: Path, recorded: list[Recording]) -> Launch:
    """The recordings of one launch, at least one, put together."""
    tables = {name: frame(name, c) for name, c in recording.tables(folder, recorded).items()}
    engines = max(1, len({r.rank for r in recorded if r.role == "engine"}))
    workers = tables["steps"]["rank"].max() + 1 if len(tables["steps"]) else engines
    per_engine = max(1, int(workers) // engines)
    runs = [one_engine(tables, engine, per_engine) for engine in range(engines)]
    return Launch(
        began=datetime.fromtimestamp(recorded[0].launch_ns / 1e9, UTC),
        origin_ns=min(r.opened_ns for r in recorded),
        processes=pd.DataFrame([describe(r) for r in in_order(recorded)]),
        longest_hold_ns=int(tables["holds"]["duration_ns"].max()) if len(tables["holds"]) else 0,
        campaign=as_campaign(folder, runs),
    )


def in_order(recorded: list[Recording]) -> list[Recording]:
    """Front end, engine core, workers by rank: the way a request takes."""
    return sorted(recorded, key=lambda r: (ROLES.index(r.role), r.rank, r.opened_ns))


def frame(name: str, columns: Columns) -> pd.DataFrame:
    """A table of `repro.dataset.schema.TABLES`; no columns at all is an empty one."""
    if not columns:
        empty: pd.DataFrame = TABLES[name].empty_table().to_pandas()
        return empty
    arrays = {field.name: pa.array(columns[field.name], field.type) for field in TABLES[name]}
    made: pd.DataFrame = pa.table(arrays).to_pandas()
    return made


def describe(recorded: Recording) -> dict[str, object]:
    """One row of `Launch.processes`."""
    start = recorded.events["start_ns"]
    end = (start + recorded.events["duration_ns"]).max()
    return {
        "role": recorded.role,
        "rank": recorded.rank,
        "pid": recorded.pid,
        "seconds": (end - start.min()) / 1e9,
        "pauses": len(recorded.of_kind(recorder.PAUSE)),
        "steps": len(recorded.of_kind(recorder.STEP)),
        "complete": recorded.complete,
    }


def one_engine(
    tables: dict[str, pd.DataFrame], engine: int, per_engine: int
) -> dict[str, pd.DataFrame]:
    """The tables of one engine core with its workers: `pauses`, `steps`, `itl` and `census`.

    Its tensor-parallel workers take the same steps, so the first stands for all; a pause in any
    of them, in the engine core or in a front end counts.
    """
    steps = tables["steps"]

    def its_own(rows: pd.DataFrame) -> pd.DataFrame:
        number = (rows["rank"] // per_engine).where(rows["role"] == "worker", rows["rank"])
        return rows[(number == engine) | (rows["role"] == "frontend")]

    first = steps[steps["rank"] == engine * per_engine].sort_values("start_ns")[-MOST_STEPS:]
    return {
        "pauses": its_own(tables["pauses"]),
        "census": its_own(tables["census"]),
        "steps": first[first["tokens"] > 0],
        "itl": intervals(first),
    }


def intervals(steps: pd.DataFrame) -> pd.DataFrame:
    """From each step of one rank to the next, without those in which the server was idle.

    Before it goes idle, vLLM takes one step without tokens, to let go of the last request: the
    interval that such a step begins is the time until somebody asks again.

    Returns
    -------
    pandas.DataFrame
        `t_ns` (its end), `itl_ns`, `count` (1), `tokens` (of the step that begins it).
    """
    start, tokens = steps["start_ns"].to_numpy("int64"), steps["tokens"].to_numpy("int64")
    busy = tokens[:-1] > 0
    made = pd.DataFrame({"t_ns": start[1:], "itl_ns": np.diff(start), "tokens": tokens[:-1]})
    return made[busy].assign(count=1).reset_index(drop=True)


def as_campaign(folder: Path, engines: list[dict[str, pd.DataFrame]]) -> Campaign:
    """The engines as runs of one arm, each from its first busy interval to its last."""
    windows = [
        (int((e["itl"]["t_ns"] - e["itl"]["itl_ns"]).min()), int(e["itl"]["t_ns"].max()) + 1)
        if len(e["itl"])
        else (0, 1)
        for e in engines
    ]
    names = [f"engine {number}" for number in range(len(engines))]
    runs = pd.DataFrame(
        {"run": names, "arm": ARM, "setting": "", "policy": "stock", "client": "server"}
    )
    runs["window_start_ns"], runs["window_end_ns"] = map(list, zip(*windows, strict=True))

    def stacked(parts: list[pd.DataFrame]) -> pd.DataFrame:
        joined = pd.concat(parts, ignore_index=True)
        codes = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
        run = pd.Categorical.from_codes(codes, categories=pd.Index(names))
        return joined.assign(run=run)

    # What a server's recording has no table for, such as what only a client sees, is empty.
    tables = {
        name: stacked([engine.get(name, frame(name, {})) for engine in engines]) for name in TABLES
    }
    return Campaign(
        path=folder,
        runs=runs,
        failed=pd.DataFrame(columns=["run_id", "reason"]),
        unfinished=(),
        **tables,
    )
