"""Training a guide: a CLIP network learns from images and from captions made of their labels."""

import hashlib
import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from clip.model import CLIP
from safetensors.torch import save_file
from torch import Generator, Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, normalize

from flowgrad.errors import FlowgradError, UsageError
from flowgrad.files import atomic_path, file_fingerprint
from flowgrad.guidance.guide import CLIP_MEAN, CLIP_STD, VOCABULARY_KEY, tokenize
from flowgrad.guidance.guide_files import read_state
from flowgrad.models import resolve_device
from flowgrad.training.guide.augment import augment
from flowgrad.training.guide.captions import Caption, Grammar, pair_targets, truth
from flowgrad.training.guide.config import GuideConfig, NetworkConfig
from flowgrad.training.guide.labels import Labels, sampling_weights

VOCABULARY_SIZE = 49408  # of CLIP's byte-pair tokens
FIRST_SCALE, FIRST_BIAS = 15.0, -2.0  # of cosines, before the sigmoid
SCALE_FACTOR = 5.0  # their learning rate relative to the others'
OF_A_RUN = {  # what must be the same for it to go on
    "config": "another config",
    "data": "other images, labels or rows, or another seed",
    "origin": "another guide to begin with",
}


@dataclass(frozen=True)
class GuideStep:
    """One step of training: how far the run is (0 to 1), its loss, and the learning rate used."""

    step: int
    progress: float
    loss: float
    learning_rate: float


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


