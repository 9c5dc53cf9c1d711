"""Captions from labels: a grammar of phrases, and how true each sentence is of each image.

Truth is an interval. An image carries, per attribute, a probability for each value; what is missing to 1 is
unknown. A phrase is true for the values it `means` and undecided for those it is `unsure` of, so the probability that
it holds lies between `lower` and `upper`; a caption's interval is the product over the attributes it speaks of.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Generator, Tensor

from flowgrad.errors import FlowgradError
from flowgrad.guidance.names import words_of
from flowgrad.training.guide.config import CaptionConfig, PhraseConfig

_SLOT = re.compile(r"\{(\w+)(\??)\}")
_ARTICLE = re.compile(r"\ba(?= [aeiou])")
_ATTEMPTS = 50


@dataclass(frozen=True)
class Meaning:
    """For each value of all attributes, side by side (V,): is the phrase true for it, and may it be?"""

    certain: Tensor
    possible: Tensor

    def joined(self, other: "Meaning") -> "Meaning":
        """Return the meaning of saying both."""
        return Meaning(self.certain & other.certain, self.possible & other.possible)


@dataclass(frozen=True)
class Caption:
    """A sentence and what it claims."""

    text: str
    meaning: Meaning


class Grammar:
    """Samples captions from the templates and slots of a configuration."""

    def __init__(self, config: CaptionConfig) -> None:
        self.config = config
        self.values = {name: list(attribute.values_in_order) for name, attribute in config.attributes.items()}
        self._slots = {
            slot: [(phrase, self._meaning(phrase)) for phrase in phrases] for slot, phrases in config.slots.items()
        }
        self._weights = {
            slot: torch.tensor([phrase.weight for phrase in found]) for slot, found in config.slots.items()
        }

    @cached_property
    def spans(self) -> list[slice]:
        """Where each attribute's values lie in a row of probabilities."""
        spans, start = [], 0
        for values in self.values.values():
            spans.append(slice(start, start + len(values)))
            start += len(values)
        return spans

    @cached_property
    def vocabulary(self) -> list[str]:
        """Every word a caption can contain, sorted."""
        phrases = [word for slots in self.config.slots.values() for phrase in slots for word in phrase.words]
        plain = [_SLOT.sub(" ", template) for template in self.config.templates]
        return sorted({word for text in [*phrases, *plain, "an"] for word in words_of(text)})

    def sample(self, count: int, generator: Generator) -> list[Caption]:
        """Draw `count` captions that do not contradict themselves."""
        return [self._sample_one(generator) for _ in range(count)]

    def _sample_one(self, generator: Generator) -> Caption:
        for _ in range(_ATTEMPTS):
            caption = self._fill(_choose(self.config.templates, generator), generator)
            if all(bool(caption.meaning.certain[span].any()) for span in self.spans):
                return caption
        raise FlowgradError(
            f"{_ATTEMPTS} captions in a row contradicted themselves: give the slots of a template meanings that agree."
        )

    def _fill(self, template: str, generator: Generator) -> Caption:
        meaning = self._everything()

        def phrase(match: re.Match[str]) -> str:
            nonlocal meaning
            if match[2] and float(torch.rand((), generator=generator)) >= self.config.fill:
                return ""
            phrases = self._slots[match[1]]
            chosen = torch.multinomial(self._weights[match[1]], 1, generator=generator)
            said, claim = phrases[int(chosen)]
            meaning = meaning.joined(claim)
            return _choose(said.words, generator)

        return Caption(tidy(_SLOT.sub(phrase, template)), meaning)

    def _everything(self) -> Meaning:
        true = torch.ones(sum(map(len, self.values.values())), dtype=torch.bool)
        return Meaning(true, true)

    def _meaning(self, phrase: PhraseConfig) -> Meaning:
        certain = [self._mask(name, phrase.means) for name in self.values]
        possible = [
            mask | self._mask(name, phrase.unsure) if name in phrase.unsure and name in phrase.means else mask
            for name, mask in zip(self.values, certain, strict=True)
        ]
        return Meaning(torch.cat(certain), torch.cat(possible))

    def _mask(self, attribute: str, claims: Mapping[str, Sequence[str]]) -> Tensor:
        values = self.values[attribute]
        return torch.tensor([attribute not in claims or value in claims[attribute] for value in values])


def tidy(text: str) -> str:
    """Remove the gaps of empty slots and turn "a" into "an" before a vowel."""
    return _ARTICLE.sub("an", " ".join(text.split()))


def truth(probabilities: Tensor, captions: Sequence[Caption], spans: Sequence[slice]) -> tuple[Tensor, Tensor]:
    """Bound the probability that each caption holds for each image.

    `probabilities` (B, V) in [0, 1]; each attribute's span sums to at most 1, the rest is unknown.
    Returns `lower` and `upper`, both (B, T).
    """
    certain = torch.stack([caption.meaning.certain for caption in captions]).to(probabilities)
    possible = torch.stack([caption.meaning.possible for caption in captions]).to(probabilities)
    lower = torch.ones(len(probabilities), len(captions), device=probabilities.device)
    upper = lower.clone()
    for span in spans:
        rows, silent = probabilities[:, span], certain[:, span].all(1)
        unknown = (1 - rows.sum(1, keepdim=True)).clamp(min=0)
        lower = lower * torch.where(silent, 1.0, rows @ certain[:, span].T)
        upper = upper * torch.where(silent, 1.0, rows @ possible[:, span].T + unknown)
    return lower, upper.clamp(max=1)


def pair_targets(lower: Tensor, upper: Tensor, smoothing: float = 0.0) -> tuple[Tensor, Tensor]:
    """Turn bounds into what a pair should score and how much it counts.

    True (1, 1) gives target 1 and weight 1, contradicted (0, 0) target 0 and weight 1, unknown (0, 1) weight 0.
    """
    weight = (1 - (upper - lower)).clamp(0, 1)
    target = torch.where(weight > 1e-6, lower / weight.clamp(min=1e-6), 0.5).clamp(0, 1)
    return smoothing + (1 - 2 * smoothing) * target, weight


def _choose(options: Sequence[str], generator: Generator) -> str:
    return options[int(torch.randint(len(options), (), generator=generator))]
