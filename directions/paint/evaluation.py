"""How faithful and how real each method is, on paintings made from photos; what is done is kept, and not done again."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from PIL import Image, ImageFilter
from torch import Tensor

from directions.figures import INK, MUTED, chart, line_styles
from directions.paint.job import Job, Plan, follow, to_canvas
from directions.paint.methods import WITH_GRADIENTS, Method
from directions.photo.faces import available
from directions.photo.reading import to_images, to_tensor
from directions.photo.sets import read_photos, share_of_faces
from directions.progress import Reporter
from flowgrad.files import atomic_path
from flowgrad.guidance.frechet import features, frechet
from flowgrad.guidance.judge import Judge, load_judge
from flowgrad.guidance.text import log_odds
from flowgrad.models import Model
from flowgrad.models.metering import metered
from flowgrad.painting.blur import rmse
from flowgrad.seeds import generator

MEDIAN, COLOURS = 23, 6  # SDEdit's paintings from photos: a median filter of 23 pixels at 256, and six colours
MEDIAN_SIDE = 256


@dataclass(frozen=True)
class Row:
    """One method at one strength.

    rmse: mean over paintings, of blurs, 0 to 1; distance: Frechet's, of a judge's features, to the photos; faces: the
    share in which dlib finds one; text: mean log-odds; evaluations of the network, and seconds, for each image.
    """

    method: str
    strength: float
    steps: int | None
    rmse: float
    distance: float | None
    faces: float | None
    text: float | None
    evaluations: float
    seconds: float


def painted(photo: Image.Image) -> Image.Image:
    """A painting made from a square RGB photo: a median filter, then six colours (SDEdit, appendix C)."""
    size = max(3, round(MEDIAN * photo.width / MEDIAN_SIDE) // 2 * 2 + 1)
    smooth = photo.filter(ImageFilter.MedianFilter(size))
    return smooth.quantize(COLOURS, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).convert("RGB")


def label(plan: Plan) -> str:
    """A plan's name in figures: "gradop+ 4 steps"."""
    steps = "" if plan.steps is None else f" {plan.steps} steps"
    return f"{plan.method.value}{steps}"


class Evaluation:
    """Paintings (B, 3, H, W) of photos, and the photos that results are compared with.

    folder: where each plan's figures are kept. Whoever runs the same plan again on the same paintings gets
    what is kept.
    """

    def __init__(
        self, job: Job, strokes: Tensor, own: Tensor, photos: Tensor, judge: Judge | None, folder: Path
    ) -> None:
        self.job, self.strokes, self.own, self.judge, self.folder = job, strokes, own, judge, folder
        self.wanted = features(judge, photos) if judge else None
        facts = [job.model.fingerprint, str(job.target), judge.fingerprint if judge else ""]
        pixels = [hashlib.sha256(part.cpu().numpy().tobytes()).hexdigest() for part in (strokes, photos)]
        self.key = hashlib.sha256(json.dumps(facts + pixels).encode()).hexdigest()[:16]

    def of_photos(self, reporter: Reporter) -> Row:
        """The figures of the photos that the paintings were made of."""
        return self.measure("photos", 0.0, None, self.own, 0, 0, reporter)

    def row(self, plan: Plan, reporter: Reporter) -> Row:
        """Run a plan on all paintings, each with noise of its own, and measure it; or read what was measured before."""
        written = json.dumps([self.key, *map(str, (plan.method.value, plan.used, plan.steps, plan.seed))])
        kept = self.folder / f"{hashlib.sha256(written.encode()).hexdigest()[:16]}.json"
        if kept.is_file():
            return Row(**json.loads(kept.read_text(encoding="utf-8")))
        began, (model, account) = perf_counter(), metered(self.job.model)
        images = torch.cat(list(reporter.track(self._batches(plan, model), f"{label(plan)} at {plan.used:g}")))
        seconds = (perf_counter() - began) / len(images)
        passes = account.spent.evaluations + 2 * account.spent.products  # a product goes forwards and backwards
        row = self.measure(label(plan), plan.used, plan.steps, images, passes / len(images), seconds, reporter)
        with atomic_path(kept) as temporary:
            temporary.write_text(json.dumps(asdict(row)), encoding="utf-8")
        return row

    def _batches(self, plan: Plan, model: Model) -> Iterable[Tensor]:
        size = model.batch
        for start in range(0, len(self.strokes), size):
            strokes = self.strokes[start : start + size]
            keys = [(plan.seed, start + i) for i in range(len(strokes))]
            *_, images = follow(to_canvas(model, strokes, plan, keys, self.job.words), plan)
            yield images

    def measure(
        self,
        name: str,
        strength: float,
        steps: int | None,
        images: Tensor,
        evaluations: float,
        seconds: float,
        reporter: Reporter,
    ) -> Row:
        """The figures of images (B, 3, H, W)."""
        job = self.job
        text = float(log_odds(job.guide, images, [job.target]).mean()) if job.guide and job.target else None
        faces = share_of_faces(images, reporter) if available() and job.model.config.aligned_faces else None
        distance = None
        if self.judge and self.wanted is not None:
            distance = frechet(features(self.judge, images), self.wanted)
        faithful = float(rmse(images, self.strokes).mean())
        return Row(name, strength, steps, faithful, distance, faces, text, evaluations, seconds)