class GuideTrainer:
    """State of a run: network, moving average, optimiser, random numbers, and how far it is."""

    def __init__(self, images: Tensor, labels: Labels, config: GuideConfig, seed: int, device: str) -> None:
        """Hold images (N, 3, H, W) uint8 of the configured resolution, and their labels."""
        self.images, self.labels, self.config, self.device = images, labels, config, resolve_device(device)
        self.grammar = Grammar(config)
        spans = dict(zip(config.attributes, self.grammar.spans, strict=True))
        self.weights = sampling_weights(labels, config, spans)
        self.generator = Generator().manual_seed(seed)
        pool_seed = Generator().manual_seed(seed + 1)
        self.pool = CaptionPool.draw(self.grammar, config.training.pool, config.network.context_length, pool_seed)
        self.network = new_network(config.network, len(self.pool.used), seed).to(self.device)
        self.bias = nn.Parameter(torch.tensor(FIRST_BIAS, device=self.device))
        self.heads = new_heads(config.network.embed_dim, labels.probabilities.shape[1], seed).to(self.device)
        self.average = {key: value.clone() for key, value in self._floats().items()}
        self.optimizer = torch.optim.AdamW(self._groups(), lr=config.training.learning_rate, betas=(0.9, 0.98))
        self.step, self.elapsed = 0, 0.0
        self.key, self.origin = data_key(images, labels, seed), ""

    def progress(self, steps: int | None, minutes: float | None) -> float:
        """Share of the run that is done, by steps if they are given and by time otherwise."""
        return self.step / steps if steps is not None else self.elapsed / (60 * (minutes or 1.0))

    def advance(self, progress: float) -> GuideStep:
        """Take one step at this share of the run, and return its record.

        Raises FlowgradError if the loss is no longer a number.
        """
        begun = time.perf_counter()
        rate = self._set_rate(progress)
        self.network.train()
        loss = self._loss()
        if not bool(torch.isfinite(loss)):
            raise FlowgradError(f"the loss became {loss.item()} at step {self.step}: lower training.learning_rate.")
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        self._limit_scale()
        self.step += 1
        self._update_average()
        self.elapsed += time.perf_counter() - begun
        return GuideStep(self.step, progress, float(loss.detach()), rate)

    def _loss(self) -> Tensor:
        settings = self.config.training
        rows = torch.multinomial(self.weights, settings.batch_size, replacement=True, generator=self.generator)
        chosen = torch.randint(len(self.pool.captions), (settings.captions,), generator=self.generator)
        captions = [self.pool.captions[index] for index in chosen.tolist()]
        known = self.labels.probabilities[rows]
        bounds = truth(known, captions, self.grammar.spans)
        target, weight = pair_targets(*bounds, smoothing=settings.smoothing)
        pixels = augment(self.images[rows].float() / 255, self.generator)
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=settings.bfloat16):
            found = self.network.encode_image(to_clip_pixels(pixels).to(self.device))
        said = self.network.encode_text(self.pool.tokens[chosen].to(self.device))  # float32: too small to gain
        pairs = pair_loss(found.float(), said, self._scale(), self.bias, target, weight)
        values = attribute_loss(
            self.heads(FIRST_SCALE * normalize(found.float(), dim=-1)), known.to(self.device), self.grammar.spans
        )
        return pairs + settings.attribute_loss * values

    def _scale(self) -> Tensor:
        return self.network.logit_scale.exp()

    def _limit_scale(self) -> None:
        with torch.no_grad():
            self.network.logit_scale.clamp_(0, math.log(100))

    def _set_rate(self, progress: float) -> float:
        rate = self.config.training.learning_rate * schedule(progress, self.config.training.warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["factor"]
        return rate

    def _groups(self) -> list[dict[str, Any]]:
        """Decay matrices only, not norms, biases or the token embedding; let scale and bias of the loss move faster."""
        named = [(key, value) for key, value in self.network.named_parameters() if key != "logit_scale"]
        decayed = [value for key, value in named if value.ndim >= 2 and "embedding" not in key]
        others = [value for key, value in named if value.ndim < 2 or "embedding" in key]
        return [
            {"params": decayed, "weight_decay": self.config.training.weight_decay, "factor": 1.0},
            {"params": [*others, *self.heads.parameters()], "weight_decay": 0.0, "factor": 1.0},
            {"params": [self.network.logit_scale, self.bias], "weight_decay": 0.0, "factor": SCALE_FACTOR},
        ]

    def _floats(self) -> dict[str, Tensor]:
        return {key: value for key, value in self.network.state_dict().items() if value.is_floating_point()}

    @torch.no_grad()
    def _update_average(self) -> None:
        keep = min(self.config.training.ema, (1 + self.step) / (10 + self.step))
        for key, value in self._floats().items():
            self.average[key].lerp_(value, 1 - keep)

    def averaged_state(self) -> dict[str, Tensor]:
        """Return the state dict to export: moving averages, with zeros for tokens no caption used."""
        state = {**self.network.state_dict(), **self.average}
        rows = state["token_embedding.weight"]
        embedding = rows.new_zeros(VOCABULARY_SIZE, rows.shape[1])
        embedding[self.pool.used.to(self.device)] = rows
        return {**state, "token_embedding.weight": embedding}

    def start_from(self, path: Path) -> None:
        """Take the weights of an exported guide of the same sizes; UsageError if they differ."""
        state = {
            key: value.float() if value.is_floating_point() else value for key, value in read_state(path)[0].items()
        }
        wanted = {key: value.shape for key, value in self.averaged_state().items()}
        if {key: value.shape for key, value in state.items()} != wanted:
            raise UsageError(f"{path} is a guide of other sizes than the config's `network`: make them agree.")
        state["token_embedding.weight"] = state["token_embedding.weight"][self.pool.used]
        self.network.load_state_dict(state)
        self.average = {key: value.clone() for key, value in self._floats().items()}
        self.origin = file_fingerprint(path)

    def save(self, path: Path) -> None:
        """Write everything needed to go on, through a temporary file."""
        with atomic_path(path) as temporary:
            torch.save(self._state(), temporary)

    def _state(self) -> dict[str, Any]:
        return {
            "config": self.config.model_dump_json(),
            "data": self.key,
            "origin": self.origin,
            "network": self.network.state_dict(),
            "bias": self.bias.detach(),
            "heads": self.heads.state_dict(),
            "average": self.average,
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "step": self.step,
            "elapsed": self.elapsed,
        }

    def restore(self, path: Path) -> None:
        """Go on from a saved run; FlowgradError if it is damaged, UsageError if it was another run than this one."""
        state = read_checkpoint(path)
        own = {"config": self.config.model_dump_json(), "data": self.key, "origin": self.origin}
        for key, told in OF_A_RUN.items():
            if state.get(key) != own[key]:
                raise UsageError(f"{path} is of a run with {told}: give what it had, or --no-resume to start again.")
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.bias.data.copy_(state["bias"])
        self.heads.load_state_dict(state["heads"])
        self.average = {key: value.to(self.device) for key, value in state["average"].items()}
        self.generator.set_state(state["generator"])
        self.step, self.elapsed = state["step"], state["elapsed"]


def train_guide(
    trainer: GuideTrainer,
    *,
    steps: int | None = None,
    minutes: float | None = None,
    checkpoint: Path | None = None,
    save_every: float = 60.0,
) -> Iterator[GuideStep]:
    """Train until `steps` have been taken (repeatable) or `minutes` have passed, yielding each step.

    With a `checkpoint` the run goes on from that file if it exists, and writes it every `save_every` seconds and
    when it ends or is stopped between two steps. Raises UsageError unless exactly one limit is given, above zero.
    """
    limit = minutes if steps is None else steps
    if (steps is None) == (minutes is None) or limit is None or limit <= 0:
        raise UsageError(f"give either steps or minutes, above zero (got {steps=}, {minutes=}).")
    if checkpoint is not None and checkpoint.exists():
        trainer.restore(checkpoint)
    saved, whole = trainer.elapsed, True
    try:
        while (progress := trainer.progress(steps, minutes)) < 1:
            whole = False  # a step that is interrupted has drawn numbers and may have changed some of the weights
            record = trainer.advance(progress)
            whole = True
            yield record
            if checkpoint is not None and trainer.elapsed - saved >= save_every:
                trainer.save(checkpoint)
                saved = trainer.elapsed
    finally:
        if checkpoint is not None and whole:
            trainer.save(checkpoint)


def data_key(images: Tensor, labels: Labels, seed: int) -> str:
    """A hash of everything that a run draws from: images, their names and probabilities, and the seed."""
    digest = hashlib.sha256(json.dumps([labels.files, seed]).encode())
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


def schedule(progress: float, warmup: float) -> float:
    """Share of the peak learning rate: up in a line, down in half a cosine to one hundredth."""
    if progress < warmup:
        return max(progress / warmup, 0.02)
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (progress - warmup) / max(1 - warmup, 1e-9)))


