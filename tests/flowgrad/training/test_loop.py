"""The loop that trains everything: budgets, rates, Muon, averages, the data's order, processes."""

from collections.abc import Iterator
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from flowgrad.errors import FlowgradError, UsageError
from flowgrad.seeds import generator
from flowgrad.training.loop.optimization import Optimization
from flowgrad.training.loop.optimizer import Muon, make_optimizers, orthogonal
from flowgrad.training.loop.trainer import BATCH, Budget, Trainer, TrainStep, batch_rows, train
from flowgrad.workers import Workers


class Line:
    """A network of two layers that learns y = 3 x."""

    plain = ("last",)
    factors: ClassVar = {"first.bias": 5.0}

    def __init__(self, settings: Optimization) -> None:
        torch.manual_seed(0)
        self.settings = settings
        self.network = nn.Sequential()
        self.network.add_module("first", nn.Linear(4, 6))
        self.network.add_module("norm", nn.BatchNorm1d(6))
        self.network.add_module("last", nn.Linear(6, 4))

    def loss(self, step: int, progress: float, share: slice) -> Tensor:
        x = torch.randn(self.settings.batch, 4, generator=generator(self.settings.seed, BATCH, step))[share]
        return (self.network(x) - 3 * x).square().mean()

    def held_out_loss(self, workers: Workers) -> float:
        x = torch.linspace(-1, 1, 32).view(8, 4)
        return float((self.network(x) - 3 * x).square().mean())


def line(**changes: object) -> Trainer:
    settings = Optimization(**{"batch": 16, "warmup": 2, "learning_rate": 1e-2, **changes})
    return Trainer(Line(settings), settings)


def run(trainer: Trainer, steps: int) -> list[TrainStep]:
    return list(train(trainer, Budget(steps=steps), evaluate_every=100))


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_both_optimizers_learn(optimizer: str) -> None:
    records = run(line(optimizer=optimizer), 200)
    assert records[0].held_out is not None and records[-1].held_out is not None
    assert records[-1].held_out < 0.2 * records[0].held_out
    assert [record.step for record in records] == list(range(201)) and records[-1].progress == 1


def test_singular_values_come_near_one() -> None:
    for shape in ((8, 40), (40, 8), (16, 16)):
        matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 30
        u, _, v = torch.linalg.svd(matrix, full_matrices=False)
        near = orthogonal(matrix).float()
        values = torch.linalg.svdvals(near)
        assert values.min() > 0.6 and values.max() < 1.3
        assert float((u.T @ near @ v.T).diagonal().min()) > 0.6  # the singular vectors stay what they are


def test_muon_moves_along_momentum_scaled_by_shape() -> None:
    parameter = nn.Parameter(torch.zeros(12, 3, 1, 1))
    muon, gradient = Muon([parameter], lr=0.1, momentum=0.5), torch.randn(12, 3, 1, 1)
    parameter.grad = gradient.clone()
    muon.step()
    expected = -0.1 * orthogonal((gradient + 0.5 * gradient).flatten(1)).float() * 4**0.5
    assert torch.allclose(parameter.detach().flatten(1), expected, atol=1e-6)


def test_parameters_go_where_their_rule_says() -> None:
    trainer = line()
    named = {id(value): name for name, value in trainer.network.named_parameters()}
    muon, adamw = make_optimizers(trainer.network, trainer.settings, ("last",), {"first.bias": 5.0})
    assert [named[id(p)] for p in muon.param_groups[0]["params"]] == ["first.weight"]
    groups = [sorted(named[id(p)] for p in group["params"]) for group in adamw.param_groups]
    assert groups == [["last.bias", "last.weight", "norm.bias", "norm.weight"], ["first.bias"]]
    assert [group["initial_lr"] for group in adamw.param_groups] == pytest.approx([1e-2, 5e-2])
    (alone,) = make_optimizers(trainer.network, Optimization(optimizer="adamw", weight_decay=0.1), ("last",))
    decays = {named[id(p)]: group["weight_decay"] for group in alone.param_groups for p in group["params"]}
    assert decays == {name: 0.1 if name == "first.weight" else 0.0 for name in named.values()}


