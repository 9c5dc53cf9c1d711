"""Words for masked parts of finished images, by a guide, and what they changed inside the masks and outside."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from directions.apply.inversion import Inverted, invert_images, join, quarter_grid
from directions.paint.request import Masked
from directions.progress import Reporter
from flowgrad.guidance.guide import Guide
from flowgrad.guidance.text import log_odds
from flowgrad.models import Model
from flowgrad.optimize import Settings, optimize
from flowgrad.painting.objective import Words
from flowgrad.painting.regions import Region, RegionObjective, composite, on_states, union

ITERATIONS = 4  # of the words' control: nearly all of the gain of ten, before teeth and shadows are overdone


@dataclass(frozen=True)
class Changed:
    """What words changed, a mean over images. gains: of each region's log-odds; inside, outside: mean |change| there.

    A pixel at a mask's soft edge counts for either side, by its share. Units: the whole range from black to white.
    """

    gains: tuple[float, ...]
    inside: float
    outside: float


def to_regions(masked: Sequence[Masked], guide: Guide, device: torch.device) -> tuple[Region, ...]:
    """Masks and their words, as the guide raises them."""
    return tuple(
        Region.soft(torch.from_numpy(part.mask).to(device)[None, None], Words(guide, part.target)) for part in masked
    )


def with_words(
    model: Model, images: Tensor, regions: tuple[Region, ...], settings: Settings, reporter: Reporter
) -> Tensor:
    """Images (B, 3, H, W) in [-1, 1], each edited within the masks by the words for them, and nowhere else.

    A control for each image, softened by the masks, is found on the image's own anchored path; the result is put into
    the image by the masks.
    """
    inverted = join(list(invert_images(model, images, grid=quarter_grid(model.config.steps))))
    own = replace(inverted, images=images)  # what is outside stays as it is, not as the autoencoder returns it
    return edit_regions(model, own, regions, settings, reporter)


def edit_regions(
    model: Model, inverted: Inverted, regions: tuple[Region, ...], settings: Settings, reporter: Reporter
) -> Tensor:
    """(B, 3, H, W): inverted images, edited by the words of regions alone."""
    mask = union(regions)
    objective = RegionObjective(regions, inverted.images)
    steps = optimize(
        model.velocity,
        inverted.x0,
        inverted.trajectory.grid,
        objective,
        settings,
        shared=False,
        path=inverted.path,
        mask=on_states(mask, model.shape),
        decode=model.decode,
    )
    best = inverted.trajectory.x1
    for step in reporter.track(steps, "adding words", settings.iterations + 1):
        best = step.x1 if step.best else best
    with torch.no_grad():
        return composite(model.decode(best), inverted.images, mask).clamp(-1, 1)


def changed(before: Tensor, after: Tensor, regions: Sequence[Region]) -> Changed:
    """What the words of regions made of images `before`, both (B, 3, H, W) in [-1, 1]."""
    inside = union(regions).expand_as(before)
    moved = (after - before).abs() / 2
    gains = tuple(
        float((log_odds(words.guide, after, [words.target]) - log_odds(words.guide, before, [words.target])).mean())
        for words in (region.words for region in regions)
    )
    within, without = (float((moved * share).sum() / share.sum().clamp(min=1)) for share in (inside, 1 - inside))
    return Changed(gains, within, without)
