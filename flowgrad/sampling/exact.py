"""Exact samplers of p*(x0) ~ p(x0) exp(-E(x0)), p a source of latents: the reference for every faster one.

Latents come from keys: each is drawn from random numbers of its own, so that it does not depend on which others are
drawn with it. `energy` maps x0 (B, *D) to (B,).
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flowgrad.errors import FlowgradError, UsageError
from flowgrad.seeds import Key, Source, generator

LatentEnergy = Callable[[Tensor], Tensor]  # x0 (B, *D) -> (B,)

ACCEPTING = 1 << 40  # the last number in the key of an acceptance: no proposal's
ATTEMPTS = 1000
ROUNDING = 1e-4  # share of its bound by which an energy in float32 may be below it


@dataclass(frozen=True)
class Accepted:
    """Latents (B, *D) of p*, and how many proposals each took (B,)."""

    x0: Tensor
    attempts: Tensor

    @property
    def acceptance(self) -> float:
        """The share of proposals that were accepted."""
        return len(self.x0) / float(self.attempts.sum())


def rejection(
    source: Source, energy: LatentEnergy, lowest: float, keys: Sequence[Key], batch: int = 16, limit: int = ATTEMPTS
) -> Iterator[tuple[int, Tensor, int]]:
    """Yield (position among the keys, x0 (*D), attempts) whenever a proposal is accepted, `batch` tried at a time.

    A proposal is accepted with probability exp(lowest - E), where E >= lowest for every latent. Raises FlowgradError
    if E is lower, which would make the samples wrong, or if a key's proposals were rejected `limit` times.
    """
    waiting = [(i, 0) for i in range(len(keys))]
    while waiting:
        tried, waiting = waiting[:batch], waiting[batch:]
        x0 = source([(*keys[i], attempt) for i, attempt in tried])
        log_p = lowest - energy(x0)
        if float(log_p.max()) > ROUNDING * max(1.0, abs(lowest)):
            raise FlowgradError(f"an energy is {float(lowest - log_p.max()):.4g}, below its bound of {lowest:.4g}")
        for row, (i, attempt) in enumerate(tried):
            draw = torch.rand((), generator=generator(*keys[i], attempt, ACCEPTING), dtype=torch.float64)
            if float(draw.log()) < float(log_p[row]):
                yield i, x0[row], attempt + 1
            else:
                waiting.append((i, _next(attempt, limit, i, keys)))


def _next(attempt: int, limit: int, i: int, keys: Sequence[Key]) -> int:
    if attempt + 1 >= limit:
        raise FlowgradError(
            f"{limit} proposals for sample {i} were rejected: what is asked for is too rare to wait for. Lower a "
            "weight, or ask for less"
        )
    return attempt + 1


def accepted(found: Iterator[tuple[int, Tensor, int]], count: int) -> Accepted:
    """All results of `rejection` for `count` keys, in the keys' order."""
    rows = sorted(found, key=lambda result: result[0])
    if len(rows) != count or not rows:
        raise UsageError(f"a rejection sampler of {count} keys gave {len(rows)} latents: draw one or more, to the end")
    return Accepted(torch.stack([x0 for _, x0, _ in rows]), torch.tensor([attempts for *_, attempts in rows]))


def resample(log_weights: Tensor, count: int, seed: int) -> Tensor:
    """(count,) positions in a pool (n,), drawn in proportion to exp(log_weights): systematic resampling.

    Position i occurs count w_i times, rounded up or down (Kitagawa, 1996). Exact as the pool grows; how good it is for
    this one, `moments.effective_number` of softmax(log_weights) says.
    """
    ends = log_weights.double().softmax(0).cumsum(0)
    start = torch.rand((), generator=generator(seed), dtype=torch.float64)
    points = (torch.arange(count, dtype=torch.float64) + start) / count
    return torch.searchsorted(ends / ends[-1], points.to(ends.device)).clamp_max(len(log_weights) - 1)


@dataclass(frozen=True)
class Chain:
    """States of pCN's chains (B, *D), their energies (B,), and the share of moves accepted so far."""

    x0: Tensor
    energy: Tensor
    acceptance: float


def crank_nicolson(x0: Tensor, energy: LatentEnergy, length: float, seed: int) -> Iterator[Chain]:
    """Yield the chains x' = sqrt(1 - s^2) x + s xi from x0 (B, *D), s = `length` in (0, 1], for ever.

    A move keeps N(0, I), whatever the dimension, and is accepted with probability min(1, exp(E(x) - E(x'))):
    preconditioned Crank-Nicolson (Cotter et al., 2013), for a source that is standard normal. Raises UsageError for
    another length.
    """
    if not 0 < length <= 1:
        raise UsageError(f"the length of a move must lie in (0, 1]; got {length:g}")
    e, moves, taken, keep = energy(x0), 0, 0, math.sqrt(1 - length**2)
    while True:
        rng = generator(seed, moves)
        xi = torch.randn(x0.shape, generator=rng, dtype=x0.dtype).to(x0.device)
        log_u = torch.rand(len(x0), generator=rng, dtype=torch.float64).log().to(e)
        moved = keep * x0 + length * xi
        e_moved = energy(moved)
        takes = log_u < e - e_moved
        x0 = torch.where(takes.view(-1, *[1] * (x0.ndim - 1)), moved, x0)
        e = torch.where(takes, e_moved, e)
        moves, taken = moves + 1, taken + int(takes.sum())
        yield Chain(x0, e, taken / (moves * len(x0)))
