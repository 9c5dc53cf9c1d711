"""Applying directions: their controls, added, and one forward pass of the ODE with them, without optimisation."""

from collections.abc import Sequence

import torch
from torch import Tensor

from directions.apply.inversion import ANCHORED_EULER, Inversion, Inverted, invert_for, join
from directions.bank.card import is_safe
from directions.file.direction import Direction, check_compatible
from directions.progress import Reporter
from flowgrad.errors import UsageError
from flowgrad.models import TIME_CONVENTION, Model
from flowgrad.ode import Control, Grid, integrate, require_finite, total


def to_control(direction: Direction, model: Model, force: bool = False) -> Control:
    """The control of a direction (M, 1, *D), checked against the model. Raises FlowgradError if they do not fit."""
    check_compatible(
        direction.info,
        model=model.name,
        fingerprint=model.fingerprint,
        steps=model.config.steps,
        shape=model.shape,
        time_convention=TIME_CONVENTION,
        force=force,
    )
    values = torch.tensor(direction.u, dtype=torch.float32, device=model.device).unsqueeze(1)
    return Control(values, Grid(tuple(direction.starts.tolist()), model.config.steps))


def common_inversion(directions: Sequence[Direction]) -> Inversion:
    """How photos are inverted for directions that are applied together: as each of them was trained.

    Raises UsageError for directions that were trained by different inversions.
    """
    ways = [Inversion.parse(direction.info.inversion) for direction in directions]
    if len(set(ways)) > 1:
        named = ", ".join(f"{d.info.title!r} by {way}" for d, way in zip(directions, ways, strict=True))
        raise UsageError(f"directions that add must be trained by one inversion; got {named}. Apply them in turn.")
    return ways[0] if ways else ANCHORED_EULER


def steer(model: Model, inverted: Inverted, control: Control) -> Tensor:
    """(B, 3, H, W) images in [-1, 1]: the forward pass on the control's grid, from inverted images.

    The control is shared (M, 1, *D) or has one value for each image (M, B, *D).
    Raises FlowgradError if the result is not finite.
    """
    x0, residual = inverted.x0, inverted.residual(control.grid)
    x1 = integrate(model.velocity, x0, control.grid, control, residual).x1
    with torch.no_grad():
        return require_finite(model.decode(x1), "the edited image").clamp(-1, 1)


def sweep(model: Model, inverted: Inverted, control: Control, strengths: Sequence[float]) -> Tensor:
    """(S, B, 3, H, W) images: every image at every strength, several to a batch.

    A strength of 0 is the image itself, and is not computed.
    """
    images = inverted.images.clamp(-1, 1)
    edited = images.expand(len(strengths), *images.shape).clone()
    moved = [k for k, strength in enumerate(strengths) if strength and control.values.any()]
    pairs = [(k, i) for k in moved for i in range(len(images))]
    for start in range(0, len(pairs), model.batch):
        rows, chosen = map(list, zip(*pairs[start : start + model.batch], strict=True))
        own = control.values if control.values.shape[1] == 1 else control.values[:, chosen]
        factors = torch.tensor([strengths[k] for k in rows]).to(own).view(1, -1, *[1] * (own.ndim - 2))
        edited[rows, chosen] = steer(model, inverted.select(chosen), Control(own * factors, control.grid)).to(edited)
    return edited


def apply_direction(
    model: Model,
    images: Tensor,
    *directions: tuple[Direction, float],
    force: bool = False,
) -> Tensor:
    """Edit images (B, 3, H, W) in [-1, 1] with (direction, strength) pairs, whose controls add.

    Strength 0 leaves an image as it is, 1 is the calibrated effect, negative reverses. Returns (B, 3, H, W).
    Raises FlowgradError if a direction was made for another model, N or shape (`force` allows other weights).
    """
    inversion = common_inversion([direction for direction, _ in directions])
    control = total(to_control(direction, model, force) * strength for direction, strength in directions)
    return steer(model, join(invert_for(model, images, control, inversion)), control)


def mixture(
    model: Model,
    parts: Sequence[tuple[Direction, float]],
    reporter: Reporter,
    force: bool = False,
    factors: Sequence[float] = (1.0,),
) -> Control:
    """The sum of several directions as one control (M, 1, *D), which will be used at the multiples `factors`.

    Warns of strengths beyond those measured as safe. Raises FlowgradError for directions that do not fit the model.
    """
    for direction, strength in parts:
        calibration = direction.info.calibration
        for used in sorted({strength * min(factors), strength * max(factors)}):
            if calibration and not is_safe(calibration, used):
                where = "beyond the safe range of {!r} ({:g} to {:g})".format(direction.info.title, *calibration.safe)
                reporter.warn(f"strength {used:g} is {where}: faces may turn into other people, or break")
    return total(to_control(direction, model, force) * strength for direction, strength in parts)
