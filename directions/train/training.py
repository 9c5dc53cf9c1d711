"""The loop over Algorithm 1 that all trainings share, and training from Python."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from directions.apply.inversion import invert_images, join
from directions.file.direction import Direction
from directions.train.calibration import finish, held_out
from directions.train.recipe import Recipe, load_recipe, usual_recipe
from directions.train.task import Task
from flowgrad.guidance.guide import Guide
from flowgrad.models import Model
from flowgrad.ode import Control
from flowgrad.optimize import State, Step


@dataclass(frozen=True)
class Record:
    """What a figure and a summary need of one evaluation; see `flowgrad.optimize.Step`."""

    iteration: int
    loss: float
    terms: Mapping[str, float]
    gradient_rms: float
    best: bool

    @classmethod
    def of(cls, step: Step) -> "Record":
        """The record of a step."""
        return cls(step.iteration, step.loss, dict(step.terms), step.gradient_rms, step.best)


@dataclass(frozen=True)
class Training:
    """A training as it stands: the optimisation's state, and what happened so far."""

    state: State
    history: tuple[Record, ...]

    @property
    def control(self) -> Control:
        """The best control so far."""
        return self.state.best

    @property
    def losses(self) -> tuple[float, ...]:
        """The loss of every evaluation."""
        return tuple(record.loss for record in self.history)


def train(task: Task, *, shared: bool = True, begun: Training | None = None) -> Iterator[Training]:
    """Yield the training after every evaluation; the last one's `control` is what was found.

    shared: one control for all photos, else one for each. begun: a training of the same task to go on from; it is
    yielded first, once for each of its evaluations.
    """
    history: tuple[Record, ...] = ()
    if begun is not None:
        history = begun.history
        yield from [begun] * len(history)
    for step in task.steps(shared, begun.state if begun else None):
        history = (*history, Record.of(step))
        yield Training(step.state, history)


def train_direction(
    model: Model,
    images: Tensor,
    text: str,
    *,
    source: str | None = None,
    keep: Sequence[str] = (),
    guide: Guide | None = None,
    recipe: Recipe | None = None,
    seed: int = 0,
    report: Callable[[Training], None] | None = None,
) -> Direction:
    """Train one direction on images (n, 3, H, W) in [-1, 1], n about ten, and calibrate it on samples.

    text: what the images shall become, "a smiling face"; source: what they are, by default the model's subject.
    keep: texts whose scores shall not change. report: called after every evaluation.
    Raises UsageError for wrong values; FlowgradError if the objective is not finite three times running.
    """
    recipe = recipe or load_recipe(usual_recipe(keep))
    photos = join(invert_images(model, images, recipe.way))
    task = Task.create(model, photos, text, guide=guide, source=source, keep=keep, recipe=recipe, seed=seed)
    for training in train(task):
        if report:
            report(training)
    return finish(task, training.control, training.losses, held_out(task, training.control))
