"""The page of evidence says what its data say."""

import pytest

from direction_bank import evidence


@pytest.mark.parametrize("part", [evidence.gradients, evidence.updates, evidence.speed])
def test_the_page_has_the_tables_of_the_benchmarks(part):  # type: ignore[no-untyped-def]
    assert part(evidence.read("benchmark")) in evidence.PAGE.read_text(encoding="utf-8")


@pytest.mark.parametrize("part", [evidence.methods, evidence.strengths])
def test_the_page_has_the_tables_of_the_comparisons(part):  # type: ignore[no-untyped-def]
    assert part(evidence.read("comparison")) in evidence.PAGE.read_text(encoding="utf-8")


@pytest.mark.parametrize("part", [evidence.ranges, evidence.sums])
def test_the_page_has_the_tables_of_strengths_and_sums(part):  # type: ignore[no-untyped-def]
    assert part(evidence.read("range")) in evidence.PAGE.read_text(encoding="utf-8")


def test_the_page_has_the_tables_of_further_trainings() -> None:
    page = evidence.PAGE.read_text(encoding="utf-8")
    assert evidence.photos(evidence.read("photos")) in page
    assert all(evidence.ends(evidence.read(kind)) in page for kind in evidence.ENDS)


def test_a_page_is_filled_between_its_marks_again_and_again() -> None:
    page = "a\n<!-- one -->\nold\n<!-- end -->\nb\n<!-- two -->\n<!-- end -->\n"
    filled = evidence.fill(page, {"one": "1", "two": "2"})
    assert filled == "a\n<!-- one -->\n\n1\n\n<!-- end -->\nb\n<!-- two -->\n\n2\n\n<!-- end -->\n"
    assert evidence.fill(filled, {"one": "1", "two": "2"}) == filled
    with pytest.raises(KeyError):
        evidence.fill("<!-- three -->\n<!-- end -->", {})
