"""Measuring a sampler by its own draws: what a judge says of them, how varied they are, and what they cost."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import log

import torch
from torch import Tensor

from directions.apply.identity import SAME_PERSON, descriptors, distances, has_faces
from directions.file.sampler import SamplerInfo
from directions.photo.landmarks import aligned_landmarks
from directions.photo.reading import to_images
from directions.sampler.train import arg_max_shares
from flowgrad.guidance.judge import Judge
from flowgrad.guidance.landmarks import yaw

Rows = list[list[str]]


@dataclass(frozen=True)
class Evaluated:
    """Draws of the model and of the sampler, compared.

    before, after: how often each answer is the judge's likeliest; divergence: by question that the sampler has a
    target for, KL(target | shares) before and after; success: the share of draws with all asked answers, by arg-max;
    variety: the mean distance of dlib's descriptors between two draws; person: of a sampler of a photo's person, the
    share of draws that dlib takes for it; turned: of a sampler of a pose, the mean yaw by dlib's landmarks, in degrees.
    None where not measured.
    """

    before: Mapping[str, float]
    after: Mapping[str, float]
    divergence: Mapping[str, tuple[float, float]]
    success: tuple[float, float] | None
    variety: tuple[float, float] | None
    person: tuple[float, float] | None = None
    turned: tuple[float, float] | None = None


def compare(info: SamplerInfo, judge: Judge | None, before: Tensor, after: Tensor, faces: bool) -> Evaluated:
    """Compare images (n, 3, H, W) in [-1, 1] of the model with those of a sampler; `faces`: aligned ones."""
    shares = [arg_max_shares(judge, images) if judge else {} for images in (before, after)]
    pairs = {name: (kl(wanted, shares[0]), kl(wanted, shares[1])) for name, wanted in targets(info).items() if judge}
    asked = [answer for term in info.terms for answer in term.answers]
    met = None
    if judge and asked and set(asked) <= {answer for answers in judge.heads.values() for answer in answers}:
        met = (success(judge, asked, before), success(judge, asked, after))
    if not (faces and has_faces()):
        return Evaluated(shares[0], shares[1], pairs, met, None)
    kinds = {term.kind: term for term in info.terms}
    person = None
    if "identity" in kinds:
        photo = torch.tensor(kinds["identity"].descriptor, device=before.device)
        person = (same_person(photo, before), same_person(photo, after))
    turned = (mean_yaw(before), mean_yaw(after)) if "pose" in kinds else None
    return Evaluated(shares[0], shares[1], pairs, met, (variety(before), variety(after)), person, turned)


def targets(info: SamplerInfo) -> dict[str, dict[str, float]]:
    """By question, the shares that a sampler's answers were to have."""
    found = {}
    for term in info.terms:
        rest = list(term.target)
        for name in term.attributes:
            found[name] = {answer: rest.pop(0) for answer in info.questions[name]}
    return found


def kl(target: Mapping[str, float], shares: Mapping[str, float], least: float = 1e-3) -> float:
    """sum_c mu_c log(mu_c / share_c); a share of 0 counts as `least`. Answers that no judge knows are left out."""
    return sum(mu * log(mu / max(shares[answer], least)) for answer, mu in target.items() if answer in shares)


@torch.no_grad()
def success(judge: Judge, asked: list[str], images: Tensor) -> float:
    """How often every asked answer is the likeliest of its question."""
    parts = [judge.probabilities(part) for part in images.split(256)]
    met = torch.ones(len(images), dtype=torch.bool)
    for answer in asked:
        rivals = next(answers for answers in judge.heads.values() if answer in answers)
        likeliest = torch.cat([torch.stack([part[a] for a in rivals], 1) for part in parts]).argmax(1).cpu()
        met &= likeliest == rivals.index(answer)
    return float(met.float().mean())


def variety(images: Tensor) -> float:
    """The mean distance between the descriptors of two different images, of two or more."""
    found = descriptors(images)
    apart = distances(found[:, None], found[None])
    return float(apart.sum() / (len(found) * (len(found) - 1)))


def same_person(descriptor: Tensor, images: Tensor) -> float:
    """The share of images that dlib takes for the person of a descriptor (128,)."""
    return float((distances(descriptors(images), descriptor) < SAME_PERSON).float().mean())


def mean_yaw(images: Tensor) -> float:
    """How far aligned faces are turned, by dlib's landmarks: the mean, in degrees."""
    return float(yaw(torch.tensor([aligned_landmarks(image).tolist() for image in to_images(images)])).mean())


def evaluation_table(columns: Mapping[str, Evaluated], evaluations: Mapping[str, float]) -> tuple[list[str], Rows]:
    """Head and rows for a terminal: the model, then what each column has after it; evaluations for each image."""
    found = list(columns.values())

    def row(label: str, pairs: Sequence[tuple[float, float] | None], form: str) -> Rows:
        shown = [(pairs[0][0], *(pair[1] for pair in pairs if pair))] if pairs and pairs[0] else []
        return [[label, *(format(value, form) for value in values)] for values in shown]

    rows: Rows = []
    for name in found[0].before:
        rows += row(f"judged {name}", [(each.before[name], each.after[name]) for each in found], ".1%")
    for name in found[0].divergence:
        rows += row(f"divergence of {name}", [each.divergence[name] for each in found], ".3f")
    rows += row("all that was asked", [each.success for each in found], ".1%")
    rows += row("the photo's person", [each.person for each in found], ".1%")
    rows += row("yaw, degrees", [each.turned for each in found], "+.1f")
    rows += row("distance of two faces", [each.variety for each in found], ".3f")
    rows.append(["evaluations of v for one", *(f"{value:,.0f}" for value in evaluations.values())])
    return ["measured", "model", *columns], rows
