"""Several ranks: together or apart, waiting or not, and as predicted or not, where it is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from campaigns import story
from ranked import every, several

from repro import claims, dataset
from repro.analysis import prediction
from repro.analysis.prediction_basis import bases
from repro.analysis.ranks import bursts, coupling, independence, wilson


def loaded(root: Path, **options: Any) -> dataset.Campaign:
    return dataset.load(several(root, **options))


def test_ranks_that_pause_in_the_same_steps(tmp_path: Path) -> None:
    (row,) = independence(loaded(tmp_path, pauses_at=[every(200)] * 2)).itertuples()
    assert (row.ranks, row.steps, row.together, row.share, row.apart) == (2, 15, 15, 1, 0)
    assert row.low > 0.7
    assert row.chance < 0.1


def test_ranks_that_pause_apart(tmp_path: Path) -> None:
    (row,) = independence(loaded(tmp_path, pauses_at=[every(200), every(200, 30)])).itertuples()
    assert (row.steps, row.together, row.share, row.apart) == (30, 0, 0, 20)
    assert row.high < 0.2


def test_chance_is_what_random_phases_give(tmp_path: Path) -> None:
    """One rank pauses in every tenth step, the other twice: chance is a tenth of the two."""
    campaign = loaded(tmp_path, pauses_at=[every(10), [105, 1505]], pause_ms=1.0)
    (row,) = independence(campaign).itertuples()
    assert row.together == 0
    assert row.chance * row.steps == pytest.approx(2 * 0.1, rel=0.3)


def test_three_ranks_of_which_two_pause_together(tmp_path: Path) -> None:
    pauses_at = [every(300), every(300, 150), every(300, 150)]
    (row,) = independence(loaded(tmp_path, pauses_at=pauses_at)).itertuples()
    assert (row.steps, row.together) == (20, 10)


def test_a_rank_that_waits_shows_the_whole_pause(tmp_path: Path) -> None:
    apart = {"pauses_at": [every(200), every(200, 100)]}
    (row,) = coupling(loaded(tmp_path / "waits", **apart)).itertuples()
    assert row.pauses == 30
    assert row.share == pytest.approx(1, abs=0.02)
    assert row.low > 0.95
    assert abs(row.chance) < 0.05
    (row,) = coupling(loaded(tmp_path / "goes-on", waits=False, **apart)).itertuples()
    assert abs(row.share) < 0.02


def test_pauses_that_both_ranks_have_say_nothing_of_waiting(tmp_path: Path) -> None:
    assert coupling(loaded(tmp_path, pauses_at=[every(200)] * 2)).empty


def test_pauses_shorter_than_a_step_cannot_show(tmp_path: Path) -> None:
    apart = [every(200), every(200, 100)]
    assert coupling(loaded(tmp_path, pauses_at=apart, pause_ms=5.0)).empty


def test_one_rank_alone_is_not_asked(tmp_path: Path) -> None:
    campaign = dataset.load(story(tmp_path / "c", length_s=4))
    assert independence(campaign).empty
    assert coupling(campaign).empty
    assert bursts(campaign).empty


def test_ranks_without_collections_are_counted_without_a_share(tmp_path: Path) -> None:
    (row,) = independence(loaded(tmp_path, pauses_at=[[], []])).itertuples()
    assert row.steps == 0
    assert np.isnan(row.share)
    assert (row.low, row.high) == (0, 1)


def both(root: Path, pauses_at: list[list[int]], **changes: Any) -> dataset.Campaign:
    """One rank alone and a group, both with and without the freeze; two runs of one rank each."""
    for number in range(2):
        one = {
            "pauses_at": [every(100)],
            "experiment__client": "async_engine",
            "experiment__replicate": number,
        }
        several(root, name=f"alone-{number}", **one)
        several(root, name=f"frozen-{number}", **one, pause_ms=2.0, experiment__policy="freeze")
    short = {"pause_ms": 2.0, "experiment__policy": "freeze"}
    several(root, name="two-frozen", pauses_at=pauses_at, **changes | short)
    return loaded(root, name="two", pauses_at=pauses_at, **changes)


def test_bursts_are_told_by_offset_and_period(tmp_path: Path) -> None:
    found = bursts(loaded(tmp_path, pauses_at=[every(500), every(500, 14)]))
    assert len(found) == 6
    assert set(found["spread_steps"]) == {4}
    assert set(found["stalled_steps"]) == {2}
    assert set(found["period_steps"].dropna()) == {500}
    assert set(found["drift_steps"].dropna()) == {0}


def test_ranks_that_drift_apart_are_seen_to(tmp_path: Path) -> None:
    found = bursts(loaded(tmp_path, pauses_at=[every(500), every(505, 14)]))
    assert set(found["drift_steps"].dropna()) == {5}


def test_groups_in_lockstep_measure_as_predicted(tmp_path: Path) -> None:
    (basis,) = bases(both(tmp_path, [every(100), every(100, 14)]))
    found = prediction.against_measured(basis)
    assert set(found["quantity"]) >= {"P99", "stalled share", "stalled steps per burst", "burst"}
    assert not {"P50", "tokens/s"} & set(found["quantity"])
    assert found.loc[found["quantity"].isin(["P99", "stalled share"]), "inside"].all(), found


def test_a_slower_group_is_outside_and_the_claim_says_so(tmp_path: Path) -> None:
    apart = [every(100), every(100, 14)]
    rows = {
        name: claims.evaluate([both(tmp_path / name, apart, **changes)])
        .set_index("id")
        .loc["wide-ep-width"]
        for name, changes in {"good": {}, "bad": {"pause_ms": 2000.0}}.items()
    }
    assert {row["verdict"] for row in rows.values()} == {"reproduced"}
    assert "P99 falls by a fifth from 2 ranks on" in rows["good"]["number"]
    assert "lie within the prediction" in rows["good"]["reason"]
    assert "outside the prediction: P99" in rows["bad"]["reason"]


def test_many_ranks_that_pause_in_one_step_contradict_the_width(tmp_path: Path) -> None:
    verdicts = claims.evaluate([both(tmp_path, [every(400)] * 16)]).set_index("id")
    assert verdicts.loc["wide-ep-width", "verdict"] == "contradicted"
    assert verdicts.loc["wide-ep", "verdict"] != "reproduced"


def test_a_registered_prediction_is_judged_as_registered(tmp_path: Path) -> None:
    campaign = both(tmp_path / "c", [every(100), every(100, 14)])
    (basis,) = bases(campaign)
    path = prediction.register(basis, 2, tmp_path / "predictions" / "a.json")
    found = prediction.registered(campaign)
    assert set(found["policy"]) == {"no-freeze", "freeze"}
    assert (found["why"] == "").tolist() == found["inside"].tolist()
    path.write_text(path.read_text().replace('"value": 20.', '"value": 40.'))
    later = prediction.registered(campaign)
    assert set(later["predicted"]) != set(found["predicted"])


def test_a_request_through_a_burst_takes_its_stalls_longer(tmp_path: Path) -> None:
    (basis,) = bases(both(tmp_path, [every(500), every(500, 14)]))
    one, two = prediction.requests(basis).to_dict("records")
    assert (one["ranks"], two["ranks"], two["bursts"]) == (1, 2, 6)
    extra = two["seconds_measured"] - two["seconds_outside"]
    assert extra == pytest.approx(0.8, abs=0.1)
    assert two["longest_ms_outside"] < 30
    assert two["seconds_low"] - 0.1 < two["seconds_measured"] < two["seconds_high"] + 0.1


def test_a_rank_that_enters_its_next_step_early_is_matched_by_the_steps_around(
    tmp_path: Path,
) -> None:
    """While rank 0 collects at the end of step 100, rank 1 enters step 101 and collects there."""
    campaign = loaded(tmp_path, pauses_at=[[100], [101]])
    steps = campaign.steps
    early = (steps["rank"] == 1) & (steps["step"] == 101 + 7)
    first = steps.loc[(steps["rank"] == 0) & (steps["step"] == 100), "start_ns"].item()
    steps.loc[early, "start_ns"] = first + 60_000_000
    (row,) = bursts(campaign).itertuples()
    assert row.offsets.tolist() == [0, 1]


def test_another_load_is_no_basis(tmp_path: Path) -> None:
    apart = [every(100), every(100, 14)]
    (basis,) = bases(both(tmp_path, apart, experiment__concurrency=8))
    assert prediction.against_measured(basis).empty


def test_a_prediction_alone_is_not_called_measured(tmp_path: Path) -> None:
    campaign = dataset.load(story(tmp_path / "c", every=200))
    verdicts = claims.evaluate([campaign]).set_index("id")
    assert verdicts.loc["wide-ep-width", "verdict"] == "predicted"
    assert "predicted to lower P99 by a fifth or more" in verdicts.loc["wide-ep-width", "number"]
    assert verdicts.loc["wide-ep", "verdict"] == "not measured"


@pytest.mark.parametrize(
    ("options", "wait", "apart"),
    [
        ({"pauses_at": [every(200), every(200, 100)]}, "reproduced", "reproduced"),
        (
            {"pauses_at": [every(200), every(200, 100)], "waits": False},
            "contradicted",
            "reproduced",
        ),
        ({"pauses_at": [every(200)] * 2}, "not measured", "contradicted"),
        ({"pauses_at": [[100], [2000]]}, "reproduced", "undecided"),
        ({"pauses_at": [[100], []]}, "not measured", "undecided"),
        (
            {
                "pauses_at": [every(200), every(200, 100)],
                "experiment__enable_expert_parallel": False,
            },
            "not measured",
            "not measured",
        ),
    ],
    ids=["apart", "not waiting", "together", "two pauses", "one pause", "nothing shared"],
)
def test_claims_about_ranks(tmp_path: Path, options: dict[str, Any], wait: str, apart: str) -> None:
    table = claims.evaluate([loaded(tmp_path, **options)]).set_index("id")
    assert table.loc["ranks-pause-apart", "detail"].endswith("decide") == (apart == "undecided")
    verdicts = table["verdict"]
    assert verdicts["ranks-wait"] == wait
    assert verdicts["ranks-pause-apart"] == apart
    assert verdicts["ranks-pause-together"] == "not measured"


@pytest.mark.parametrize(
    ("pauses_at", "together"),
    [
        ([every(200)] * 2, "reproduced"),
        ([every(200), every(200, 100)], "contradicted"),
        ([[100], [100]], "undecided"),
    ],
)
def test_claim_about_tensor_parallel_ranks(
    tmp_path: Path, pauses_at: list[list[int]], together: str
) -> None:
    tensor = {
        "experiment__data_parallel_size": 1,
        "experiment__tensor_parallel_size": 2,
        "experiment__enable_expert_parallel": False,
    }
    campaign = loaded(tmp_path, pauses_at=pauses_at, **tensor)
    verdicts = claims.evaluate([campaign]).set_index("id")["verdict"]
    assert verdicts["ranks-pause-together"] == together
    assert {verdicts["ranks-pause-apart"], verdicts["ranks-wait"]} == {"not measured"}


def test_wilson() -> None:
    assert wilson(0, 0) == (0, 1)
    assert wilson(0, 4) == pytest.approx((0, 0.4899), abs=1e-3)
    assert wilson(5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-3)
