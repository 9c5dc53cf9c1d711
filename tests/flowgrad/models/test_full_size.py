"""The published size of Rectified Flow's network, with random weights in the official format, at 256x256 pixels."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.paths import ROOT

SLACK = 200 << 20  # bytes by which the allocator's peak may differ between runs


def full_size(folder: Path, *steps: int) -> str:
    """What `python -m tests.helpers.full_size` says, in a process of its own."""
    environment = {**os.environ, "FLOWGRAD_CACHE": str(folder / "cache")}
    command = [sys.executable, "-m", "tests.helpers.full_size", str(folder), *map(str, steps)]
    found = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    return found.stdout


@pytest.mark.slow
def test_a_full_size_network_trains_within_memory_that_does_not_grow_with_n(tmp_path: Path):
    full_size(tmp_path)
    few, many = (json.loads(full_size(tmp_path, steps)) for steps in (2, 8))
    assert few["error"] < 1e-3 and many["error"] < 1e-3, "strength 0 returns the image"
    assert len(few["losses"]) == len(many["losses"]) == 3
    grown = (many["peak"] - many["trajectory"]) - (few["peak"] - few["trajectory"])
    assert grown < SLACK, (few, many)