def to_clip_pixels(images: Tensor) -> Tensor:
    """Normalise images in [0, 1] by CLIP's mean and deviation."""
    mean, std = (torch.tensor(values).view(1, 3, 1, 1).to(images) for values in (CLIP_MEAN, CLIP_STD))
    return ((images - mean) / std).contiguous(memory_format=torch.channels_last)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Load a saved run without executing anything in it; FlowgradError if that fails."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, UnpicklingError) as error:
        reason = str(error).splitlines()[0][:100] if str(error) else type(error).__name__
        raise FlowgradError(f"{path} is not a readable checkpoint ({reason}): delete it to start again.") from error
    if not isinstance(state, dict) or "average" not in state:
        raise FlowgradError(
            f"{path} is not a checkpoint of a guide's training: move it away, or choose another folder."
        )
    return state


def export_guide(trainer: GuideTrainer, folder: Path, recipe: Mapping[str, str]) -> Path:
    """Write `folder/model.safetensors`, the averaged network in fp16, and return its path.

    The metadata carry the vocabulary under `flowgrad.vocabulary`, the configuration, and `recipe` under `flowgrad.*`.
    """
    state = {key: _half(value) for key, value in trainer.averaged_state().items()}
    metadata = {VOCABULARY_KEY: json.dumps(trainer.grammar.vocabulary)}
    metadata |= {"flowgrad.config": trainer.config.model_dump_json(), "flowgrad.steps": str(trainer.step)}
    metadata |= {f"flowgrad.{key}": value for key, value in recipe.items()}
    path = folder / "model.safetensors"
    with atomic_path(path) as temporary:
        save_file(state, temporary, metadata=metadata)
    return path


def _half(value: Tensor) -> Tensor:
    value = value.cpu().contiguous()
    return value.half() if value.is_floating_point() else value