@pytest.mark.parametrize(("schedule", "middle"), [("linear", 0.5), ("cosine", 0.5), ("constant", 1.0)])
def test_rates_rise_stay_and_fall(schedule: str, middle: float) -> None:
    settings = Optimization(schedule=schedule, warmup=4, decay=0.5)
    assert [settings.rate(step, 0.1) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert settings.rate(10, 0.5) == 1
    assert settings.rate(10, 0.75) == pytest.approx(middle)
    assert settings.rate(10, 1.0) == pytest.approx(1.0 if schedule == "constant" else 0.0)


def test_every_epoch_sees_every_row_once_in_another_order() -> None:
    rows = np.concatenate([batch_rows(10, 4, step, seed=3) for step in range(5)])
    assert sorted(rows[:10]) == sorted(rows[10:]) == list(range(10))
    assert rows[:10].tolist() != rows[10:].tolist()
    assert np.array_equal(batch_rows(10, 4, 2, seed=3), rows[8:12])
    assert not np.array_equal(batch_rows(10, 4, 2, seed=4), rows[8:12])


def test_the_average_follows_weights_and_statistics() -> None:
    trainer = line(ema=0.5)
    before = {key: value.clone() for key, value in trainer.network.state_dict().items()}
    trainer.advance(0.0)
    after = {key: value.clone() for key, value in trainer.network.state_dict().items()}
    keep = 1 / 10  # the smaller of 0.5 and (1 + 0) / (10 + 0) at the first step
    for key in ("first.weight", "norm.running_var"):
        assert torch.allclose(trainer.average[key], keep * before[key] + (1 - keep) * after[key], atol=1e-6)
    average = {key: value.clone() for key, value in trainer.average.items()}
    with trainer.averaged() as network:
        assert not network.training
        assert all(torch.equal(network.state_dict()[key], value) for key, value in average.items())
    assert trainer.network.training
    assert all(torch.equal(trainer.network.state_dict()[key], value) for key, value in after.items())
    assert all(torch.equal(trainer.average[key], value) for key, value in average.items())


def test_a_restored_trainer_goes_on_with_the_same_bits() -> None:
    whole, cut = line(), line()
    losses = [record.loss for record in run(whole, 8)]
    steps = train(cut, Budget(steps=8))
    first = [next(steps).loss for _ in range(4)]
    again = line()
    again.restore(cut.state())
    assert [*first, *(record.loss for record in run(again, 8))] == losses
    assert all(torch.equal(value, again.average[key]) for key, value in whole.average.items())


def test_two_halves_of_a_batch_make_the_whole() -> None:
    trainer = line()
    trainer.network.eval()  # a batch norm would see its own part alone
    parts = [float(trainer.objective.loss(0, 0.0, Workers(rank, 2).equal_part(16)).detach()) for rank in range(2)]
    assert sum(parts) / 2 == pytest.approx(float(trainer.objective.loss(0, 0.0, slice(None)).detach()), rel=1e-6)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """A clock that goes on by 3 s whenever it is read."""
    now = [0.0]

    def tick() -> float:
        now[0] += 3.0
        return now[0]

    monkeypatch.setattr("flowgrad.training.loop.trainer.time.perf_counter", tick)
    yield now


@pytest.mark.usefixtures("clock")
def test_minutes_end_a_run_and_carry_its_schedule() -> None:
    records = list(train(line(warmup=0, decay=0.5), Budget(minutes=0.5), evaluate_every=100))
    assert len(records) == 1 + 10  # the clock is read twice in a step
    assert records[5].rate == 1
    assert records[-1].rate < 0.25
    assert records[-1].seconds_left == 0
    assert records[1].seconds_left == pytest.approx(27)


def test_budgets_are_checked_and_the_first_to_be_spent_counts() -> None:
    for wrong in ((None, None), (0, None), (None, -1.0)):
        with pytest.raises(UsageError, match="above zero"):
            Budget(*wrong)
    assert Budget(steps=10, minutes=1).progress(5, 45) == 0.75


def test_a_loss_that_is_not_a_number_ends_the_run() -> None:
    trainer = line()
    trainer.network.get_parameter("last.bias").data.fill_(torch.nan)
    with pytest.raises(FlowgradError, match=r"loss became nan at step 0: lower the learning rate"):
        trainer.advance(0.0)
