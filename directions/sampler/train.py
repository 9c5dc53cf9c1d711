"""Making a sampler: a pool of samples is drawn, beta is solved for on it, and what the energy does is measured."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from directions.file.direction import flowgrad_version
from directions.file.metadata import today
from directions.file.sampler import SamplerFile, SamplerInfo
from directions.file.terms import WITHOUT_GUIDE, Term
from directions.progress import Reporter
from directions.sampler.network import NetworkPlan, Pool, fit_network
from directions.sampler.pool import Parts, draw
from directions.sampler.request import INTERVALS, asked_questions
from directions.sampler.use import to_classes, to_energy
from flowgrad.errors import FlowgradError
from flowgrad.guidance.classes import Classes
from flowgrad.guidance.guide import Guide
from flowgrad.guidance.judge import Judge
from flowgrad.guidance.questions import offsets_of
from flowgrad.models import TIME_CONVENTION, Model
from flowgrad.ode import Grid
from flowgrad.sampling.exact import ATTEMPTS, resample
from flowgrad.sampling.moments import effective_number, solve_moments
from flowgrad.workers import ALONE, Share, Workers

POOL = 512
POOL_SEED = 5_000_000  # far from the seeds that people draw from
SHOWN = 20  # samples in a figure
TOGETHER = 64  # images that a guide is asked of together
LEAST_EFFECTIVE = 8.0  # samples that a pool must be worth under the energy, to be measured by


@dataclass(frozen=True)
class Labels:
    """What a sampler's file says for people; its title is by default what it asks for."""

    title: str = ""
    description: str = ""
    tags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Parent:
    """The sampler that another one draws its proposals from: its name in the bank, and what it is."""

    name: str
    sampler: SamplerFile


@dataclass(frozen=True)
class Trained:
    """A sampler, and images (n, 3, H, W) in [-1, 1] of its model and of the sampler, to be shown."""

    sampler: SamplerFile
    before: Tensor
    after: Tensor


def train_sampler(
    model: Model,
    terms: Sequence[Term],
    guide: Guide | None,
    judge: Judge | None,
    reporter: Reporter,
    *,
    classifier: Judge | None = None,
    pool: int = POOL,
    intervals: int = INTERVALS,
    seed: int = 0,
    labels: Labels = Labels(),
    parent: Parent | None = None,
    network: NetworkPlan | None = None,
    parts: Parts | None = None,
    workers: Workers = ALONE,
) -> Trained:
    """Make a sampler of the energies that `terms` describe, on the source that the model has now.

    classifier: that of the model's configuration, which answers questions beside the guide. Moments are solved for on a
    pool of so many samples. parent: the sampler that the model's source is, if it is one. network: how one is trained
    that draws in place of rejection; without it, rejection draws. parts: where the pool is kept while it is drawn.
    workers: processes that share the work, each of which has the sampler in the end.
    Raises UsageError for moments that the pool does not reach, FlowgradError if what is asked for is too rare, or an
    energy is not finite.
    """
    grid = Grid.uniform(model.config.steps, intervals)
    images = draw(model, grid, pool, POOL_SEED + seed, reporter, parts, workers)
    guide = guide if any(term.kind not in WITHOUT_GUIDE for term in terms) else None
    questions = asked_questions(terms, model.config)
    offsets = offsets_of(questions, model.config.class_offsets)
    classes = to_classes(questions, offsets, guide, classifier)
    beside = classes.classifier if classes else None
    solved = tuple(_solved(term, classes, images, workers) if term.kind == "moment" else term for term in terms)
    energy = to_energy(solved, classes, guide, model)
    share = Share(pool, workers, model.batch)
    with torch.no_grad():
        energies = share.gather(torch.cat([energy(images[part]) for part in share.parts])).double()
    weights, acceptance = (-energies).softmax(0), float((energy.lowest - energies).exp().mean())
    _check_rare(effective_number(weights), acceptance, pool)
    info = SamplerInfo(
        title=labels.title or "; ".join(term.words for term in solved)[:200],
        model=model.name,
        fingerprint=model.fingerprint,
        steps=model.config.steps,
        starts=grid.starts,
        terms=solved,
        time_convention=TIME_CONVENTION,
        questions=questions,
        offsets=offsets,
        guide=guide.name if guide else "",
        guide_fingerprint=guide.fingerprint if guide else "",
        classifier=model.config.classifier if beside else "",
        classifier_fingerprint=beside.fingerprint if beside else "",
        judge=model.config.judge if judge else "",
        parent=parent.name if parent else "",
        parent_hash=parent.sampler.hash if parent else "",
        pool=pool,
        effective=min(effective_number(weights), float(pool)),
        acceptance=min(acceptance, 1.0),
        seed=seed,
        measured=measure(images, weights, classes, judge, workers=workers),
        description=labels.description,
        date=today(),
        license=model.config.licence,
        tags=labels.tags,
        version=flowgrad_version(),
    )
    if network is None:
        chosen = resample(weights.log(), min(SHOWN, pool), seed)
        return Trained(SamplerFile(info), images[:SHOWN], images[chosen])
    own = parts.of(SamplerFile(info).hash) if parts else None
    samples = _to_pool(solved, classes, images, energies, POOL_SEED + seed, workers)
    fitted = fit_network(model, energy, samples, network, seed, reporter, own, workers)
    tensors = {name: value.numpy() for name, value in fitted.sampler.tensors().items()}
    described = replace(
        info,
        method="network",
        layers=network.layers,
        width=network.width,
        updates=network.updates,
        explained=fitted.explained,
        shapes={name: tuple(value.shape) for name, value in tensors.items()},
    )
    own = parts.of(SamplerFile(described, tensors).hash) if parts else None
    drawn = draw(fitted.sampler.on(model), grid, min(pool, network.drawn), POOL_SEED + seed, reporter, own, workers)
    measured = measure(images, weights, classes, judge, drawn, workers)
    return Trained(SamplerFile(replace(described, measured=measured), tensors), images[:SHOWN], drawn[:SHOWN])


