"""All policies side by side: tail, throughput, collector, memory, shutdown, one row per arm."""

from __future__ import annotations

import pandas as pd

from repro import fmt
from repro.analysis.arms import labels
from repro.analysis.gc_cost import gc_time
from repro.analysis.mechanism import others_stock
from repro.analysis.silences import in_total, silences
from repro.analysis.tails import Metric, effect, paired_effect, tail_table
from repro.dataset import Campaign, in_window
from repro.dataset.schema import NS_PER_MS, NS_PER_S
from repro.stats.ratios import ratio_of_runs
from repro.theory.cpython_rule import FULL

GAPS = {0.5: "P50", 0.99: "P99", 0.999: "P99.9", 1.0: "longest"}
MIB = 2**20
LISTED = 9
"""Of more rates than these, a cell of the table has the median."""


def side_by_side(campaign: Campaign) -> pd.DataFrame:
    """Every measure of every arm. Latencies have 95% intervals."""
    parts = [latencies(campaign, "itl", {f"{name} ITL (ms)": q for q, name in GAPS.items()})]
    through_http = (campaign.runs["client"] == "serve").any()
    if through_http and len(campaign.requests):
        parts.append(latencies(campaign, "ttft", {"TTFT P50 (s)": 0.5}, ms=1e3))
        whole = {"end to end P50 (s)": 0.5, "end to end P99 (s)": 0.99}
        parts.append(latencies(campaign, "end_to_end", whole, ms=1e3))
    if through_http:
        parts += [chunks(campaign), silent(campaign)]
    parts += [throughput(campaign), collector(campaign), memory(campaign)]
    parts += [garbage(campaign), shutdown(campaign)]
    table = pd.concat(parts, axis=1).reindex(labels(campaign)).astype(object).fillna("–")
    return table.rename_axis("arm").reset_index()


def over_baseline(campaign: Campaign) -> pd.DataFrame:
    """Ratios of every arm to the plain one of the same machine, software and load.

    Plain is the first arm whose worker is `stock` or `no-freeze`, its other processes `stock`; an
    arm without one is left out. Intervals are of 95%. Periods of a cross-over are compared with
    those beside them at P50, else all with all.
    """
    arms = campaign.runs.drop_duplicates("arm").set_index("arm").loc[labels(campaign)]
    plain = arms["policy"].isin(["stock", "no-freeze"])
    plain &= others_stock(arms)
    rates = campaign.runs.groupby("arm")["tokens_per_s"].apply(list)
    rows = []
    same = arms["comparable"] + " | " + arms["load"] + " | " + arms["switch_s"].astype(str)
    for arm, setting in same.items():
        base = next(iter(arms.index[plain & (same == setting)]), arm)
        if base == arm:
            continue
        found = {f"{name} ITL": effect(campaign, base, arm, q) for q, name in GAPS.items()}
        if arms.loc[arm, "switch_s"] > 0:
            found["P50 ITL"] = paired_effect(campaign, base, arm, 0.5)
        if arms.loc[arm, "client"] == "serve":
            found["TTFT P50"] = effect(campaign, base, arm, 0.5, "ttft")
            found["end to end P99"] = effect(campaign, base, arm, 0.99, "end_to_end")
        found["tokens/s"] = ratio_of_runs(rates[base], rates[arm])
        said = {name: fmt.ratio(r) if r.supported else "–" for name, r in found.items()}
        rows.append({"arm": arm, "over": base, **said})
    return pd.DataFrame(rows).fillna("–")


def latencies(
    campaign: Campaign, metric: Metric, columns: dict[str, float], ms: float = 1.0
) -> pd.DataFrame:
    """Quantiles of a metric by column, in units of `ms`; what the steps cannot decide says so."""
    found = tail_table(campaign, metric)
    found["said"] = [
        fmt.interval(row.value_ms / ms, row.low_ms / ms, row.high_ms / ms)
        if row.supported
        else f"needs {row.needs:,.0f} steps"
        for row in found.itertuples()
    ]
    table = found.pivot_table("said", "arm", "quantile", aggfunc="first")[[*columns.values()]]
    return table.set_axis(list(columns), axis=1)


def throughput(campaign: Campaign) -> pd.DataFrame:
    """Tokens per second of each run, or their median over more than `LISTED` runs or periods."""
    rates = campaign.runs.groupby("arm")["tokens_per_s"]
    return pd.DataFrame({"tokens/s": rates.agg(_in_words)})


def _in_words(rates: pd.Series) -> str:
    if len(rates) > LISTED:
        return f"{fmt.count(rates.median())}, median of {len(rates):,}"
    return "; ".join(map(fmt.count, rates))


