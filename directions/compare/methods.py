"""Ways to edit photos by a text: the shared direction, and what it is compared with.

All start from the same inverted photos and use the same grid, guide and text. A strength of 1 moves the latents as far,
in root mean square over the whole path, as the direction does, whatever the method.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

import torch
from torch import Tensor

from directions.apply.inversion import Inverted, join, quarter_grid, sample_images
from directions.apply.steer import sweep
from directions.compare.names import Method
from directions.train.recipe import Recipe, load_recipe
from directions.train.task import Task
from flowgrad.guidance.contrast import Contrast
from flowgrad.guidance.guide import Guide
from flowgrad.guidance.text import contrast_vectors, log_odds
from flowgrad.models import Model
from flowgrad.ode import Control, Grid, integrate
from flowgrad.seeds import normal
from flowgrad.velocity import Velocity

POOL, POOL_SEED = 256, 2_000_000  # samples whose means are compared, and their seed
QUARTER = 4  # the part of them that shows a text most, and the part that shows it least
NOISED = 0.8  # the time t0 that SDEdit goes back to
PUBLISHED_STEP = 30.0  # alpha of the published search: of 10, 30 and 100, the largest that lowers the loss steadily


Edit = Callable[[Sequence[float]], Tensor]  # strengths -> images (S, B, 3, H, W) in [-1, 1]
Find = Callable[[Inverted], Edit]  # what is found out of photos before strengths are tried


@dataclass(frozen=True)
class Setting:
    """What all methods are given. control: the direction's, shared; samples: those that shared controls train on."""

    model: Model
    guide: Guide
    target: Contrast
    keep: tuple[Contrast, ...]
    recipe: Recipe
    control: Control
    samples: Inverted
    seed: int = 0

    @cached_property
    def reach(self) -> float:
        """How far the direction moves the latents: root mean square of sum_k h u_k."""
        return float(_moved(self.control))

    @cached_property
    def differences(self) -> tuple[Tensor, Tensor]:
        """(1, *D) mean latents, and mean states at t = 1, of samples that show the text less those that do not."""
        pool = join(sample_images(self.model, POOL, POOL_SEED, quarter_grid(self.model.config.steps)))
        images = pool.images.split(self.model.batch)
        scores = torch.cat([log_odds(self.guide, part, [self.target])[:, 0] for part in images])
        order, part = scores.argsort().tolist(), POOL // QUARTER
        without, with_it = pool.select(order[:part]).trajectory, pool.select(order[-part:]).trajectory
        parts = (getattr(with_it, end) - getattr(without, end) for end in ("x0", "x1"))
        first, last = (part.to(self.samples.images).mean(0, keepdim=True) for part in parts)
        return first, last


def _moved(control: Control) -> Tensor:
    """Root mean square of sum_k h u_k over all controls of a batch together."""
    return (control.values * control.grid.spans_of(control.values)).sum(0).square().mean().sqrt()


def _as_far(values: Tensor, reach: float) -> Tensor:
    return values * (reach / values.square().mean().sqrt())


def _scaled(control: Control, reach: float) -> Control:
    return control * (reach / float(_moved(control))) if control.values.any() else control


def finder(method: Method, setting: Setting) -> Find:
    """Make a method ready for photos, training what it needs for all of them."""
    makers: dict[Method, Callable[[Setting], Find]] = {
        Method.DIRECTION: _direction,
        Method.FINE: _fine,
        Method.OPTIMIZE: _optimized,
        Method.PUBLISHED: _published,
        Method.GUIDANCE: _guided,
        Method.MEAN_DIFFERENCE: _mean_difference,
        Method.SHARED: partial(_trained, over_time="free"),
        Method.CONSTANT: partial(_trained, over_time="constant"),
        Method.INITIAL: partial(_trained, over_time="start"),
        Method.SDEDIT: _sdedit,
    }
    return makers[method](setting)


def inversion_evaluations(method: Method, control: Control) -> int:
    """Evaluations that inverting a photo takes: on the grid of `Inversion.grid`, or on all N steps."""
    if method is Method.SDEDIT:
        return 0
    steps = control.grid.steps
    all_steps = method in (Method.FINE, Method.OPTIMIZE, Method.PUBLISHED)
    return 1 + (steps if all_steps else len(control.grid | quarter_grid(steps)))


def _direction(setting: Setting) -> Find:
    """The shared direction, as it is applied to photos."""
    return lambda photos: partial(sweep, setting.model, photos, setting.control)


def _fine(setting: Setting) -> Find:
    """The same control on all N steps back and N forth."""
    control = setting.control.on(Grid.full(setting.control.grid.steps))
    return lambda photos: partial(sweep, setting.model, photos, control)


def _task(setting: Setting, photos: Inverted, recipe: Recipe) -> Task:
    anchored = replace(photos, anchored=recipe.anchored)
    return Task(setting.model, setting.guide, anchored, setting.target, setting.keep, recipe, setting.seed)