def _to_pool(
    terms: Sequence[Term], classes: Classes | None, images: Tensor, energies: Tensor, seed: int, workers: Workers
) -> Pool:
    """What a network learns from: moments where nothing else is asked for, else energies, as low as p* has them."""
    keys = [(seed, i) for i in range(len(images))]
    if classes and [term.kind for term in terms] == ["moment"]:
        chosen = classes.select(terms[0].attributes)
        answers = tuple(map(len, chosen.questions.values()))
        return Pool(keys, energies, moments_of(chosen, images, workers), torch.tensor(terms[0].target), answers)
    return Pool(keys, energies, energies[:, None], ((-energies).softmax(0) @ energies)[None])


def _solved(term: Term, classes: Classes | None, images: Tensor, workers: Workers) -> Term:
    """A term of moments with its beta."""
    if classes is None:
        raise FlowgradError("moments need a guide that tells the classes apart. Name one with --guide.")
    chosen = classes.select(term.attributes)
    answers = [answer for texts in chosen.questions.values() for answer in texts]
    found = solve_moments(moments_of(chosen, images, workers), torch.tensor(term.target).double(), answers)
    return replace(term, beta=tuple(found.beta.tolist()))


@torch.no_grad()
def moments_of(classes: Classes, images: Tensor, workers: Workers = ALONE) -> Tensor:
    """(n, C) float64 probabilities of all answers, for images (n, 3, H, W), which processes share."""
    share = Share(len(images), workers, TOGETHER)
    return share.gather(torch.cat([classes.moments(images[part]) for part in share.parts])).double().cpu()


def measure(
    images: Tensor,
    weights: Tensor,
    classes: Classes | None,
    judge: Judge | None,
    drawn: Tensor | None = None,
    workers: Workers = ALONE,
) -> Mapping[str, Mapping[str, float]]:
    """Shares of every answer before and after weighting: the guide's means, and the judge's arg-max answers.

    drawn: images of the sampler; without them, the pool's weights say what the judge would answer of such.
    """
    rows: dict[str, dict[str, float]] = {}
    if classes:
        answers = [answer for texts in classes.questions.values() for answer in texts]
        phi = moments_of(classes, images, workers)
        for answer, natural, wanted in zip(answers, phi.mean(0).tolist(), (weights.cpu() @ phi).tolist(), strict=True):
            rows[answer] = {"natural": _share(natural), "wanted": _share(wanted)}
    if judge:
        afterwards = arg_max_shares(judge, images, weights) if drawn is None else arg_max_shares(judge, drawn)
        for answer, before in arg_max_shares(judge, images).items():
            rows.setdefault(answer, {}).update(before=_share(before), after=_share(afterwards[answer]))
    return rows


@torch.no_grad()
def arg_max_shares(judge: Judge, images: Tensor, weights: Tensor | None = None) -> dict[str, float]:
    """How often each answer is the judge's likeliest, weighted by (n,) weights that sum to 1."""
    w = torch.full((len(images),), 1 / len(images)).double() if weights is None else weights.cpu().double()
    parts = [judge.probabilities(part) for part in images.split(256)]
    shares: dict[str, float] = {}
    for answers in judge.heads.values():
        likeliest = torch.cat([torch.stack([part[a] for a in answers], 1) for part in parts]).argmax(1).cpu()
        shares |= {answer: float(w[likeliest == k].sum()) for k, answer in enumerate(answers)}
    return shares


def _share(value: float) -> float:
    return min(max(round(value, 6), 0.0), 1.0)


def _check_rare(effective: float, acceptance: float, pool: int) -> None:
    if acceptance * ATTEMPTS < 1:
        raise FlowgradError(
            f"what is asked for is too rare: one proposal in {1 / max(acceptance, 1e-12):,.0f} would be accepted. "
            "Lower a weight, or ask for less"
        )
    if effective < LEAST_EFFECTIVE:
        raise FlowgradError(
            f"the {pool} samples are worth {effective:.1f} under this energy, too few to solve and measure with: draw "
            "more (--pool), lower a weight, or ask for less"
        )
