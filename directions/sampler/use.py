"""A sampler's file becomes a source of latents: its energies get their networks, and its parent comes first."""

from collections.abc import Mapping, Sequence

import torch

from directions.apply.identity import SAME_PERSON
from directions.bank.bank import Bank
from directions.file.sampler import SamplerFile, SamplerInfo
from directions.file.terms import Term
from directions.photo.faces import CHIP_PADDING
from flowgrad.errors import FlowgradError
from flowgrad.guidance.classes import Classes
from flowgrad.guidance.contrast import Contrast
from flowgrad.guidance.energies import (
    ClassEnergy,
    Energy,
    EnergySum,
    IdentityEnergy,
    MomentEnergy,
    PoseEnergy,
    TextEnergy,
)
from flowgrad.guidance.guide import Guide
from flowgrad.guidance.guide_files import load_guide
from flowgrad.guidance.judge import Judge, load_judge
from flowgrad.guidance.landmarks import load_landmarks
from flowgrad.guidance.questions import Questions
from flowgrad.guidance.recognizer import DESCRIPTOR, load_recognizer
from flowgrad.models import TIME_CONVENTION, Model
from flowgrad.ode import Grid
from flowgrad.sampling.network import NetworkSizes, restore
from flowgrad.sampling.sampler import RejectionSampler

STAGES = 8  # samplers one on the other, at most


def open_sampler(name: str, model: Model, bank: Bank, guide: str | None = None, force: bool = False) -> Model:
    """The model with the latents of the bank's sampler `name`, and of those that it draws on.

    guide: name or file; the default is the model's own. Raises UsageError for an unknown name, FlowgradError for a
    sampler of other weights (unless `force`), another guide, or a parent that is missing or has changed.
    """
    return _opened(bank.get(name, model.name, "sampler").load_sampler(), model, bank, guide, force, STAGES)


def with_sampler(model: Model, sampler: SamplerFile, guide: Guide | None) -> Model:
    """The model with a sampler's latents, on the source that it has now; `guide` where an energy asks one."""
    info = sampler.info
    if info.method == "network":
        tensors = {name: torch.tensor(value) for name, value in sampler.tensors.items()}
        if tensors["basis"].shape[1:] != model.shape:
            shapes = f"{tuple(tensors['basis'].shape[1:])}, not {model.shape}"
            raise FlowgradError(f"sampler {info.title!r} was made for latents of another shape: {shapes}.")
        sizes = NetworkSizes(len(tensors["basis"]), info.layers, info.width)
        return restore(sizes, tensors, model.device).on(model)
    return RejectionSampler(energy_of(info, guide, model), Grid(info.starts, info.steps)).on(model)


def energy_of(info: SamplerInfo, guide: Guide | None, model: Model) -> EnergySum:
    """The energy that a sampler's file describes. Raises FlowgradError for another classifier than its own.

    The classifier is the model's: what a sampler's file calls it is never opened, since it may come from anywhere.
    """
    asks = bool(info.classifier and info.questions)
    classifier = load_judge(model.config.classifier, model.device) if asks and model.config.classifier else None
    if asks and (classifier is None or classifier.fingerprint != info.classifier_fingerprint):
        has = f"{model.config.classifier} ({classifier.fingerprint})" if classifier else "none"
        mine = f"{info.classifier} ({info.classifier_fingerprint})"
        raise FlowgradError(
            f"sampler {info.title!r} asks the classifier {mine}, and {model.name} has {has}. Train it again."
        )
    return to_energy(info.terms, to_classes(info.questions, info.offsets, guide, classifier), guide, model)


def _opened(sampler: SamplerFile, model: Model, bank: Bank, guide: str | None, force: bool, left: int) -> Model:
    info = sampler.info
    check_fits(info, model, force)
    asks = info.guide and info.method == "rejection"
    network = load_guide(guide or model.config.guide, model.device) if asks else None
    if network and network.fingerprint != info.guide_fingerprint:
        mine, given = f"{info.guide} ({info.guide_fingerprint})", f"{network.name} ({network.fingerprint})"
        raise FlowgradError(f"sampler {info.title!r} asks the guide {mine}, not {given}. Name it with --guide.")
    if info.parent:
        if not left:
            raise FlowgradError(f"sampler {info.title!r} draws on more than {STAGES} others. Train it on fewer.")
        parent = bank.get(info.parent, model.name, "sampler").load_sampler()
        if parent.hash != info.parent_hash:
            raise FlowgradError(
                f"sampler {info.title!r} draws on {info.parent} ({info.parent_hash}), which has changed "
                f"({parent.hash}). Train it again."
            )
        model = _opened(parent, model, bank, guide, force, left - 1)
    return with_sampler(model, sampler, network)


def check_fits(info: SamplerInfo, model: Model, force: bool = False) -> None:
    """Raise FlowgradError unless a sampler was made for this model; `force` overrides the fingerprint alone."""
    checks: list[tuple[str, object, object]] = [
        ("number of steps N", info.steps, model.config.steps),
        ("time convention", info.time_convention, TIME_CONVENTION),
    ]
    if not force:
        checks.append(("model's weights", info.fingerprint, model.fingerprint))
    for rule, stored, value in checks:
        if stored != value:
            raise FlowgradError(
                f"sampler {info.title!r} was made for another {rule}: {stored}, not {value}. Train it again for "
                f"{model.name}."
            )


def to_classes(
    questions: Questions, offsets: Mapping[str, float], guide: Guide | None, classifier: Judge | None
) -> Classes | None:
    """Questions as a guide answers them, and a classifier beside it; None without questions or guide."""
    return Classes(guide, questions, offsets, classifier) if guide and questions else None


def to_energy(terms: Sequence[Term], classes: Classes | None, guide: Guide | None, model: Model) -> EnergySum:
    """The weighted sum that terms describe. Raises FlowgradError without the extra `faces` where it is needed."""
    energies = tuple(_to_energy(term, classes, guide, model) for term in terms)
    return EnergySum(energies, tuple(term.weight for term in terms))


def _to_energy(term: Term, classes: Classes | None, guide: Guide | None, model: Model) -> Energy:
    if term.kind == "identity":
        if len(term.descriptor) != DESCRIPTOR:
            rule = f"a face's descriptor has {DESCRIPTOR} numbers"
            raise FlowgradError(f"{rule}, and the sampler gives {len(term.descriptor)}. Train it again.")
        descriptor = torch.tensor(term.descriptor, device=model.device)
        return IdentityEnergy(load_recognizer(CHIP_PADDING, str(model.device)), descriptor, SAME_PERSON)
    if term.kind == "pose":
        return PoseEnergy(load_landmarks(device=str(model.device)).yaw, *term.target)
    if guide is None:
        raise FlowgradError(f"the energy of {term.words} needs a guide, and the sampler names none. Train it again.")
    if term.kind == "text":
        return TextEnergy(guide, Contrast(term.text, term.source))
    if classes is None:
        raise FlowgradError(f"the energy of {term.words} needs questions, and the sampler has none. Train it again.")
    if term.kind == "class":
        return ClassEnergy(classes, term.answers)
    return MomentEnergy(classes.select(term.attributes), term.beta)
