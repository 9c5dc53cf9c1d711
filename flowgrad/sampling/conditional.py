"""E[y | z]: what images have on average, given the coordinates of their latents in a subspace.

Of KL(q || p*), as far as it depends on q(z), the energy's part is E_q E[E(G(x0)) | z]: what the rest of the latent adds
is noise. So the energy's regression on z is all that a network need be trained on.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from flowgrad.seeds import generator

WIDTH, STEPS, RATE, DECAY = 32, 300, 5e-3, 3.0
HELD_OUT = 4  # of so many latents one is held out to measure a regression by


class ConditionalMean(nn.Module):
    """z (B, d) -> E[y | z] (B, K): two layers of tanh, which change little far from what they were fitted to.

    answers: where y are probabilities, how many each question has, K in all; E[y | z] are probabilities then too.
    """

    def __init__(self, dimensions: int, y: Tensor, answers: Sequence[int], seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(generator(seed).initial_seed())
            inner = (nn.Linear(dimensions, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH), nn.Tanh())
            self.layers = nn.Sequential(*inner, nn.Linear(WIDTH, y.shape[1])).to(y)
        least = torch.finfo(y.dtype).eps
        self.means, self.spreads, self.answers = y.mean(0), y.std(0).clamp_min(least), tuple(answers)
        self.logits = self.means.clamp_min(least).log()

    def forward(self, z: Tensor) -> Tensor:
        """E[y | z]."""
        if not self.answers:
            return self.means + self.spreads * self.layers(z)
        return torch.cat([part.softmax(1) for part in (self.logits + self.layers(z)).split(self.answers, 1)], 1)


def fit_mean(z: Tensor, y: Tensor, answers: Sequence[int] = (), seed: int = 0) -> ConditionalMean:
    """Regress y (n, K) on z (n, d): least squares of y in units of its spread, by AdamW on all of it at once."""
    mean = ConditionalMean(z.shape[1], y, answers, seed)
    optimizer = torch.optim.AdamW(mean.parameters(), lr=RATE, weight_decay=DECAY)
    for step in range(STEPS):
        optimizer.param_groups[0]["lr"] = RATE * (1 - step / STEPS)
        optimizer.zero_grad()
        ((mean(z) - y) / mean.spreads).square().mean().backward()
        optimizer.step()
    return mean.requires_grad_(False)


def explained(z: Tensor, y: Tensor, seed: int = 0) -> float:
    """The share of the variance of y (n,) that z (n, d) explains, on the fourth of it that was held out; 0 to 1."""
    held_out = torch.arange(len(z), device=z.device) % HELD_OUT == 0
    mean = fit_mean(z[~held_out], y[~held_out, None], seed=seed)
    truth = y[held_out]
    errors = (mean(z[held_out])[:, 0] - truth).square().mean()
    return float((1 - errors / truth.var(correction=0)).clamp(0, 1).nan_to_num(0))
