"""A model that paints: candidates from noise of their own, which follow the same strokes by one method."""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from directions.paint.checks import reads_words
from directions.paint.methods import DEFAULT_METHOD, TEXT_STEPS, Method
from directions.paint.request import Masked
from directions.progress import Reporter
from flowgrad.guidance.contrast import Contrast
from flowgrad.guidance.guide import Guide
from flowgrad.guidance.guide_files import load_guide
from flowgrad.models import Model, ModelConfig, Region, build_model
from flowgrad.ode import Grid, require_finite
from flowgrad.painting import baselines, gradients
from flowgrad.painting.objective import PaintingObjective, Words
from flowgrad.painting.path import Canvas
from flowgrad.seeds import Key

INTERVALS = 25  # Euler steps of a path, where the model has as many
FUNCTIONS: dict[Method, Any] = {
    Method.gradop_plus: gradients.gradop_plus,
    Method.official: gradients.official,
    Method.gradop: gradients.gradop,
    Method.control: gradients.control,
    Method.sdedit: baselines.sdedit,
    Method.loopback: baselines.loopback,
    Method.ilvr: baselines.ilvr,
}
STRENGTHS = {  # how much of the path is the model's alone, where nothing else is asked for
    Method.gradop_plus: 0.15,
    Method.official: 0.8,
    Method.gradop: 0.5,
    Method.control: 0.5,
    Method.sdedit: 0.5,
    Method.loopback: 0.6,
    Method.ilvr: 0.5,
}


@dataclass(frozen=True)
class Plan:
    """How a painting is followed. strength, steps: None for the method's own."""

    method: Method = DEFAULT_METHOD
    strength: float | None = None
    steps: int | None = None
    seed: int = 0

    @property
    def used(self) -> float:
        """The strength, the method's own where none is asked for."""
        return STRENGTHS[self.method] if self.strength is None else self.strength

    @property
    def way(self) -> Any:
        """The method as a function of a canvas alone."""
        way = FUNCTIONS[self.method]
        return way if self.steps is None else partial(way, steps=self.steps)

    def with_words(self) -> "Plan":
        """The same for a text that a guide raises: GradOP+, which moves by the encoder alone, takes gradient steps."""
        needs = self.method is Method.gradop_plus and self.steps is None
        return replace(self, steps=TEXT_STEPS) if needs else self


@dataclass(frozen=True)
class Job:
    """A loaded model, a guide (None where nothing needs one), and what words ask for, in the whole and in regions.

    reads: whether the model reads the words itself, as its prompt and its regions.
    """

    model: Model
    guide: Guide | None
    target: Contrast | None
    masked: tuple[Masked, ...] = ()
    reads: bool = False

    @property
    def words(self) -> Words | None:
        """The text as the guide raises it in all of the image; None without one, and where the model reads it."""
        return Words(self.guide, self.target) if self.guide and self.target and not self.reads else None


def open_job(
    config: ModelConfig,
    device: str,
    precision: str,
    guide: str | None,
    target: Contrast | None,
    masked: Sequence[Masked] = (),
    text: str = "",
) -> Job:
    """Load a model, with a text as its prompt and masked words as its regions where it reads them, and its guide.

    Raises UsageError for regions that overlap, and for words that the model's token limit cuts off.
    """
    reads = reads_words(config)
    if reads and text:
        config = config.model_copy(update={"prompt": text})
    regions = [Region(torch.from_numpy(part.mask), part.words) for part in masked] if reads else []
    return to_job(build_model(config, device, precision, regions), guide, target, masked, reads)


def to_job(
    model: Model, guide: str | None, target: Contrast | None, masked: Sequence[Masked] = (), reads: bool = False
) -> Job:
    """A model that is loaded, and its guide where there are words for one: it is not fetched to measure alone."""
    reader = guide or ("" if reads else model.config.guide)
    network = load_guide(reader, model.device) if reader and (target or masked) else None
    return Job(model, network, target, tuple(masked), reads)


def to_canvas(model: Model, strokes: Tensor, plan: Plan, keys: Sequence[Key], words: Words | None) -> Canvas:
    """The canvas of strokes (1 or B, 3, H, W) in [-1, 1] for candidates with these keys of noise.

    A candidate depends on its own key alone, whatever others there are (but for the views of a text).
    """

    def noise(draw: int) -> Tensor:
        return model.latents([(*key, draw) if draw else key for key in keys])

    return Canvas(
        model.velocity,
        model.encode,
        model.decode,
        noise,
        strokes,
        Grid.uniform(model.config.steps, INTERVALS),
        PaintingObjective(strokes, words),
        plan.used,
        plan.seed,
    )


def follow(canvas: Canvas, plan: Plan) -> Iterator[Tensor]:
    """Yield the method's states, and last the images (B, 3, H, W) in [-1, 1].

    Raises FlowgradError if they are not finite.
    """
    x = canvas.noise(0)
    for x in plan.way(canvas):
        yield x
    with torch.no_grad():
        yield require_finite(canvas.decode(x), "a painted image").clamp(-1, 1)


def paint(job: Job, strokes: Tensor, plan: Plan, count: int, reporter: Reporter) -> Tensor:
    """(count, 3, H, W) images in [-1, 1] that follow strokes (1, 3, H, W), a batch at a time.

    Image i of a seed is that of noise (seed, i).
    """
    parts: list[Tensor] = []
    model = job.model
    for start in range(0, count, model.batch):
        keys = [(plan.seed, i) for i in range(start, min(start + model.batch, count))]
        steps = follow(to_canvas(model, strokes, plan, keys, job.words), plan)
        parts.append(deque(reporter.track(steps, "painting"), maxlen=1).pop())
    return torch.cat(parts)
