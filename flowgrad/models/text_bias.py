"""Attention that is drawn to words where they are meant: w(t) M, added to the logits of image queries for text keys.

M[q, k] is the share of query q's pixels in the region of which k is a token, and w(t) = weight * max(0, 1 - 2 t): the
layout of an image is made in the first half of its path.
"""

from collections.abc import Callable, Sequence
from math import isqrt
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from flowgrad.errors import UsageError
from flowgrad.models.regions import Region, token_range

Readers = Sequence[tuple[Any, int]]  # tokenizers, and how many tokens each has in a text that the network reads


class TextBias(NamedTuple):
    """masks: (R, S, S) shares in each region at the states' resolution. words: (R, K) weights, 0 at other tokens.

    dtype: of the network's logits.
    """

    masks: Tensor
    words: Tensor
    dtype: torch.dtype

    def cross(self, t: Tensor, queries: int) -> Tensor:
        """The bias (B, Q, K) of as many queries, a square in rows, for the text's keys at t (B,)."""
        shares = F.adaptive_avg_pool2d(self.masks, isqrt(queries)).flatten(1)
        bias = (shares[:, :, None] * self.words[:, None]).sum(0)  # a matrix product would lose digits under autocast
        return (fade(t)[:, None, None] * bias).to(self.dtype)

    def joint(self, t: Tensor, queries: int, text_first: bool) -> Tensor:
        """The bias (B, 1, K + Q, K + Q) of text and image tokens in one sequence: of image queries for text keys."""
        length = self.words.shape[1]
        sides = (0, queries, length, 0) if text_first else (queries, 0, 0, length)  # left, right, top, bottom
        return F.pad(self.cross(t, queries), sides)[:, None]


def fade(t: Tensor) -> Tensor:
    """1 at t = 0, falling to 0 at t = 1/2."""
    return (1 - 2 * t).clamp(min=0)


def text_bias(regions: Sequence[Region], prompt: str, readers: Readers, side: int, embedding: Tensor) -> TextBias:
    """The bias of regions for states of `side` pixels and a prompt that is read as `embedding` (1, K, width).

    regions: with masks of one size. Raises UsageError if words have no tokens that are read.
    """
    words = torch.zeros(len(regions), embedding.shape[1], device=embedding.device)
    for row, region in zip(words, regions, strict=True):
        row[_positions(readers, prompt, region.words)] = region.weight
    masks = torch.stack([region.mask.to(words) for region in regions])
    return TextBias(F.adaptive_avg_pool2d(masks, side), words, embedding.dtype)


def _positions(readers: Readers, prompt: str, words: str) -> list[int]:
    """The tokens of words in the readers' texts, one after the other. Raises UsageError if all readers cut them off."""
    positions, offset = [], 0
    for tokenizer, limit in readers:
        positions += [offset + token for token in token_range(tokenizer, prompt, words, limit) or ()]
        offset += limit
    if not positions:
        raise UsageError(
            f"the words {words!r} are cut off: {max(limit for _, limit in readers)} tokens of the prompt are read. Put "
            f"them earlier, or shorten {prompt!r:.60}"
        )
    return positions


# --- processors of diffusers' attention ---------------------------------------------------------------------------


def replace_processors(network: Any, wrap: Callable[[Any], Any]) -> None:
    """Wrap each attention processor of a diffusers network."""
    network.set_attn_processor({name: wrap(plain) for name, plain in network.attn_processors.items()})


class BiasedCrossAttention:
    """A U-Net's own attention, whose logits for the text get the bias of the layer's queries."""

    def __init__(self, plain: Any) -> None:
        self.plain = plain

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        text_bias: Callable[[int], Tensor] | None = None,
    ) -> Tensor:
        """text_bias: from the number of queries to their bias (B, Q, K), as an argument of the network's."""
        if encoder_hidden_states is not None and text_bias is not None:
            attention_mask = text_bias(hidden_states.shape[1])
        return self.plain(attn, hidden_states, encoder_hidden_states, attention_mask)


class BiasedJointAttention:
    """SD3's attention of image and text tokens with a bias, which its own leaves out; without one, its own."""

    def __init__(self, plain: Any) -> None:
        self.plain = plain

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """attention_mask: (B, 1, Q + K, Q + K). Layers of image tokens alone are left as they are."""
        if encoder_hidden_states is None or attention_mask is None:
            return self.plain(attn, hidden_states, encoder_hidden_states)

        def heads(project: Any, tokens: Tensor, norm: Any) -> Tensor:  # (B, H, L, D)
            rows = project(tokens).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            return rows if norm is None else norm(rows)

        image, text = hidden_states, encoder_hidden_states
        query = heads(attn.to_q, image, attn.norm_q), heads(attn.add_q_proj, text, attn.norm_added_q)
        key = heads(attn.to_k, image, attn.norm_k), heads(attn.add_k_proj, text, attn.norm_added_k)
        value = heads(attn.to_v, image, None), heads(attn.add_v_proj, text, None)
        logits, values = (torch.cat(query, 2), torch.cat(key, 2)), torch.cat(value, 2)
        out = F.scaled_dot_product_attention(*logits, values, attention_mask).transpose(1, 2).flatten(2)
        of_image, of_text = out.split([image.shape[1], text.shape[1]], dim=1)
        of_image = attn.to_out[1](attn.to_out[0](of_image))
        return of_image, of_text if attn.context_pre_only else attn.to_add_out(of_text)
