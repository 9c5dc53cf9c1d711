"""Energies: what samples shall be like, as functions of images that are low where they are (PromptGen, section 3).

`p*(x0) ~ N(x0; 0, I) exp(-sum_i lambda_i E_i(G(x0)))` (Wu et al., NeurIPS 2022): with a weight lambda of 1, the energy
-log p(y | x) makes that the posterior of y. Every energy is bounded below, and says by what: rejection needs it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import relu, softplus

from flowgrad.errors import FlowgradError, UsageError
from flowgrad.guidance.classes import Classes
from flowgrad.guidance.contrast import Contrast
from flowgrad.guidance.guide import Guide
from flowgrad.guidance.questions import check_answers, check_yaw
from flowgrad.guidance.text import contrast_vectors


class Energy(Protocol):
    """E(images (B, 3, H, W) in [-1, 1]) -> (B,), differentiable, and at least `lowest` for every image.

    `features` are the numbers (B, K) that it is a function of, such as log-odds: they do not saturate as energies do.
    """

    @property
    def lowest(self) -> float: ...

    def __call__(self, images: Tensor) -> Tensor: ...

    def features(self, images: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class ClassEnergy:
    """-sum_c log p(c | x) over answers to different questions; at least 0.

    Raises UsageError for no answer, an unknown one (with the known), or two of the same question.
    """

    classes: Classes
    answers: tuple[str, ...]
    lowest: float = 0.0

    def __post_init__(self) -> None:
        check_answers(self.classes.questions, self.answers)

    def __call__(self, images: Tensor) -> Tensor:
        """(B,) energies."""
        return softplus(-self.features(images)).sum(1)

    def features(self, images: Tensor) -> Tensor:
        """(B, answers) log-odds of the answers."""
        return self.classes.log_odds(images, self.answers)


@dataclass(frozen=True)
class TextEnergy:
    """-log sigmoid(log-odds) of a text against its source, in a guide's eyes; at least 0."""

    guide: Guide
    target: Contrast
    lowest: float = 0.0

    def __call__(self, images: Tensor) -> Tensor:
        """(B,) energies."""
        return softplus(-self.features(images)[:, 0])

    def features(self, images: Tensor) -> Tensor:
        """(B, 1) log-odds of the text."""
        return self.guide.logit_scale * self.guide.encode_images(images) @ contrast_vectors(self.guide, [self.target]).T


@dataclass(frozen=True)
class MomentEnergy:
    """-beta . phi(x), phi the probabilities of all answers to the questions of `classes`, in their order.

    beta: (C,) finite numbers. The bound is that of phi's simplices: the largest beta of each question.
    Raises UsageError for another number of them.
    """

    classes: Classes
    beta: tuple[float, ...]

    def __post_init__(self) -> None:
        count = sum(map(len, self.classes.questions.values()))
        if len(self.beta) != count:
            raise UsageError(f"beta has one number for each of the {count} answers; got {len(self.beta)}")

    @property
    def lowest(self) -> float:
        """-sum over questions of the largest beta."""
        rest = list(self.beta)
        return -sum(max(rest.pop(0) for _ in answers) for answers in self.classes.questions.values())

    def __call__(self, images: Tensor) -> Tensor:
        """(B,) energies."""
        phi = self.classes.moments(images)
        return -(phi @ phi.new_tensor(self.beta))

    def features(self, images: Tensor) -> Tensor:
        """(B, C) log-odds of all answers."""
        return self.classes.log_odds(images, [a for answers in self.classes.questions.values() for a in answers])


@dataclass(frozen=True)
class IdentityEnergy:
    """-log sigmoid((same - distance) / spread) of a face's descriptor to a photo's; at least 0.

    It is -log p of being the same person, where a recogniser's descriptors lie `same` apart at most for one person, and
    `spread` is how sharp that limit is. describe: faces (B, 3, H, W) in [-1, 1] -> (B, K), such as
    `flowgrad.guidance.recognizer`; descriptor: (K,).
    """

    describe: Callable[[Tensor], Tensor]
    descriptor: Tensor
    same: float
    spread: float = 0.01
    lowest: float = 0.0

    def __call__(self, images: Tensor) -> Tensor:
        """(B,) energies."""
        return softplus((self.features(images)[:, 0] - self.same) / self.spread)

    def features(self, images: Tensor) -> Tensor:
        """(B, 1) distances to the descriptor."""
        described = self.describe(images)
        return torch.linalg.vector_norm(described - self.descriptor.to(described), dim=1, keepdim=True)


@dataclass(frozen=True)
class PoseEnergy:
    """((yaw - [low, high]) / spread)^2 / 2, which is 0 in the range; -log of a normal density outside.

    yaw: faces (B, 3, H, W) in [-1, 1] -> (B,) degrees, such as that of `flowgrad.guidance.landmarks`, whose root mean
    square error is the spread. Raises UsageError for a range that is none, or not within 90 degrees of 0.
    """

    yaw: Callable[[Tensor], Tensor]
    low: float
    high: float
    spread: float = 3.6
    lowest: float = 0.0

    def __post_init__(self) -> None:
        check_yaw((self.low, self.high))

    def __call__(self, images: Tensor) -> Tensor:
        """(B,) energies."""
        turned = self.features(images)[:, 0]
        outside = relu(self.low - turned) + relu(turned - self.high)
        return (outside / self.spread).square() / 2

    def features(self, images: Tensor) -> Tensor:
        """(B, 1) yaws in degrees."""
        return self.yaw(images)[:, None]


@dataclass(frozen=True)
class EnergySum:
    """sum_i lambda_i E_i, lambda_i above 0. Raises UsageError for no energy, or a weight that is not above 0."""

    energies: tuple[Energy, ...]
    weights: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.energies or len(self.energies) != len(self.weights):
            raise UsageError(
                f"a sum needs energies and a weight for each; got {len(self.energies)} and {len(self.weights)}"
            )
        if wrong := [weight for weight in self.weights if not 0 < weight < float("inf")]:
            raise UsageError(f"the weight (lambda) of an energy must be a number above 0; got {wrong[0]:g}")

    @property
    def lowest(self) -> float:
        """The sum of the energies' bounds."""
        return sum(weight * energy.lowest for energy, weight in zip(self.energies, self.weights, strict=True))

    def __call__(self, images: Tensor) -> Tensor:
        """(B,) energies. Raises FlowgradError for one that is not finite."""
        parts = [weight * energy(images) for energy, weight in zip(self.energies, self.weights, strict=True)]
        return require_finite(torch.stack(parts).sum(0))

    def features(self, images: Tensor) -> Tensor:
        """(B, K) features of all energies."""
        return torch.cat([energy.features(images) for energy in self.energies], 1)


def require_finite(energies: Tensor) -> Tensor:
    """Return energies (B,). Raises FlowgradError unless all are finite."""
    if bad := int((~energies.detach().isfinite()).sum()):
        raise FlowgradError(
            f"the energy of {bad} of {len(energies)} images is not finite: lower its weight, or use float32"
        )
    return energies