def _optimized(setting: Setting) -> Find:
    """A control for each photo alone (section 5.1 of FlowGrad)."""

    def find(photos: Inverted) -> Edit:
        *_, last = _task(setting, photos, setting.recipe).steps(shared=False)
        values = last.state.best.values
        found = [
            _scaled(Control(values[:, i : i + 1], last.state.best.grid), setting.reach).values
            for i in range(len(photos))
        ]
        return partial(sweep, setting.model, photos, Control(torch.cat(found, 1), last.state.best.grid))

    return find


def _published(setting: Setting) -> Find:
    """The search for each photo as it was published: all N steps, plain descent, no text kept, no anchor."""
    as_published = replace(setting, keep=(), recipe=load_recipe("paper", step_size=PUBLISHED_STEP))
    find = _optimized(as_published)
    return lambda photos: find(replace(photos, anchored=False))


def _trained(setting: Setting, over_time: str) -> Find:
    """A shared control by the recipe: free, one that does not vary over time, or one that acts at its start alone."""
    recipe = setting.recipe.model_copy(update={"over_time": over_time})
    *_, last = _task(setting, setting.samples, recipe).steps()
    control = _scaled(last.state.best, setting.reach)
    return lambda photos: partial(sweep, setting.model, photos, control)


def _mean_difference(setting: Setting) -> Find:
    """Latents moved along the difference of means; the path from there on is anchored as ever."""
    shift, model, grid = _as_far(setting.differences[0], setting.reach), setting.model, setting.control.grid

    def moved(photos: Inverted, strength: float) -> Tensor:
        residual = photos.residual(grid)
        return _shown(model, integrate(model.velocity, photos.x0 + strength * shift, grid, None, residual).x1)

    return lambda photos: partial(_at_each, partial(moved, photos))


def _sdedit(setting: Setting) -> Find:
    """SDEdit (Meng et al., ICLR 2022): a rough edit, here the difference of means at t = 1, noised and denoised."""
    shift, model = _as_far(setting.differences[1], setting.reach), setting.model
    steps = setting.control.grid.steps
    begun = round(NOISED * steps)
    rest = partial(_later, model.velocity, begun / steps)

    def drawn(photos: Inverted, noise: Tensor, strength: float) -> Tensor:
        rough = photos.trajectory.x1.to(noise) + strength * shift
        start = (1 - NOISED) * noise + NOISED * rough
        return _shown(model, integrate(rest, start, Grid.full(steps - begun)).x1)

    def find(photos: Inverted) -> Edit:
        keys = [(setting.seed, i) for i in range(len(photos))]
        noise = normal(model.shape, keys).to(photos.images)
        return partial(_at_each, partial(drawn, photos, noise))

    return find


def _later(velocity: Velocity, start: float, x: Tensor, t: Tensor) -> Tensor:
    """The part of a field from time `start` on, brought to [0, 1]."""
    return (1 - start) * velocity(x, start + (1 - start) * t)


def _guided(setting: Setting) -> Find:
    """Classifier guidance: v + w grad_x s(x1(x, t)), with the estimate x1(x, t) = x + (1 - t) v(x, t) of the image."""
    model, grid = setting.model, setting.control.grid
    plain = setting.samples
    path = integrate(model.velocity, plain.x0, grid, None, plain.missed(grid))
    times = grid.times(plain.x0)
    sizes = [_score_gradient(setting, path.states[j], times[j])[1].square().mean().sqrt() for j in range(len(grid))]
    weight = setting.reach / float(torch.stack(sizes).mean())

    def guided(photos: Inverted, strength: float) -> Tensor:
        def field(x: Tensor, t: Tensor) -> Tensor:
            v, gradient = _score_gradient(setting, x, t)
            return v + strength * weight * gradient

        return _shown(model, integrate(field, photos.x0, grid, None, photos.residual(grid)).x1)

    return lambda photos: partial(_at_each, partial(guided, photos))


def _score_gradient(setting: Setting, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """v(x, t), and the gradient (B, *D) of the text's score of the estimated image with respect to x."""
    model = setting.model
    with torch.no_grad():
        v = model.velocity(x, t)
    with torch.enable_grad():
        leaf = (x + (1 - t) * v).requires_grad_()
        embeddings = setting.guide.encode_images(model.decode(leaf))
        score = (embeddings @ contrast_vectors(setting.guide, [setting.target]).T).sum()
    (g,) = torch.autograd.grad(score, leaf)
    return v, g + (1 - t) * model.velocity.vjp(x, t, g)


def _at_each(edit: Callable[[float], Tensor], strengths: Sequence[float]) -> Tensor:
    return torch.stack([edit(strength) for strength in strengths])


@torch.no_grad()
def _shown(model: Model, states: Tensor) -> Tensor:
    return model.decode(states).clamp(-1, 1)
