"""How weights move: Muon for the matrices inside a network, AdamW for everything else."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from flowgrad.training.loop.optimization import Optimization


class Muon(torch.optim.Optimizer):
    """Momentum, then the nearest orthogonal matrix (Jordan et al., 2024, kellerjordan.github.io/posts/muon).

    A convolution is the matrix (out, in x height x width). Each matrix is scaled by sqrt(max(1, rows / columns)), so
    that one learning rate suits all shapes.
    """

    def __init__(self, parameters: Iterable[Any], lr: float, momentum: float) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """Move every parameter that has a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.add_(self._direction(parameter, group["momentum"]), alpha=-group["lr"])

    def _direction(self, parameter: Tensor, momentum: float) -> Tensor:
        state = self.state[parameter]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        average = state["momentum_buffer"]
        average.mul_(momentum).add_(parameter.grad)
        matrix = (parameter.grad + momentum * average).flatten(1)  # Nesterov's look ahead
        rows, columns = matrix.shape
        return (orthogonal(matrix) * max(1, rows / columns) ** 0.5).reshape(parameter.shape).to(parameter)


def orthogonal(matrix: Tensor, steps: int = 5) -> Tensor:
    """About U V^T of a matrix U S V^T, by Newton-Schulz iterations in bfloat16: singular values come to 0.7 to 1.2."""
    wide = matrix.bfloat16() if len(matrix) <= matrix.shape[1] else matrix.bfloat16().mT
    x = wide / (wide.norm() + 1e-7)
    for _ in range(steps):
        square = x @ x.mT
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return x if len(matrix) <= matrix.shape[1] else x.mT


def make_optimizers(
    network: nn.Module, settings: Optimization, plain: tuple[str, ...] = (), factors: Mapping[str, float] | None = None
) -> list[torch.optim.Optimizer]:
    """The optimisers of a network's parameters, whose groups hold the full learning rate as `initial_lr`.

    plain: beginnings of the names of layers that are no maps between features (the first and last convolution,
    embeddings): AdamW moves these without weight decay, as it does vectors. factors: of the rates of single parameters.
    """
    groups: dict[str, list[nn.Parameter]] = {"inner": [], "plain": []}
    own = []
    for name, parameter in network.named_parameters():
        if factor := (factors or {}).get(name):
            own.append({"params": [parameter], "weight_decay": 0.0, "lr": factor * settings.learning_rate})
        else:
            groups["plain" if parameter.ndim < 2 or name.startswith(plain or ("\0",)) else "inner"].append(parameter)
    rest: list[dict[str, Any]] = [{"params": groups["plain"], "weight_decay": 0.0}, *own]
    optimizers: list[torch.optim.Optimizer] = []
    if settings.optimizer == "muon":
        optimizers.append(Muon(groups["inner"], settings.muon_rate, settings.momentum))
    else:
        rest.append({"params": groups["inner"], "weight_decay": settings.weight_decay})
    optimizers.append(torch.optim.AdamW(rest, lr=settings.learning_rate, betas=settings.betas, foreach=True))
    for group in (group for optimizer in optimizers for group in optimizer.param_groups):
        group["initial_lr"] = group["lr"]
    return optimizers
