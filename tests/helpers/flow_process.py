"""A tiny run of train-flow as a process of its own, to be started by torchrun.

Arguments: source folder, output folder, steps, batch. Writes the averaged weights' hash and the losses as JSON lines.
"""

import hashlib
import json
import sys
from pathlib import Path

import torch

from flowgrad.training.data.pictures import load_images, prepare_images
from flowgrad.training.flow.config import FlowConfig
from flowgrad.training.flow.run import FlowRun, image_data
from flowgrad.training.loop.run import RunOptions
from flowgrad.training.loop.trainer import Budget
from flowgrad.workers import Workers

TINY = {"size": 16, "channels": (8, 16), "attention": (False, True), "head_dim": 8, "groups": 4, "precision": "fp32"}


def main(source: Path, output: Path, steps: int, batch: int) -> None:
    """Train, saving after every step, and say after each what it lost."""
    torch.set_num_threads(1)
    with Workers.join() as workers:
        train(source, output, steps, batch, workers)


def train(source: Path, output: Path, steps: int, batch: int, workers: Workers) -> None:
    """The same, as one of the workers."""
    config = FlowConfig().change(**TINY, batch=batch, warmup=2, flips=True, augment=True, held_out=0.25)
    if workers.leads:
        for _ in prepare_images(source, 16, output / "training"):
            pass
    workers.wait()
    often = {"evaluate_every": 5, "checkpoint_minutes": 0, "samples": 2}
    options = RunOptions(output, Budget(steps=steps), device="cpu", **often)
    run = FlowRun(image_data(load_images(output / "training"), config), config, options, workers=workers)
    for record in run.steps():
        if workers.leads:
            _say({"step": record.step, "loss": record.loss, "held_out": record.held_out})
    if workers.leads:
        digest = hashlib.sha256()
        for value in (*run.trainer.network.state_dict().values(), *run.trainer.average.values()):
            digest.update(value.numpy().tobytes())
        _say({"digest": digest.hexdigest()})


def _say(record: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(record) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
