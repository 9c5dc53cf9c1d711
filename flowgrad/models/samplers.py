"""Samplers of diffusers' models as schedules."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

from flowgrad.errors import FlowgradError, UsageError
from flowgrad.models.diffusers_folder import (
    read_json,
)
from flowgrad.models.schedule import Schedule, ddim_schedule

SCHEDULER = "scheduler_config.json"


def load_scheduler(folder: Path) -> Any:
    """A flow-matching Euler scheduler, or DDIM with the betas of whichever diffusion scheduler the folder has.

    Raises FlowgradError for another kind.
    """
    places = [place for place in (folder / "scheduler" / SCHEDULER, folder / SCHEDULER) if place.is_file()]
    if not places:
        raise FlowgradError(f"{folder} has no scheduler/{SCHEDULER}: save the model with its scheduler")
    found = read_json(places[0])
    name = str(found.get("_class_name"))
    if name == FlowMatchEulerDiscreteScheduler.__name__:
        return FlowMatchEulerDiscreteScheduler.from_config(found)
    if "beta_schedule" in found or "beta_start" in found:
        return DDIMScheduler.from_config(found)
    raise FlowgradError(f"{places[0]} is a {name}: only flow-matching Euler and DDPM's relatives can be read")


def to_schedule(
    scheduler: Any, steps: int, shares: Sequence[float] | None = None, shift: float | None = None
) -> tuple[Schedule, str]:
    """A scheduler's steps, and what the network predicts; `shares` and `shift` (mu) as its pipeline gives them.

    Clipping and thresholding of a diffusion scheduler are left out: they are no part of the ODE. A last step that
    would do nothing (`set_alpha_to_one: false` without `steps_offset`) goes to clean data instead.
    Raises FlowgradError for steps that it cannot give.
    """
    try:
        return _steps_of(scheduler, steps, shares, shift)
    except (ValueError, IndexError, UsageError) as error:
        reason = str(error).splitlines()[0][:160]
        raise FlowgradError(
            f"the scheduler does not give {steps} steps ({reason}): change `steps`, or its {SCHEDULER}"
        ) from error


def _steps_of(scheduler: Any, steps: int, shares: Sequence[float] | None, shift: float | None) -> tuple[Schedule, str]:
    if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        scheduler.set_timesteps(None if shares else steps, sigmas=list(shares) if shares else None, mu=shift)
        times = torch.cat([scheduler.timesteps.double(), torch.zeros(1, dtype=torch.float64)])
        return Schedule(times, scheduler.sigmas.double()), "flow"
    scheduler.set_timesteps(steps)
    timesteps, final = scheduler.timesteps.tolist(), float(scheduler.final_alpha_cumprod)
    if final <= float(scheduler.alphas_cumprod[timesteps[-1]]):
        final = 1.0
    return ddim_schedule(scheduler.alphas_cumprod, timesteps, final), str(scheduler.config["prediction_type"])
