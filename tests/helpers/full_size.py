"""Run as a process of its own: the main job's parts with a full-size Rectified Flow network; JSON of time and memory.

    python -m tests.helpers.full_size FOLDER      # makes the network, a guide and full-size.yaml in FOLDER
    python -m tests.helpers.full_size FOLDER N    # measures N Euler steps
    python -m tests.helpers.full_size FOLDER N gradients    # compares ways to the gradient, in half an hour

The process measures its own peak after each part, so that one N does not hide in another's. On one Euler step the
gradient needs no product with the network's Jacobian: from two on, the peak is that of one such product.
"""

import json
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path
from time import perf_counter

import torch

from directions.apply.inversion import invert_images, join
from directions.apply.steer import steer
from directions.benchmark.gradients import compare_gradients
from directions.measure.model_check import peak_memory
from directions.progress import Silent
from directions.train.recipe import load_recipe
from directions.train.task import Task
from flowgrad.guidance.contrast import Contrast
from flowgrad.guidance.guide_files import load_guide
from flowgrad.model_config import NCSNppSizes
from flowgrad.models import load_model
from flowgrad.models.ncsnpp import NCSNpp
from tests.helpers.tiny import make_guide

NAME = "full-size.yaml"
CONFIG = "name: full-size\nfamily: rf-ncsnpp\nweights: {weights}\nsize: 256\nguide: {guide}\n"


def prepare(folder: Path) -> None:
    """Save a random full-size network as the official code does, a guide, and their configuration; convert it once."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    network = NCSNpp(256, NCSNppSizes())
    state = {"module.sigmas": torch.zeros(2000), **{f"module.{k}": v for k, v in network.state_dict().items()}}
    shadow = [p.detach() for p in network.parameters() if p.requires_grad]
    weights, config = folder / "checkpoint_10.pth", folder / NAME
    torch.save({"model": state, "ema": {"decay": 0.999, "shadow_params": shadow}, "optimizer": {}, "step": 1}, weights)
    config.write_text(CONFIG.format(weights=weights, guide=make_guide(folder / "guide.safetensors")))
    load_model(str(config), "cpu")


def measure(folder: Path, steps: int) -> dict[str, object]:
    """Load, invert one image on N steps, train two iterations, apply: seconds, and bytes at the peak."""
    peak, begun = partial(peak_memory, torch.device("cpu")), perf_counter()
    model = load_model(str(folder / NAME), "cpu")
    model = type(model)(**{**vars(model), "config": model.config.model_copy(update={"steps": steps})})
    loaded, peaks = perf_counter(), {"load": peak()}
    image = torch.rand(1, 3, 256, 256, generator=torch.Generator().manual_seed(0)) * 2 - 1
    photos = join(list(invert_images(model, image)))
    inverted, peaks["invert"] = perf_counter(), peak()
    recipe = load_recipe(iterations=2, intervals=2, augmentations=1)
    task = Task.create(model, photos, "a smiling face", source="a face", recipe=recipe)
    losses = [(step.loss, step.state.best) for step in task.steps()]
    trained, peaks["train"] = perf_counter(), peak()
    back = steer(model, photos, losses[-1][1] * 0.0)
    return {
        "precision": str(model.velocity.inner.dtype),
        "load": loaded - begun,
        "invert": inverted - loaded,
        "train": trained - inverted,
        "peak": peak(),
        "peaks": peaks,
        "trajectory": sum(
            t.numel() * t.element_size() for t in (photos.trajectory.states, photos.trajectory.velocities)
        ),
        "losses": [loss for loss, _ in losses],
        "error": float((back - image).abs().max()),
    }


def gradients(folder: Path, steps: int) -> list[dict[str, object]]:
    """Ways to the gradient of a text's score on one sample, as `flowgrad benchmark` compares them.

    The random network's last layer is scaled so that its velocities are as large as noise, and its Jacobian matters.
    """
    model = load_model(str(folder / NAME), "cpu")
    x, last = model.noise(1, 0), model.velocity.inner.network.all_modules[-1]
    with torch.no_grad():
        last.weight.mul_(1 / model.velocity(x, torch.tensor(0.5)).square().mean().sqrt())
    guide, target, usual = load_guide(model.config.guide, "cpu"), Contrast("a smiling face", "a face"), load_recipe()
    found = compare_gradients(model, guide, target, steps, (), usual.intervals, usual.products, 1, 0, 1, Silent())
    return [asdict(comparison) for comparison in found]


if __name__ == "__main__":
    given = Path(sys.argv[1]).resolve()
    if len(sys.argv) == 2:
        prepare(given)
    elif sys.argv[3:] == ["gradients"]:
        print(json.dumps(gradients(given, int(sys.argv[2]))))  # noqa: T201
    else:
        print(json.dumps(measure(given, int(sys.argv[2]))))  # noqa: T201
