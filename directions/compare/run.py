"""The job behind `evaluate --methods`: photos and a direction in, records and outcomes out."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from directions.apply.identity import require_identity
from directions.apply.inversion import ANCHORED_EULER, Inversion
from directions.apply.photos import Photos
from directions.compare.comparison import Measures, compare_methods
from directions.compare.methods import Setting
from directions.compare.names import Method
from directions.compare.summary import Outcome, summarize
from directions.file.header import DirectionInfo
from directions.photo.sources import Source
from directions.progress import Reporter
from directions.train.calibration import samples_without
from directions.train.recipe import Recipe
from flowgrad.errors import UsageError
from flowgrad.guidance.contrast import Contrast
from flowgrad.guidance.guide_files import load_guide
from flowgrad.guidance.judge import load_judge
from flowgrad.models import Model
from flowgrad.ode import Control


@dataclass(frozen=True)
class Asked:
    """What is to be compared: methods, at strengths, at one identity distance; `samples` are what they train on.

    guide, judge: names or files, "" or None for the model's; answer: the judge's that the text means, "" for none.
    """

    methods: tuple[Method, ...]
    strengths: tuple[float, ...]
    distance: float
    samples: int
    guide: str | None
    judge: str
    answer: str
    seed: int


def compare(
    model: Model,
    control: Control,
    info: DirectionInfo,
    read: Photos,
    recipe: Recipe,
    asked: Asked,
    results: Path,
    reporter: Reporter,
) -> list[Outcome]:
    """Compare a direction's control, which `info` describes, with other methods on photos, and sum up what came of it.

    Raises UsageError for a model of other things than aligned faces, where dlib is not installed, and for a direction
    that photos are inverted for in another way than the other methods have it.
    """
    require_identity(model)
    if (inversion := Inversion.parse(info.inversion)) != ANCHORED_EULER:
        raise UsageError(f"methods are compared on photos inverted by {ANCHORED_EULER}; the direction has {inversion}")
    guide = load_guide(asked.guide or model.config.guide, model.device)
    name = asked.judge or model.config.judge
    judge = load_judge(name, model.device) if asked.answer and name else None
    measures = Measures.create(judge, asked.answer, model.device, reporter)
    subject = model.config.subject
    target = Contrast(info.text, info.source_text or subject)
    keep = tuple(Contrast.parse(written, subject) for written in info.keep)
    samples = samples_without(model, guide, target, asked.samples, asked.seed)
    setting = Setting(model, guide, target, keep, recipe, control, samples, asked.seed)
    names = _names(read.sources, read.hashes)
    records = compare_methods(setting, read.images, names, asked.methods, asked.strengths, measures, results, reporter)
    return summarize(records, asked.distance)


def _names(sources: Sequence[Source], hashes: Sequence[str]) -> list[str]:
    """What photos are called in records: by their files and what is in them."""
    return [f"{source.name} {digest[:8]}" for source, digest in zip(sources, hashes, strict=True)]
