"""The published size of Rectified Flow's network, with random weights in the official format, at 256x256 pixels."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from flowgrad.models.config import NCSNppSizes
from flowgrad.models.ncsnpp import NCSNpp

from .tiny import make_guide

ROOT = Path(__file__).parents[1]
CONFIG = "name: full-size\nfamily: rf-ncsnpp\nweights: {weights}\nsize: 256\nguide: {guide}\n"
SLACK = 200 << 20  # bytes by which the allocator's peak may differ between runs


def save_official(path: Path) -> Path:
    """A random full-size network as the official code saves it."""
    torch.manual_seed(0)
    network = NCSNpp(256, NCSNppSizes())
    state = {"module.sigmas": torch.zeros(2000), **{f"module.{k}": v for k, v in network.state_dict().items()}}
    shadow = [p.detach() for p in network.parameters() if p.requires_grad]
    torch.save({"model": state, "ema": {"decay": 0.999, "shadow_params": shadow}, "optimizer": {}, "step": 1}, path)
    return path


def run(config: Path, steps: int, folder: Path) -> dict[str, float]:
    environment = {**os.environ, "FLOWGRAD_CACHE": str(folder / "cache")}
    command = [sys.executable, "-m", "tests.full_size", str(config), str(steps)]
    found = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    return json.loads(found.stdout)


@pytest.mark.slow
def test_a_full_size_network_trains_within_memory_that_does_not_grow_with_n(tmp_path: Path):
    guide, weights = make_guide(tmp_path / "guide.safetensors"), save_official(tmp_path / "checkpoint_10.pth")
    config = tmp_path / "full-size.yaml"
    config.write_text(CONFIG.format(weights=weights, guide=guide))
    run(config, 1, tmp_path)  # converts the checkpoint
    few, many = (run(config, steps, tmp_path) for steps in (20, 100))
    assert few["error"] < 1e-3 and many["error"] < 1e-3, "strength 0 returns the image"
    assert len(few["losses"]) == len(many["losses"]) == 3
    grown = (many["peak"] - many["trajectory"]) - (few["peak"] - few["trajectory"])
    assert grown < SLACK, (few, many)
