"""Regions: what they refuse, and where their words are in a prompt and in its tokens."""

import pytest
import torch

from flowgrad.errors import UsageError
from flowgrad.models.regions import Region, check_apart, prompt_with, token_range
from tests.helpers.pipelines import has_transformers, letter_tokenizer, word_tokenizer

LEFT = torch.zeros(8, 8)
LEFT[:, :4] = 1


@pytest.mark.parametrize(
    ("mask", "words", "message"),
    [
        (torch.zeros(8, 8), "a cat", "'a cat' covers nothing"),
        (torch.ones(8, 8), "a cat", "'a cat' covers the whole image"),
        (torch.zeros(8, 6), "a cat", r"square mask.*\(8, 6\)"),
        (torch.zeros(0, 0), "a cat", r"square mask.*\(0, 0\)"),
        (255 * LEFT, "a cat", "values from 0 to 1"),
        (LEFT * float("nan"), "a cat", "values from 0 to 1"),
        (LEFT, " , ", "needs words; got ' , '"),
        (LEFT, "", "needs words; got ''"),
    ],
)
def test_a_region_that_means_nothing_is_refused(mask: torch.Tensor, words: str, message: str):
    with pytest.raises(UsageError, match=message):
        Region(mask, words)


@pytest.mark.parametrize("weight", [float("inf"), float("nan")])
def test_a_weight_is_a_number(weight: float):
    with pytest.raises(UsageError, match=f"finite number; got {weight}"):
        Region(LEFT, "a cat", weight)


def test_regions_lie_apart():
    soft = 0.3 * LEFT
    check_apart([Region(LEFT, "a cat"), Region(1 - LEFT, "a dog")])
    check_apart([Region(0.7 * LEFT, "a cat"), Region(soft, "a dog")])
    right = 1 - LEFT
    right[0, :2] = 1
    with pytest.raises(UsageError, match="'a cat' and 'a fox' overlap in 2 pixels"):
        check_apart([Region(soft, "a cat"), Region(0.7 * LEFT, "a dog"), Region(right, "a fox")])
    with pytest.raises(UsageError, match="one size; got 4, 8 pixels"):
        check_apart([Region(LEFT, "a cat"), Region(torch.eye(4), "a dog")])


def test_words_are_found_whole_and_in_any_case_or_appended():
    def read(prompt: str, *words: str) -> str:
        return prompt_with(prompt, [Region(LEFT, each) for each in words])

    assert read("A  Cat on a mat", "a cat", "MAT") == "A  Cat on a mat"
    assert read("a catalogue", "a cat") == "a catalogue, a cat"
    assert read("a woman", "man", "a hat (red)") == "a woman, man, a hat (red)"
    assert read("", "a cat", "cat") == "a cat"


def test_what_a_field_depends_on_tells_regions_apart():
    other, first = LEFT.clone(), Region(LEFT, "a cat")
    other[0, 0] = 0
    regions = [first, Region(other, "a cat"), Region(LEFT, "a dog"), Region(LEFT, "a cat", 3.0)]
    assert len({region.condition for region in regions}) == len(regions)
    assert Region(LEFT.to(torch.float64), "a cat").condition == first.condition


@has_transformers
@pytest.mark.parametrize("make", [letter_tokenizer, word_tokenizer])
def test_tokens_are_those_of_the_words(make):
    """CLIP's kind, which frames a text, and T5's, which ends it and has its spaces within tokens."""
    tokenizer, prompt = make(), "a  photo of (A cat), a cathedral, and a dog."
    ids = list(tokenizer(prompt).input_ids)
    for words, written in (("a cat", "A cat"), ("dog", "dog"), ("A Photo", "a photo"), ("a cathedral", "a cathedral")):
        found = token_range(tokenizer, prompt, words, 77)
        assert found
        text = tokenizer.decode(ids[found.start : found.stop])
        assert text.replace(" ", "").lower() == written.replace(" ", "").lower()
    with pytest.raises(UsageError, match="'fox' are not in the prompt"):
        token_range(tokenizer, prompt, "fox", 77)


@has_transformers
def test_words_that_the_limit_cuts_off_are_none():
    tokenizer = letter_tokenizer()
    assert token_range(tokenizer, "a cat", "cat", 6) == range(2, 5)  # start, a, c, a, t, end
    assert token_range(tokenizer, "a cat", "cat", 5) is None
    assert token_range(tokenizer, "a cat", "a", 3) == range(1, 2)


@has_transformers
def test_words_without_tokens_of_their_own_are_refused():
    """Where a token reaches over the edge of the words, or where the tokenizer leaves a text out."""
    with pytest.raises(UsageError, match="no tokens for 'ice' alone"):
        token_range(word_tokenizer(), "an ice-cream", "ice", 77)
