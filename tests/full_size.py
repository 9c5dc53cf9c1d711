"""Run as a process of its own: the main job's parts with a full-size Rectified Flow network; JSON of time and memory.

    python -m tests.full_size CONFIG N

The process measures its own peak, so that one N does not hide in another's.
"""

import json
import resource
import sys
from time import perf_counter

import torch

from directions.apply import steer
from directions.latents import invert_images, join
from directions.recipe import load_recipe
from directions.train import Task
from flowgrad.models import load_model


def main(config: str, steps: int) -> None:
    """Load, invert one image on N steps, train two iterations, apply."""
    begun = perf_counter()
    model = load_model(config, "cpu")
    model = type(model)(**{**vars(model), "config": model.config.model_copy(update={"steps": steps})})
    loaded = perf_counter()
    image = torch.rand(1, 3, 256, 256, generator=torch.Generator().manual_seed(0)) * 2 - 1
    photos = join(list(invert_images(model, image)))
    inverted = perf_counter()
    recipe = load_recipe(iterations=2, intervals=2, augmentations=1)
    task = Task.create(model, photos, "a smiling face", source="a face", recipe=recipe)
    losses = [(step.loss, step.state.best) for step in task.steps()]
    trained = perf_counter()
    back = steer(model, photos, losses[-1][1] * 0.0)
    told = {
        "load": loaded - begun,
        "invert": inverted - loaded,
        "train": trained - inverted,
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "trajectory": sum(
            t.numel() * t.element_size() for t in (photos.trajectory.states, photos.trajectory.velocities)
        ),
        "losses": [loss for loss, _ in losses],
        "error": float((back - image).abs().max()),
    }
    print(json.dumps(told))  # noqa: T201


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
