"""Guides: networks of CLIP's architecture that say how well a text describes an image."""

from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import clip
import torch
from clip.model import CLIP, build_model
from torch import Tensor, nn
from torch.nn.functional import interpolate, normalize
from torch.utils.weak import WeakIdKeyDictionary

from flowgrad.errors import FlowgradError, UsageError, reason
from flowgrad.guidance.names import words_of

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)  # of RGB in [0, 1], from the official code of CLIP
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
Tokenizer = Callable[[Sequence[str], int], Tensor]  # texts and the context's length -> tokens (T, context)


@dataclass(frozen=True)
class Reading:
    """How a network reads: pixels on a side, mean and deviation of RGB in [0, 1], and how texts become tokens."""

    resolution: int
    context_length: int
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD
    tokenizer: Tokenizer | None = None


class Guide(nn.Module):
    """A frozen CLIP network: images and texts become unit vectors whose product is their similarity."""

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        network: Any,
        name: str,
        fingerprint: str,
        vocabulary: frozenset[str] | None = None,
        reading: Reading | None = None,
    ) -> None:
        """Wrap `network` in float32; `vocabulary` holds the words of its training, None where they are not known.

        `reading` is that of OpenAI's CLIP unless it is given.
        """
        super().__init__()
        self.network = network.float().eval().requires_grad_(False)
        self.name, self.fingerprint, self.vocabulary = name, fingerprint, vocabulary
        self.reading = reading or Reading(network.visual.input_resolution, network.context_length)
        self.resolution, self.context_length = self.reading.resolution, self.reading.context_length
        self.logit_scale = float(network.logit_scale.exp())
        self.register_buffer("mean", torch.tensor(self.reading.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(self.reading.std).view(1, 3, 1, 1), persistent=False)
        self._texts: dict[str, Tensor] = {}
        self._images: MutableMapping[Tensor, tuple[int, Tensor]] = WeakIdKeyDictionary()
        self.eval()

    def encode_images(self, images: Tensor) -> Tensor:
        """Embed images (B, 3, H, W) in [-1, 1] of any size as unit vectors (B, E), differentiably."""
        if images.shape[-2:] != (self.resolution, self.resolution):
            size = (self.resolution, self.resolution)
            images = interpolate(images, size=size, mode="bicubic", align_corners=False, antialias=True)
        pixels = ((images + 1) / 2 - self.mean) / self.std
        return normalize(self.network.encode_image(pixels).float(), dim=-1)

    @torch.no_grad()
    def encode_photos(self, images: Tensor) -> Tensor:
        """`encode_images` without gradient; the same tensor, unchanged, is computed once."""
        version, embeddings = self._images.get(images, (-1, images))
        if version != images._version:
            embeddings = self.encode_images(images)
            self._images[images] = (images._version, embeddings)
        return embeddings

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Embed texts as unit vectors (T, E) without gradient; each text is computed once per guide.

        Raises UsageError for no text at all, an empty text, or one longer than the guide's context.
        """
        if isinstance(texts, str) or not texts:
            raise UsageError(f"encode_texts needs a sequence of one or more texts, got {texts!r}: pass a list.")
        for text in dict.fromkeys(texts):
            if text not in self._texts or self._texts[text].device != self.mean.device:
                self._texts[text] = self._encode_text(text)
        return torch.stack([self._texts[text] for text in texts])

    @torch.no_grad()
    def _encode_text(self, text: str) -> Tensor:
        reader = self.reading.tokenizer or tokenize
        tokens = reader([text], self.context_length).to(self.mean.device)
        return normalize(self.network.encode_text(tokens).float(), dim=-1)[0]

    def unknown_words(self, text: str) -> list[str]:
        """List the words of `text`, in order and once each, that the guide never met in training."""
        if self.vocabulary is None:
            return []
        return [word for word in dict.fromkeys(words_of(text)) if word not in self.vocabulary]


def tokenize(texts: Sequence[str], context_length: int) -> Tensor:
    """Turn texts into CLIP's byte-pair tokens (T, context_length), int64.

    Raises UsageError for an empty text and for one that does not fit the context.
    """
    rows = []
    for text in texts:
        if not text.strip():
            raise UsageError("a text for the guide is empty: describe the image in a few words.")
        try:
            rows.append(clip.tokenize(text, context_length=context_length))
        except RuntimeError as error:
            used = len(clip.tokenize(text, context_length=2048)[0].nonzero()) - 2
            rule = f"the text {text!r} has {used} tokens and this guide reads at most {context_length - 2}"
            raise UsageError(f"{rule}: use a shorter text.") from error
    return torch.cat(rows).long()


def to_network(state: dict[str, Tensor], path: Path) -> CLIP:
    """Build CLIP's network around a state dict as the official code does; FlowgradError if it is of another kind."""
    try:
        return build_model(dict(state)).float()
    except (KeyError, RuntimeError, AssertionError, ZeroDivisionError, IndexError, TypeError, ValueError) as error:
        rule = f"{path} is not a network of CLIP's architecture ({reason(error)})"
        raise FlowgradError(f"{rule}: use a guide exported by `flowgrad train-guide` or CLIP's own weights.") from error
