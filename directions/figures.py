"""Pictures for people: strips, contact sheets, before and after, and the curves of a training.

Images are drawn with Pillow, so that applying a direction never waits for matplotlib; curves with matplotlib.
"""

import base64
import io
from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from PIL import Image, ImageDraw, ImageFont

from directions.photo.writing import save_image
from flowgrad.errors import UsageError
from flowgrad.files import atomic_path

if TYPE_CHECKING:
    from matplotlib.axes import Axes


TILE = 128  # pixels a small image is enlarged to, about
GAP, MARGIN = 6, 16
PAPER, INK, MUTED = "white", "#1d1d22", "#6a6a74"
TITLE_SIZE, LABEL_SIZE = 18, 13
PER_BLOCK = 10  # photos side by side before a figure goes on below
THUMBNAIL_FACES = 3
COLOURS = ("#1f5fa8", "#c8501e", "#2e8b57", "#7d4bb0", "#8a6d1b")


class Evaluation(Protocol):
    """What a figure needs of one evaluation in a training; see `flowgrad.optimize.Step`."""

    @property
    def iteration(self) -> int: ...
    @property
    def terms(self) -> Mapping[str, float]: ...
    @property
    def best(self) -> bool: ...


class _Layout(NamedTuple):
    """Where a sheet's tiles go: side of a tile, columns, left and top of the first, height of a row."""

    side: int
    columns: int
    left: int
    top: int
    row: int

    def corner(self, index: int) -> tuple[int, int]:
        """The upper left corner of tile `index`, counted row by row."""
        row, column = divmod(index, self.columns)
        return self.left + column * (self.side + GAP), self.top + row * self.row

    def size(self, count: int) -> tuple[int, int]:
        """(width, height) of a sheet of `count` tiles."""
        rows = -(-count // self.columns)
        return self.left + self.columns * (self.side + GAP) - GAP + MARGIN, self.top + rows * self.row - GAP + MARGIN


def strength_label(strength: float) -> str:
    """Write a strength as a label: "photo" for 0, else signed, with a true minus: "−1", "+0.5"."""
    return "photo" if strength == 0 else f"{strength:+g}".replace("-", "−")


def enlarge(image: Image.Image, tile: int = TILE) -> Image.Image:
    """Enlarge a small image by a whole factor to about `tile` pixels, smoothly; larger ones stay as they are."""
    factor = max(1, round(tile / max(image.size)))
    size = (image.width * factor, image.height * factor)
    return image if factor == 1 else image.resize(size, Image.Resampling.LANCZOS)


def contact_sheet(
    images: Sequence[Image.Image], labels: Sequence[str] = (), columns: int = 8, title: str = "", tile: int = TILE
) -> Image.Image:
    """Images of one size in rows of `columns`, each above its label; no labels at all save the space.

    Raises UsageError for no image, or another number of labels than of images.
    """
    if not images or (labels and len(labels) != len(images)):
        raise UsageError(f"a contact sheet needs images and one label each; got {len(images)} and {len(labels)}")
    tiles = [enlarge(image, tile) for image in images]
    label_height = LABEL_SIZE + 7 if any(labels) else 0
    side = max(tiles[0].size)
    layout = _Layout(side, min(columns, len(tiles)), MARGIN, _top(title), side + label_height + GAP)
    sheet, draw = _new_sheet(layout.size(len(tiles)), title)
    for index, image in enumerate(tiles):
        x, y = layout.corner(index)
        sheet.paste(image, (x, y))
        if label_height:
            _centred(draw, labels[index], x + side // 2, y + side + 3, side)
    return sheet


def strip(images: Sequence[Image.Image], labels: Sequence[str], title: str = "") -> Image.Image:
    """One row: a photo at several strengths, each above its label."""
    return contact_sheet(images, labels, max(1, len(images)), title)


def before_after(rows: Mapping[str, Sequence[Image.Image]], title: str = "", per_block: int = PER_BLOCK) -> Image.Image:
    """Rows of the same photos, each with its label on the left: the photo, and below it what became of it.

    More than `per_block` photos go on in a further block below. Raises UsageError for no photo, or rows that differ
    in length.
    """
    counts = {len(images) for images in rows.values()}
    if len(counts) != 1 or counts == {0}:
        raise UsageError(f"rows of a figure need the same number of photos, at least 1; got {sorted(counts)}")
    (count,) = counts
    blocks = [_block({k: v[i : i + per_block] for k, v in rows.items()}) for i in range(0, count, per_block)]
    width = max(MARGIN * 2 + block.width for block in blocks)
    height = _top(title) + sum(block.height + 2 * GAP for block in blocks) - 2 * GAP + MARGIN
    sheet, _ = _new_sheet((width, height), title)
    y = _top(title)
    for block in blocks:
        sheet.paste(block, (MARGIN, y))
        y += block.height + 2 * GAP
    return sheet


def _block(rows: Mapping[str, Sequence[Image.Image]]) -> Image.Image:
    tiles = {label: [enlarge(image) for image in images] for label, images in rows.items()}
    first = next(iter(tiles.values()))
    side, left = max(first[0].size), int(max(_font(LABEL_SIZE).getlength(label) for label in rows)) + 10
    size = (left + len(first) * (side + GAP) - GAP, len(rows) * (side + GAP) - GAP)
    block = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(block)
    for j, (label, images) in enumerate(tiles.items()):
        y = j * (side + GAP)
        draw.text((left - 10, y + side // 2), label, INK, _font(LABEL_SIZE), anchor="rm")
        for i, image in enumerate(images):
            block.paste(image, (left + i * (side + GAP), y))
    return block


def preview(before: Sequence[Image.Image], after: Sequence[Image.Image]) -> bytes:
    """A PNG for the bank: samples of the model above, and what the direction makes of them below.

    Give samples that no training used, never a user's photos: a bank is there to be passed on.
    """
    tiles = [enlarge(image) for image in chain(before, after)]
    side, columns = max(tiles[0].size), len(before)
    sheet = Image.new("RGB", (columns * (side + 2) - 2, 2 * side + 2), PAPER)
    for index, tile in enumerate(tiles):
        row, column = divmod(index, columns)
        sheet.paste(tile, (column * (side + 2), row * (side + 2)))
    return _encoded(sheet, "PNG")


def thumbnail(before: Sequence[Image.Image], after: Sequence[Image.Image], limit: int = 30_000) -> str:
    """A data URL (JPEG, `limit` bytes at most) of a few samples before and after, for a direction file's header.

    Give samples of the model, never a user's photos: the header travels with the file wherever it is sent.
    """
    count = min(THUMBNAIL_FACES, len(before))
    side = min(96, max(before[0].size))
    sheet = Image.new("RGB", (count * side, 2 * side), PAPER)
    for row, images in enumerate((before, after)):
        for column, image in enumerate(images[:count]):
            sheet.paste(image.resize((side, side), Image.Resampling.LANCZOS), (column * side, row * side))
    fits = (raw for raw in (_encoded(sheet, "JPEG", quality) for quality in (90, 75, 50, 25)) if len(raw) <= limit)
    raw = next(fits, b"")
    return f"data:image/jpeg;base64,{base64.b64encode(raw).decode()}" if raw else ""


def curves(
    history: Sequence[Evaluation],
    straightness: Sequence[float],
    knots: Sequence[int],
    path: Path,
    overwrite: bool = False,
) -> Path:
    """Draw a training into a PNG: the loss and its terms, and the straightness over time with the grid's knots.

    straightness: S(k) of Eq. 11 for the N Euler steps, averaged over the photos; knots: the M + 1 ends of the
    intervals, in steps. Returns the path. Raises UsageError for a file that exists (unless `overwrite`).
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    style: dict[Any, Any] = {
        "font.family": "DejaVu Sans",
        "font.size": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    with mpl.rc_context(style):
        figure = Figure(figsize=(10, 3.6), dpi=120, layout="constrained")
        left, right = figure.subplots(1, 2)
        _draw_losses(left, history)
        _draw_straightness(right, straightness, knots)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png")
    with Image.open(buffer) as image:
        return save_image(image, path, overwrite)


def _draw_losses(axes: "Axes", history: Sequence[Evaluation]) -> None:
    at = [record.iteration for record in history]
    for colour, name in zip(COLOURS[1:], history[0].terms, strict=False):
        axes.plot(at, [record.terms[name] for record in history], color=colour, lw=1.3, label=name)
    totals = [sum(record.terms.values()) for record in history]
    axes.plot(at, totals, color=COLOURS[0], lw=2, label="loss")
    best = [(i, total) for i, total, record in zip(at, totals, history, strict=True) if record.best][-1:]
    for i, total in best:
        axes.plot(i, total, "o", color=COLOURS[0], ms=6, label="kept")
    axes.set(xlabel="iteration", ylabel="mean over the photos", title="Loss and its terms")
    axes.locator_params(axis="x", integer=True)
    axes.legend(frameon=False, fontsize=9)


def _draw_straightness(axes: "Axes", straightness: Sequence[float], knots: Sequence[int]) -> None:
    steps = len(straightness)
    axes.plot([k / steps for k in range(steps)], straightness, color=COLOURS[0], lw=1.5)
    if max(straightness) > 10 * min(straightness) > 0:  # less than a decade has no ticks on a logarithmic scale
        axes.set_yscale("log")
    for knot in knots:
        axes.axvline(knot / steps, 0, 0.04, color=COLOURS[1], lw=1.2)
    axes.set(xlabel="t (0 noise, 1 photo)", ylabel="S", xlim=(-0.02, 1.02))
    axes.set_title(f"Straightness, and the grid's {len(knots) - 1} intervals")


def write_png(raw: bytes, path: Path) -> Path:
    """Write an encoded image, through a temporary file. Returns the path."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(raw)
    return path


def _encoded(image: Image.Image, kind: str, quality: int = 90) -> bytes:
    buffer = io.BytesIO()
    options = {"quality": quality, "optimize": True} if kind == "JPEG" else {"optimize": True}
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _new_sheet(size: tuple[int, int], title: str) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    sheet = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(sheet)
    if title:
        draw.text((MARGIN, MARGIN - 3), _fitted(title, size[0] - 2 * MARGIN, TITLE_SIZE), INK, _font(TITLE_SIZE))
    return sheet, draw


def _top(title: str) -> int:
    return MARGIN + (TITLE_SIZE + 12 if title else 0)


def _centred(draw: ImageDraw.ImageDraw, text: str, x: int, y: int, width: int) -> None:
    draw.text((x, y), _fitted(text, width, LABEL_SIZE), MUTED, _font(LABEL_SIZE), anchor="ma")


def _fitted(text: str, width: int, size: int) -> str:
    """Shorten a text with an ellipsis until it fits into `width` pixels."""
    font = _font(size)
    if font.getlength(text) <= width:
        return text
    kept = next((n for n in range(len(text), 0, -1) if font.getlength(text[:n].rstrip() + "…") <= width), 0)
    return text[:kept].rstrip() + "…"


@lru_cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """DejaVu Sans from matplotlib's files, found without importing it."""
    spec = find_spec("matplotlib")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(folder) / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"
        if path.is_file():
            return ImageFont.truetype(path, size)
    return ImageFont.load_default(size)
