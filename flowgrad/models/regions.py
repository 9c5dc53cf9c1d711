"""Regions with words: some words of a prompt, and where in the image they are meant."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, takewhile
from typing import Any

import torch
from torch import Tensor

from flowgrad.errors import UsageError

WEIGHT = 4.0
TOLERANCE = 0.01  # of a mask's values: soft edges that were rounded to 8 bits may add up to a little more than 1


@dataclass(frozen=True, eq=False)
class Region:
    """Words, and the part of the image that they are meant for.

    mask: (S, S) in [0, 1], of any size S, 1 where the words are meant. words: found in the prompt as whole words at
    their first place, whatever their case; else they are appended to it. weight: added to the logits of attention
    between the two at t = 0, so that the odds of attending to these tokens, not to others, are exp(weight) times as
    high; it fades to 0 at t = 1/2. Below 0, it keeps the words away. Raises UsageError for a mask of another shape or
    range, one that covers nothing or everything, a weight that is not finite, and for no words.
    """

    mask: Tensor
    words: str
    weight: float = WEIGHT

    def __post_init__(self) -> None:
        if not re.search(r"\w", self.words):
            raise UsageError(f"a region needs words; got {self.words!r}")
        name, shape = f"the region {self.words!r}", tuple(self.mask.shape)
        if len(shape) != 2 or shape[0] != shape[1] or 0 in shape:
            raise UsageError(f"{name} needs a square mask (S, S), as images are; got {shape}")
        if not bool(((self.mask >= 0) & (self.mask <= 1)).all()):
            raise UsageError(f"{name} needs a mask with values from 0 to 1")
        if not bool((self.mask > TOLERANCE).any()):
            raise UsageError(f"{name} covers nothing: paint its mask, or leave the region out")
        if bool((self.mask >= 1 - TOLERANCE).all()):
            raise UsageError(f"{name} covers the whole image: put its words into the prompt, without a region")
        if not abs(self.weight) < float("inf"):
            raise UsageError(f"{name} needs a weight that is a finite number; got {self.weight}")

    @property
    def condition(self) -> str:
        """What of it a field depends on, for its fingerprint: words, weight, and the mask in 8 bits."""
        mask = (255 * self.mask.float()).round().to(torch.uint8).contiguous()
        digest = hashlib.sha256(mask.cpu().numpy().tobytes()).hexdigest()
        return f"{self.words!r} {self.weight:g} {len(mask)} {digest}"


def check_apart(regions: Sequence[Region]) -> None:
    """Raise UsageError if masks have several sizes or overlap."""
    if len(sizes := {len(region.mask) for region in regions}) > 1:
        raise UsageError(f"masks of regions must have one size; got {', '.join(map(str, sorted(sizes)))} pixels")
    for one, other in combinations(regions, 2):
        overlap = one.mask.float() + other.mask.to(one.mask.device).float() > 1 + TOLERANCE
        if count := int(overlap.sum()):
            raise UsageError(
                f"the regions {one.words!r} and {other.words!r} overlap in {count} pixels: give each pixel to one"
            )


def prompt_with(prompt: str, regions: Sequence[Region]) -> str:
    """The prompt, with the words of regions appended that it does not have."""
    for region in regions:
        if _place(prompt, region.words) is None:
            prompt = f"{prompt}, {region.words}" if prompt.strip() else region.words
    return prompt


def _place(prompt: str, words: str) -> tuple[int, int] | None:
    """Where whole words first stand in a prompt; None if they do not."""
    pattern = r"\s+".join(map(re.escape, words.split()))
    match = re.search(rf"(?<!\w){pattern}(?!\w)", prompt, re.IGNORECASE)
    return match.span() if match else None


def token_range(tokenizer: Any, prompt: str, words: str, limit: int) -> range | None:
    """The tokens of words in a prompt, as a text encoder numbers them; None where its `limit` cuts some of them off.

    They are counted in the tokens of what stands before the words, and of that with them: tokenizers split at the
    edges of words, and not all of them tell where in a text their tokens are. Raises UsageError if the prompt does
    not have the words, or if the tokenizer has no tokens for them alone.
    """

    def tokens(text: str) -> list[int]:
        return list(tokenizer(text).input_ids)

    place = _place(prompt, words)
    if place is None:
        raise UsageError(f"the words {words!r} are not in the prompt {prompt!r}")
    start, end = place
    whole, frame = tokens(prompt), tokens("")  # a frame of special tokens: before the text, after it, or both
    before = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(whole, frame, strict=False)))
    after = len(frame) - before
    until_words, with_words = tokens(prompt[:start].rstrip()), tokens(prompt[:end])
    first, last = len(until_words) - after, len(with_words) - after
    if first >= last or with_words[:last] != whole[:last] or until_words[:first] != whole[:first]:
        raise UsageError(f"the tokenizer has no tokens for {words!r} alone in {prompt!r}: choose other words")
    return range(first, last) if last <= limit - after else None
