"""Training the judge: one network answers several questions about a face at once."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import torch
from safetensors.torch import save_file
from torch import Generator, Tensor, nn
from torch.nn.functional import cross_entropy

from flowgrad.errors import UsageError
from flowgrad.files import atomic_path
from flowgrad.guidance.judge import Judge, JudgeNetwork, JudgeSizes, judge_metadata
from flowgrad.training.guide.augment import augment
from flowgrad.training.guide.config import AttributeConfig, CategoryConfig, NumberConfig, ProbabilitiesConfig
from flowgrad.training.guide.evaluation import area_under_curve
from flowgrad.training.guide.labels import attribute_probabilities
from flowgrad.training.guide.trainer import schedule

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
LEARNING_RATE, WARMUP, WEIGHT_DECAY, AVERAGE = 3e-3, 0.05, 0.05, 0.995
BALANCE = 0.4  # images are drawn with their likeliest expression's count to the power of minus this


@dataclass(frozen=True)
class JudgeStep:
    """One step of training: how far the run is (0 to 1), and its loss."""

    step: int
    progress: float
    loss: float


def answers(table: Sequence[Mapping[str, str]], heads: Mapping[str, AttributeConfig]) -> dict[str, Tensor]:
    """For each head the probabilities of its answers (N, answers), rows of zeros where they are unknown."""
    return {name: attribute_probabilities(table, head) for name, head in heads.items()}


class JudgeTrainer:
    """State of a run; `average` is the network to keep."""

    def __init__(
        self, images: Tensor, truths: Mapping[str, Tensor], sizes: JudgeSizes, *, batch_size: int = 128, seed: int = 0
    ) -> None:
        """Hold images (N, 3, H, W) uint8 of the judge's resolution and the answers' probabilities by head."""
        self.images, self.truths, self.batch_size = images, dict(truths), batch_size
        self.generator = Generator().manual_seed(seed)
        outputs = sum(truth.shape[1] for truth in truths.values())
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.network = JudgeNetwork(sizes, outputs).to(memory_format=torch.channels_last)
        self.average = JudgeNetwork(sizes, outputs)
        self.average.load_state_dict(self.network.state_dict())
        parameters = self.network.parameters()
        self.optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
        self.weights = expression_weights(next(iter(self.truths.values())))
        self.step, self.elapsed = 0, 0.0

    def advance(self, progress: float) -> JudgeStep:
        """Take one step at this share of the run."""
        begun = perf_counter()
        for group in self.optimizer.param_groups:
            group["lr"] = LEARNING_RATE * schedule(progress, WARMUP)
        loss = self._loss()
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        self.step += 1
        self._update_average()
        self.elapsed += perf_counter() - begun
        return JudgeStep(self.step, progress, float(loss.detach()))

    def _loss(self) -> Tensor:
        rows = torch.multinomial(self.weights, self.batch_size, replacement=True, generator=self.generator)
        pixels = augment(self.images[rows].float() / 255, self.generator) * 2 - 1
        self.network.train()
        with torch.random.fork_rng(devices=[]), torch.autocast("cpu", dtype=torch.bfloat16):
            torch.manual_seed(self.step)  # of the dropout
            logits = self.network(pixels.contiguous(memory_format=torch.channels_last)).float()
        return heads_loss(logits, {name: truth[rows] for name, truth in self.truths.items()})

    @torch.no_grad()
    def _update_average(self) -> None:
        keep = min(AVERAGE, (1 + self.step) / (10 + self.step))
        for mine, theirs in zip(self.average.state_dict().values(), self.network.state_dict().values(), strict=True):
            mine.copy_(torch.lerp(mine, theirs, 1 - keep) if mine.is_floating_point() else theirs)


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


def train_judge(
    trainer: JudgeTrainer, *, steps: int | None = None, minutes: float | None = None
) -> Iterator[JudgeStep]:
    """Train for a number of steps (repeatable) or of minutes, yielding each step.

    Raises UsageError unless exactly one limit is given, above zero.
    """
    limit = minutes if steps is None else steps
    if (steps is None) == (minutes is None) or limit is None or limit <= 0:
        raise UsageError(f"give either steps or minutes, above zero (got {steps=}, {minutes=}).")
    while (progress := trainer.step / limit if minutes is None else trainer.elapsed / (60 * limit)) < 1:
        yield trainer.advance(progress)


def export_judge(trainer: JudgeTrainer, sizes: JudgeSizes, heads: Mapping[str, AttributeConfig], folder: Path) -> Path:
    """Write the averaged network as fp16 `folder/model.safetensors` and return its path."""
    state = trainer.average.state_dict()
    halves = {key: value.half() if value.is_floating_point() else value for key, value in state.items()}
    names = {name: head.values_in_order for name, head in heads.items()}
    path = folder / "model.safetensors"
    with atomic_path(path) as temporary:
        save_file(halves, temporary, metadata=judge_metadata(sizes, names))
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
