"""Interrupted trainings go on bit for bit."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from directions.train.checkpoint import load_checkpoint, save_checkpoint
from directions.train.training import Record, Training
from flowgrad.errors import FlowgradError
from flowgrad.ode import Grid
from flowgrad.optimize import Settings, State, Step, optimize
from tests.conftest import SmoothField


def objective(x1: Tensor, rng: torch.Generator, _: slice) -> dict[str, Tensor]:
    """Towards a random image: draws from `rng`, as augmentations do."""
    noise = torch.randn(x1.shape, generator=rng, dtype=x1.dtype)
    return {"text": (x1 - noise).square().flatten(1).mean(1), "preserve": x1.abs().flatten(1).mean(1)}


def steps(field: SmoothField, x0: Tensor, optimizer: str, resume: State | None = None) -> list[Step]:
    settings = Settings(iterations=5, optimizer=optimizer, seed=3, step_size=0.1)
    return list(optimize(field, x0, Grid((0, 1, 4), 6), objective, settings, resume=resume))


@pytest.mark.parametrize("optimizer", ["sgd", "normalized", "adam"])
@pytest.mark.parametrize("after", [1, 3, 6])
def test_a_resumed_run_is_the_same_bit_for_bit(
    field: SmoothField, x0: Tensor, tmp_path: Path, optimizer: str, after: int
) -> None:
    whole = steps(field, x0, optimizer)
    history = tuple(map(Record.of, whole))
    save_checkpoint(tmp_path / "c.pt", "task", Training(whole[after - 1].state, history[:after]))
    found = load_checkpoint(tmp_path / "c.pt", "task")
    assert found is not None and found.history == history[:after]
    rest = steps(field, x0, optimizer, found.state)
    assert (*found.history, *map(Record.of, rest)) == history
    best = rest[-1].state.best if rest else found.state.best
    assert torch.equal(best.values, whole[-1].state.best.values) and best.grid == whole[-1].state.best.grid


def test_only_the_same_task_is_resumed_with_its_exact_values(field: SmoothField, x0: Tensor, tmp_path: Path) -> None:
    path = tmp_path / "c.pt"
    assert load_checkpoint(path, "task") is None
    state = replace(steps(field, x0, "sgd")[0].state, best_loss=float("inf"), step_size=0.1 / 3)
    save_checkpoint(path, "task", Training(state, ()))
    assert load_checkpoint(path, "another") is None
    found = load_checkpoint(path, "task")
    assert found is not None and (found.state.best_loss, found.state.step_size) == (float("inf"), 0.1 / 3)


def test_a_damaged_checkpoint_says_what_to_do(field: SmoothField, x0: Tensor, tmp_path: Path) -> None:
    path = tmp_path / "c.pt"
    save_checkpoint(path, "task", Training(steps(field, x0, "adam")[2].state, ()))
    raw = path.read_bytes()
    for broken in (b"", raw[:100], raw[:-5], b"{}" * 40):
        path.write_bytes(broken)
        with pytest.raises(FlowgradError, match=r"damaged checkpoint .* --no-resume"):
            load_checkpoint(path, "task")
