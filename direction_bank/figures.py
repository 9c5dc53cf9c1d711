"""Prints the table of direction_bank/README.md: what each direction does to neutral test photos, at strength 1.

python direction_bank/figures.py utkface_aligned.zip labels.csv [NAME...]: about a minute a direction on a CPU.
"""

import csv
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from directions.apply.effects import judged
from directions.apply.steer import to_control
from directions.bank.bank import Bank
from directions.measure.evaluation import Measured, evaluate_photos
from directions.progress import Silent
from flowgrad.guidance.judge import load_judge
from flowgrad.markdown import table
from flowgrad.models import Model, load_model
from flowgrad.training.data.images import to_model_range
from flowgrad.training.data.pictures import list_images, read_square

ANSWERS = {  # what the judge is to answer, and which column of the table says it of a photo
    "smiling": ("happy", "happy"),
    "serious": ("neutral", "neutral"),
    "surprised": ("surprised", "surprised"),
    "angry": ("angry", "angry"),
    "sad": ("sad", "sad"),
    "old": ("old", ""),
    "young": ("young", ""),
    "baby-faced": ("baby", ""),
    "feminine": ("female", ""),
    "masculine": ("male", ""),
}
NEUTRAL = 0.8  # probability from which a photo is called neutral here
LABELLED = 0.5  # and from which it is called anything else
MANY = {"smiling"}  # directions measured on all photos; the others on every third
MOVED = 0.1  # change of a share from which another answer is named
HEAD = (
    "direction",
    "photos",
    "before",
    "at strength 1",
    "mean probability",
    "same person",
    "distance",
    "effect",
    "also",
)


def photos_of(archive: str, names: list[str], size: int) -> Tensor:
    """(N, 3, size, size) photos of the data set in [-1, 1]."""
    reads = dict(list_images(Path(archive)))
    squares = [torch.from_numpy(read_square(reads[name], size).copy()) for name in names]
    return to_model_range(torch.stack(squares).permute(0, 3, 1, 2))


def rows(model: Model, archive: str, labels: str, wanted: list[str]) -> Iterator[tuple[str, ...]]:
    """One row of the table for each direction."""
    with Path(labels).open(newline="") as file:
        tests = [row for row in csv.DictReader(file) if row["split"] == "test"]
    neutral = photos_of(archive, [row["file"] for row in tests if float(row["neutral"]) > NEUTRAL], model.config.size)
    judge = load_judge(model.config.judge, model.device)
    for entry in Bank.default().list(model.name):
        if entry.name not in ANSWERS or (wanted and entry.name not in wanted):
            continue
        answer, column = ANSWERS[entry.name]
        real = ""
        if column:
            shown = photos_of(archive, [row["file"] for row in tests if float(row[column]) > LABELLED], 64)
            mean = float(judged(judge, shown.to(model.device))[answer].mean())
            real = f" (real photos: {mean:.2f})"
        direction, photos = entry.load(), neutral if entry.name in MANY else neutral[::3]
        control = to_control(direction, model)
        measured, _ = evaluate_photos(model, control, photos, direction.info, (1.0,), None, "", Silent())
        yield row_of(entry.name, answer, len(photos), measured, real)


def row_of(name: str, answer: str, count: int, measured: list[Measured], real: str) -> tuple[str, ...]:
    """The cells of a direction's row."""
    before, after = measured
    others = {key: after.shares[key] - before.shares[key] for key in after.shares if key != answer}
    also = [f"{key} {100 * change:+.0f} %" for key, change in others.items() if abs(change) >= MOVED]
    return (
        f"{name}: {answer}",
        str(count),
        f"{100 * before.shares[answer]:.0f} %",
        f"{100 * after.shares[answer]:.0f} %",
        f"{before.answers[answer]:.2f} -> {after.answers[answer]:.2f}{real}",
        f"{100 * (after.kept or 0):.0f} %",
        f"{after.identity or 0:.2f}",
        f"{after.effect:+.1f}",
        "; ".join(also) or "none",
    )


if __name__ == "__main__":
    archive, labels, *wanted = sys.argv[1:]
    print(table(HEAD, rows(load_model(), archive, labels, wanted), numbers=True))  # noqa: T201
