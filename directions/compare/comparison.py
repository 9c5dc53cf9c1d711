"""Methods compared on photos: what each did to each photo, as lines of JSON that an interrupted run goes on from."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from directions.apply.effects import judged
from directions.apply.identity import descriptors, distances
from directions.apply.inversion import Inverted, invert_images, join
from directions.compare.methods import Find, Setting, finder, inversion_evaluations
from directions.compare.names import Method
from directions.progress import Reporter
from flowgrad.errors import FlowgradError, UsageError
from flowgrad.files import atomic_path
from flowgrad.guidance.judge import Judge
from flowgrad.guidance.preserve import ALEXNET, Distance, has_lpips, l1, load_distance
from flowgrad.guidance.text import log_odds
from flowgrad.models.metering import Account, metered


@dataclass(frozen=True)
class Record:
    """What a method did to a photo at each of its strengths.

    effect: change of the text's log-odds; judged: the probability of the judge's answer, after a first value for the
    photo itself, [] without a judge; identity: dlib's distance to the photo; l1 and lpips: likewise, lpips [] where it
    cannot be measured. evaluations, products and seconds are those of one edit; the evaluations of the inversion count.
    """

    method: str
    photo: str
    strengths: list[float]
    effect: list[float]
    judged: list[float]
    identity: list[float]
    l1: list[float]
    lpips: list[float]
    evaluations: float
    products: float
    seconds: float


@dataclass(frozen=True)
class Measures:
    """What edited photos are measured by, besides the guide and dlib."""

    judge: Judge | None
    answer: str
    lpips: Distance | None

    @classmethod
    def create(cls, judge: Judge | None, answer: str, device: torch.device, reporter: Reporter) -> "Measures":
        """With LPIPS where its weights are there."""
        if not has_lpips():
            reporter.warn(f"LPIPS is left out: put AlexNet's weights, {ALEXNET}, into ~/.cache/torch/hub/checkpoints")
        return cls(judge, answer, load_distance("lpips", device) if has_lpips() else None)


def compare_methods(
    setting: Setting,
    images: Tensor,
    names: Sequence[str],
    methods: Sequence[Method],
    strengths: Sequence[float],
    measures: Measures,
    path: Path,
    reporter: Reporter,
) -> list[Record]:
    """Edit images (B, 3, H, W) in [-1, 1] by every method at every strength, and measure what came of it.

    Records are appended to `path` batch by batch; those that are there already are not made again. Raises UsageError if
    `path` holds another comparison. A last line that an interruption cut off is dropped.
    """
    records = begin(path, _head(setting, strengths, measures))
    known = {(record.method, record.photo) for record in records}
    starts = range(0, len(names), setting.model.batch)
    batches = [range(start, min(start + setting.model.batch, len(names))) for start in starts]
    missing = {m: [b for b in batches if any((m.value, names[i]) not in known for i in b)] for m in methods}
    if not any(missing.values()):
        return records
    model, meter = metered(setting.model)
    setting = replace(setting, model=model)
    photos = join(list(reporter.track(invert_images(model, images), "inverting photos", len(batches))))
    for method, left in missing.items():
        if not left:
            continue
        find = finder(method, setting)
        edit = partial(_records, setting, method, find, strengths, measures, meter)
        for chosen in reporter.track(left, method.value, len(left)):
            made = edit(photos.select(chosen), [names[i] for i in chosen])
            new = [record for record in made if (record.method, record.photo) not in known]
            _append(path, new)
            records += new
    return records


def _records(
    setting: Setting,
    method: Method,
    find: Find,
    strengths: Sequence[float],
    measures: Measures,
    meter: Account,
    photos: Inverted,
    names: Sequence[str],
) -> Iterator[Record]:
    """Edit a batch of photos by a method and measure it."""
    edit, search = meter.measure(partial(find, photos))
    edited, applied = meter.measure(partial(edit, strengths))
    found = _measured(setting, photos.images.clamp(-1, 1), edited, measures)
    inverting = inversion_evaluations(method, setting.control)

    def cost(name: str) -> float:
        """Of one edit of one photo."""
        return (getattr(search, name) + getattr(applied, name) / len(strengths)) / len(photos)

    for i, name in enumerate(names):
        values: dict[str, Any] = {"method": method.value, "photo": name, "strengths": list(strengths)}
        values |= {key: [round(v, 5) for v in rows[:, i].tolist()] if len(rows) else [] for key, rows in found.items()}
        values |= {"evaluations": cost("evaluations") + inverting, "products": cost("products")}
        yield Record(**values, seconds=round(cost("seconds"), 4))


def _measured(setting: Setting, before: Tensor, edited: Tensor, measures: Measures) -> dict[str, Tensor]:
    """Each measure of images (S, B, 3, H, W) as (S, B); the judge's as (1 + S, B); (0, B) of one that is not there."""
    none = before.new_zeros(0, len(before))
    described, target = descriptors(before), [setting.target]
    first = log_odds(setting.guide, before, target)[:, 0]
    rows: dict[str, list[Tensor]] = {"effect": [], "judged": [], "identity": [], "l1": [], "lpips": []}
    for images in edited:
        rows["effect"].append(log_odds(setting.guide, images, target)[:, 0] - first)
        rows["identity"].append(distances(descriptors(images), described))
        rows["l1"].append(l1(images, before))
        if measures.lpips:
            with torch.no_grad():
                rows["lpips"].append(measures.lpips(images, before))
    if measures.judge:
        rows["judged"] = [judged(measures.judge, images)[measures.answer] for images in (before, *edited)]
    return {name: torch.stack(values).float().cpu() if values else none for name, values in rows.items()}


# the file


def _head(setting: Setting, strengths: Sequence[float], measures: Measures) -> dict[str, Any]:
    """What records must have in common to be compared."""
    return {
        "model": setting.model.fingerprint,
        "guide": setting.guide.fingerprint,
        "text": str(setting.target),
        "keep": [str(kept) for kept in setting.keep],
        "direction": hashlib.sha256(setting.control.values.cpu().numpy().tobytes()).hexdigest()[:16],
        "recipe": setting.recipe.model_dump(),
        "strengths": list(strengths),
        "judge": measures.judge.fingerprint if measures.judge else "",
        "answer": measures.answer,
        "seed": setting.seed,
    }


def begin(path: Path, head: Mapping[str, Any]) -> list[Record]:
    """The records in `path`, whose first line must be `head`; a file with that line alone is written if there is none.

    What an interruption left of a last line is removed. Raises UsageError for another first line, FlowgradError for a
    file that holds something else.
    """
    if not path.is_file():
        with atomic_path(path) as temporary:
            temporary.write_text(json.dumps(head) + "\n", encoding="utf-8")
        return []
    whole, cut, _ = path.read_text(encoding="utf-8").rpartition("\n")
    try:
        first, *lines = map(json.loads, whole.splitlines())
        records = [Record(**line) for line in lines]
    except (ValueError, TypeError) as error:
        raise FlowgradError(f"{path} is not a comparison ({str(error)[:80]}): choose another --output") from error
    if first != json.loads(json.dumps(head)):
        changed = ", ".join(key for key in head if first.get(key) != head[key])
        raise UsageError(f"{path} is of another comparison ({changed} differ): choose another --output, or --overwrite")
    with atomic_path(path) as temporary:
        temporary.write_text(whole + cut, encoding="utf-8")
    return records


def _append(path: Path, records: Sequence[Record]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(asdict(record)) + "\n" for record in records)
