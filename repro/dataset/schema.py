"""Contents of a run directory: tables, columns, units and the keys of `run.json`.

A run directory is `runs/<campaign>/<run>/`. In `data/` the runs of a campaign are packed, see
`repro.dataset.stored`.

    run.json           written last; a directory without it is an unfinished run
    pauses.parquet     every collection of every process
    steps.parquet      every `execute_model` call of every rank
    holds.parquet      times in which the API server's output handler blocked its event loop
    itl.parquet        gaps between tokens, as the client saw them
    requests.parquet   one row per finished request: TTFT and TPOT
    captures.parquet   CUDA graph capture (GPU) or compile (CPU) spans
    census.parquet     heap counts at fixed points outside the timed window
    periods.parquet    of a cross-over: the policy in force, by time

All times are nanoseconds of Linux's monotonic clock, which all processes of a host share.
This module imports nothing of `repro`: the experiment writes with it, the dataset reads with it.
"""

from __future__ import annotations

import pyarrow as pa

NS_PER_MS, NS_PER_S = 1e6, 1e9

SCHEMA_VERSION = 2
"""2: `captures` has `capture_policy` and `number`."""

ROLES = ("frontend", "engine", "worker")
"""Roles of processes. With the `uni` executor the worker is part of `engine`."""

CENSUS_POINTS = (
    *("imported", "loaded", "profiled", "capture", "captured", "ready"),
    *("window-start", "window-end", "shutdown", "thawed", "ended", "ended-thawed"),
)
"""Moments of the heap census. During a worker's start-up: device ready, model loaded, after the
profiling run (on a GPU it compiles), before and after each capture of CUDA graphs, end of warm-up.
In every process: before load and after the measured window; in a cross-over before load, and before
and after each period. At a worker's shutdown (through HTTP just before it, with no request left):
after `gc.unfreeze()` where the policy calls it, with the `garbage` made since the freeze; then with
nothing frozen, with the `garbage` kept by the freeze. Both again in engine core and front end, as
`ended` and `ended-thawed`."""

_PROCESS = [("role", pa.string()), ("rank", pa.int32()), ("pid", pa.int32())]

TABLES: dict[str, pa.Schema] = {
    "pauses": pa.schema(
        [
            *_PROCESS,
            ("generation", pa.int8()),
            ("start_ns", pa.int64()),
            ("duration_ns", pa.int64()),
            ("collected", pa.int64()),  # objects found unreachable
            ("allocations", pa.int64()),  # gc.get_count()[0] as it began
        ]
    ),
    "steps": pa.schema(
        [
            ("rank", pa.int32()),
            ("step", pa.int64()),  # counted from the first step of the process
            ("start_ns", pa.int64()),  # entry of execute_model
            ("duration_ns", pa.int64()),  # until it returned to the executor
            ("tokens", pa.int64()),  # tokens the scheduler put into the step
        ]
    ),
    "holds": pa.schema(
        [
            ("start_ns", pa.int64()),  # of the first call of one turn of the event loop
            ("duration_ns", pa.int64()),  # until the last call returned
            ("outputs", pa.int64()),  # of the engine, processed meanwhile
            ("calls", pa.int64()),  # of `OutputProcessor.process_outputs`
        ]
    ),
    "itl": pa.schema(
        [
            ("t_ns", pa.int64()),  # when the later token reached the client
            ("itl_ns", pa.int64()),  # gap to the token of the same request before it
            ("count", pa.int64()),  # tokens that share t_ns and itl_ns
        ]
    ),
    "requests": pa.schema(
        [
            ("t_ns", pa.int64()),  # when the last token reached the client
            ("ttft_ns", pa.int64()),
            # (last - first token) / (output_tokens - 1); null for an answer of one token
            ("tpot_ns", pa.float64()),
            ("output_tokens", pa.int64()),
        ]
    ),
    "captures": pa.schema(
        [
            ("rank", pa.int32()),
            ("kind", pa.string()),  # "capture" (CUDA graphs) or "compile" (CPU warm-up)
            ("capture_policy", pa.string()),
            ("number", pa.int64()),  # counted in the process: 0 is the one at start-up
            ("start_ns", pa.int64()),
            ("duration_ns", pa.int64()),
            ("graphs", pa.int64()),  # CUDA graphs captured, 0 on the CPU
            ("memory_bytes", pa.int64()),  # GPU memory the capture took
        ]
    ),
    "census": pa.schema(
        [
            *_PROCESS,
            ("point", pa.string()),  # one of CENSUS_POINTS
            ("t_ns", pa.int64()),
            ("tracked", pa.int64()),  # len(gc.get_objects()): without the frozen ones
            ("frozen", pa.int64()),  # gc.get_freeze_count()
            ("collections_0", pa.int64()),  # gc.get_stats(), since the process began
            ("collections_1", pa.int64()),
            ("collections_2", pa.int64()),
            ("threshold_0", pa.int64()),  # gc.get_threshold()
            ("threshold_1", pa.int64()),
            ("threshold_2", pa.int64()),
            ("enabled", pa.bool_()),  # gc.isenabled()
            ("rss_bytes", pa.int64()),
            ("objects_0", pa.int64()),  # of `tracked`, by generation
            ("objects_1", pa.int64()),
            ("objects_2", pa.int64()),
            # Found in abandoned cycles by a full collection just before: see CENSUS_POINTS.
            ("garbage", pa.int64()),
            ("garbage_bytes", pa.int64()),  # sys.getsizeof of each, without what they refer to
        ]
    ),
    "periods": pa.schema(
        [
            ("policy", pa.string()),  # the worker's, from start_ns to end_ns
            ("start_ns", pa.int64()),
            ("end_ns", pa.int64()),
        ]
    ),
}

LATER = {
    "pauses": ("allocations",),
    "census": ("objects_0", "objects_1", "objects_2", "garbage", "garbage_bytes"),
}
"""Columns added after the first runs were measured: empty there."""

REQUIRED = {
    "schema_version": int,
    "status": str,  # "ok" or "failed"
    "run_id": str,
    "started_at": str,  # ISO 8601, UTC
    "experiment": dict,  # every resolved parameter of `repro.experiment.config.Experiment`
    "machine": dict,  # gpu_name, gpu_count, gpu_driver, cpu_model, cpu_count, memory_bytes, kernel
    "versions": dict,  # python, vllm, torch, repro
    "policy": dict,  # requested, verified, evidence (one entry per worker)
}
"""Keys of every `run.json` and their types. A failed run adds `reason` and `log_tail`;
a run that is ok adds `window` {start_ns, end_ns, ramp_s} and `summary`. All but the first runs
have `wall_s` too."""
