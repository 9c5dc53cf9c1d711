"""The loop over Algorithm 1 that all trainings share, and training from Python."""

from collections.abc import Callable, Iterator, Sequence

from torch import Tensor

from directions.apply.inversion import invert_images, join
from directions.file.direction import Direction
from directions.progress import Reporter
from directions.train.checkpoint import Checkpoint, Record
from directions.train.recipe import Recipe, load_recipe
from directions.train.task import Task, finish, held_out
from flowgrad.guidance.guide import Guide
from flowgrad.models import Model


def train(
    task: Task, *, shared: bool = True, begun: Checkpoint | None = None, identity: str = ""
) -> Iterator[Checkpoint]:
    """Yield the training after every evaluation; the last one's `control` is what was found.

    shared: one control for all photos, else one for each. begun: a training of the same task to go on from, which is
    yielded first; identity: what later checkpoints say of their task, see `task_hash`.
    """
    history: tuple[Record, ...] = ()
    if begun is not None:
        history = begun.history
        yield begun
    for step in task.steps(shared, begun.state if begun else None):
        history = (*history, Record.of(step))
        yield Checkpoint(identity, step.state, history)


def warn_of_unknown_words(task: Task, reporter: Reporter) -> None:
    """Warn of each word that the guide was not trained on."""
    for word in task.unknown_words:
        reporter.warn(f"the guide has never seen the word {word!r}: the result may have little to do with it")


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
    report: Callable[[Checkpoint], None] | None = None,
) -> Direction:
    """Train one direction on images (n, 3, H, W) in [-1, 1], n about ten, and calibrate it on samples.

    text: what the images shall become, "a smiling face"; source: what they are, by default the model's subject.
    keep: texts whose scores shall not change. report: called after every evaluation.
    Raises UsageError for wrong values; FlowgradError if the objective is not finite three times running.
    """
    recipe = recipe or load_recipe()
    photos = join(invert_images(model, images, recipe.way))
    task = Task.create(model, photos, text, guide=guide, source=source, keep=keep, recipe=recipe, seed=seed)
    for training in train(task):
        if report:
            report(training)
    return finish(task, training.control, training.losses, held_out(task, training.control))
