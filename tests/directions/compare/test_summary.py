"""Outcomes against closed forms."""

import json
from pathlib import Path

import pytest

from directions.compare.comparison import Record
from directions.compare.summary import draw, outcome_rows, save, summarize

STRENGTHS = [1.0, 2.0, 3.0]


def record(photo: int, method: str = "direction", slope: float = 0.1) -> Record:
    """Identity distance grows by `slope` with the strength, and the effect by the photo's number."""
    effect = [photo * s for s in STRENGTHS]
    answers = [0.0, *(0.1 * s for s in STRENGTHS)]
    apart = [slope * s for s in STRENGTHS]
    return Record(
        method, f"photo {photo}", STRENGTHS, effect, answers, apart, [s / 100 for s in STRENGTHS], [], 20, 0, 0.5
    )


def test_measures_are_read_off_at_the_distance() -> None:
    (outcome,) = summarize([record(photo) for photo in (1, 2, 3)], 0.25)
    mean, low, high = outcome.at["effect"] or (0, 0, 0)
    assert mean == pytest.approx(2 * 2.5)
    assert 1 * 2.49 < low < mean < high < 3 * 2.51
    assert outcome.at["judged"] == pytest.approx((0.25, 0.25, 0.25))
    assert outcome.at["l1"] == pytest.approx((0.025, 0.025, 0.025))
    assert "lpips" not in outcome.at and outcome.photos == 3
    assert [interval[0] for interval in outcome.identity] == pytest.approx([0.1, 0.2, 0.3])


def test_a_distance_beyond_what_strengths_do_is_not_reached() -> None:
    for distance in (0.05, 0.31):
        (outcome,) = summarize([record(1), record(2)], distance)
        assert outcome.at == {"effect": None, "judged": None, "l1": None}
        assert outcome_rows([outcome], distance)[1][0][1:4] == ["-", "-", "-"]


def test_the_interval_of_one_photo_is_that_photo() -> None:
    (outcome,) = summarize([record(2)], 0.2)
    assert outcome.at["effect"] == pytest.approx((4, 4, 4))


def test_the_interval_is_the_bootstraps() -> None:
    """Of many photos, it is nearly that of the normal distribution of their mean."""
    photos = 400
    (outcome,) = summarize([record(i % 2) for i in range(photos)], 0.2)  # where the effect is 0 or 2
    half = 1.96 / photos**0.5
    assert outcome.at["effect"] == pytest.approx((1, 1 - half, 1 + half), abs=half / 4)


def test_methods_keep_their_order_and_are_drawn(tmp_path: Path) -> None:
    records = [
        record(photo, method, slope) for method, slope in (("optimize", 0.1), ("direction", 0.2)) for photo in (1, 2)
    ]
    outcomes = summarize(records, 0.25)
    assert [outcome.method for outcome in outcomes] == ["optimize", "direction"]
    data = save(outcomes, "smiling", 0.25, tmp_path / "c.json", tmp_path / "c.svg")
    assert json.loads((tmp_path / "c.json").read_text()) == json.loads(json.dumps(data))
    assert "optimize" in (tmp_path / "c.svg").read_text()
    draw([data, data], tmp_path / "both.png")
    assert (tmp_path / "both.png").stat().st_size > 1000