def prepare(
    job: Job, photos: Path, splits: Path | None, count: int, judge: str, folder: Path, reporter: Reporter
) -> Evaluation:
    """Read photos, make paintings of `count` of them, and get ready to compare results with all of them.

    Raises UsageError for photos of which none can be used.
    """
    model = job.model
    read = read_photos(photos, splits, "test", model.config.size, reporter).to(model.device)
    name = judge or model.config.judge
    chosen = torch.randperm(len(read), generator=generator(0))[:count].tolist()
    strokes = to_tensor([painted(photo) for photo in to_images(read[chosen])]).to(model.device)
    return Evaluation(
        job, strokes, read[chosen], read, load_judge(name, model.device) if name else None, folder / "done"
    )


def plans(methods: Sequence[Method], strengths: Sequence[float], steps: Sequence[int | None], seed: int) -> list[Plan]:
    """One plan for each method at each strength, and for each number of gradient steps where it takes them."""
    return [
        Plan(method, strength, number, seed)
        for strength in strengths
        for method in methods
        for number in (steps if method in WITH_GRADIENTS else (None,))
    ]


def write(photos: Row, rows: Sequence[Row], paintings: int, picture: Path, table: Path) -> dict[str, Any]:
    """Draw the faithful / real curve, and write the figures as JSON; what that says."""
    curve(rows, picture, photos)
    data = {"paintings": paintings, "photos": asdict(photos), "rows": list(map(asdict, rows))}
    with atomic_path(table) as temporary:
        temporary.write_text(json.dumps(data, indent=2), encoding="utf-8")
    return data


def table_rows(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Head and rows of a table."""
    head = ["method", "strength", "RMSE of blurs", "Frechet", "faces", "text", "evaluations", "seconds"]
    forms = {"rmse": ".4f", "distance": ".2f", "faces": ".1%", "text": "+.2f", "evaluations": ".0f", "seconds": ".2f"}
    cells = [
        ["" if (value := getattr(row, name)) is None else format(value, form) for name, form in forms.items()]
        for row in rows
    ]
    return head, [[row.method, f"{row.strength:g}", *rest] for row, rest in zip(rows, cells, strict=True)]


def curve(rows: Sequence[Row], path: Path, photos: Row) -> Path:
    """Draw each method's RMSE against its Frechet distance, a point for each strength, into a PNG."""
    styles = line_styles(row.method for row in rows if row.distance)  # there is none without a judge
    with chart(path, (7, 4.4), 1) as (axes,):
        for method, style in styles.items():
            own = sorted(
                (row.rmse, row.distance, row.strength) for row in rows if row.method == method and row.distance
            )
            axes.plot([x for x, _, _ in own], [y for _, y, _ in own], marker="o", lw=1.4, ms=4, **style)
            for x, y, strength in own:
                axes.annotate(f"{strength:g}", (x, y), (3, 3), textcoords="offset points", fontsize=7, color=MUTED)
        if photos.distance is not None:
            axes.plot(photos.rmse, photos.distance, "*", color=INK, ms=9, label="the photos themselves")
        axes.set(xlabel="RMSE of blurs (faithful is left)", ylabel="Frechet distance (real is low)")
        axes.legend(frameon=False, fontsize=8)
    return path
