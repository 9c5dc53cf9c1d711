"""Gradients in several ways, where they must agree."""

import pytest

from directions.benchmark.gradients import FULL, compare_gradients, comparison_rows
from directions.progress import Silent
from flowgrad.guidance.contrast import Contrast
from flowgrad.guidance.guide_files import load_guide
from flowgrad.models import load_model
from tests.helpers.tiny import Tiny


def test_on_the_full_grid_every_gradient_is_the_full_one(tiny: Tiny) -> None:
    model = load_model(str(tiny.model), "cpu", "fp32")
    guide, target = load_guide(model.config.guide), Contrast("a smiling face", "a serious face")
    found = compare_gradients(model, guide, target, 6, (0.0, 1e9), 3, 3, 2, 0, 1, Silent())
    by_way = {comparison.way: comparison for comparison in found}
    exact = ("Eq. 13, xi = 0", "ours, xi = 0")
    for way in (FULL, *exact):
        assert by_way[way].products == 5 and by_way[way].cosine == pytest.approx(1, abs=1e-6)
    assert by_way["Eq. 13, xi = 1e+09"].products == 0  # a single interval's control needs none
    assert by_way["ours, xi = 1e+09"].products == 3  # of bounded intervals
    assert by_way["ours, 3 products"].products == 3
    kept = by_way["ours, 3 products, kept"]
    assert (kept.products, kept.cosine) == (3, pytest.approx(by_way["ours, 3 products"].cosine, abs=1e-6))
    assert by_way["3 intervals"].products == 2
    assert all(-1 <= comparison.cosine <= 1 + 1e-6 for comparison in found)
    assert by_way[FULL].share == 1
    head, rows = comparison_rows(found)
    assert len(rows) == len(by_way) and all(len(row) == len(head) for row in rows)
    others = compare_gradients(model, guide, target, 6, (), 3, 3, 2, 1, 1, Silent())  # of another seed's samples
    assert {c.way: c.cosine for c in others}["3 intervals"] != by_way["3 intervals"].cosine
