"""The objective of a guide: a CLIP network learns from images and from captions made of their labels."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from clip.model import CLIP
from torch import Generator, Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, normalize

from flowgrad.errors import UsageError
from flowgrad.guidance.guide import CLIP_MEAN, CLIP_STD, tokenize
from flowgrad.guidance.guide_files import read_state
from flowgrad.guidance.names import VOCABULARY_KEY
from flowgrad.models import resolve_precision
from flowgrad.seeds import generator
from flowgrad.training.guide.augment import augment
from flowgrad.training.guide.captions import Caption, Grammar, pair_targets, truth
from flowgrad.training.guide.config import GuideConfig, NetworkConfig
from flowgrad.training.guide.labels import Labels, sampling_weights
from flowgrad.training.loop.trainer import BATCH
from flowgrad.training.loop.weights import write_weights
from flowgrad.workers import Workers

WEIGHTS = "model.safetensors"
VOCABULARY_SIZE = 49408  # of CLIP's byte-pair tokens
FIRST_SCALE, FIRST_BIAS = 15.0, -2.0  # of cosines, before the sigmoid
LARGEST_SCALE = 100.0
SCALE_FACTOR = 5.0  # their learning rate relative to the others'


@dataclass(frozen=True)
class CaptionPool:
    """Captions drawn in advance, with their tokens (T, context) as positions in the sorted list of those used.

    Training with an embedding of only these rows saves a third of each step. Sorting keeps CLIP's rule that the token
    that ends a text is the greatest.
    """

    captions: list[Caption]
    tokens: Tensor
    used: Tensor

    @classmethod
    def draw(cls, grammar: Grammar, count: int, context_length: int, generator: Generator) -> "CaptionPool":
        """Draw `count` captions; UsageError if one does not fit the context."""
        captions = grammar.sample(count, generator)
        tokens = tokenize([caption.text for caption in captions], context_length)
        used, places = torch.unique(tokens, return_inverse=True)
        return cls(captions, places, used)


class GuideNetwork(nn.Module):
    """What is trained: the CLIP network, the bias of its loss, and a linear readout of attribute values.

    The last two are used in training only.
    """

    def __init__(self, sizes: NetworkConfig, vocabulary: int, values: int, seed: int) -> None:
        super().__init__()
        self.clip = new_network(sizes, vocabulary, seed)
        self.bias = nn.Parameter(torch.tensor(FIRST_BIAS))
        self.heads = new_heads(sizes.embed_dim, values, seed)


class GuideObjective:
    """A guide that learns which captions are true of which images."""

    plain = (
        "clip.token_embedding",
        "clip.positional_embedding",
        "clip.visual.conv1",
        "clip.visual.attnpool.positional_embedding",
        "heads",
    )
    factors: ClassVar = {"clip.logit_scale": SCALE_FACTOR, "bias": SCALE_FACTOR}

    def __init__(self, images: Tensor, labels: Labels, config: GuideConfig, device: torch.device) -> None:
        """Hold images (N, 3, H, W) uint8 of the configured resolution, and their labels."""
        self.images, self.labels, self.config, self.device = images, labels, config, device
        settings, sizes = config.training, config.network
        self.grammar = Grammar(config)
        spans = dict(zip(config.attributes, self.grammar.spans, strict=True))
        self.weights = sampling_weights(labels, config, spans)
        self.pool = CaptionPool.draw(self.grammar, settings.pool, sizes.context_length, generator(settings.seed))
        values = labels.probabilities.shape[1]
        self.network: GuideNetwork = GuideNetwork(sizes, len(self.pool.used), values, settings.seed).to(device)
        self.precision = resolve_precision(settings.precision, device)

    def loss(self, step: int, progress: float, share: slice) -> Tensor:
        """The loss of all pairs of a part of a step's images and of its captions."""
        settings, clip = self.config.training, self.network.clip
        draws = generator(settings.seed, BATCH, step)
        rows = torch.multinomial(self.weights, settings.batch, replacement=True, generator=draws)
        chosen = torch.randint(len(self.pool.captions), (settings.captions,), generator=draws)
        captions = [self.pool.captions[index] for index in chosen.tolist()]
        pixels = augment(self.images[rows].float() / 255, draws)[share]
        known = self.labels.probabilities[rows[share]]
        target, weight = pair_targets(*truth(known, captions, self.grammar.spans), smoothing=settings.smoothing)
        autocast = self.precision != torch.float32
        with torch.autocast(self.device.type, dtype=self.precision, enabled=autocast):
            pictures = clip.encode_image(to_clip_pixels(pixels).to(self.device)).float()
        texts = clip.encode_text(self.pool.tokens[chosen].to(self.device))  # float32: too small to gain
        scale = clip.logit_scale.exp().clamp(max=LARGEST_SCALE)
        pairs = pair_loss(pictures, texts, scale, self.network.bias, target, weight)
        logits = self.network.heads(FIRST_SCALE * normalize(pictures, dim=-1))
        values = attribute_loss(logits, known.to(self.device), self.grammar.spans)
        return pairs + settings.attribute_loss * values

    def held_out_loss(self, workers: Workers) -> None:
        """Nothing is held out in training: the test split is asked the config's questions at the end."""

    def exported(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The CLIP network's state out of the trained one's, with zeros for tokens that no caption used."""
        clip = {key.removeprefix("clip."): value for key, value in state.items() if key.startswith("clip.")}
        rows = clip["token_embedding.weight"]
        embedding = rows.new_zeros(VOCABULARY_SIZE, rows.shape[1])
        embedding[self.pool.used.to(self.device)] = rows
        return {**clip, "token_embedding.weight": embedding}

    def start_from(self, path: Path) -> None:
        """Take the weights of an exported guide of the same sizes. Raises UsageError if they differ."""
        state = {key: value.float() for key, value in read_state(path)[0].items()}
        wanted = self.exported(self.network.state_dict())
        if {key: value.shape for key, value in state.items()} != {key: value.shape for key, value in wanted.items()}:
            raise UsageError(f"{path} is a guide of other sizes than the config's `network`: make them agree.")
        state["token_embedding.weight"] = state["token_embedding.weight"][self.pool.used]
        self.network.clip.load_state_dict(state)


def data_key(images: Tensor, labels: Labels) -> str:
    """A hash of everything that a run draws from: images, their names and probabilities."""
    digest = hashlib.sha256(json.dumps(labels.files).encode())
    for values in (images, labels.probabilities):
        digest.update(values.contiguous().numpy().ravel().data)
    return digest.hexdigest()


def new_network(sizes: NetworkConfig, vocabulary: int, seed: int) -> CLIP:
    """Build a CLIP network that reads so many tokens, with random weights of this seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vision = (sizes.resolution, tuple(sizes.vision_layers), sizes.vision_width, None)
        text = (sizes.context_length, vocabulary, sizes.text_width, sizes.text_width // 64, sizes.text_layers)
        network = CLIP(sizes.embed_dim, *vision, *text)
    nn.init.constant_(network.logit_scale, math.log(FIRST_SCALE))
    network.visual.to(memory_format=torch.channels_last)
    return network


def new_heads(embed_dim: int, values: int, seed: int) -> nn.Linear:
    """Build the linear readout of attribute values that is used in training only."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Linear(embed_dim, values)


def pair_loss(images: Tensor, texts: Tensor, scale: Tensor, bias: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Sigmoid loss of all pairs of embeddings (B, E) and (T, E) against targets (B, T), weighted mean."""
    logits = scale * normalize(images, dim=-1) @ normalize(texts, dim=-1).T + bias
    loss = binary_cross_entropy_with_logits(logits, target.to(logits), weight.to(logits), reduction="sum")
    return loss / weight.sum().clamp(min=1e-6).to(loss)


def attribute_loss(logits: Tensor, known: Tensor, spans: Sequence[slice]) -> Tensor:
    """Mean over the attributes of the cross entropy of their values (B, V) to what is known of each image (B, V).

    Captions alone say little about each attribute; this makes the image network look at all of them from the start.
    """
    losses = [cross_entropy(logits[:, span], known[:, span]) for span in spans]
    return torch.stack(losses).mean()


def to_clip_pixels(images: Tensor) -> Tensor:
    """Normalise images in [0, 1] by CLIP's mean and deviation."""
    mean, std = (torch.tensor(values).view(1, 3, 1, 1).to(images) for values in (CLIP_MEAN, CLIP_STD))
    return ((images - mean) / std).contiguous(memory_format=torch.channels_last)


def export_guide(
    objective: GuideObjective, state: Mapping[str, Tensor], folder: Path, recipe: Mapping[str, str]
) -> Path:
    """Write `folder/model.safetensors`, the network of a (averaged) state in fp16, and return its path.

    The metadata carry the vocabulary under `flowgrad.vocabulary`, the configuration, and `recipe` under `flowgrad.*`.
    """
    metadata = {VOCABULARY_KEY: json.dumps(objective.grammar.vocabulary)}
    metadata |= {"flowgrad.config": objective.config.model_dump_json()}
    metadata |= {f"flowgrad.{key}": value for key, value in recipe.items()}
    path = folder / WEIGHTS
    write_weights(path, objective.exported(state), metadata)
    return path
