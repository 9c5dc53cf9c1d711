"""Training the judge: one network answers several questions about a face at once."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from flowgrad.guidance.judge import Judge, JudgeNetwork, JudgeSizes, judge_metadata
from flowgrad.seeds import generator
from flowgrad.training.guide.augment import augment
from flowgrad.training.guide.config import AttributeConfig, CategoryConfig, NumberConfig, ProbabilitiesConfig
from flowgrad.training.guide.evaluation import area_under_curve
from flowgrad.training.guide.labels import attribute_probabilities
from flowgrad.training.loop.optimization import Optimization
from flowgrad.training.loop.trainer import BATCH
from flowgrad.training.loop.weights import write_weights
from flowgrad.workers import Workers

EXPRESSIONS = ("neutral", "happy", "sad", "angry", "fearful", "disgusted", "surprised")
AGES: dict[str, tuple[float, float]] = {
    "baby": (0, 2),
    "child": (3, 12),
    "young": (13, 34),
    "middle-aged": (35, 54),
    "old": (55, 120),
}
FACE_HEADS: dict[str, AttributeConfig] = {
    "expression": ProbabilitiesConfig(kind="probabilities", columns={name: name for name in EXPRESSIONS}),
    "gender": CategoryConfig(kind="category", column="gender", values=["female", "male"]),
    "age": NumberConfig(kind="number", column="age", ranges=AGES),
}
SETTINGS = Optimization(
    batch=128, optimizer="adamw", learning_rate=3e-3, weight_decay=0.05, ema=0.995, schedule="cosine", decay=1.0
)
BALANCE = 0.4  # images are drawn with their likeliest expression's count to the power of minus this


def answers(table: Sequence[Mapping[str, str]], heads: Mapping[str, AttributeConfig]) -> dict[str, Tensor]:
    """For each head the probabilities of its answers (N, answers), rows of zeros where they are unknown."""
    return {name: attribute_probabilities(table, head) for name, head in heads.items()}


class JudgeObjective:
    """A judge that learns the answers to several questions about an image at once."""

    plain = ("features.0.", "head.")
    factors: ClassVar[dict[str, float]] = {}

    def __init__(
        self, images: Tensor, truths: Mapping[str, Tensor], sizes: JudgeSizes, settings: Optimization = SETTINGS
    ) -> None:
        """Hold images (N, 3, H, W) uint8 of the judge's resolution and the answers' probabilities by head."""
        self.images, self.truths, self.settings = images, dict(truths), settings
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            network = JudgeNetwork(sizes, sum(truth.shape[1] for truth in truths.values()))
        self.network: torch.nn.Module = network.to(memory_format=torch.channels_last)
        self.weights = expression_weights(next(iter(self.truths.values())))

    def loss(self, step: int, progress: float, share: slice) -> Tensor:
        """The loss of a part of a step's images."""
        draws = generator(self.settings.seed, BATCH, step)
        rows = torch.multinomial(self.weights, self.settings.batch, replacement=True, generator=draws)
        pixels = augment(self.images[rows].float() / 255, draws)[share] * 2 - 1
        with torch.random.fork_rng(devices=[]), torch.autocast("cpu", dtype=torch.bfloat16):
            torch.manual_seed(step)  # of the dropout
            logits = self.network(pixels.contiguous(memory_format=torch.channels_last)).float()
        return heads_loss(logits, {name: truth[rows[share]] for name, truth in self.truths.items()})

    def held_out_loss(self, workers: Workers) -> None:
        """Nothing is held out in training; see `judge_figures`."""


def heads_loss(logits: Tensor, truths: Mapping[str, Tensor]) -> Tensor:
    """Sum over the heads of the mean cross entropy to soft answers; unknown answers (rows of zeros) add nothing."""
    parts = logits.split([truth.shape[1] for truth in truths.values()], 1)
    losses = [cross_entropy(part, truth) for part, truth in zip(parts, truths.values(), strict=True)]
    return torch.stack(losses).sum()


def expression_weights(truth: Tensor) -> Tensor:
    """How often to draw each image (N,), by the rarity of its likeliest answer to the first question."""
    likely = truth.argmax(1)
    counts = torch.bincount(likely, minlength=truth.shape[1]).double()
    return counts[likely] ** -BALANCE


def export_judge(
    state: Mapping[str, Tensor], sizes: JudgeSizes, heads: Mapping[str, AttributeConfig], folder: Path
) -> Path:
    """Write a network's state as fp16 `folder/model.safetensors` and return its path."""
    names = {name: head.values_in_order for name, head in heads.items()}
    path = folder / "model.safetensors"
    write_weights(path, state, judge_metadata(sizes, names))
    return path


@torch.no_grad()
def judge_figures(judge: Judge, images: Tensor, truths: Mapping[str, Tensor]) -> dict[str, float]:
    """Accuracy of each head, over images with a likely answer, and AUC of each answer, on images in [-1, 1]."""
    batches = [judge.probabilities(batch) for batch in images.split(128)]
    found = {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}
    figures: dict[str, float] = {}
    for head, names in judge.heads.items():
        scores, truth = torch.stack([found[name] for name in names], 1), truths[head]
        sure = truth.max(1).values > 0.5
        figures[f"{head}, accuracy"] = float((scores.argmax(1) == truth.argmax(1))[sure].float().mean())
        for column, name in enumerate(names):
            right = torch.where(sure, (truth.argmax(1) == column).float(), torch.nan)
            if bool((right == 1).any()):
                figures[f"{name}, AUC"] = area_under_curve(scores[:, column], right)
    return figures