def chunks(campaign: Campaign) -> pd.DataFrame:
    """Tokens that reach an HTTP client together: mean of an arm over its windows."""
    runs = campaign.runs
    seconds = (runs["window_end_ns"] - runs["window_start_ns"]) / NS_PER_S
    gaps = in_window(campaign, campaign.itl).groupby("run", observed=True)["count"].sum()
    of_run = runs.assign(tokens=runs["tokens_per_s"] * seconds, gaps=runs["run"].map(gaps))
    of_arm = of_run.groupby("arm")[["tokens", "gaps"]].sum()
    return pd.DataFrame({"tokens per chunk": (of_arm["tokens"] / of_arm["gaps"]).map(fmt.figures)})


def silent(campaign: Campaign) -> pd.DataFrame:
    """Time in silences of a second and more, and the shares held and collecting.

    No arm has a row where the campaign recorded no holds: nobody looked.
    """
    rows = {} if campaign.holds.empty else {arm: ["0", "–"] for arm in campaign.runs["arm"]}
    for arm, own in silences(campaign).groupby("arm"):
        length_s, *shares = in_total(own)
        rows[arm] = [fmt.figures(length_s), "; ".join(map(fmt.percent, shares))]
    columns = ["silent (s)", "of it held; collecting"]
    return pd.DataFrame.from_dict(rows, orient="index", columns=columns)


def collector(campaign: Campaign) -> pd.DataFrame:
    """Time lost to collections by all processes, and the longest pause of each."""
    found = gc_time(campaign)
    lost = found.groupby("arm")["ms_per_1000_steps"].sum(min_count=1)  # none without steps
    longest = found.groupby(["arm", "role"])["max_ms"].max().fillna(0)
    return pd.DataFrame(
        {
            "GC per 1,000 steps (ms)": lost.map(fmt.figures, na_action="ignore"),
            "longest pause (ms)": _by_process(longest),
        }
    )


def memory(campaign: Campaign) -> pd.DataFrame:
    """Resident memory of each process at the window's end, and the gain since before load.

    Means over runs and ranks. The gain includes the ramp, so it is not a rate of growth. Full steps
    are the tokens of the window per request in flight.
    """
    key = ["run", "role", "rank", "pid"]
    start, end = (
        campaign.census[campaign.census["point"] == point].set_index(key)["rss_bytes"]
        for point in ("window-start", "window-end")
    )
    found = _by_arm(campaign, pd.DataFrame({"end": end, "gain": end - start}).reset_index())
    mean = found.groupby(["arm", "role"], observed=True)[["end", "gain"]].mean() / MIB
    names = {"resident (MiB)": "end", "gained under load (MiB)": "gain"}
    table = pd.DataFrame({name: _by_process(mean[column]) for name, column in names.items()})
    runs = campaign.runs[campaign.runs["run"].isin(found.loc[found["gain"].notna(), "run"])]
    seconds = (runs["window_end_ns"] - runs["window_start_ns"]) / NS_PER_S
    steps = runs["tokens_per_s"] * seconds / (runs["concurrency"] * runs["data_parallel_size"])
    return table.assign(
        **{"full steps": steps.groupby(runs["arm"]).mean().map(fmt.count).astype(object)}
    )


def garbage(campaign: Campaign) -> pd.DataFrame:
    """Objects in cycles that were never reclaimed: most of a run, by process."""
    census = _by_arm(campaign, campaign.census[campaign.census["garbage"].notna()])
    columns = {}
    for name, points in (
        ("garbage since the freeze", ("shutdown", "ended")),
        ("garbage kept by it", ("thawed", "ended-thawed")),
    ):
        own = census[census["point"].isin(points)]
        columns[name] = _by_process(own.groupby(["arm", "role"], observed=True)["garbage"].max())
    return pd.DataFrame(columns)


def shutdown(campaign: Campaign) -> pd.DataFrame:
    """Full collections of vLLM's own shutdown in ms, the mean over runs and ranks.

    Those after a process's last census: what counts garbage comes before it.
    """
    key = ["run", "role", "rank"]
    ended = campaign.census.groupby(key, observed=True)["t_ns"].max().rename("ended_ns")
    full = campaign.pauses[campaign.pauses["generation"] == FULL].merge(ended.reset_index(), on=key)
    full = full[full["start_ns"] > full["ended_ns"]]
    spent = full.groupby(key, observed=True)["duration_ns"].sum().reindex(ended.index).fillna(0)
    of_process = _by_arm(campaign, spent.reset_index())
    mean = of_process.groupby(["arm", "role"], observed=True)["duration_ns"].mean() / NS_PER_MS
    return pd.DataFrame({"full collections at shutdown (ms)": _by_process(mean)})


def _by_arm(campaign: Campaign, table: pd.DataFrame) -> pd.DataFrame:
    arms = campaign.runs.set_index("run")["arm"].to_dict()
    return table.assign(arm=table["run"].astype(object).map(arms))


def _by_process(values: pd.Series) -> pd.Series:
    """A value by arm and role as one text per arm: front end, engine core, worker."""
    table = values.unstack().reindex(columns=list(fmt.PROCESS))
    said = [
        "; ".join("–" if pd.isna(value) else fmt.figures(value) for value in row)
        for row in table.to_numpy()
    ]
    return pd.Series(said, index=table.index)
