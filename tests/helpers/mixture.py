"""A flow whose every answer is known: that of a mixture of Gaussians under x_t = (1 - t) noise + t x1."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Mixture:
    """x1 ~ mean over k of N(means_k, spread^2 I): means (K, *D). It is the velocity field of its own flow."""

    means: Tensor
    spread: float

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """v = E[x1 - noise | x_t = x], in closed form, for x (B, *D) and t () or (B,)."""
        t = t.expand(len(x)).view(-1, *[1] * self.means.ndim)
        variance = (1 - t) ** 2 + t**2 * self.spread**2
        apart = x.unsqueeze(1) - t * self.means  # (B, K, *D)
        logits = -apart.square().flatten(2).sum(2) / (2 * variance.flatten(1))
        share = logits.softmax(1).view(len(x), -1, *[1] * (x.ndim - 1))
        x1 = self.means + t * self.spread**2 / variance * apart
        noise = (1 - t) / variance * apart
        return (share * (x1 - noise)).sum(1)
